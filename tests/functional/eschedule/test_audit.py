"""The audit, on real services: what two looks agree is wrong is put right, and what is only odd is told."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.claims import Claims
from ecompute.cluster.documents import (
    AddressLock,
    Expiry,
    HostAudit,
    HostFinding,
    Instance,
    Intent,
    MacLock,
    NetworkHost,
    Node,
    Operation,
    Policy,
    Role,
    Scope,
    State,
    Tagged,
    UsedUuid,
    timestamp,
)
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.events import HOST, INSTANCE, Events, read
from ecompute.cluster.placement import Inventory, Placement
from ecompute.cluster.placement.documents import PRESENCE
from ecompute.cluster.store import Change, Delete, Put, Store, present
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.findings import What, findings
from ecompute.cluster.upkeep.reclaim import CLAIMS, Outcome, Reclaimer
from eschedule.cloud.audit import audit as audit_on_demand
from eschedule.cloud.connection import Cloud
from eschedule.cloud.groups import Groups
from eschedule.cloud.quotas import Quotas
from eschedule.scheduler.launch import Launcher


def twice(audit: Audit, clock: Any) -> Any:
    """Return what two looks, a grace period apart, agree on."""
    audit.look(is_full=True)
    clock.now_s += GRACE_S + 1
    return audit.look(is_full=True)


def kinds(found: Any) -> set[tuple[What, str]]:
    return {(finding.what, finding.subject) for finding in findings(found) if finding.is_wrong}


def launched(cloud: Cloud, make_request: Callable[..., Any], **values: Any) -> str:
    return Launcher(cloud).launch(make_request(**values)).uuid


def test_a_cloud_in_order_has_no_findings(
    audit: Audit, clock: Any, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    launched(cloud, make_request)
    assert kinds(twice(audit, clock)) == set()


def test_an_instance_whose_claim_is_lost_is_given_it_again(
    audit: Audit,
    clock: Any,
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    guest = launched(cloud, make_request)
    held = cloud.placement.allocations(guest)
    cloud.placement.release(guest)
    found = twice(audit, clock)
    assert kinds(found) == {(What.INSTANCE, guest)}
    audit.repair(found)
    again = cloud.placement.allocations(guest)
    assert again.allocations == held.allocations
    assert (again.project_id, again.consumer_type) == (held.project_id, held.consumer_type)
    assert host.assigned(guest).role is Role.RUN, "its host is told nothing new"
    assert "claim.restored" in [event.type for event in read(store, INSTANCE, guest)]
    assert kinds(twice(audit, clock)) == set()


def test_what_was_told_of_an_instance_that_is_no_more_is_forgotten(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host(vcpus=2)
    guest = launched(cloud, make_request, vcpus=2)
    cloud.placement.release(guest)
    launched(cloud, make_request, vcpus=1)
    reclaimer = Reclaimer(store, cloud.placement, cloud.events, list)

    def told() -> int:
        assert reclaimer.reclaim(guest) is Outcome.REFUSED
        return [event.type for event in read(store, INSTANCE, guest)].count("claim.lost")

    assert [told(), told()] == [1, 1]
    reclaimer.keep([guest])
    assert told() == 1
    reclaimer.keep([])
    assert told() == 2


def test_a_claim_that_finds_no_room_any_more_is_told_once_and_the_guest_left(
    audit: Audit,
    clock: Any,
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host(vcpus=2)
    guest = launched(cloud, make_request, vcpus=2)
    cloud.placement.release(guest)
    thief = launched(cloud, make_request, vcpus=1)
    for _ in range(2):
        audit.repair(twice(audit, clock))
    assert not cloud.placement.allocations(guest)
    assert [event.type for event in read(store, INSTANCE, guest)].count("claim.lost") == 1
    assert host.assigned(guest).role is Role.RUN
    assert cloud.placement.allocations(thief), "who has a claim keeps it"


@pytest.mark.parametrize("state", [State.DELETING, State.ERROR])
def test_what_is_to_hold_nothing_is_not_claimed_again(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    state: State,
) -> None:
    make_host()
    guest = launched(cloud, make_request)
    cloud.placement.release(guest)
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    store.commit([], [Put(found.key, structs.replace(found.value, state=state))])
    reclaimer = Reclaimer(store, cloud.placement, cloud.events, list)
    assert reclaimer.reclaim(guest) is Outcome.NOT_WANTED
    assert reclaimer.reclaim(str(uuid.uuid4())) is Outcome.NOT_WANTED
    assert not cloud.placement.allocations(guest)


def test_an_intent_that_is_given_up_spends_its_uuid(
    audit: Audit, clock: Any, cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    chosen = str(uuid.uuid4())
    store.commit(
        [],
        [Put(keys.used_uuid(chosen), UsedUuid(uuid=chosen, namespace="system", digest="d", made_at=timestamp(0)))],
    )
    claim = Claims(store, cloud.placement, writer="a test").begin(chosen, namespace="system")
    claim.take({host.provider: {"VCPU": 1}}, {"": [host.provider]})
    found = twice(audit, clock)
    assert kinds(found) == {(What.INTENT, chosen), (What.ALLOCATION, chosen)}
    assert audit.repair(found) == (chosen,)
    used = store.get(keys.used_uuid(chosen), UsedUuid)
    assert used is not None and used.value.is_spent
    assert host.claims() == {}


def test_a_host_that_does_not_answer_is_asked_once_a_turn(
    clock: Any, cloud: Cloud, store: Store, make_host: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    silent, answering = make_host(), make_host()
    silent.is_silent = True
    audit = Audit(store, cloud.placement, list, clock, answer_timeout_s=1)
    consumers: dict[str, list[str]] = {silent.provider: [], answering.provider: []}
    for host in (silent, answering):
        for _ in range(3):
            consumers[host.provider].append(str(uuid.uuid4()))
            claim = Claims(store, cloud.placement, writer="a test").begin(
                consumers[host.provider][-1], namespace="system"
            )
            claim.take({host.provider: {"VCPU": 1}}, {"": [host.provider]})
    found = twice(audit, clock)
    asked: list[str] = []
    watcher = store.watcher()

    def changed(change: Change[Operation]) -> None:
        if change.before is None and change.after is not None:
            asked.append(change.key)

    try:
        watcher.follow(keys.OPERATIONS, Operation, changed)
        assert sorted(audit.repair(found)) == sorted(consumers[answering.provider])
        assert silent.claims().keys() == set(consumers[silent.provider])
        eventually(lambda: len(asked) >= 4)
    finally:
        watcher.close()
    assert [keys.parts(key)[1] for key in asked].count(silent.provider) == 1


def test_what_cannot_be_given_up_is_not_in_the_way_of_the_others(
    audit: Audit, clock: Any, cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    bad, good = sorted(str(uuid.uuid4()) for _ in range(2))
    for consumer in (bad, good):
        claim = Claims(store, cloud.placement, writer="a test").begin(consumer, namespace="system")
        claim.take({host.provider: {"VCPU": 1}}, {"": [host.provider]})
    store.commit([], [Put(keys.used_uuid(bad), Expiry(uuid=bad))])
    assert audit.repair(twice(audit, clock)) == (good,)
    assert host.claims().keys() == {bad}


def test_an_instance_that_cannot_be_read_keeps_no_other_without_its_claim(
    cloud: Cloud,
    store: Store,
    clock: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    bad, good = sorted(launched(cloud, make_request) for _ in range(2))
    for guest in (bad, good):
        cloud.placement.release(guest)
    node = store.get(keys.node(host.provider), Node)
    assert node is not None
    store.commit(
        [], [Put(node.key, structs.replace(node.value, unclaimed=2)), Put(keys.instance(bad), Expiry(uuid=bad))]
    )
    charge = Charge(store, cloud.placement, cloud.events, lambda: True, present(keys.INCARNATION), clock)
    CLAIMS.begin(charge)()
    assert host.claims().keys() == {good}


def test_a_leak_with_rows_beside_its_host_is_asked_of_the_host_alone(
    audit: Audit, clock: Any, cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host, beside, consumer = make_host(), str(uuid.uuid4()), str(uuid.uuid4())
    placement = cloud.placement
    placement.ensure_provider(beside, f"beside-{beside}")
    try:
        placement.set_inventories(beside, {"CUSTOM_BESIDE": Inventory(total=10)})
        placement.claim(
            consumer,
            {host.provider: {"VCPU": 1}, beside: {"CUSTOM_BESIDE": 1}},
            {"": [host.provider]},
            project_id="system",
            user_id="a test",
        )
        found = twice(audit, clock)
        assert (What.ALLOCATION, consumer) in kinds(found)
        assert audit.repair(found) == (consumer,)
    finally:
        placement.release(consumer)
        placement.delete_provider(beside)


def test_keys_without_an_instance_are_deleted_once_their_host_can_tell(
    audit: Audit, clock: Any, store: Store, make_host: Callable[..., Any]
) -> None:
    host, gone = make_host(), str(uuid.uuid4())
    key = keys.tag("system", "web", gone)
    store.commit([], [Put(key, Tagged(instance_uuid=gone, provider=host.provider))])
    host.sleep()
    assert kinds(twice(audit, clock)) == set()
    host.wake()
    clock.now_s += GRACE_S + 1
    audit.look(is_full=True)  # the first that could ask the host
    found = twice(audit, clock)
    assert kinds(found) == {(What.KEY, key)}
    audit.repair(found)
    assert store.get(key, Tagged) is None


def test_hosts_and_providers_that_miss_each_other_are_told(
    audit: Audit, clock: Any, cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    there, ghost = make_host(), str(uuid.uuid4())
    placement = cloud.placement
    placement.ensure_provider(ghost, f"ghost-{ghost}")
    placement.set_inventories(ghost, {PRESENCE: Inventory(total=1), "VCPU": Inventory(total=4)})
    try:
        placement.delete_provider(there.provider)
        found = twice(audit, clock)
        assert {(What.PROVIDER, ghost), (What.HOST, there.provider)} <= kinds(found)
        audit.repair(found)
        assert placement.provider(ghost) is not None, "the lead removes no provider"
        assert audit.remove_hostless(ghost)
        assert placement.provider(ghost) is None
    finally:
        placement.delete_provider(ghost)
        there.register(vcpus=1, memory_mb=1, disk_gb=1)


def test_a_host_of_which_more_is_claimed_than_there_is_is_told(
    audit: Audit, clock: Any, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host(vcpus=4)
    launched(cloud, make_request, vcpus=2)
    host.register(vcpus=1, memory_mb=65536, disk_gb=1000)
    assert kinds(twice(audit, clock)) == {(What.OVERFULL, f"{host.provider} VCPU")}


def test_a_host_that_is_only_away_keeps_its_provider(audit: Audit, make_host: Callable[..., Any], cloud: Cloud) -> None:
    host = make_host()
    assert not audit.remove_hostless(host.provider)
    host.store.commit([], [Delete(keys.node(host.provider))])
    assert not audit.remove_hostless(host.provider), "it is alive"
    assert cloud.placement.provider(host.provider) is not None


def test_an_assignment_without_an_instance_is_told_and_left(
    audit: Audit,
    clock: Any,
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    guest = launched(cloud, make_request)
    host.guests.add(guest)
    store.commit([], [Delete(keys.instance(guest))])
    found = twice(audit, clock)
    assert (What.ASSIGNMENT, guest) in kinds(found)
    audit.repair(found)
    assert host.assigned(guest) and host.claims(), "a missing key destroys no guest"


def test_the_tool_looks_twice_says_what_it_found_and_repairs_on_demand(
    cloud: Cloud,
    store: Store,
    clock: Any,
    tool: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    make_host()
    assert tool("audit", "--grace", "0").returncode == 0
    guest = launched(cloud, make_request)
    cloud.placement.release(guest)
    done = tool("audit", "--grace", "0.1", "-o", "json")
    assert done.returncode == 1, done.stderr
    [row] = [row for row in json.loads(done.stdout) if row["what"] != What.FOREIGN]
    assert (row["what"], row["subject"], row["repair"]) == (What.INSTANCE, guest, "claim again what it was given")
    assert not cloud.placement.allocations(guest), "it only looked"

    def sleep(seconds: float) -> None:
        clock.now_s += seconds

    clock.now_s += 1
    audit_on_demand(cloud, is_repairing=True, sleep=sleep, clock=clock)
    assert cloud.placement.allocations(guest)


def test_the_tool_shows_what_hosts_tell_of_themselves(
    cloud: Cloud, store: Store, tool: Any, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    told = HostFinding(what="guest-without-assignment", subject=str(uuid.uuid4()), since=timestamp(0), repair="none")
    event = Events(store, host.provider).record(HOST, host.provider, "audit.found", told.subject)
    audit = HostAudit(findings=(told,), more=2, reported_at=timestamp(1))
    store.commit([], [Put(keys.audit(host.provider), audit), event])
    done = tool("audit", "--grace", "0.1", "-o", "json")
    assert done.returncode == 1, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)}
    name = rows[told.what]["where"]
    assert rows[told.what] == structs.asdict(told) | {"where": name}
    assert rows["further-findings"]["where"] == name
    shown = tool("host", "events", host.provider, "-o", "json")
    assert [(row["type"], row["message"]) for row in json.loads(shown.stdout)] == [("audit.found", told.subject)]
    store.commit([], [Delete(keys.audit(host.provider))])
    assert tool("audit", "--grace", "0.1").returncode == 0


def test_a_repair_without_patience_is_refused(cloud: Cloud, tool: Any) -> None:
    with pytest.raises(InvalidInput, match="60 seconds apart"):
        audit_on_demand(cloud, is_repairing=True, grace_s=5)
    bad = tool("audit", "--repair", "--grace", "1")
    assert bad.returncode == 2
    assert tool("audit", "--grace", "-1").returncode == 2


def test_a_claim_comes_back_with_its_group_and_its_quota(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host, placement, namespace = make_host(), cloud.placement, f"n{uuid.uuid4().hex[:8]}"
    Groups(cloud).create(namespace, "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    Quotas(cloud).set(namespace, {"VCPU": 4})
    guest = launched(cloud, make_request, namespace=namespace, group="apart")
    held = placement.allocations(guest).allocations
    assert len(held) == 3, "host, group and quota"
    placement.release(guest)
    for provider in held.keys() - {host.provider}:  # as an emptied placement would have neither
        placement.delete_provider(provider)
    assert Reclaimer(store, placement, cloud.events, list).reclaim(guest) is Outcome.CLAIMED
    assert placement.allocations(guest).allocations == held
    placement.release(guest)
    for provider in held.keys() - {host.provider}:
        placement.delete_provider(provider)


def test_a_full_look_pauses_before_each_of_many_requests(
    store: Store,
    proxy: Any,
    faulty: Placement,
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    for _ in range(3):
        host = make_host()
        launched(cloud, make_request, query=f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&in_tree={host.provider}")
    make_host()  # not in use: nothing is asked of it
    pauses: list[float] = []
    Audit(store, faulty, list, pause=pauses.append).look(is_full=True)
    asked = [path for _, path in proxy.seen if path.endswith("/allocations")]
    assert len(pauses) >= len(asked) >= 3
    assert len(proxy.seen) <= len(pauses) + 2
    assert min(pauses) >= 0.25, "four a second"


def test_what_was_left_of_an_instance_on_a_network_goes_and_what_rests_or_is_used_stays(
    audit: Audit,
    clock: Any,
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    guest = launched(cloud, make_request)
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    network = found.value.spec.interfaces[0].network_uuid
    used = set(store.keys(keys.network_prefix(network))[0])
    owner = {"interface_uuid": str(uuid.uuid4()), "instance_uuid": str(uuid.uuid4())}
    other = str(uuid.uuid4())
    resting = AddressLock(**owner, is_resting=True)
    left = {
        keys.address(network, "10.10.0.7"): AddressLock(**owner),
        keys.mac(network, "52:54:00:00:00:01"): MacLock(**owner),
        keys.network_host(network, other): NetworkHost(provider=other, underlay="192.0.2.9"),
    }
    rests = keys.address(network, "10.10.0.8")
    store.commit([], [Put(key, document) for key, document in {**left, rests: resting}.items()])
    found_twice = twice(audit, clock)
    assert kinds(found_twice) == {
        (What.KEY, keys.address(network, "10.10.0.7")),
        (What.KEY, keys.mac(network, "52:54:00:00:00:01")),
        (What.MEMBER, keys.network_host(network, other)),
    }
    audit.repair(found_twice)
    assert set(store.keys(keys.network_prefix(network))[0]) == used | {rests}
    assert keys.network_host(network, host.provider) in used


def test_a_claim_whose_intent_is_back_since_the_looks_is_not_released(
    cloud: Cloud, store: Store, audit: Audit, clock: Any, make_host: Callable[..., Any]
) -> None:
    """As etcd has it that was put back meanwhile; what the looks saw is of an hour ago."""
    host = make_host()
    consumer = str(uuid.uuid4())
    claim = Claims(store, cloud.placement, writer="test", clock=clock).begin(consumer, namespace="system")
    claim.take({host.provider: {"VCPU": 1}}, {"": [host.provider]})
    intent = store.get(keys.intent(consumer), Intent)
    assert intent is not None
    store.commit([], [Delete(intent.key)])
    audit.look(is_full=True)
    clock.now_s += GRACE_S + 1
    found = audit.look(is_full=True)
    clock.now_s += 3600
    store.commit([], [Put(intent.key, intent.value)])
    assert audit.repair(found) == ()
    assert host.claims().keys() == {consumer}
    store.commit([], [Delete(intent.key)])
    assert audit.repair(found) == (consumer,)
