"""What was read long ago is no reason to release a claim: etcd may have been put back meanwhile."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.chosen import Chosen
from ecompute.cluster.claims import Claim, Claims
from ecompute.cluster.documents import Intent, State, UsedUuid, timestamp
from ecompute.cluster.errors import Conflict, OutOfDate
from ecompute.cluster.events import HOST, INSTANCE, TOOL, Events, read
from ecompute.cluster.freshness import FRESH_S
from ecompute.cluster.store import Delete, Store
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S, Act
from ecompute.cluster.upkeep.finish import Finisher
from ecompute.cluster.upkeep.reclaim import Outcome, Reclaimer
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher

VCPU = {"VCPU": 1}


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def begin(store: Store, cloud: Cloud, clock: Any, host: Any) -> Callable[..., Claim]:
    """Return a claim that holds room on the host."""

    def begun(*, is_chosen: bool) -> Claim:
        consumer = str(uuid.uuid4())
        used = UsedUuid(uuid=consumer, namespace="system", digest="d", made_at=timestamp(0))
        claim = Claims(store, cloud.placement, writer="a test", clock=clock).begin(
            consumer, namespace="system", chosen=Chosen(used=used) if is_chosen else None
        )
        claim.take({host.provider: VCPU}, {"": [host.provider]})
        return claim

    return begun


def put_back(store: Store, claim: Claim) -> None:
    """Etcd was put back to before the launch: it knows nothing of it."""
    store.commit([], [Delete(keys.intent(claim.consumer)), Delete(keys.used_uuid(claim.consumer))])


def test_of_a_chosen_uuid_a_claim_is_given_back_that_was_taken_just_now(
    begin: Callable[..., Claim], clock: Any, host: Any, store: Store
) -> None:
    claim = begin(is_chosen=True)
    clock.now_s += FRESH_S - 1
    claim.release()
    assert host.claims() == {}
    claim.take({host.provider: VCPU}, {"": [host.provider]})
    clock.now_s += FRESH_S - 1
    assert claim.give_up()
    assert (host.claims(), store.get(keys.intent(claim.consumer), Intent)) == ({}, None)


def test_of_a_chosen_uuid_a_claim_of_long_ago_is_left_to_the_audit_with_its_intent(
    begin: Callable[..., Claim], clock: Any, host: Any, audit: Audit
) -> None:
    claim = begin(is_chosen=True)
    clock.now_s += FRESH_S
    with pytest.raises(Conflict, match="was not launched, and what it claimed is left to the audit"):
        claim.release()
    assert not claim.give_up()
    assert host.claims().keys() == {claim.consumer}
    audit.look(is_full=False)
    clock.now_s += GRACE_S + 1
    assert audit.repair(audit.look(is_full=False)) == (claim.consumer,), "and the short look finds it"
    assert host.claims() == {}


def test_of_a_chosen_uuid_a_claim_whose_intent_is_gone_may_be_somebody_elses(
    begin: Callable[..., Claim], host: Any, store: Store
) -> None:
    claim = begin(is_chosen=True)
    put_back(store, claim)
    with pytest.raises(Conflict, match="is not this launch's any more"):
        claim.release()
    assert not claim.give_up()
    assert host.claims().keys() == {claim.consumer}


def test_a_claim_of_a_uuid_that_its_launch_made_up_is_nobody_elses(
    begin: Callable[..., Claim], clock: Any, host: Any, store: Store
) -> None:
    claim = begin(is_chosen=False)
    put_back(store, claim)
    clock.now_s += 10 * FRESH_S
    assert claim.give_up()
    assert host.claims() == {}


def test_who_finishes_reads_again_what_it_read_long_ago(
    cloud: Cloud, store: Store, host: Any, make_request: Callable[..., Any]
) -> None:
    instances = Instances(cloud)
    launched = Launcher(cloud).launch(make_request())
    host.report(launched.uuid, State.CREATED)
    instances.destroy(instances.find(launched.uuid, "system"))
    host.report(launched.uuid, State.DELETED, is_gone=True)

    def finisher(clock: Callable[[], float]) -> Finisher:
        return Finisher(store, cloud.placement, Events(store, TOOL), clock=clock)

    assert finisher(itertools.count(0, FRESH_S).__next__).finish(launched.uuid) is Act.NOTHING
    assert host.claims().keys() == {launched.uuid}
    slept_once = itertools.chain([0.0], itertools.repeat(FRESH_S))
    assert finisher(slept_once.__next__).finish(launched.uuid) is Act.RELEASE_AND_DELETE
    assert host.claims() == {}


def test_who_audits_releases_upon_no_answer_of_long_ago(
    begin: Callable[..., Claim], cloud: Cloud, store: Store, host: Any, clock: Any
) -> None:
    claim = begin(is_chosen=False)
    sleeping, awake = itertools.count(0, FRESH_S).__next__, lambda: 0.0
    for reading_clock, released in ((sleeping, ()), (awake, (claim.consumer,))):
        auditor = Audit(store, cloud.placement, list, clock, reading_clock=reading_clock)
        auditor.look(is_full=True)
        clock.now_s += GRACE_S + 1
        assert auditor.repair(auditor.look(is_full=True)) == released
        assert host.claims().keys() == {claim.consumer} - set(released)


def test_who_claims_again_replaces_no_claim_that_it_read_long_ago_and_blames_nobody(
    cloud: Cloud, store: Store, host: Any, make_request: Callable[..., Any]
) -> None:
    guest = Launcher(cloud).launch(make_request(vcpus=2)).uuid
    held = cloud.placement.allocations(guest)
    cloud.placement.replace(guest, {host.provider: VCPU}, held)
    sleeping = itertools.count(0, FRESH_S).__next__
    with pytest.raises(OutOfDate):
        Reclaimer(store, cloud.placement, cloud.events, list, sleeping).reclaim(guest)
    assert cloud.placement.allocations(guest).allocations == {host.provider: VCPU}
    assert not {"claim.lost", "claim.restored"} & {event.type for event in read(store, INSTANCE, guest)}
    assert Reclaimer(store, cloud.placement, cloud.events, list).reclaim(guest) is Outcome.CLAIMED
    assert cloud.placement.allocations(guest).allocations == held.allocations


def test_a_claim_that_somebody_else_has_released_is_not_told(
    begin: Callable[..., Claim], audit: Audit, clock: Any, cloud: Cloud, store: Store, host: Any
) -> None:
    claim = begin(is_chosen=False)
    audit.look(is_full=True)
    clock.now_s += GRACE_S + 1
    found = audit.look(is_full=True)
    cloud.placement.release(claim.consumer)
    assert audit.repair(found) == ()
    assert "claim.released" not in {event.type for event in read(store, HOST, host.provider)}
