"""One table is the only way a state changes."""

from __future__ import annotations

import pytest
from msgspec import structs

from ecompute.cluster import states
from ecompute.cluster.documents import Instance, Resources, Seen, Spec, State
from ecompute.cluster.errors import Conflict

INSTANCE = Instance(
    uuid="u",
    namespace="system",
    name="web-1",
    state=State.INITIAL,
    epoch=2,
    provider="p",
    spec=Spec(resources=Resources(vcpus=1, memory_mb=128, disk_gb=1), image="/i"),
    created_at="2026-01-01T00:00:00.000Z",
)
SEEN = Seen(uuid="u", generation=1, epoch=2, state=State.CREATED, reported_at="2026-01-01T00:00:00.000Z")


def test_every_state_can_end() -> None:
    for state in State:
        reached, todo = {state}, [state]
        while todo:
            new = states.INSTANCE[todo.pop()] - reached
            reached |= new
            todo += new
        assert State.DELETED in reached, f"{state} never ends"


def test_every_line_of_the_table_has_its_reason_and_no_other_has() -> None:
    assert set(states.WHY) == {(before, after) for before, afters in states.INSTANCE.items() for after in afters}


def test_nothing_follows_deleted() -> None:
    for state in set(State) - {State.DELETED}:
        with pytest.raises(Conflict):
            states.check(State.DELETED, state)


def test_staying_is_always_allowed() -> None:
    for state in State:
        assert states.check(state, state) is state


def test_a_report_of_an_older_epoch_says_nothing() -> None:
    assert states.life(INSTANCE, SEEN) is State.CREATED
    assert states.life(INSTANCE, structs.replace(SEEN, epoch=1)) is State.INITIAL
    assert states.life(INSTANCE, None) is State.INITIAL


def test_what_is_deleting_is_deleted_once_its_host_says_gone() -> None:
    deleting = structs.replace(INSTANCE, state=State.DELETING)
    assert states.life(deleting, SEEN) is State.DELETING
    assert states.life(deleting, structs.replace(SEEN, state=State.DELETED, is_gone=True)) is State.DELETED
