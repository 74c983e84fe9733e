"""Found, waited for, diagnosed and destroyed: against a host that reports what the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Instance, Role, State
from ecompute.cluster.errors import Ambiguous, DeadlineExceeded, NotFound
from ecompute.cluster.store import Delete, Store, Versioned
from eschedule.cloud.connection import Cloud
from eschedule.cloud.diagnosis import diagnose
from eschedule.cloud.instances import Instances
from eschedule.cloud.references import beginning_with
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched

ENDED = frozenset({State.CREATED, State.ERROR, State.DELETING})


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def launch(cloud: Cloud, host: Any, make_request: Callable[..., Any]) -> Callable[..., Launched]:
    return lambda **values: Launcher(cloud).launch(make_request(**values))


@pytest.fixture
def instances(cloud: Cloud) -> Instances:
    return Instances(cloud)


def found(instances: Instances, launched: Launched) -> Versioned[Instance]:
    return instances.find(launched.uuid, "system")


# --- what people call it -------------------------------------------------------------------------


def test_a_name_a_uuid_and_its_beginning_name_the_same(launch: Callable[..., Launched], instances: Instances) -> None:
    one = launch(name="web-1")
    for ref in ("web-1", one.uuid, one.uuid.upper(), one.uuid[:8], one.uuid[:1].upper()):
        assert instances.find(ref, "system").value.uuid == one.uuid


def test_a_name_goes_before_the_beginning_of_a_uuid(launch: Callable[..., Launched], instances: Instances) -> None:
    first = launch()
    second = launch(name=first.uuid[:8])
    assert instances.find(first.uuid[:8], "system").value.uuid == second.uuid


def test_what_several_have_is_ambiguous_and_they_are_named(
    launch: Callable[..., Launched], instances: Instances, store: Store
) -> None:
    both = [launch(name="twin"), launch(name="twin")]
    with pytest.raises(Ambiguous) as raised:
        instances.find("twin", "system")
    assert all(one.uuid in str(raised.value) for one in both)
    assert sorted(beginning_with(store, "tw", "system", limit=9)) == sorted(one.uuid for one in both)


def test_only_a_whole_uuid_reaches_into_another_namespace(
    launch: Callable[..., Launched], instances: Instances
) -> None:
    one = launch(name="web-1", namespace="team-1")
    assert instances.find(one.uuid, "system").value.uuid == one.uuid
    for ref in ("web-1", one.uuid[:12]):
        with pytest.raises(NotFound, match="in namespace system"):
            instances.find(ref, "system")


@pytest.mark.parametrize("ref", ["", "nope", "a/b", "web", "WEB-1", "%", "\x00", "\udcff", "x" * 500, "../web-1"])
def test_what_names_nothing_is_not_found_on_one_line(
    launch: Callable[..., Launched], instances: Instances, ref: str
) -> None:
    launch(name="web-1")
    with pytest.raises(NotFound) as raised:
        instances.find(ref, "system")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


def test_names_are_completed_and_uuids_where_no_name_begins_so(launch: Callable[..., Launched], store: Store) -> None:
    one, _ = launch(name="web-1"), launch(name="web-2")
    assert beginning_with(store, "", "system", limit=9) == ["web-1", "web-2"]
    assert beginning_with(store, "web-2", "system", limit=9) == ["web-2"]
    assert beginning_with(store, one.uuid[:12], "system", limit=9) == [one.uuid]
    assert beginning_with(store, "zz", "system", limit=9) == []
    assert beginning_with(store, "a/b", "system", limit=9) == []
    assert beginning_with(store, "", "team-1", limit=9) == []


def test_lists_are_by_namespace_and_name(launch: Callable[..., Launched], instances: Instances) -> None:
    for namespace, name in (("system", "b"), ("alpha", "c"), ("system", "a")):
        launch(namespace=namespace, name=name)
    assert [view.instance.value.name for view in instances.all("system")] == ["a", "b"]
    assert [view.instance.value.name for view in instances.all(None)] == ["c", "a", "b"]
    assert list(instances.all("nobody")) == []


# --- waiting -------------------------------------------------------------------------------------


def test_a_wait_ends_when_the_host_reports_it_running(
    launch: Callable[..., Launched], host: Any, instances: Instances
) -> None:
    one = launch()
    threading.Timer(0.3, host.report, (one.uuid, State.CREATED)).start()
    views: list[tuple[State, str]] = []
    view = instances.wait(
        found(instances, one), until=ENDED, timeout_s=30, on_view=lambda state, doing: views.append((state, doing))
    )
    assert view is not None
    assert (view.state, view.seen is not None and view.seen.addresses) == (State.CREATED, one.addresses)
    state, doing = views[0]
    assert state is State.INITIAL
    assert doing.startswith(f"claimed on {host.name}, and asked of it: ")


def test_a_wait_is_told_of_a_failure_and_the_claim_is_given_back(
    launch: Callable[..., Launched], host: Any, instances: Instances
) -> None:
    one = launch()
    host.report(one.uuid, State.ERROR, error="the image is no image", is_gone=True)
    view = instances.wait(found(instances, one), until=ENDED, timeout_s=30)
    assert view is not None
    assert (view.state, view.error) == (State.ERROR, "the image is no image")
    assert host.claims() == {}
    assert host.assigned(one.uuid).role is Role.ABSENT


def test_a_wait_that_takes_too_long_says_what_to_do(launch: Callable[..., Launched], instances: Instances) -> None:
    one = launch(name="web-1")
    with pytest.raises(DeadlineExceeded, match=f"still initial after 0.2 s; .*eschedule doctor {one.uuid}"):
        instances.wait(found(instances, one), until=ENDED, timeout_s=0.2)


# --- the end -------------------------------------------------------------------------------------


def test_destroy_marks_both_and_the_one_who_waits_finishes(
    launch: Callable[..., Launched],
    host: Any,
    instances: Instances,
    all_keys: Callable[[], set[str]],
    store: Store,
) -> None:
    one = launch(user_data="#cloud-config")
    host.report(one.uuid, State.CREATED)
    instances.destroy(found(instances, one))
    marked, assigned = found(instances, one).value, host.assigned(one.uuid)
    assert (marked.state, marked.generation) == (State.DELETING, 2)
    assert (assigned.role, assigned.generation) == (Role.ABSENT, 2)
    threading.Timer(0.3, lambda: host.report(one.uuid, State.DELETED, is_gone=True)).start()
    assert instances.wait(found(instances, one), until=frozenset(), timeout_s=30) is None
    assert host.claims() == {}
    # The network stays, with no trace of the instance in it but its address, which rests.
    assert not [
        key for key in all_keys() if one.uuid in key or "/ports/" in key or "/addresses/" in key or "/macs/" in key
    ]
    assert resting_key(store)
    assert {key.split("/")[1] for key in all_keys()} == {"networks", "names", "vnis"}


def resting_key(store: Store) -> str:
    """Return the key of the one address that rests."""
    locks = [lock for lock in store.list(keys.NETWORKS, AddressLock).items if "/addresses/" in lock.key]
    assert [(lock.value.is_resting, bool(lock.lease)) for lock in locks] == [(True, True)]
    return locks[0].key


def test_destroy_twice_at_once_is_one(launch: Callable[..., Launched], host: Any, instances: Instances) -> None:
    one = launch()
    read = found(instances, one)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(instances.destroy, [read] * 4))
    assert found(instances, one).value.generation == 2
    host.report(one.uuid, State.DELETED, is_gone=True)
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(instances.wait, read, until=frozenset(), timeout_s=30) for _ in range(4)]
        assert [wait.result() for wait in waits] == [None] * 4
    instances.destroy(read)
    assert host.claims() == {}


def test_destroy_of_one_whose_assignment_was_lost_writes_it_anew(
    launch: Callable[..., Launched], host: Any, instances: Instances, store: Store
) -> None:
    one = launch()
    store.commit([], [Delete(keys.assignment(host.provider, one.uuid))])
    instances.destroy(found(instances, one))
    assert (host.assigned(one.uuid).role, host.assigned(one.uuid).generation) == (Role.ABSENT, 2)


def test_events_are_followed_until_the_instance_is_gone(
    launch: Callable[..., Launched], host: Any, instances: Instances
) -> None:
    one = launch()
    seen: list[str] = []

    def destroy() -> None:
        instances.destroy(found(instances, one))
        host.report(one.uuid, State.DELETED, is_gone=True)
        instances.finish(one.uuid)

    for event in instances.follow_events(found(instances, one).value):
        seen.append(event.type)
        if event.type == "requested":
            threading.Timer(0.2, destroy).start()
    # What came in the very transaction that ended it may be gone before it is read.
    assert seen[0] == "requested"
    assert set(seen) <= {"requested", "destroy.requested"}


# --- diagnosis -----------------------------------------------------------------------------------


def waits(cloud: Cloud, ref: str) -> str:
    return diagnose(cloud, ref, "system").waits_for


def test_a_diagnosis_says_whose_turn_it_is_at_every_step(
    launch: Callable[..., Launched], host: Any, instances: Instances, cloud: Cloud
) -> None:
    one = launch(name="web-1")
    assert waits(cloud, "web-1") == f"{host.name}, to take up what was asked"
    host.sleep()
    assert waits(cloud, "web-1") == f"the daemon on {host.name}, which does not answer: start `ecompute run` there"
    host.wake()
    host.report(one.uuid, State.CREATING)
    assert waits(cloud, "web-1") == f"{host.name}, which is at work on it"
    host.node(hold="etcd was emptied")
    assert waits(cloud, "web-1") == f"an operator: {host.name} is on hold, because etcd was emptied"
    host.node()
    host.report(one.uuid, State.CREATED)
    assert waits(cloud, "web-1") == "nothing"
    cloud.placement.release(one.uuid)
    assert waits(cloud, "web-1").startswith("an operator: placement holds no claim for it")
    instances.destroy(found(instances, one))
    assert waits(cloud, "web-1") == f"{host.name}, to take up what was asked"
    host.report(one.uuid, State.DELETED, is_gone=True)
    assert waits(cloud, "web-1") == "the lead, to release its claim and remove its keys"
    instances.finish(one.uuid)
    with pytest.raises(NotFound):
        waits(cloud, "web-1")
    with pytest.raises(NotFound, match="nothing is known of"):
        waits(cloud, one.uuid)


def test_a_diagnosis_of_a_failure_gives_its_reason(
    launch: Callable[..., Launched], host: Any, instances: Instances, cloud: Cloud
) -> None:
    one = launch(name="web-1")
    host.report(one.uuid, State.ERROR, error="no image", is_gone=True)
    expected = f"you: it failed (no image); `eschedule destroy {one.uuid}` removes it"
    assert waits(cloud, "web-1") == expected
    instances.finish(one.uuid)
    assert waits(cloud, "web-1") == expected


def test_a_diagnosis_finds_what_is_only_half_there(
    launch: Callable[..., Launched], host: Any, cloud: Cloud, store: Store
) -> None:
    one = launch()
    host.report(one.uuid, State.CREATED)
    store.commit([], [Delete(keys.instance(one.uuid)), Delete(keys.assignment(host.provider, one.uuid))])
    assert waits(cloud, one.uuid).startswith("the lead's audit")
    cloud.placement.release(one.uuid)
    diagnosis = diagnose(cloud, one.uuid, "system")
    assert diagnosis.provider == host.provider
    assert diagnosis.waits_for.startswith(f"an operator: {host.name} has a guest that nobody asked for")
