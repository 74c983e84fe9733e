"""The import rules name every module that they are about."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_part_of_the_host_is_out_of_reach_for_the_leaf_and_for_who_asks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    parts = {
        f"ecompute.{path.stem}"
        for path in (ROOT / "ecompute").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.stem.startswith("__")
    } - {"ecompute.cluster"}
    for source in ("ecompute.cluster", "eschedule"):
        forbidden = {name for c in contracts if c["source_modules"] == [source] for name in c["forbidden_modules"]}
        assert parts <= forbidden, f"{source} could import {parts - forbidden}"
