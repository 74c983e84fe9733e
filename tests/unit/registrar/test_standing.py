"""When a host is open, hidden or closed, and what it says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import AdminState
from ecompute.standing import Door, Facts, standing

FACTS = st.builds(
    Facts,
    hold=st.none() | st.just("etcd has lost its data"),
    state=st.none() | st.sampled_from(AdminState),
    has_converged=st.booleans(),
    is_open=st.booleans(),
    unclaimed=st.integers(0, 2),
    unremoved=st.integers(0, 2),
)


@given(FACTS)
def test_a_host_opens_only_when_nothing_speaks_against_it(facts: Facts) -> None:
    is_ready = facts.has_converged and not facts.unremoved
    assert (standing(facts).door is Door.OPEN) == (
        facts.hold is None and facts.state is AdminState.ACTIVE and not facts.unclaimed and (facts.is_open or is_ready)
    )


@given(FACTS)
def test_a_host_that_is_not_open_says_why_unless_it_was_told(facts: Facts) -> None:
    found = standing(facts)
    if found.door is Door.OPEN:
        assert found.reason is None
    elif found.reason is None:
        assert facts.state not in (None, AdminState.ACTIVE)


@given(FACTS)
def test_capacity_is_shown_only_for_claims_to_come_back(facts: Facts) -> None:
    if standing(facts).door is Door.HIDDEN:
        assert facts.unclaimed and facts.hold is None
        assert standing(replace(facts, unclaimed=0)).door is not Door.HIDDEN


@pytest.mark.parametrize("state", [AdminState.DRAINING, AdminState.MAINTENANCE, AdminState.LOST])
def test_claims_come_back_to_a_host_that_takes_nothing_new(state: AdminState) -> None:
    assert standing(Facts(state=state, unclaimed=1)).door is Door.HIDDEN
    assert standing(Facts(state=state)).door is Door.CLOSED


def test_an_open_host_stays_open_while_it_removes_something() -> None:
    assert standing(Facts(is_open=True, has_converged=False, unremoved=1)).door is Door.OPEN
    assert standing(Facts(unremoved=1)).reason == "1 removal not done yet"


@given(FACTS)
def test_it_waits_only_for_what_it_is_not_told_of(facts: Facts) -> None:
    if standing(facts).is_waiting:
        assert facts.hold is None and (facts.state is None or facts.unclaimed or facts.unremoved)
