"""The reference pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from ecompute.cluster import documents, keys, states
from ecompute.cluster.documents import Document

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


def test_the_state_diagram_is_the_table() -> None:
    page = (DOCS / "states.md").read_text(encoding="utf-8")
    made = page.split("<!-- states: begin -->\n")[1].split("<!-- states: end -->")[0]
    assert made == states.diagram(), "run `python -m ecompute.cluster.states` and put it there"


def rows() -> dict[str, str]:
    page = (DOCS / "key-schema.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(/[^`]+)` \| (\w+) \|", page, re.MULTILINE))


def test_every_document_is_on_the_page_and_no_other() -> None:
    kinds = {name for name, kind in vars(documents).items() if isinstance(kind, type) and issubclass(kind, Document)}
    assert set(rows().values()) == kinds - {"Document"}


def test_every_key_is_on_the_page_as_the_code_makes_it() -> None:
    made = {
        keys.INCARNATION,
        keys.instance("<uuid>"),
        keys.assignment("<provider>", "<uuid>"),
        keys.secrets("<provider>", "<uuid>"),
        keys.seen("<provider>", "<uuid>"),
        keys.booted("<uuid>"),
        keys.node("<provider>"),
        keys.audit("<provider>"),
        keys.admin("<provider>"),
        keys.alive("<provider>"),
        keys.network("<uuid>"),
        keys.port("<uuid>", "<interface>"),
        keys.address("<uuid>", "<ip>"),
        keys.network_host("<uuid>", "<provider>"),
        keys.mac("<uuid>", "<mac>"),
        keys.VNIS + "<n>",
        keys.pool("<name>"),
        keys.floating("<ip>"),
        keys.name("<namespace>", "<kind>", "<name>", "<uuid>"),
        keys.zone("<name>"),
        keys.quota("<namespace>"),
        keys.group("<uuid>"),
        keys.member("<uuid>", "<instance>"),
        keys.tag("<namespace>", "<tag>", "<instance>"),
        keys.gang("<uuid>"),
        keys.used_uuid("<uuid>"),
        keys.idempotency("<namespace>", "<key>"),
        keys.EXPIRIES + "<seconds>/<uuid>",
        keys.copies("<provider>") + "<image>",
        keys.intent("<consumer>"),
        keys.operation("<provider>", "<uuid>"),
        keys.lead("<role>"),
        keys.event_ring("<kind>", "<uuid>", "<writer>") + "<n mod 32>",
    }
    assert set(rows()) == made


def test_every_prefix_of_the_code_is_on_the_page() -> None:
    page = (DOCS / "key-schema.md").read_text(encoding="utf-8")
    for name, value in vars(keys).items():
        if name.isupper() and isinstance(value, str):
            assert value.rstrip("/") in page, f"{name} is not on the page"


def test_every_module_has_its_place_on_the_page_of_the_architecture() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## Where each thing lives")[1].split("```")[1]
    told = {
        package + name
        for package, below in re.findall(r"^((?:ecompute|eschedule|md_server)/\S*)(.*(?:\n .*)*)", tree, re.MULTILINE)
        for name in re.findall(r"\w+\.py", below)
    }
    modules = {path for root in ("ecompute", "eschedule", "md_server") for path in (ROOT / root).rglob("*.py")}
    assert told == {path.relative_to(ROOT).as_posix() for path in modules if not path.name.startswith("__")}
