"""A scheduler killed between any two writes leaves nothing that the audit does not find."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.claims import FAILPOINTS
from ecompute.cluster.store import DeletePrefix, Store
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from eschedule.cloud.connection import Cloud

BEFORE_THE_REQUEST = [point for point in FAILPOINTS if point != "claim.requested"]


@pytest.fixture
def killed(tool: Any, query: str) -> Callable[[str], None]:
    """Return what launches and dies at a failpoint."""

    def launch(failpoint: str) -> None:
        done = tool("launch", query, ECOMPUTE_FAILPOINT=failpoint)
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")

    return launch


def look_twice(audit: Audit, clock: Any, *, is_full: bool) -> tuple[str, ...]:
    """Return what two looks in a row, a grace period apart, have released."""
    assert audit.run(is_full=is_full) == ()
    clock.now_s += GRACE_S - 1
    assert audit.run(is_full=is_full) == (), "within the grace period it may still be at work"
    clock.now_s += 2
    return audit.run(is_full=is_full)


@pytest.fixture
def audit(store: Store, cloud: Cloud, clock: Any) -> Audit:
    return Audit(store, cloud.placement, list, clock)


@pytest.mark.parametrize("failpoint", BEFORE_THE_REQUEST)
def test_what_a_killed_launch_held_is_given_back(
    failpoint: str,
    killed: Callable[[str], None],
    audit: Audit,
    clock: Any,
    make_host: Callable[..., Any],
    all_keys: Callable[[], set[str]],
) -> None:
    host = make_host()
    killed(failpoint)
    claims = set(host.claims())
    assert len(claims) == (failpoint == "claim.claimed")
    assert len(all_keys()) == (failpoint != "claim.before_intent")
    assert look_twice(audit, clock, is_full=False) == tuple(claims)
    assert (host.claims(), all_keys()) == ({}, set())


@pytest.mark.parametrize("is_full", [False, True], ids=["short", "full"])
def test_a_launch_that_was_killed_after_its_request_goes_on(
    killed: Callable[[str], None],
    audit: Audit,
    clock: Any,
    make_host: Callable[..., Any],
    all_keys: Callable[[], set[str]],
    store: Store,
    is_full: bool,
) -> None:
    host = make_host()
    killed("claim.requested")
    (uuid,) = (keys.last(key) for key in store.keys(keys.INSTANCES)[0])
    before = all_keys()
    assert host.claims().keys() == {uuid}
    assert look_twice(audit, clock, is_full=is_full) == ()
    assert host.claims().keys() == {uuid}
    assert all_keys() == before
    assert host.assigned(uuid)


def test_a_claim_without_an_intent_is_found_by_the_full_look(
    killed: Callable[[str], None], audit: Audit, clock: Any, make_host: Callable[..., Any], store: Store
) -> None:
    host = make_host()
    killed("claim.claimed")
    store.commit([], [DeletePrefix(keys.INTENTS)])
    (uuid,) = host.claims()
    assert look_twice(audit, clock, is_full=False) == ()
    assert look_twice(audit, clock, is_full=True) == (uuid,)
    assert host.claims() == {}


def test_a_claim_is_kept_while_its_host_says_that_something_is_there(
    killed: Callable[[str], None], audit: Audit, clock: Any, make_host: Callable[..., Any], store: Store
) -> None:
    host = make_host()
    killed("claim.claimed")
    (uuid,) = host.claims()
    host.guests.add(uuid)
    assert look_twice(audit, clock, is_full=False) == ()
    assert host.claims().keys() == {uuid}


def test_a_claim_on_a_host_that_does_not_answer_waits_for_it(
    killed: Callable[[str], None], audit: Audit, clock: Any, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    killed("claim.claimed")
    host.sleep()
    assert look_twice(audit, clock, is_full=True) == ()
    assert host.claims()
    host.wake()
    (uuid,) = host.claims()
    # The look before saw its intent, and deleted it. Two looks without one have to agree.
    clock.now_s += GRACE_S + 1
    assert audit.run(is_full=True) == ()
    assert look_twice(audit, clock, is_full=True) == (uuid,)
    assert host.claims() == {}


def test_every_failpoint_of_a_launch_is_reached(killed: Callable[[str], None], make_host: Callable[..., Any]) -> None:
    make_host()
    for failpoint in FAILPOINTS:
        killed(failpoint)
