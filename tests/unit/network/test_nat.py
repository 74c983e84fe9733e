"""``UPDATE_GOLDEN=1 pytest tests/unit/network`` writes the golden files anew; read the difference."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.network import egress, nat, nft
from ecompute.network.egress import HostRules
from ecompute.network.flows import Flow
from ecompute.network.nat import InsideRules

GOLDEN = Path(__file__).parents[2] / "golden" / "network"

BARE = InsideRules(cidr="10.0.0.0/24", gateway="10.0.0.1")
WHOLE = InsideRules(
    cidr="10.0.0.0/24",
    gateway="10.0.0.1",
    has_dhcp=True,
    has_dhcp6=True,
    has_dns=True,
    has_nat=True,
    floating=frozenset({("203.0.113.5", "10.0.0.5"), ("203.0.113.10", "10.0.0.10"), ("203.0.113.9", "10.0.0.9")}),
    routed=frozenset({"203.0.113.7", "203.0.113.70"}),
)
HOST = HostRules(
    device="eth0",
    addresses=frozenset({"203.0.113.5", "203.0.113.7"}),
    refused=frozenset({"192.0.2.1", "192.0.2.2"}),
    resolvers=frozenset({"192.0.2.53"}),
)


@pytest.mark.parametrize(
    ("name", "tables", "rules"),
    [
        ("inside-nothing.json", [nat.TABLE], BARE),
        ("inside-everything.json", [nat.TABLE], WHOLE),
        ("egress-none.json", egress.TABLES, HostRules(device=None)),
        ("egress.json", egress.TABLES, HOST),
    ],
)
def test_the_rules_are_the_golden_ones(name: str, tables: Any, rules: InsideRules | HostRules) -> None:
    rendered = nft.script(tables, rules.items())
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(rendered, encoding="utf-8")
    assert rendered == (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("tables", "rules"), [([nat.TABLE], WHOLE), (egress.TABLES, HOST)])
def test_no_command_names_a_table_that_is_not_ours(tables: Any, rules: InsideRules | HostRules) -> None:
    for command in json.loads(nft.script(tables, rules.items()))["nftables"]:
        ((verb, item),) = command.items()
        ((kind, body),) = item.items()
        assert verb in ("add", "delete")
        assert (body["family"], body["name" if kind == "table" else "table"]) in tables


@pytest.mark.parametrize("rules", [BARE, WHOLE, HOST, HostRules(device=None)])
def test_a_listing_is_compared_in_whatever_order_its_sets_are(rules: InsideRules | HostRules) -> None:
    listed: list[Any] = [{"metainfo": {"version": "1.0.6"}}]
    for handle, item in enumerate(rules.items()):
        ((kind, body),) = item.items()
        listed.append({kind: {**body, "handle": handle}})
        if "elem" in body:
            listed[-1][kind]["elem"] = body["elem"][::-1]
    assert nft.normalise(json.dumps({"nftables": listed})) == rules.items()


def text(rules: InsideRules) -> str:
    return json.dumps(rules.items())


def test_what_a_network_does_not_have_has_no_rule() -> None:
    for port in (53, 67, 547):
        assert f'"right": {port}}}' not in text(BARE)
        assert f'"right": {port}}}' in text(WHOLE)
    assert "masquerade" not in text(BARE)


names = st.sampled_from(["203.0.113.5", "203.0.113.6", "10.0.0.5", "10.0.0.6", "198.51.100.1", "169.254.7.7"])


@given(names, names, names, names)
def test_a_flow_goes_on_only_if_the_rules_translate_it_so(
    source: str, destination: str, answer_source: str, answer_destination: str
) -> None:
    rules = InsideRules(cidr=None, gateway="10.0.0.1", floating=frozenset({("203.0.113.5", "10.0.0.5")}))
    flow = Flow(source, destination, answer_source, answer_destination, b"")
    is_in = destination == answer_source or (destination, answer_source) == ("203.0.113.5", "10.0.0.5")
    is_out = (
        source == answer_destination
        or answer_destination == "169.254.7.7"
        or (source, answer_destination) == ("10.0.0.5", "203.0.113.5")
    )
    assert flow.follows_from(rules, "169.254.7.7") == (is_in and is_out)
