"""Who may write: roles hold what the reference page says, and a host's end at its own keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster import keys, roles
from ecompute.cluster.roles import Access, Grant

MINE = "00000000-0000-0000-0000-00000000000a"
ANOTHERS = "00000000-0000-0000-0000-00000000000b"
PAGE = (Path(__file__).parents[3] / "docs" / "key-schema.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(/[^`]+)` \| \w+ \| ([^|]+) \|", PAGE, re.MULTILINE)


def test_the_table_of_roles_is_the_code() -> None:
    made = PAGE.split("<!-- roles: begin -->\n")[1].split("<!-- roles: end -->")[0]
    assert made == roles.table(), "run `python -m ecompute.cluster.roles` and put it there"


@pytest.mark.parametrize(("key", "writers"), ROWS, ids=[key for key, _ in ROWS])
def test_who_the_page_says_writes_a_key_may_write_it_and_no_other_host(key: str, writers: str) -> None:
    key = key.replace("<writer>", "<provider>")
    is_hosts = re.search(r"\bhost\b", writers) is not None or "who makes the change" in writers
    assert roles.may_write(roles.host("<provider>"), key) is is_hosts
    if "<provider>" in key:
        assert not roles.may_write(roles.host("<another>"), key)
    if re.search(r"\blead\b", writers) or "any daemon" in writers:
        assert roles.may_write(roles.upkeep(), key)
    assert roles.may_write(roles.tool(), key)


def test_what_only_hosts_write_the_lead_does_not() -> None:
    for key in (
        keys.node(MINE),
        keys.audit(MINE),
        keys.alive(MINE),
        keys.load(MINE),
        keys.copies(MINE),
        keys.INCARNATION,
    ):
        assert not roles.may_write(roles.upkeep(), key)
        assert roles.may_read(roles.upkeep(), key)


def test_a_host_reads_what_it_acts_on_and_writes_none_of_it() -> None:
    for key in (
        keys.INCARNATION,
        keys.assignments(MINE),
        keys.secrets(MINE, "u"),
        keys.admin(MINE),
        keys.network("n"),
        keys.ports("n"),
        keys.network_hosts("n"),
        keys.gang("g"),
    ):
        assert roles.may_read(roles.host(MINE), key)
        assert not roles.may_write(roles.host(MINE), key)


@given(st.lists(st.text("abcdef0123456789-./", max_size=40), max_size=4).map("/".join))
def test_no_key_of_a_host_is_another_hosts(rest: str) -> None:
    for prefix in (
        "/hosts/",
        "/secrets/",
        "/seen/",
        "/operations/",
        "/copies/",
        "/events/",
        "/nodes/",
        "/alive/",
        "/audits/",
    ):
        for key in (f"{prefix}{ANOTHERS}", f"{prefix}{ANOTHERS}/{rest}", f"{prefix}{rest}"):
            if MINE not in key:
                assert not roles.may_write(roles.host(MINE), key)
                assert not roles.may_read(roles.host(MINE), key)


@pytest.mark.parametrize(
    "key",
    [keys.INSTANCES, keys.NAMES, keys.QUOTAS, keys.GROUPS, keys.INTENTS, keys.UUIDS, keys.IDEMPOTENCY, keys.EXPIRIES],
)
def test_what_concerns_no_host_a_host_does_not_even_read(key: str) -> None:
    assert not roles.may_read(roles.host(MINE), key)
    assert not roles.may_write(roles.host(MINE), key)


def test_a_role_tells_whose_it_is() -> None:
    assert roles.provider_of(roles.host_role(MINE)) == MINE
    for other in (roles.UPKEEP, roles.TOOL, "root", "ecompute-host-x", MINE):
        assert roles.provider_of(other) is None


def test_a_grant_covers_what_begins_with_it() -> None:
    grant = Grant(keys.node(MINE), Access.BOTH)
    assert grant.covers(keys.node(MINE))
    assert not grant.covers(keys.node(ANOTHERS))
    assert not grant.covers(keys.node(MINE[:-1]))
