"""What upkeep does for gangs."""

from __future__ import annotations

from collections.abc import KeysView, Mapping

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import GangState, State
from ecompute.cluster.upkeep.decide import keep
from ecompute.cluster.upkeep.gang_plan import (
    GangMember,
    GangRecord,
    GangRepairs,
    GangsLook,
    gang_repairs,
)

GRACE_S = 60.0
WRITING = GangRecord(GangState.WRITING, 7, frozenset({"a", "b"}))
CANCELLED = GangRecord(GangState.CANCELLED, 8, frozenset({"a", "b"}))
COMMITTED = GangRecord(GangState.COMMITTED, 8, frozenset({"a", "b"}))


def look(
    at_s: float, records: Mapping[str, GangRecord] | None = None, members: Mapping[str, GangMember] | None = None
) -> GangsLook:
    return GangsLook(at_s, at_s, records or {}, members or {})


def member(state: State = State.INITIAL, *, is_gone: bool = False) -> GangMember:
    return GangMember("g", state, is_gone)


class Records(dict[str, GangRecord]):
    """Counts how often all of its keys are gone through."""

    looks = 0

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        self.looks += 1
        return super().keys()


def test_the_records_are_gone_through_once_however_many_members_there_are() -> None:
    records = Records({f"g{n}": COMMITTED for n in range(50)})
    members = {f"m{n}": member() for n in range(50)}
    then, now = look(0, records, members), look(60, records, members)
    assert gang_repairs(then, now).orphaned == {"g": frozenset(members)}
    assert records.looks <= 2


def test_a_record_that_nobody_writes_for_the_grace_period_is_cancelled() -> None:
    then = look(0, {"g": WRITING})
    assert gang_repairs(then, look(59, {"g": WRITING})) == GangRepairs()
    assert gang_repairs(then, look(60, {"g": WRITING})).cancel == {"g": 7}
    assert gang_repairs(None, look(60, {"g": WRITING})) == GangRepairs()


def test_a_record_that_was_written_meanwhile_is_not_cancelled() -> None:
    newer = GangRecord(GangState.WRITING, 9, WRITING.members)
    assert gang_repairs(look(0, {"g": WRITING}), look(60, {"g": newer})).cancel == {}


def test_a_member_of_a_cancelled_gang_is_destroyed_once_its_host_has_refused_it() -> None:
    for refused in (member(is_gone=True), member(State.ERROR, is_gone=True)):
        assert gang_repairs(None, look(0, {"g": CANCELLED}, {"a": refused})).destroy == ("a",)
    for other in (member(), member(State.ERROR), member(State.DELETING, is_gone=True)):
        assert gang_repairs(None, look(0, {"g": CANCELLED}, {"a": other})).destroy == ()


def test_a_member_that_failed_in_a_committed_gang_stays() -> None:
    failed = {"a": member(State.ERROR, is_gone=True)}
    assert gang_repairs(look(0, {"g": COMMITTED}, failed), look(60, {"g": COMMITTED}, failed)) == GangRepairs()


def test_a_record_goes_with_the_last_member() -> None:
    for record in (COMMITTED, CANCELLED):
        then, now = look(0, {"g": record}), look(60, {"g": record})
        assert gang_repairs(then, now).forget == {"g": 8}
        one = {"b": member()}
        assert gang_repairs(look(0, {"g": record}, one), now).forget == {}
        assert gang_repairs(then, look(60, {"g": record}, one)).forget == {}


def test_a_gang_whose_record_is_gone_is_given_one_that_is_cancelled() -> None:
    one = {"a": member(), "b": member()}
    assert gang_repairs(look(0, {}, one), look(60, {}, one)).orphaned == {"g": frozenset("ab")}
    assert gang_repairs(look(0), look(60, {}, one)).orphaned == {}, "its record may be younger than the look"
    assert gang_repairs(look(0, {"g": COMMITTED}, one), look(60, {}, one)).orphaned == {}


RECORDS = st.dictionaries(
    st.sampled_from("gh"),
    st.builds(
        GangRecord, st.sampled_from(GangState), st.integers(1, 2), st.frozensets(st.sampled_from("abcd"), min_size=1)
    ),
)
MEMBERS = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(GangMember, st.sampled_from("gh"), st.sampled_from(State), st.booleans()),
)
LOOKS = st.builds(lambda at, r, m: GangsLook(at, at + 1, r, m), st.floats(0, 200), RECORDS, MEMBERS)


@given(LOOKS, LOOKS)
def test_no_repair_speaks_of_a_committed_gang_that_has_members(before: GangsLook, now: GangsLook) -> None:
    repairs = gang_repairs(before, now)
    committed = {g for g, record in now.records.items() if record.state is GangState.COMMITTED}
    assert not committed & (repairs.cancel.keys() | repairs.orphaned.keys())
    assert not any(now.members[uuid].gang in committed for uuid in repairs.destroy)
    assert not any(now.records[g].members & now.members.keys() for g in repairs.forget)


@given(st.none() | LOOKS, LOOKS)
def test_the_look_that_is_kept_grows_old_enough(before: GangsLook | None, now: GangsLook) -> None:
    kept = keep(before, now)
    assert kept is now or (kept is before and now.began_s - kept.ended_s < GRACE_S)
