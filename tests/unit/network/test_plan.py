from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network import names, terms
from ecompute.network.fake import OUTLET_MTU, FakeLinks
from ecompute.network.mesh import wanted
from ecompute.network.plan import guests, part, plan
from ecompute.network.terms import (
    FoundBridge,
    FoundNetwork,
    FoundPort,
    FoundVlan,
    FoundVxlan,
    Part,
    Physical,
    Tap,
    WantedNetwork,
)

VNI = 0x10
ME = "host-1"
NETWORK = Network(uuid="n", namespace="system", name="default", cidr="10.0.0.0/24", vni=VNI, mtu=1450, created_at="")


def host(provider: str, underlay: str) -> NetworkHost:
    return NetworkHost(provider=provider, underlay=underlay)


def port(provider: str, mac: str, epoch: int = 1, *addresses: str) -> Port:
    return Port(
        interface_uuid="00000000-0000-4000-8000-000000000000",
        instance_uuid="v",
        provider=provider,
        epoch=epoch,
        mac=mac,
        addresses=addresses,
    )


HOSTS = [host(ME, "192.0.2.1"), host("host-2", "192.0.2.2"), host("host-3", "192.0.2.3")]

macs = st.integers(1, 6).map(lambda n: f"02:00:00:00:00:{n:02x}")
underlays = st.integers(2, 6).map(lambda n: f"192.0.2.{n}")
ports_of_a_mac = st.dictionaries(macs, underlays).map(lambda found: frozenset(found.items()))
addresses = st.integers(1, 4).flatmap(lambda n: st.sampled_from([f"10.0.0.{n}", f"fd00::{n}"]))
neighbours = st.dictionaries(addresses, macs).map(lambda found: frozenset(found.items()))
zeros = st.frozensets(underlays.map(lambda underlay: (names.ZEROS, underlay)))

taps = st.frozensets(st.sampled_from(["ect1", "ect2", "ect3", "ect4"])).map(
    lambda taps: frozenset(Tap(name, "02:00:00:00:00:01", ()) for name in taps)
)
virtual = st.builds(
    WantedNetwork,
    uuid=st.just("n"),
    vni=st.just(VNI),
    mtu=st.sampled_from([1400, 1450]),
    local=st.sampled_from(["192.0.2.1", "192.0.2.100"]),
    peers=st.frozensets(underlays),
    entries=ports_of_a_mac,
    neighbours=neighbours,
    taps=taps,
)
physical = st.builds(
    WantedNetwork,
    uuid=st.just("n"),
    vni=st.just(VNI),
    mtu=st.sampled_from([1400, 1500, 9000]),
    local=st.none(),
    physical=st.builds(Physical, st.just("br0"), st.sampled_from([None, 5])),
    taps=taps,
)
wanteds = virtual | physical
bridges = st.none() | st.builds(
    FoundBridge,
    kind=st.just("bridge"),
    mac=st.sampled_from([names.bridge_mac(VNI), "02:99:00:00:00:00"]),
    mtu=st.sampled_from([1400, 1450, 1500]),
    is_up=st.booleans(),
    is_hardened=st.booleans(),
    is_tuned=st.booleans(),
)
vxlans = st.none() | st.builds(
    FoundVxlan,
    kind=st.just("vxlan"),
    vni=st.just(VNI),
    local=st.sampled_from([None, "192.0.2.1", "192.0.2.100"]),
    port=st.sampled_from([4789, 8472]),
    is_learning=st.booleans(),
    is_proxy=st.booleans(),
    mtu=st.sampled_from([1400, 1450]),
    is_up=st.booleans(),
    is_hardened=st.booleans(),
    is_attached=st.booleans(),
)


vlans = st.none() | st.builds(
    FoundVlan,
    kind=st.just("vlan"),
    outlet=st.sampled_from([None, "br0", "br1"]),
    vlan=st.sampled_from([5, 6]),
    mtu=st.sampled_from([1400, 1500]),
    is_up=st.booleans(),
    is_hardened=st.booleans(),
    is_attached=st.booleans(),
)


