"""Interfaces of a guest that is there: its domain follows its assignment, and its networks come and go with them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import structs

from ecompute.audit.compare import suspects
from ecompute.cluster import keys
from ecompute.cluster.addressing import mac_address
from ecompute.cluster.documents import (
    Assignment,
    Interface,
    Network,
    NetworkHost,
    NetworkKind,
    Port,
    Power,
    Resources,
    Role,
    Seen,
    Spec,
    State,
)
from ecompute.cluster.store import Put, Store
from ecompute.instances import reconciler
from ecompute.network.filter import FilterState
from ecompute.network.gateway_terms import PutProxy
from ecompute.network.terms import DeleteBridge, DeleteVxlan
from ecompute.network.underlay import Address

PROVIDER = "00000000-0000-0000-0000-00000000000a"
WAIT_S = 30.0

Eventually = Callable[..., None]


@dataclass
class World:
    """One instance, its networks and its host."""

    store: Store
    start: Callable[..., Any]
    eventually: Eventually
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    generation: int = 0
    host: Any = None

    def interface(self, vni: int, *, mac: str | None = None, floating: str | None = None) -> Interface:
        """Return a new interface on the network with that VNI, which is there."""
        network, made = f"00000000-0000-0000-0000-{vni:012x}", str(uuid.uuid4())
        interface = Interface(
            uuid=made,
            network_uuid=network,
            vni=vni,
            mac=mac or mac_address(made),
            addresses=(f"10.0.0.{2 + self.generation}/24",),
            mtu=1450,
        )
        port = Port(
            interface_uuid=made,
            instance_uuid=self.uuid,
            provider=PROVIDER,
            epoch=1,
            mac=interface.mac,
            addresses=interface.addresses,
            floating=floating,
        )
        there = Network(
            uuid=network, namespace="system", name="n", vni=vni, cidr="10.0.0.0/24", mtu=1450, created_at=""
        )
        member = NetworkHost(provider=PROVIDER, underlay="198.18.0.5")
        self.store.commit(
            [],
            [
                Put(keys.network(network), there),
                Put(keys.port(network, made), port),
                Put(keys.network_host(network, PROVIDER), member),
            ],
        )
        return interface

    def ask(self, *interfaces: Interface, role: Role = Role.RUN) -> None:
        self.generation += 1
        spec = Spec(
            resources=Resources(vcpus=1, memory_mb=64, disk_gb=1),
            image="http://images.example/x",
            interfaces=interfaces,
        )
        asked = Assignment(
            uuid=self.uuid, namespace="system", name="web", role=role, generation=self.generation, epoch=1, spec=spec
        )
        self.store.commit([], [Put(keys.assignment(PROVIDER, self.uuid), asked)])

    def seen(self) -> Seen | None:
        found = self.store.get(keys.seen(PROVIDER, self.uuid), Seen)
        return None if found is None else found.value

    def wait_reported(self, *, power: Power = Power.ON) -> None:
        def is_so() -> bool:
            seen = self.seen()
            return (
                seen is not None
                and (seen.generation, seen.state, seen.power) == (self.generation, State.CREATED, power)
                and seen.error is None
            )

        self.eventually(is_so, timeout_s=WAIT_S)

    def taps(self) -> set[str]:
        found = self.host.hypervisor.get(self.uuid)
        return {one.tap for one in found.interfaces}

    def vnis(self) -> set[int]:
        return set(self.host.links.ours())


def tap(interface: Interface) -> str:
    return "ect" + interface.uuid.replace("-", "")[:11]


@pytest.fixture
def world(store: Store, start: Callable[..., Any], eventually: Eventually) -> World:
    """The instance runs, with one interface on network 1."""
    world = World(store, start, eventually)
    world.ask(world.interface(1))
    world.host = start()
    world.host.answer = True
    world.host.source.gate.set()
    world.host.instances.rescan()
    world.wait_reported()
    return world


def first(world: World) -> Interface:
    found = world.store.get(keys.assignment(PROVIDER, world.uuid), Assignment)
    assert found is not None
    return found.value.spec.interfaces[0]


def test_an_interface_comes_with_its_network_and_goes_with_it(world: World) -> None:
    old, new = first(world), world.interface(2)
    world.ask(old, new)
    world.wait_reported()
    assert (world.taps(), world.vnis()) == ({tap(old), tap(new)}, {1, 2})
    world.ask(old)
    world.wait_reported()
    assert (world.taps(), world.vnis()) == ({tap(old)}, {1})
    calls = [call for call, _ in world.host.hypervisor.calls if call in ("attach", "detach", "define", "stop")]
    assert calls == ["define", "attach", "detach"]


def test_a_guest_is_built_and_served_on_a_host_whose_way_out_is_shut(world: World) -> None:
    gateways = world.host.gateways
    gateways.refuses = lambda change: isinstance(change, PutProxy)
    old, new = first(world), world.interface(2, floating="203.0.113.5")
    world.ask(old, new)
    world.wait_reported()
    assert world.taps() == {tap(old), tap(new)}
    assert gateways.networks[2].outer_lan.is_attached
    assert gateways.networks[2].proxied == frozenset()
    gateways.refuses = lambda change: False
    world.eventually(lambda: gateways.networks[2].proxied == {("203.0.113.5", "egress0")}, timeout_s=WAIT_S)


def test_a_network_that_is_narrower_here_is_served_so_and_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.host.links.address = Address("198.18.0.5", "eth0", 1400)
    old, new = first(world), world.interface(2)
    world.ask(old, new)
    world.wait_reported()
    assert world.host.gateways.networks[2].outer_lan.mtu == 1350
    (said,) = (one for one in caplog.messages if new.network_uuid in one)
    assert "has an MTU of 1350 here, and 1450 elsewhere" in said


def test_a_network_stays_for_the_interface_that_is_left_on_it(world: World) -> None:
    old, new = first(world), world.interface(1)
    world.ask(old, new)
    world.wait_reported()
    world.ask(new)
    world.wait_reported()
    assert (world.taps(), world.vnis()) == ({tap(new)}, {1})


def test_an_interface_is_there_in_place_of_another_with_its_mac(world: World) -> None:
    old = first(world)
    new = world.interface(2, mac=old.mac)
    world.ask(new)
    world.wait_reported()
    assert (world.taps(), world.vnis()) == ({tap(new)}, {2})
    calls = [call for call, _ in world.host.hypervisor.calls if call in ("attach", "detach")]
    assert calls == ["detach", "attach"]


def test_a_guest_that_does_not_let_go_is_an_error_until_it_does_and_keeps_nothing_else_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "FAILED_RETRY_S", 0.2)
    old, new = first(world), world.interface(2)
    world.host.hypervisor.cling(world.uuid)
    world.ask(new)
    world.eventually(lambda: "does not let go" in (((seen := world.seen()) and seen.error) or ""), timeout_s=WAIT_S)
    assert (world.taps(), world.vnis()) == ({tap(old), tap(new)}, {1, 2})
    world.host.hypervisor.cling(world.uuid, False)
    world.wait_reported()
    assert (world.taps(), world.vnis()) == ({tap(new)}, {2})


def test_a_guest_that_is_off_gets_them_at_its_next_definition(world: World) -> None:
    old, new = first(world), world.interface(2)
    world.host.hypervisor.set_power(world.uuid, Power.OFF)
    world.wait_reported(power=Power.OFF)
    drive = world.host.files / world.uuid / "config.iso"
    assert new.mac.encode() not in drive.read_bytes()
    world.ask(old, new)
    world.wait_reported(power=Power.OFF)
    assert world.taps() == {tap(old), tap(new)}
    assert new.mac.encode() in drive.read_bytes()
    assert "attach" not in dict(world.host.hypervisor.calls)


def test_what_was_asked_while_the_daemon_was_away_is_done_when_it_is_back(world: World) -> None:
    new = world.interface(2)
    world.host.end()
    world.ask(new)
    world.host = world.start(world.host)
    world.wait_reported()
    assert world.taps() == {tap(new)}
    # It takes no note of a network that only the pulled interface was on: the scan sweeps it.
    world.eventually(lambda: world.vnis() == {2}, timeout_s=WAIT_S)


def test_a_guest_is_destroyed_with_all_its_networks_while_an_interface_is_leaving(world: World) -> None:
    old, new = first(world), world.interface(2)
    world.ask(old, new)
    world.wait_reported()
    world.host.hypervisor.cling(world.uuid)
    world.ask(new)
    world.eventually(lambda: (seen := world.seen()) and seen.error is not None, timeout_s=WAIT_S)
    world.ask(new, role=Role.ABSENT)
    world.eventually(lambda: (seen := world.seen()) and seen.is_gone, timeout_s=WAIT_S)
    assert world.vnis() == set()


def test_on_hold_nothing_is_attached_and_the_report_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.host.instances, "_hold_reason", lambda: "a backup was put back")
    old, new = first(world), world.interface(2)
    world.ask(old, new)
    world.eventually(lambda: (seen := world.seen()) and seen.generation == world.generation, timeout_s=WAIT_S)
    seen = world.seen()
    assert seen is not None
    assert seen.error == "its guest does not have the interfaces yet that it is to have"
    assert world.taps() == {tap(old)}
    assert seen.state is State.CREATED


# --- physical networks ---------------------------------------------------------------------------


def on_lan(world: World, vni: int, vlan: int | None = None) -> Interface:
    """Return a new interface on a physical network, whose bridge operators call ``lan``."""
    interface = structs.replace(world.interface(vni), physical="lan", vlan=vlan)
    there = Network(
        uuid=interface.network_uuid,
        namespace="system",
        name="n",
        kind=NetworkKind.PHYSICAL,
        vni=vni,
        mtu=1500,
        physical="lan",
        vlan=vlan,
        created_at="",
    )
    world.store.commit([], [Put(keys.network(interface.network_uuid), there)])
    return interface


def test_an_interface_on_a_physical_network_is_on_the_operators_bridge(world: World) -> None:
    world.host.links.bridges = {"br0"}
    old, new = first(world), on_lan(world, 2)
    world.ask(old, new)
    world.wait_reported()
    found = world.host.hypervisor.get(world.uuid)
    assert {one.tap: one.bridge for one in found.interfaces} == {tap(old): "ecb000001", tap(new): "br0"}
    assert world.host.links.outlets == {tap(new): "br0"}
    assert world.host.filter.present() == {1, 2}
    world.eventually(lambda: suspects(world.host.look()) == frozenset(), timeout_s=WAIT_S)
    world.ask(old)
    world.wait_reported()
    assert world.host.filter.present() == {1}


def test_on_a_vlan_it_is_on_a_bridge_of_ours(world: World) -> None:
    world.host.links.bridges = {"br0"}
    old, new = first(world), on_lan(world, 2, vlan=5)
    world.ask(old, new)
    world.wait_reported()
    found = world.host.hypervisor.get(world.uuid)
    assert {one.tap: one.bridge for one in found.interfaces}[tap(new)] == "ecb000002"
    assert world.vnis() == {1, 2}
    world.eventually(lambda: suspects(world.host.look()) == frozenset(), timeout_s=WAIT_S)
    world.ask(old)
    world.wait_reported()
    assert world.vnis() == {1}


def test_without_the_bridge_the_interface_is_refused_and_the_guest_runs_on(world: World) -> None:
    old, new = first(world), on_lan(world, 2)
    world.ask(old, new)

    def is_said() -> bool:
        seen = world.seen()
        return seen is not None and "on the bridge br0, which this host does not have" in (seen.error or "")

    world.eventually(is_said, timeout_s=WAIT_S)
    assert world.taps() == {tap(old)}
    assert world.host.filter.present() == {1}


# --- damage --------------------------------------------------------------------------------------


def test_what_is_damaged_is_put_back_when_it_is_told_not_at_the_next_scan(world: World) -> None:
    host = world.host
    whole = host.links.found(1)
    host.links.apply(DeleteVxlan(1))
    host.alarms.on_device(1)
    world.eventually(lambda: host.links.found(1) == whole, timeout_s=WAIT_S)
    host.links.apply(DeleteBridge(1))
    host.alarms.on_device(None)  # of which network is not known
    world.eventually(lambda: host.links.found(1) == whole, timeout_s=WAIT_S)
    host.filter.is_altered = True
    host.alarms.on_rules()
    assert host.filter.state() is FilterState.WHOLE


@pytest.mark.parametrize("is_gone", [False, True])
def test_what_a_killed_daemon_has_not_told_is_told_by_the_next_one(world: World, is_gone: bool) -> None:
    path = world.host.files / world.uuid / "metadata.json"
    before = path.read_bytes()
    world.ask(first(world), world.interface(1))
    world.wait_reported()
    world.host.end()
    told = path.read_bytes()
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(before)
    world.host = world.start(world.host)
    world.eventually(lambda: path.exists() and path.read_bytes() == told, timeout_s=WAIT_S)


def arrival(vni: int, number: int) -> list[Put]:
    """Return what is written when a guest on another host joins the network with that VNI."""
    network, made, other = f"00000000-0000-0000-0000-{vni:012x}", str(uuid.uuid4()), str(uuid.uuid4())
    port = Port(
        interface_uuid=made,
        instance_uuid=str(uuid.uuid4()),
        provider=other,
        epoch=1,
        mac=mac_address(made),
        addresses=(f"10.0.0.{number}/24",),
    )
    member = NetworkHost(provider=other, underlay=f"198.18.0.{number}")
    return [Put(keys.port(network, made), port), Put(keys.network_host(network, other), member)]


def peers(world: World, vni: int) -> set[str]:
    return {peer for _, peer in world.host.links.found(vni).entries}


@pytest.fixture
def two(world: World) -> World:
    """It has an interface on network 2 besides."""
    world.ask(first(world), world.interface(2))
    world.wait_reported()
    return world


def test_what_nobody_foresaw_in_one_network_keeps_no_other_from_its_changes(
    two: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = two.host.links.apply

    def fails_for_one(change: Any) -> None:
        if getattr(change, "vni", None) == 1:
            raise AttributeError("nobody foresaw this")
        apply(change)

    monkeypatch.setattr(two.host.links, "apply", fails_for_one)
    two.store.commit([], [*arrival(1, 70), *arrival(2, 70)])
    two.eventually(lambda: "198.18.0.70" in peers(two, 2), timeout_s=WAIT_S)
    assert "198.18.0.70" not in peers(two, 1)
    monkeypatch.undo()
    two.eventually(lambda: "198.18.0.70" in peers(two, 1), timeout_s=WAIT_S)


def test_a_change_of_one_network_has_no_other_looked_at(two: World, monkeypatch: pytest.MonkeyPatch) -> None:
    two.eventually(lambda: two.vnis() == {1, 2}, timeout_s=WAIT_S)
    found, looked_at = two.host.links.found, set()

    def noted(vni: int, *args: Any, **others: Any) -> Any:
        looked_at.add(vni)
        return found(vni, *args, **others)

    monkeypatch.setattr(two.host.links, "found", noted)
    for number in range(80, 90):
        two.store.commit([], arrival(1, number))
        two.eventually(lambda peer=f"198.18.0.{number}": peer in {p for _, p in found(1).entries}, timeout_s=WAIT_S)
    assert 2 not in looked_at
