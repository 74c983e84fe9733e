"""Every key is made in one place, and no part of it can name another."""

from __future__ import annotations

import pytest

from ecompute.cluster import keys
from ecompute.cluster.errors import InvalidInput


@pytest.mark.parametrize("part", ["", "a/b", "a\x00b", "/"])
def test_a_part_with_a_slash_or_nul_is_refused(part: str) -> None:
    with pytest.raises(InvalidInput):
        keys.instance(part)
    with pytest.raises(InvalidInput):
        keys.assignment("p", part)
    with pytest.raises(InvalidInput):
        keys.name("system", "instance", part, "u")


def test_what_a_host_acts_on_or_writes_has_its_provider_first() -> None:
    for key in (keys.assignment("p", "u"), keys.secrets("p", "u"), keys.seen("p", "u"), keys.operation("p", "u")):
        assert keys.parts(key)[1] == "p"
    for key in (keys.node("p"), keys.alive("p"), keys.admin("p")):
        assert keys.parts(key)[1:] == ["p"]
    assert keys.parts(keys.event("instance", "u", "p", 0))[1] == "p"


def test_the_old_keys_have_their_old_names() -> None:
    assert keys.assignment("p", "u") == "/hosts/p/u"
    assert keys.booted("u") == "/booted/u"


def test_events_are_a_ring() -> None:
    assert keys.event("instance", "u", "w", 33) == keys.event("instance", "u", "w", 1) == "/events/w/instance/u/1"
