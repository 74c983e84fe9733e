"""Interfaces of an instance that is there: what its host is told, and what is given back once it has done it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, Floating, Instance, Role, State
from ecompute.cluster.errors import Conflict, DeadlineExceeded, NotFound, Refused, StepFailed
from ecompute.cluster.events import INSTANCE, LEAD, Events, read
from ecompute.cluster.store import Delete, Put, Store, Versioned
from ecompute.cluster.upkeep.decide import Act
from ecompute.cluster.upkeep.finish import Finisher
from ecompute.cluster.upkeep.leader import Leader
from eschedule.cloud.connection import Cloud
from eschedule.cloud.diagnosis import diagnose
from eschedule.cloud.floating import FloatingAddresses, Target
from eschedule.cloud.instances import HostSilent, Instances
from eschedule.cloud.interface_views import Standing, views
from eschedule.cloud.interfaces import Interfaces
from eschedule.cloud.pools import Pools
from eschedule.scheduler.launch import Launcher


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def guest(cloud: Cloud, host: Any, make_request: Callable[..., Any]) -> str:
    """An instance that runs, with one interface, called web-1."""
    made = Launcher(cloud).launch(make_request(name="web-1")).uuid
    host.report(made, State.CREATED)
    return made


@pytest.fixture
def interfaces(cloud: Cloud) -> Interfaces:
    return Interfaces(cloud)


def instance_of(store: Store, guest: str) -> Versioned[Instance]:
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    return found


def first(store: Store, guest: str) -> str:
    return instance_of(store, guest).value.with_ports[0].uuid


def of_networks(store: Store) -> list[str]:
    """Return the kinds of keys there are below networks."""
    return sorted(keys.parts(key)[2] for key in store.keys(keys.NETWORKS)[0] if len(keys.parts(key)) > 2)


def lead(store: Store, cloud: Cloud, guest: str) -> Act:
    return Finisher(store, cloud.placement, Events(store, LEAD)).finish(guest)


def test_its_host_is_told_and_until_it_has_done_it_port_and_locks_stay(
    interfaces: Interfaces, guest: str, host: Any, store: Store, cloud: Cloud
) -> None:
    before = of_networks(store)
    asked = interfaces.remove("web-1", "system", first(store, guest)[:8])
    assert (asked.generation, asked.spec.interfaces) == (2, ())
    assigned = host.assigned(guest)
    assert (assigned.role, assigned.generation, assigned.spec) == (Role.RUN, 2, asked.spec)
    assert lead(store, cloud, guest) is Act.NOTHING
    assert of_networks(store) == before
    assert [view.standing for view in views(store, instance_of(store, guest))] == [Standing.LEAVING]
    assert interfaces.remove("web-1", "system", first(store, guest)) == asked, "once more asks nothing"
    host.report(guest, State.CREATED, error="the guest does not let go")
    assert lead(store, cloud, guest) is Act.NOTHING, "tried, not done"
    host.report(guest, State.CREATED)
    assert lead(store, cloud, guest) is Act.LET_GO
    assert lead(store, cloud, guest) is Act.NOTHING
    assert "ports" not in of_networks(store) and "hosts" not in of_networks(store) and "macs" not in of_networks(store)
    assert instance_of(store, guest).value.leaving == ()
    types = [event.type for event in read(store, INSTANCE, guest)]
    assert types == ["requested", "interface.leaving", "interface.removed"]
    with pytest.raises(NotFound, match="web-1 has no interface"):
        interfaces.remove("web-1", "system", asked.leaving[0].interface.uuid)


def test_what_was_attached_is_free_again_and_others_of_the_host_stay_members(
    interfaces: Interfaces, guest: str, host: Any, store: Store, cloud: Cloud, make_request: Callable[..., Any]
) -> None:
    Pools(cloud).create("public", "203.0.113.0/30")
    made = FloatingAddresses(cloud).create("system", target=Target("web-1"))
    routed = FloatingAddresses(cloud).create("system", target=Target("web-1", is_routed=True))
    Launcher(cloud).launch(make_request(name="web-2"))
    interfaces.remove("web-1", "system", first(store, guest))
    with pytest.raises(NotFound):
        FloatingAddresses(cloud).attach(made.ip, "system", Target("web-1"))
    host.report(guest, State.CREATED)
    lead(store, cloud, guest)
    free = [item.value for item in store.list(keys.FLOATING, Floating).items]
    assert [(one.ip, one.interface_uuid, one.is_routed) for one in free] == [
        (ip, None, False) for ip in sorted([made.ip, routed.ip])
    ]
    assert of_networks(store).count("hosts") == of_networks(store).count("ports") == 1


def test_a_destroyed_instance_takes_with_it_what_was_leaving(
    interfaces: Interfaces, guest: str, host: Any, store: Store, cloud: Cloud
) -> None:
    interfaces.remove("web-1", "system", first(store, guest))
    instances = Instances(cloud)
    instances.destroy(instance_of(store, guest))
    host.report(guest, State.DELETED, is_gone=True)
    assert lead(store, cloud, guest) is Act.RELEASE_AND_DELETE
    assert {"ports", "macs", "hosts"} & set(of_networks(store)) == set()
    assert not [key for key in store.keys("/")[0] if guest in key]


def test_a_report_of_an_older_epoch_lets_go_of_nothing(
    interfaces: Interfaces, guest: str, host: Any, store: Store, cloud: Cloud
) -> None:
    interfaces.remove("web-1", "system", first(store, guest))
    host.report(guest, State.CREATED)
    found = instance_of(store, guest)
    store.commit([], [Put(found.key, structs.replace(found.value, epoch=2))])
    assert lead(store, cloud, guest) is Act.NOTHING


@pytest.mark.parametrize(
    ("state", "what"),
    [(State.CREATING, "web-1 is not built yet"), (State.ERROR, "web-1 has failed")],
)
def test_an_instance_that_does_not_run_keeps_its_interfaces(
    interfaces: Interfaces, guest: str, host: Any, store: Store, state: State, what: str
) -> None:
    host.report(guest, state)
    with pytest.raises(Conflict, match=what):
        interfaces.remove("web-1", "system", first(store, guest))
    assert host.assigned(guest).generation == 1


def test_one_that_is_destroyed_on_a_lost_host_or_told_something_else_keeps_them(
    interfaces: Interfaces, guest: str, host: Any, store: Store, cloud: Cloud
) -> None:
    uuid_ = first(store, guest)
    store.commit([], [Put(keys.admin(host.provider), Admin(lost_since="noon"))])
    with pytest.raises(Refused, match=f"host {host.name} of web-1 is lost since noon: nothing is changed there"):
        interfaces.remove("web-1", "system", uuid_)
    store.commit([], [Delete(keys.admin(host.provider)), Delete(keys.assignment(host.provider, guest))])
    with pytest.raises(Conflict, match="is told something else of it now"):
        interfaces.remove("web-1", "system", uuid_)
    Instances(cloud).destroy(instance_of(store, guest))
    with pytest.raises(Conflict, match="web-1 is being destroyed"):
        interfaces.remove("web-1", "system", uuid_)
    with pytest.raises(NotFound, match="there is no instance"):
        interfaces.remove(guest, "team-1", uuid_)
    with pytest.raises(NotFound, match="web-1 has no interface 'zz'"):
        interfaces.remove("web-1", "system", "zz")


def test_the_doctor_says_who_gives_back_what_it_is_without(
    interfaces: Interfaces, guest: str, host: Any, store: Store, cloud: Cloud
) -> None:
    interfaces.remove("web-1", "system", first(store, guest))
    assert diagnose(cloud, "web-1", "system").waits_for == f"{host.name}, to take up what was asked"
    host.report(guest, State.CREATED)
    waits_for = diagnose(cloud, "web-1", "system").waits_for
    assert waits_for == "the lead, to give back what the interfaces have that it is without"
    lead(store, cloud, guest)
    assert diagnose(cloud, "web-1", "system").waits_for == "nothing"


def test_who_waits_gives_back_and_returns_then(interfaces: Interfaces, guest: str, host: Any, store: Store) -> None:
    asked = interfaces.remove("web-1", "system", first(store, guest))
    threading.Timer(0.3, host.report, (guest, State.CREATED)).start()
    assert interfaces.wait(asked, timeout_s=30).leaving == ()
    assert "ports" not in of_networks(store)


def test_a_wait_ends_with_what_keeps_it_from_ending(
    interfaces: Interfaces, guest: str, host: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = interfaces.remove("web-1", "system", first(store, guest))
    with pytest.raises(DeadlineExceeded, match=r"the host of web-1 has not done it after 0.1 s; it goes on by itself"):
        interfaces.wait(asked, timeout_s=0.1)
    host.report(guest, State.CREATED, error="the guest does not let go")
    with pytest.raises(StepFailed, match="the host of web-1 could not: the guest does not let go; it tries again"):
        interfaces.wait(asked, timeout_s=30)
    host.sleep()
    store.commit([], [Delete(keys.seen(host.provider, guest))])
    monkeypatch.setattr("eschedule.cloud.interfaces.SILENCE_S", 0.2)
    with pytest.raises(HostSilent, match="the host of web-1 does not answer; it does it when it is back"):
        interfaces.wait(asked, timeout_s=30)
    store.commit([], [Delete(keys.instance(guest))])
    with pytest.raises(NotFound, match="web-1 was destroyed meanwhile"):
        interfaces.wait(asked, timeout_s=30)


def test_the_lead_gives_back_what_was_removed_by_one_who_died(
    tool: Any, guest: str, host: Any, store: Store, cloud: Cloud, eventually: Callable[..., None]
) -> None:
    leader = Leader(store, cloud.placement, Events(store, LEAD), holder="a test", duties=[])
    leader.start()
    try:
        eventually(lambda: store.keys(keys.LEAD)[0])
        done = tool("interface", "remove", "web-1", first(store, guest), ECOMPUTE_FAILPOINT="interface.leaving")
        assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
        assert "ports" in of_networks(store)
        host.report(guest, State.CREATED)
        eventually(lambda: "ports" not in of_networks(store), timeout_s=10)
        assert instance_of(store, guest).value.leaving == ()
    finally:
        leader.stop()


def test_a_new_lead_finds_what_the_one_before_left(
    guest: str, host: Any, store: Store, cloud: Cloud, interfaces: Interfaces, eventually: Callable[..., None]
) -> None:
    interfaces.remove("web-1", "system", first(store, guest))
    host.report(guest, State.CREATED)
    leader = Leader(store, cloud.placement, Events(store, LEAD), holder="a test", duties=[])
    leader.start()
    try:
        eventually(lambda: "ports" not in of_networks(store), timeout_s=10)
    finally:
        leader.stop()


def test_let_go_by_many_at_once_it_is_given_back_once(
    guest: str, host: Any, store: Store, interfaces: Interfaces, make_cloud: Callable[[], Cloud]
) -> None:
    interfaces.remove("web-1", "system", first(store, guest))
    host.report(guest, State.CREATED)
    with ThreadPoolExecutor(4) as pool:
        acts = [pool.submit(lead, store, cloud, guest) for cloud in (make_cloud() for _ in range(4))]
        assert [act.result() for act in acts].count(Act.LET_GO) == 1
    assert [event.type for event in read(store, INSTANCE, guest)].count("interface.removed") == 1


def test_the_tool_lists_shows_and_removes(tool: Any, guest: str, host: Any, store: Store) -> None:
    uuid_ = first(store, guest)
    (row,) = json.loads(tool("interface", "list", "web-1", "-o", "json").stdout)
    assert (row["uuid"], row["state"], row["network"], row["model"]) == (uuid_, "present", "default", "virtio")
    assert row == json.loads(tool("interface", "show", "web-1", uuid_[:8], "-o", "json").stdout)
    completed = tool(
        _ESCHEDULE_COMPLETE="bash_complete", COMP_WORDS=f"eschedule interface show web-1 {uuid_[:3]}", COMP_CWORD="4"
    )
    assert completed.stdout == f"plain,{uuid_}\n"
    done = tool("interface", "remove", "web-1", uuid_[:8], "-o", "json")
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["state"]) == (0, "leaving")
    host.report(guest, State.CREATED)
    done = tool("interface", "remove", "web-1", uuid_, "--wait")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "web-1 has no interface any more\n")
    assert tool("interface", "list", "web-1").stderr == "web-1 has no interface\n"
    bad = tool("interface", "show", "web-1", uuid_)
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)
