"""``UPDATE_GOLDEN=1 pytest tests/unit/network`` writes the golden files anew; read the difference."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ecompute.network.filter import FAMILIES, TABLE, render, rules
from ecompute.network.nft import normalise

GOLDEN = Path(__file__).parents[2] / "golden" / "network"


@pytest.mark.parametrize(("name", "is_wanted"), [("install.json", True), ("remove.json", False)])
def test_the_rules_are_the_golden_ones(name: str, is_wanted: bool) -> None:
    rendered = render(is_wanted=is_wanted)
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(rendered, encoding="utf-8")
    assert rendered == (GOLDEN / name).read_text(encoding="utf-8")


def test_no_command_names_a_table_that_is_not_ours() -> None:
    for is_wanted in (True, False):
        for command in json.loads(render(is_wanted=is_wanted))["nftables"]:
            ((verb, item),) = command.items()
            ((kind, body),) = item.items()
            assert verb in ("add", "delete")
            assert body["family"] in FAMILIES
            assert body["name" if kind == "table" else "table"] == TABLE


def test_a_listing_is_compared_without_handles_and_counts() -> None:
    listed = [{"metainfo": {"version": "1.0.6"}}]
    for handle, item in enumerate(rules()):
        ((kind, body),) = item.items()
        listed.append({kind: {**body, "handle": handle}})
        if kind == "rule":
            counted = [{"counter": {"packets": 7, "bytes": 9}} if "counter" in part else part for part in body["expr"]]
            listed[-1][kind]["expr"] = counted
    assert normalise(json.dumps({"nftables": listed})) == rules()
