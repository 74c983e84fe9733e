"""The audit of interfaces, ports, locks, members and floating addresses, on real etcd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Floating, Instance, Interface, Port, State
from ecompute.cluster.events import INSTANCE, read
from ecompute.cluster.store import Delete, Put, Store
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from ecompute.cluster.upkeep.findings import findings
from ecompute.cluster.upkeep.misfits import Kind
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FloatingAddresses, Target
from eschedule.cloud.interfaces import Interfaces
from eschedule.cloud.pools import Pools
from eschedule.scheduler.launch import Launcher


@pytest.fixture
def audit(store: Store, cloud: Cloud, clock: Any) -> Audit:
    return Audit(store, cloud.placement, list, clock)


@pytest.fixture
def twice(audit: Audit, clock: Any) -> Callable[[], Any]:
    """Return what two looks agree on, a grace period apart."""

    def run() -> Any:
        clock.now_s += GRACE_S + 1
        audit.look(is_full=True)
        clock.now_s += GRACE_S + 1
        return audit.look(is_full=True)

    return run


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def guest(cloud: Cloud, host: Any, make_request: Callable[..., Any]) -> str:
    """An instance that runs, with a floating and a routed address, called web-1."""
    made = Launcher(cloud).launch(make_request(name="web-1")).uuid
    host.report(made, State.CREATED)
    Pools(cloud).create("public", "203.0.113.0/29")
    FloatingAddresses(cloud).create("system", ip="203.0.113.1", target=Target("web-1"))
    FloatingAddresses(cloud).create("system", ip="203.0.113.2", target=Target("web-1", is_routed=True))
    return made


def interface_of(store: Store, guest: str) -> Interface:
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    return found.value.with_ports[0]


def kinds(found: Any) -> set[str]:
    return {str(finding.what) for finding in findings(found) if finding.is_wrong}


def test_where_all_fits_nothing_is_found(guest: str, twice: Callable[[], Any]) -> None:
    assert kinds(twice()) == set()


def test_what_was_lost_of_an_interface_is_put_there_again(
    guest: str, twice: Callable[[], Any], audit: Audit, store: Store
) -> None:
    before = store.keys(keys.NETWORKS)[0]
    interface = interface_of(store, guest)
    key = keys.port(interface.network_uuid, interface.uuid)
    port = store.get(key, Port)
    assert port is not None
    store.commit([], [Delete(key) for key in before if len(keys.parts(key)) > 2])
    audit.repair(twice())
    audit.repair(twice())
    assert store.keys(keys.NETWORKS)[0] == before
    again = store.get(key, Port)
    assert again is not None and again.value == port.value
    assert kinds(twice()) == set()
    assert "repaired" in [event.type for event in read(store, INSTANCE, guest)]


def test_an_address_that_no_port_names_is_detached_and_one_that_only_the_port_names_is_struck(
    guest: str, twice: Callable[[], Any], audit: Audit, store: Store
) -> None:
    interface = interface_of(store, guest)
    key = keys.port(interface.network_uuid, interface.uuid)
    port = store.get(key, Port)
    assert port is not None
    store.commit([], [Put(key, structs.replace(port.value, floating="203.0.113.6", routed=()))])
    found = twice()
    assert kinds(found) == {Kind.FLOATING, Kind.STRANGE}
    audit.repair(found)
    port = store.get(key, Port)
    assert port is not None and (port.value.floating, port.value.routed) == (None, ())
    assert [item.value.interface_uuid for item in store.list(keys.FLOATING, Floating).items] == [None, None]
    assert kinds(twice()) == set()


def test_a_port_too_many_goes_with_all_that_it_had_once_its_host_has_said_so(
    guest: str, twice: Callable[[], Any], audit: Audit, store: Store, host: Any, cloud: Cloud
) -> None:
    interface = interface_of(store, guest)
    Interfaces(cloud).remove("web-1", "system", interface.uuid)
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    store.commit([], [Put(found.key, structs.replace(found.value, leaving=()))])  # nobody knows of it any more
    assert kinds(twice()) == set(), "its host has not said so"
    host.report(guest, State.CREATED)
    assert kinds(twice()) == {Kind.PORT}
    for _ in range(3):
        audit.repair(twice())
    assert [key for key in store.keys(keys.NETWORKS)[0] if len(keys.parts(key)) > 2] == []
    assert [item.value.interface_uuid for item in store.list(keys.FLOATING, Floating).items] == [None, None]
    assert kinds(twice()) == set()


def test_what_is_written_between_two_looks_is_left_alone(guest: str, audit: Audit, clock: Any, store: Store) -> None:
    interface = interface_of(store, guest)
    key = keys.port(interface.network_uuid, interface.uuid)
    port = store.get(key, Port)
    assert port is not None
    store.commit([], [Put(key, structs.replace(port.value, floating="203.0.113.6"))])
    audit.look(is_full=True)
    store.commit([], [Put(key, structs.replace(port.value, floating="203.0.113.6"))])
    clock.now_s += GRACE_S + 1
    assert kinds(audit.look(is_full=True)) == set()
    clock.now_s += GRACE_S + 1
    found = audit.look(is_full=True)
    assert kinds(found) == {Kind.FLOATING, Kind.STRANGE}
    store.commit([], [Put(key, port.value)])
    audit.repair(found)
    again = store.get(key, Port)
    assert again is not None and again.value == port.value


def test_documents_that_make_no_sense_stop_no_look(
    guest: str, twice: Callable[[], Any], audit: Audit, store: Store
) -> None:
    interface = interface_of(store, guest)
    key = keys.port(interface.network_uuid, interface.uuid)
    port = store.get(key, Port)
    floating = store.get(keys.floating("203.0.113.1"), Floating)
    assert port is not None and floating is not None
    strange = structs.replace(floating.value, ip="a/b", network_uuid="a/b", interface_uuid="\x00")
    store.commit(
        [],
        [
            Put(key, structs.replace(port.value, floating="a/b", mac="/")),
            Put(keys.floating("203.0.113.7"), strange),
        ],
    )
    assert kinds(twice()) == {Kind.FLOATING}, "of what cannot be read nothing is concluded"
