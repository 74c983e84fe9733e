"""Which hosts are lost, and which are back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.upkeep.lost import judge

HOSTS = st.sampled_from("abcd")
SETS = st.frozensets(HOSTS)


@given(SETS, SETS, SETS, SETS, st.dictionaries(HOSTS, st.floats(0, 100)), st.floats(100, 300))
def test_only_a_host_that_was_silent_long_enough_is_lost(
    registered: frozenset[str],
    alive: frozenset[str],
    stopped: frozenset[str],
    marked: frozenset[str],
    missing: dict[str, float],
    now_s: float,
) -> None:
    found = judge(
        registered=registered,
        alive=alive,
        stopped=stopped,
        marked=marked,
        missing=missing,
        now_s=now_s,
        lost_after_s=60,
    )
    assert not found.lost & (alive | stopped | marked)
    assert found.lost <= registered
    assert all(now_s - missing[provider] >= 60 for provider in found.lost)
    assert found.back == marked & (alive | stopped)
    assert found.missing.keys() == registered - alive - stopped


def test_a_host_is_lost_after_its_time_and_not_before() -> None:
    missing: dict[str, float] = {}
    for now_s in range(0, 60, 10):
        found = judge(registered={"a", "b"}, alive={"b"}, marked=set(), missing=missing, now_s=now_s, lost_after_s=60)
        assert not found.lost
        missing = dict(found.missing)
    found = judge(registered={"a", "b"}, alive={"b"}, marked=set(), missing=missing, now_s=60, lost_after_s=60)
    assert found.lost == {"a"}


def test_a_host_that_is_heard_once_begins_anew() -> None:
    found = judge(registered={"a"}, alive={"a"}, marked=set(), missing={"a": 0}, now_s=59, lost_after_s=60)
    assert not found.missing
    found = judge(registered={"a"}, alive=set(), marked=set(), missing=found.missing, now_s=61, lost_after_s=60)
    assert not found.lost
