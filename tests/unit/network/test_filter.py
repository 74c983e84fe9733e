"""``UPDATE_GOLDEN=1 pytest tests/unit/network`` writes the golden files anew; read the difference."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.network import guard, nft
from ecompute.network.guard import FAMILIES, TABLE, TABLES
from ecompute.network.tables import Key, Objects, commands, objects
from ecompute.network.terms import Part, Tap

GOLDEN = Path(__file__).parents[2] / "golden" / "network"

GUEST = Tap("ect0123456789a", "02:00:00:00:00:01", ("10.0.0.1", "203.0.113.7", "fd00::1"))
PARTS = {
    "base.json": None,
    "network.json": Part(
        0x1234,
        frozenset({GUEST, Tap("ect0123456789b", "02:00:00:00:00:02", ("10.0.0.2",))}),
        frozenset({"192.0.2.2", "192.0.2.3"}),
        ("10.0.0.254", "fd00::fe"),
    ),
    "physical-with-range.json": Part(0x1235, frozenset({replace(GUEST, name="ect0123456789d")}), None),
    "physical-without-range.json": Part(0x1236, frozenset({Tap("ect0123456789c", "02:00:00:00:00:03", None)}), None),
}


@pytest.mark.parametrize(("name", "part"), PARTS.items(), ids=PARTS.keys())
def test_the_rules_are_the_golden_ones(name: str, part: Part | None) -> None:
    rendered = nft.as_script(guard.base({0x1234, 0x1237}) if part is None else guard.of_network(part))
    if os.environ.get("UPDATE_GOLDEN"):
        (GOLDEN / name).write_text(rendered, encoding="utf-8")
    assert rendered == (GOLDEN / name).read_text(encoding="utf-8")


def everything(*parts: Part) -> list[Any]:
    virtual = [part.vni for part in parts if part.members is not None]
    return [*guard.base(virtual), *(item for part in parts for item in guard.of_network(part))]


ALL = everything(*(part for part in PARTS.values() if part is not None))


def test_no_command_names_a_table_that_is_not_ours() -> None:
    wanted = objects(ALL)
    scripts = [commands(wanted, {}), commands({}, wanted), json.loads(nft.script(TABLES, ALL))["nftables"]]
    for command in (command for script in scripts for command in script):
        ((verb, item),) = command.items()
        ((kind, body),) = item.items()
        assert verb in ("add", "delete", "flush")
        assert body["family"] in FAMILIES
        assert body["name" if kind == "table" else "table"] == TABLE


def test_a_listing_is_compared_without_handles_and_counts_and_the_order_of_sets() -> None:
    listed: list[Any] = [{"metainfo": {"version": "1.0.6"}}]
    elements = [item["element"] for item in ALL if "element" in item]
    for handle, item in enumerate(ALL):
        ((kind, body),) = item.items()
        if kind == "element":
            continue
        shown = {**body, "handle": handle}
        if kind in ("set", "map"):
            own = [element["elem"][0] for element in elements if element["name"] == body["name"]]
            shown |= {"elem": own[::-1]} if own else {}
        if kind == "rule":
            counted = [{"counter": {"packets": 7, "bytes": 9}} if "counter" in part else part for part in body["expr"]]
            shown["expr"] = json.loads(json.dumps(counted), object_hook=reversed_sets)
        listed.append({kind: shown})
    assert objects(nft.normalise(json.dumps({"nftables": listed}))) == objects(ALL)


def reversed_sets(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value[::-1] if name == "set" and isinstance(value, list) else value for name, value in body.items()}


def test_whose_an_object_is_can_be_seen_from_it() -> None:
    for part in PARTS.values():
        if part is not None:
            owners = {guard.owner(key, text) for key, text in objects(guard.of_network(part)).items()}
            assert owners == {part.vni}
            assert guard.taps_in(objects(guard.of_network(part))) == {tap.name for tap in part.taps}
    base = objects(guard.base({0x1234}))
    assert {guard.owner(key, text) for key, text in base.items()} == {None}
    assert guard.virtual(objects(ALL)) == {0x1234}


# --- from what is found to what is wanted --------------------------------------------------------

taps = st.builds(
    Tap,
    name=st.integers(1, 3).map(lambda n: f"ect0000000000{n}"),
    mac=st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"]),
    addresses=st.sampled_from([None, (), ("10.0.0.1",), ("10.0.0.1", "fd00::1")]),
)
parts = st.builds(
    Part,
    vni=st.integers(1, 3),
    taps=st.frozensets(taps, max_size=3).map(lambda some: frozenset({tap.name: tap for tap in some}.values())),
    members=st.none() | st.frozensets(st.sampled_from(["192.0.2.1", "192.0.2.2"])),
    gateways=st.sampled_from([(), ("10.0.0.254",), ("10.0.0.254", "fd00::fe")]),
)


def own_taps(part: Part) -> Part:
    """No two networks have a tap of one name."""
    return replace(part, taps=frozenset(replace(tap, name=f"ect{part.vni}{tap.name[4:]}") for tap in part.taps))


rulesets = st.just([]) | st.lists(parts, max_size=3, unique_by=lambda part: part.vni).map(
    lambda some: everything(*map(own_taps, some))
)


class Kernel:
    """Tables as the kernel has them: it refuses what names something that is not there, or is still named."""

    def __init__(self, found: Objects) -> None:
        self.rules = {key: json.loads(text) for key, text in found.items()}

    def do(self, command: dict[str, Any]) -> None:
        ((verb, item),) = command.items()
        ((kind, body),) = item.items()
        key = Key(
            kind, body["family"], body.get("table", body["name"] if kind == "table" else ""), body.get("name", "")
        )
        if kind == "table":
            assert verb == "add" or all(other.table != key.table or other.kind == "table" for other in self.rules)
            key = Key("table", body["family"], body["name"], "")
        if kind == "element":
            (element,) = body["elem"]
            assert {key._replace(kind="set"), key._replace(kind="map")} & self.rules.keys()
            key = key._replace(element=json.dumps(element[0] if isinstance(element, list) else element))
        if kind == "rule":
            chain = Key("chain", body["family"], body["table"], body["chain"])
            self._names_what_is_there(body["family"], body["expr"])
            self.rules[chain]["rules"].append(body["expr"])
        elif verb == "flush":
            self.rules[key]["rules"] = []
        elif verb == "delete":
            assert kind != "chain" or self.rules[key]["rules"] == []
            del self.rules[key]
            left = json.dumps([content for other, content in self.rules.items() if other.family == key.family])
            assert f'{{"target": "{key.name}"}}' not in left or kind != "chain"
            assert f'"@{key.name}"' not in left or kind not in ("set", "map")
        elif kind == "chain":
            spec = {name: value for name, value in body.items() if name not in ("family", "table", "name")}
            self.rules.setdefault(key, {"spec": spec, "rules": []})
        elif kind == "element":
            self._names_what_is_there(body["family"], body["elem"])
            assert key not in self.rules
            self.rules[key] = body["elem"][0]
        else:
            self.rules[key] = {n: value for n, value in body.items() if n not in ("family", "table", "name")}
        if kind == "table" and verb == "add":
            self.rules[key] = {}

    def _names_what_is_there(self, family: str, expression: Any) -> None:
        chains = {key.name for key in self.rules if key.kind == "chain" and key.family == family}
        sets = {key.name for key in self.rules if key.kind in ("set", "map") and key.family == family}
        text = json.dumps(expression)
        for part in text.split('{"target": "')[1:]:
            assert part.split('"')[0] in chains
        for part in text.split('"@')[1:]:
            assert part.split('"')[0] in sets

    def found(self) -> Objects:
        return {key: json.dumps(content, sort_keys=True) for key, content in self.rules.items()}


@given(rulesets, rulesets)
def test_the_commands_lead_from_what_is_found_to_what_is_wanted(before: list[Any], after: list[Any]) -> None:
    found, wanted = objects(before), objects(after)
    kernel = Kernel(found)
    script = commands(wanted, found)
    for command in script:
        kernel.do(command)
    assert objects_of(kernel.found()) == wanted
    assert commands(wanted, wanted) == []


def objects_of(found: Objects) -> Objects:
    """With the members of sets in order, as `objects` has them."""
    items: list[Any] = []
    for key, text in found.items():
        content = json.loads(text)
        named = {"family": key.family, "table": key.table, "name": key.name}
        if key.kind == "table":
            items.append({"table": {"family": key.family, "name": key.table}})
        elif key.kind == "chain":
            items.append({"chain": {**named, **content["spec"]}})
            items += [
                {"rule": {"family": key.family, "table": key.table, "chain": key.name, "expr": expression}}
                for expression in content["rules"]
            ]
        elif key.kind == "element":
            items.append({"element": {**named, "elem": [content]}})
        else:
            items.append({key.kind: {**named, **content}})
    return objects(items)


@given(parts, taps)
def test_a_tap_that_comes_changes_nothing_but_its_own(part: Part, tap: Tap) -> None:
    others = frozenset(other for other in part.taps if other.name != tap.name)
    before = everything(Part(part.vni, others, part.members, part.gateways))
    after = everything(Part(part.vni, others | {tap}, part.members, part.gateways))
    script = commands(objects(after), objects(before))
    assert {verb for command in script for verb in command} == {"add"}
    assert all(tap.name in json.dumps(command) for command in script)