@st.composite
def founds(draw: st.DrawFn) -> FoundNetwork:
    bridge, vxlan, vlan = draw(bridges), draw(vxlans), draw(vlans)
    found = FoundNetwork(
        vni=VNI,
        bridge=bridge,
        vxlan=vxlan,
        vlan=vlan and replace(vlan, is_attached=vlan.is_attached and bridge is not None),
        carrier_mtu=OUTLET_MTU,
        is_guarded=draw(st.booleans()),
    )
    if vxlan is not None:
        entries = draw(ports_of_a_mac) | draw(zeros)
        # A MAC of a port has one entry: what is somebody else's is not ours too.
        taken = {mac for mac, _ in entries} - {names.ZEROS}
        foreign = frozenset(entry for entry in draw(ports_of_a_mac) if entry[0] not in taken) | (draw(zeros) - entries)
        is_attached = vxlan.is_attached and bridge is not None
        found = replace(found, entries=entries, foreign_entries=foreign, neighbours=draw(neighbours))
        found = replace(found, vxlan=replace(vxlan, is_attached=is_attached))
    if bridge is not None:
        taps = draw(st.frozensets(st.sampled_from(["ect1", "ect2"])))
        mtus = st.sampled_from([None, 1300, 1450])
        ports = frozenset(FoundPort(name, draw(st.booleans()), draw(mtus)) for name in taps)
        found = replace(found, ports=ports)
    loose = draw(st.frozensets(st.sampled_from(["ect3", "ect4"])))
    found = replace(found, loose=frozenset(FoundPort(name, draw(st.booleans())) for name in loose))
    ruled = draw(st.frozensets(st.sampled_from(["ect1", "ect3", "ect5"])))
    return replace(found, ruled=ruled, has_rules=bool(ruled) or found.is_guarded)


def applied(
    changes: tuple[terms.Change, ...], found: FoundNetwork, wanted: WantedNetwork | None = None
) -> FoundNetwork:
    links = FakeLinks()
    links.bridges = {"br0"}
    own = wanted.physical if wanted is not None else None
    is_outlets = own is not None and own.vlan is None
    links.networks[VNI] = replace(found, loose=frozenset(), ports=frozenset() if is_outlets else found.ports)
    links.taps = {port.name: port.is_hardened for port in found.loose}
    if is_outlets:
        links.taps |= {port.name: port.is_hardened for port in found.ports}
        links.outlets = dict.fromkeys((port.name for port in found.ports), "br0")
    after = {"is_guarded": found.is_guarded, "ruled": found.ruled, "has_rules": found.has_rules}
    for change in changes:
        match change:
            case terms.Guard(own_part):
                ruled = own_part.kept | {tap.name for tap in own_part.taps}
                after = {"is_guarded": True, "ruled": ruled, "has_rules": True}
            case terms.Unguard():
                after = {"is_guarded": False, "ruled": frozenset(), "has_rules": False}
            case _:
                links.apply(change)
    seen = links.found(VNI, [port.name for port in found.loose | found.ports], physical=own)
    return replace(seen, carrier_mtu=found.carrier_mtu, **after)


def assert_is(wanted: WantedNetwork, found: FoundNetwork) -> None:
    assert found.is_guarded
    assert all(port.is_hardened for port in found.ports if port.name.startswith("ect"))
    assert not {port.name for port in found.loose} & wanted.tap_names
    if wanted.physical is None:
        mtu = min(wanted.mtu, OUTLET_MTU - 50)
        assert found.vxlan == FoundVxlan("vxlan", VNI, wanted.local, 4789, False, True, mtu, True, True, True)
        assert found.entries <= wanted.forwarding() <= found.entries | found.foreign_entries
        assert found.neighbours == wanted.neighbours
        assert {port.mtu for port in found.ports if port.name in wanted.tap_names} <= {None, mtu}
    else:
        mtu = min(wanted.mtu, OUTLET_MTU)
        if wanted.physical.vlan is None:
            return
        assert found.vlan == FoundVlan("vlan", "br0", 5, mtu, True, True, True)
    assert found.bridge == FoundBridge("bridge", names.bridge_mac(VNI), mtu, True, True, True)


@given(wanteds, founds())
def test_the_plan_leads_from_what_is_found_to_what_is_wanted_and_then_is_empty(
    wanted: WantedNetwork, found: FoundNetwork
) -> None:
    after = applied(plan(wanted, found), found, wanted)
    assert_is(wanted, after)
    assert plan(wanted, after) == ()


@given(wanteds, founds())
def test_the_plan_leaves_entries_and_ports_that_are_not_ours(wanted: WantedNetwork, found: FoundNetwork) -> None:
    changes = plan(wanted, found)
    after = applied(changes, found, wanted)
    assert {port.name for port in after.ports | after.loose} == {port.name for port in found.ports | found.loose}
    assert {port.name for port in found.ports} <= {port.name for port in after.ports}
    if not any(isinstance(change, terms.DeleteVxlan) for change in changes):
        # Only a MAC that a port of ours has may be taken over.
        ours = {mac for mac, _ in wanted.entries}
        assert {entry for entry in found.foreign_entries if entry[0] not in ours} <= after.foreign_entries
    for change in changes:
        if isinstance(change, terms.DropEntry):
            assert (change.mac, change.underlay) in found.entries


