"""What the audit compares besides: allocations with claims, and keys with what they go with."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import (
    Booted,
    Copy,
    Expiry,
    HostAudit,
    IdempotencyKey,
    Instance,
    Name,
    Network,
    Policy,
    Power,
    Scope,
    Secrets,
    Seen,
    State,
    UsedUuid,
    timestamp,
)
from ecompute.cluster.events import INSTANCE, read
from ecompute.cluster.store import Delete, Put, Store
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S, Leaks
from ecompute.cluster.upkeep.findings import What, findings
from eschedule.cloud.connection import Cloud
from eschedule.cloud.groups import Groups
from eschedule.cloud.quotas import Quotas
from eschedule.scheduler.launch import Launcher

NOWHERE = str(uuid.UUID(int=1))


@pytest.fixture
def twice(audit: Audit, clock: Any) -> Callable[[], Leaks]:
    """Return what returns what two looks, a grace period apart, agree on."""

    def look() -> Leaks:
        clock.now_s += GRACE_S + 1
        audit.look(is_full=True)
        clock.now_s += GRACE_S + 1
        return audit.look(is_full=True)

    return look


def kinds(found: Leaks) -> set[tuple[str, str]]:
    return {(finding.what, finding.subject) for finding in findings(found) if finding.is_wrong}


def launched(cloud: Cloud, make_request: Callable[..., Any], **values: Any) -> str:
    return Launcher(cloud).launch(make_request(**values)).uuid


# --- allocations ---------------------------------------------------------------------------------


def test_a_guest_that_holds_a_part_of_its_claim_is_given_the_rest(
    audit: Audit,
    twice: Callable[[], Leaks],
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host, placement, namespace = make_host(), cloud.placement, f"n{uuid.uuid4().hex[:8]}"
    Quotas(cloud).set(namespace, {"VCPU": 4})
    guest = launched(cloud, make_request, namespace=namespace, vcpus=2)
    held = placement.allocations(guest)
    try:
        for less in (
            {host.provider: {**held.allocations[host.provider], "VCPU": 1}},
            {provider: row for provider, row in held.allocations.items() if provider != host.provider},
        ):
            placement.replace(guest, less, placement.allocations(guest))
            found = twice()
            assert kinds(found) == {(What.UNLIKE, guest)}
            audit.repair(found)
            again = placement.allocations(guest)
            assert again.allocations == held.allocations
            assert (again.project_id, again.consumer_type) == (namespace, held.consumer_type)
        assert [event.type for event in read(store, INSTANCE, guest)].count("claim.restored") == 2
        assert kinds(twice()) == set()
    finally:
        placement.release(guest)
        for provider in held.allocations.keys() - {host.provider}:
            placement.delete_provider(provider)


def test_what_a_guest_holds_beyond_its_claim_is_taken_on_an_operators_word_alone(
    audit: Audit,
    twice: Callable[[], Leaks],
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    here, there = make_host(), make_host()
    query = f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&in_tree={here.provider}"
    guest = launched(cloud, make_request, query=query)
    held = cloud.placement.allocations(guest)
    both = held.allocations | {there.provider: held.allocations[here.provider]}
    cloud.placement.replace(guest, both, held)
    found = twice()
    assert kinds(found) == {(What.UNLIKE, guest)}
    for _ in range(2):
        audit.repair(found)
    assert cloud.placement.allocations(guest).allocations == both, "another version may be moving it"
    assert [event.type for event in read(store, INSTANCE, guest)].count("claim.unlike") == 1
    audit.obey(found)
    assert cloud.placement.allocations(guest).allocations == held.allocations
    assert kinds(twice()) == set()


def test_what_is_missing_and_finds_no_room_any_more_is_told_and_left(
    audit: Audit,
    twice: Callable[[], Leaks],
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host(vcpus=2)
    guest = launched(cloud, make_request, vcpus=2)
    less = {host.provider: {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1}}
    cloud.placement.replace(guest, less, cloud.placement.allocations(guest))
    launched(cloud, make_request, vcpus=1)
    found = twice()
    assert kinds(found) == {(What.UNLIKE, guest)}
    audit.repair(found)
    assert cloud.placement.allocations(guest).allocations == less, "all or nothing"
    told = [event.message for event in read(store, INSTANCE, guest) if event.type == "claim.lost"]
    assert len(told) == 1 and "a part of its claim" in told[0]


def test_a_place_in_a_group_is_no_difference(
    twice: Callable[[], Leaks], cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host, namespace = make_host(), f"n{uuid.uuid4().hex[:8]}"
    Groups(cloud).create(namespace, "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    guest = launched(cloud, make_request, namespace=namespace, group="apart")
    held = cloud.placement.allocations(guest).allocations
    try:
        assert len(held) == 2, "its row is below the host, where no audit looks"
        assert kinds(twice()) == set()
    finally:
        cloud.placement.release(guest)
        for provider in held.keys() - {host.provider}:
            cloud.placement.delete_provider(provider)


def test_one_that_failed_or_is_being_destroyed_may_hold_what_it_likes(
    twice: Callable[[], Leaks],
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    guest = launched(cloud, make_request, vcpus=2)
    held = cloud.placement.allocations(guest)
    cloud.placement.replace(guest, {host.provider: {"VCPU": 1}}, held)
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    store.commit([], [Put(found.key, structs.replace(found.value, state=State.ERROR))])
    assert kinds(twice()) == set()


# --- keys ----------------------------------------------------------------------------------------


def left_over(provider: str) -> list[Put]:
    """Return keys of an instance that is nowhere."""
    booted = Booted(provider=provider, state=State.CREATED, power=Power.ON, reported_at=timestamp(0))
    return [
        Put(keys.secrets(provider, NOWHERE), Secrets(user_data="secret")),
        Put(keys.expiry(10**9, NOWHERE), Expiry(uuid=NOWHERE)),
        Put(keys.name("system", INSTANCE, "web", NOWHERE), Name(uuid=NOWHERE, name="web")),
        Put(keys.booted(NOWHERE), booted),
    ]


def test_what_is_left_of_an_instance_that_is_nowhere_is_deleted(
    audit: Audit, twice: Callable[[], Leaks], store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    puts = left_over(host.provider)
    store.commit([], puts)
    found = twice()
    assert kinds(found) == {(What.KEY, put.key) for put in puts}
    audit.repair(found)
    assert not any(store.count(put.key) for put in puts)


def test_what_goes_with_a_guest_that_a_host_still_has_or_tells_of_is_left(
    audit: Audit, twice: Callable[[], Leaks], store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    seen = Seen(uuid=NOWHERE, generation=0, epoch=1, state=State.CREATED, is_assigned=False, reported_at=timestamp(0))
    store.commit([], [*left_over(host.provider), Put(keys.seen(host.provider, NOWHERE), seen)])
    assert not [subject for what, subject in kinds(twice()) if what == What.KEY]


def meaning(key: str, uuid_: str) -> IdempotencyKey:
    return IdempotencyKey(key=key, uuid=uuid_, digest="d", made_at=timestamp(0))


def test_names_of_what_is_gone_and_keys_of_clients_that_mean_nothing_are_deleted(
    audit: Audit, twice: Callable[[], Leaks], cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    make_host()
    namespace = f"n{uuid.uuid4().hex[:8]}"
    Groups(cloud).create(namespace, "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    network = str(uuid.uuid4())
    made = Network(
        uuid=network, namespace=namespace, name="back", cidr="10.9.0.0/24", vni=9, mtu=1450, created_at=timestamp(0)
    )
    used = UsedUuid(uuid=str(uuid.uuid4()), namespace=namespace, digest="d", made_at=timestamp(0))
    store.commit(
        [],
        [
            Put(keys.network(network), made),
            Put(keys.name(namespace, "network", "back", network), Name(uuid=network, name="back")),
            Put(keys.used_uuid(used.uuid), used),
            Put(keys.idempotency(namespace, "known"), meaning("known", used.uuid)),
        ],
    )
    assert kinds(twice()) == set(), "all of it has its owner"
    orphans = [
        Put(keys.name(namespace, "network", "back", NOWHERE), Name(uuid=NOWHERE, name="back")),
        Put(keys.name(namespace, "group", "apart", NOWHERE), Name(uuid=NOWHERE, name="apart")),
        Put(keys.idempotency(namespace, "unknown"), meaning("unknown", NOWHERE)),
    ]
    store.commit([], orphans)
    found = twice()
    assert kinds(found) == {(What.OWNERLESS, put.key) for put in orphans}
    # In the meantime one of them got its owner after all.
    store.commit([], [Put(keys.used_uuid(NOWHERE), used)])
    audit.repair(found)
    assert [bool(store.count(put.key)) for put in orphans] == [False, False, True]


def test_what_a_host_told_that_is_no_more_goes_on_an_operators_word_alone(
    audit: Audit, twice: Callable[[], Leaks], store: Store, make_host: Callable[..., Any]
) -> None:
    there = make_host()
    puts = [
        put
        for provider in (there.provider, NOWHERE)
        for put in (
            Put(keys.copy(provider, "http://i/x"), Copy(url="http://i/x", sha256="s", size_bytes=1)),
            Put(keys.audit(provider), HostAudit(findings=(), reported_at=timestamp(0))),
        )
    ]
    store.commit([], puts)
    found = twice()
    assert kinds(found) == {(What.ABANDONED, NOWHERE)}
    audit.repair(found)
    assert all(store.count(put.key) for put in puts)
    audit.obey(found)
    assert [bool(store.count(put.key)) for put in puts] == [True, True, False, False]
    # One that is back keeps what it tells.
    store.commit([], [*puts[2:], Put(keys.alive(NOWHERE), Name(uuid=NOWHERE, name="back"))])
    audit.obey(found)
    assert all(store.count(put.key) for put in puts)
    store.commit([], [Delete(keys.alive(NOWHERE))])