@given(wanteds, founds(), st.data())
def test_a_plan_cut_off_anywhere_is_finished_by_the_next(
    wanted: WantedNetwork, found: FoundNetwork, data: st.DataObject
) -> None:
    changes = plan(wanted, found)
    half = applied(changes[: data.draw(st.integers(0, len(changes)))], found, wanted)
    assert_is(wanted, applied(plan(wanted, half), half, wanted))


@given(wanteds, founds())
def test_no_device_goes_up_before_it_is_hardened_attached_and_guarded(
    wanted: WantedNetwork, found: FoundNetwork
) -> None:
    changes = plan(wanted, found)
    for index, change in enumerate(changes):
        if isinstance(change, terms.SetUp):
            before = applied(changes[:index], found, wanted)
            out = before.vxlan if wanted.physical is None else before.vlan
            device = before.bridge if change.device == names.bridge_name(VNI) else out
            assert before.is_guarded
            assert device is not None
            assert device.is_hardened
            assert out is not None
            assert out.is_attached


@given(wanteds, founds())
def test_a_tap_that_is_there_keeps_its_rules_though_its_port_is_forgotten(
    wanted: WantedNetwork, found: FoundNetwork
) -> None:
    there = {port.name for port in found.ports | found.loose}
    own = part(wanted, found)
    assert own.kept == (found.ruled & there) - wanted.tap_names
    assert own.taps == wanted.taps
    assert (own.members is None) == (wanted.physical is not None)


@given(founds())
def test_removal_leaves_nothing_and_never_takes_a_bridge_from_under_a_port(found: FoundNetwork) -> None:
    if guests(found):
        with pytest.raises(NetworkError, match="still has ports"):
            plan(None, found)
        return
    after = applied(plan(None, found), found)
    assert (after.bridge, after.vxlan, after.vlan) == (None, None, None)
    assert (after.entries, after.neighbours) == (frozenset(), frozenset())
    assert not after.has_rules
    assert plan(None, after) == ()


@pytest.mark.parametrize(
    "found",
    [
        FoundNetwork(VNI, bridge=FoundBridge("veth")),
        FoundNetwork(VNI, vxlan=FoundVxlan("bridge")),
        FoundNetwork(VNI, vxlan=FoundVxlan("vxlan", vni=99)),
        FoundNetwork(VNI, vxlan=FoundVxlan("vxlan", vni=None)),
        FoundNetwork(VNI, vlan=FoundVlan("veth")),
    ],
)
def test_a_device_with_our_name_that_is_not_ours_is_an_error(found: FoundNetwork) -> None:
    for aim in (wanted(NETWORK, ME, [], HOSTS), None):
        with pytest.raises(NetworkError, match="rename or remove it"):
            plan(aim, found)


def test_a_port_that_an_operator_put_on_our_bridge_is_left_as_it_is() -> None:
    aim = wanted(NETWORK, ME, [], HOSTS)
    found = applied(plan(aim, FoundNetwork(VNI)), FoundNetwork(VNI))
    assert plan(aim, replace(found, ports=frozenset({FoundPort("eth5", False)}))) == ()


def test_a_guest_that_moves_is_one_change() -> None:
    before = wanted(NETWORK, ME, [port("host-2", "02:00:00:00:00:02", 1)], HOSTS)
    found = applied(plan(before, FoundNetwork(VNI)), FoundNetwork(VNI))
    after = wanted(NETWORK, ME, [port("host-3", "02:00:00:00:00:02", 2)], HOSTS)
    assert plan(after, found) == (terms.PutEntry(VNI, "02:00:00:00:00:02", "192.0.2.3"),)


def a_crowd(hosts: int, guests: int) -> tuple[list[NetworkHost], list[Port]]:
    """Return hosts, and guests on them with an IPv4 and an IPv6 address each."""
    return [host(f"host-{n}", f"10.1.{n // 250}.{n % 250 + 1}") for n in range(hosts)], [
        port(
            f"host-{n % hosts}",
            f"02:00:00:00:{n // 256:02x}:{n % 256:02x}",
            1,
            f"10.50.{n // 256}.{n % 256}/16",
            f"fd00::{n + 1:x}/64",
        )
        for n in range(guests)
    ]


def converged(ports: list[Port], hosts: list[NetworkHost]) -> FoundNetwork:
    aim = wanted(NETWORK, "host-0", ports, hosts)
    empty = replace(aim, peers=frozenset(), entries=frozenset(), neighbours=frozenset())
    found = applied(plan(empty, FoundNetwork(VNI)), FoundNetwork(VNI))
    return replace(found, entries=aim.forwarding(), neighbours=aim.neighbours)


def test_in_a_network_of_1000_hosts_and_10000_guests_one_that_moves_is_four_changes() -> None:
    hosts, ports = a_crowd(1000, 10_000)
    moved = [*ports[1:], structs.replace(ports[0], provider="host-5", epoch=2)]
    assert plan(wanted(NETWORK, "host-0", moved, hosts), converged(ports, hosts)) == (
        terms.PutEntry(VNI, ports[0].mac, "10.1.0.6"),
        *(terms.PutNeighbour(VNI, a, ports[0].mac) for a in ("10.50.0.0", "fd00::1", "fe80::ff:fe00:0")),
    )


def test_comparing_a_network_grows_no_faster_than_the_network() -> None:
    counts = []
    for size in (20, 40, 80):
        hosts, ports = a_crowd(size, 10 * size)
        found = converged(ports, hosts)
        counts.append(instructions_of(lambda: plan(wanted(NETWORK, "host-0", ports, hosts), found)))  # noqa: B023
    few, more, many = counts
    assert 0 < many - more <= 2.1 * (more - few)


def instructions_of(work: Callable[[], object]) -> int:
    """Return how many instructions Python takes: the same on a machine that is busy with other things."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


# --- physical networks, and what carries a network -----------------------------------------------

TAP = Tap("ect1", "02:00:00:00:00:01", None)
UNTAGGED = WantedNetwork("n", VNI, 1500, None, Physical("br0"), taps=frozenset({TAP}))
TAGGED = replace(UNTAGGED, physical=Physical("br0", 5))


def test_on_an_untagged_physical_network_nothing_is_made_but_rules() -> None:
    assert plan(UNTAGGED, FoundNetwork(VNI, carrier_mtu=1500)) == (
        terms.Guard(Part(VNI, frozenset({TAP}), members=None)),
    )


def test_a_tap_that_left_the_operators_bridge_is_put_on_it_again() -> None:
    found = FoundNetwork(VNI, carrier_mtu=1500, loose=frozenset({FoundPort("ect1", True, 1500)}), is_guarded=True)
    assert plan(UNTAGGED, found) == (terms.AttachTap("br0", "ect1"),)


def test_on_a_vlan_a_bridge_of_ours_stands_on_a_device_upon_the_operators() -> None:
    bridge, vlan = names.bridge_name(VNI), names.vlan_name(VNI)
    assert plan(TAGGED, FoundNetwork(VNI, carrier_mtu=1500)) == (
        terms.Guard(Part(VNI, frozenset({TAP}), members=None)),
        terms.AddBridge(VNI, 1500),
        terms.Harden(bridge),
        terms.AddVlan(VNI, "br0", 5),
        terms.Harden(vlan),
        terms.SetMtu(vlan, 1500),
        terms.AttachVlan(VNI),
        terms.SetUp(bridge),
        terms.SetUp(vlan),
    )


@pytest.mark.parametrize("wanted", [UNTAGGED, TAGGED])
def test_without_the_operators_bridge_it_is_said_which_one_is_missing(wanted: WantedNetwork) -> None:
    with pytest.raises(NetworkError, match="on the bridge br0, which this host does not have; make it"):
        plan(wanted, FoundNetwork(VNI))


def test_another_vlan_makes_the_device_anew() -> None:
    found = applied(plan(TAGGED, FoundNetwork(VNI, carrier_mtu=1500)), FoundNetwork(VNI, carrier_mtu=1500), TAGGED)
    changes = plan(replace(TAGGED, physical=Physical("br0", 6)), found)
    assert [type(change) for change in changes[:2]] == [terms.DeleteVlan, terms.AddVlan]


def test_a_network_is_as_small_as_what_carries_it() -> None:
    """An underlay whose MTU was made smaller is followed by bridge, VXLAN device and taps."""
    aim = replace(wanted(NETWORK, ME, [], HOSTS), taps=frozenset({TAP}))
    found = applied(plan(aim, FoundNetwork(VNI, carrier_mtu=1500)), FoundNetwork(VNI, carrier_mtu=1500))
    found = replace(found, ports=frozenset({FoundPort("ect1", True, 1450), FoundPort("eth5", True, 9000)}))
    assert plan(aim, found) == ()
    changes = plan(aim, replace(found, carrier_mtu=1400))
    assert changes == (terms.TuneBridge(VNI, 1350), terms.SetMtu("ecx000010", 1350), terms.SetMtu("ect1", 1350))
    assert plan(aim, replace(found, carrier_mtu=9000)) == ()
