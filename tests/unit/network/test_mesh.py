from __future__ import annotations

import time
from dataclasses import replace
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ecompute.cluster.addressing import is_unicast_mac
from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network import mesh, names, terms
from ecompute.network.fake import FakeLinks
from ecompute.network.mesh import plan, wanted
from ecompute.network.terms import FoundBridge, FoundNetwork, FoundPort, FoundVxlan, Part, Tap, WantedNetwork

VNI = 0x10
ME = "host-1"
INTERFACE = "00000000-0000-4000-8000-000000000000"
NETWORK = Network(uuid="n", namespace="system", name="default", cidr="10.0.0.0/24", vni=VNI, mtu=1450, created_at="")


def host(provider: str, underlay: str) -> NetworkHost:
    return NetworkHost(provider=provider, underlay=underlay)


def port(provider: str, mac: str, epoch: int = 1, *addresses: str, routed: tuple[str, ...] = ()) -> Port:
    return Port(
        interface_uuid=INTERFACE,
        instance_uuid="v",
        provider=provider,
        epoch=epoch,
        mac=mac,
        addresses=addresses,
        routed=routed,
    )


HOSTS = [host(ME, "192.0.2.1"), host("host-2", "192.0.2.2"), host("host-3", "192.0.2.3")]

# --- names ---------------------------------------------------------------------------------------


def test_names_fit_the_kernels_fifteen_characters_and_are_read_back() -> None:
    biggest = 2**24 - 1
    for name in (names.bridge_name(biggest), names.vxlan_name(biggest), names.tap_name(str(uuid4()))):
        assert len(name) <= 15
    assert names.tap_name("0123456789AB-cdef-0000-0000-00000000") == "ect0123456789a"
    assert names.vni_of(names.bridge_name(biggest)) == names.vni_of(names.vxlan_name(biggest)) == biggest
    for foreign in ("ecb", "ecb00000g", "ecb0000001", "ect000001", "br-ecb000001", "ECB000001"):
        assert names.vni_of(foreign) is None


def test_a_bridges_mac_is_unicast_and_its_own() -> None:
    macs = {names.bridge_mac(vni) for vni in (1, 2, 2**24 - 1)}
    assert len(macs) == 3
    assert all(is_unicast_mac(mac) for mac in macs)


# --- wanted --------------------------------------------------------------------------------------


def test_peers_are_the_other_members_and_entries_the_ports_on_them() -> None:
    made = wanted(NETWORK, ME, [port(ME, "02:00:00:00:00:01"), port("host-2", "02:00:00:00:00:02")], HOSTS)
    assert made == WantedNetwork(
        uuid="n",
        vni=VNI,
        mtu=1450,
        local="192.0.2.1",
        peers=frozenset({"192.0.2.2", "192.0.2.3"}),
        entries=frozenset({("02:00:00:00:00:02", "192.0.2.2")}),
        taps=frozenset({Tap("ect00000000000", "02:00:00:00:00:01", ())}),
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_mac_on_two_hosts_is_a_guest_that_moves_and_the_higher_epoch_holds(order: int) -> None:
    ports = [port("host-2", "02:00:00:00:00:02", 1), port("host-3", "02:00:00:00:00:02", 2)][::order]
    assert wanted(NETWORK, ME, ports, HOSTS).entries == {("02:00:00:00:00:02", "192.0.2.3")}


def test_a_guest_that_moves_here_has_no_entry() -> None:
    ports = [port("host-2", "02:00:00:00:00:02", 1), port(ME, "02:00:00:00:00:02", 2)]
    assert wanted(NETWORK, ME, ports, HOSTS).entries == frozenset()


def test_a_port_on_a_host_that_is_no_member_has_no_entry() -> None:
    made = wanted(NETWORK, ME, [port("host-9", "02:00:00:00:00:02", 1, "10.0.0.2/24")], HOSTS)
    assert (made.entries, made.neighbours) == (frozenset(), frozenset())


def test_every_address_of_a_port_elsewhere_is_answered_for() -> None:
    mac = "02:00:00:00:00:02"
    ports = [
        port("host-2", mac, 1, "10.0.0.2/24", "FD00::0:2/64", routed=("203.0.113.7", "2001:db8::7")),
        port(ME, "02:00:00:00:00:01", 1, "10.0.0.1/24"),
    ]
    answered = {address for address, answer in wanted(NETWORK, ME, ports, HOSTS).neighbours if answer == mac}
    assert answered == {"10.0.0.2", "fd00::2", "203.0.113.7", "2001:db8::7", "fe80::ff:fe00:2"}
    assert len(wanted(NETWORK, ME, ports, HOSTS).neighbours) == 5


def test_a_guest_here_may_send_from_its_addresses_and_the_routed_ones() -> None:
    ports = [port(ME, "02:00:00:00:00:01", 1, "10.0.0.1/24", "FD00::1/64", routed=("203.0.113.7",))]
    (tap,) = wanted(NETWORK, ME, ports, HOSTS).taps
    assert tap == Tap("ect00000000000", "02:00:00:00:00:01", ("10.0.0.1", "203.0.113.7", "fd00::1"))


def test_in_a_network_without_a_range_a_guest_may_have_any_address() -> None:
    network = structs.replace(NETWORK, cidr=None)
    (tap,) = wanted(network, ME, [port(ME, "02:00:00:00:00:01")], HOSTS).taps
    assert tap.addresses is None


@pytest.mark.parametrize("uuid", ["", "x", 'ab"*}', "0123456789*"])
def test_a_port_whose_key_is_no_uuid_gets_no_tap_and_is_said(uuid: str) -> None:
    made = wanted(NETWORK, ME, [structs.replace(port(ME, "02:00:00:00:00:01"), interface_uuid=uuid)], HOSTS)
    assert made.taps == frozenset()
    assert len(made.problems) == 1


def test_the_gateway_of_a_network_is_known_by_its_addresses() -> None:
    network = structs.replace(NETWORK, gateway="10.0.0.254", gateway6="FD00::FE")
    assert wanted(network, ME, [], HOSTS).gateways == ("10.0.0.254", "fd00::fe")
    made = wanted(structs.replace(NETWORK, gateway="nonsense"), ME, [], HOSTS)
    assert made.gateways == ()
    assert len(made.problems) == 1


def test_without_ipv6_no_link_local_address_is_answered_for() -> None:
    ports = [port("host-2", "02:00:00:00:00:02", 1, "10.0.0.2/24")]
    assert wanted(NETWORK, ME, ports, HOSTS).neighbours == {("10.0.0.2", "02:00:00:00:00:02")}


@pytest.mark.parametrize("order", [1, -1])
def test_an_address_of_two_ports_is_the_newer_ones(order: int) -> None:
    ports = [port("host-2", f"02:00:00:00:00:0{n}", n, "10.0.0.2/24") for n in (3, 4)][::order]
    assert wanted(NETWORK, ME, ports, HOSTS).neighbours == {("10.0.0.2", "02:00:00:00:00:04")}


@pytest.mark.parametrize("text", ["", "x", "10.0.0.300/24", "224.0.0.1/4", "0.0.0.0/0", "169.254.169.254", "fe80::1%e"])
def test_an_address_that_no_interface_can_have_is_left_out_and_said(text: str) -> None:
    made = wanted(NETWORK, ME, [port("host-2", "02:00:00:00:00:02", 1, text, "10.0.0.2/24")], HOSTS)
    assert made.neighbours == {("10.0.0.2", "02:00:00:00:00:02")}
    assert len(made.problems) == 1


@pytest.mark.parametrize("underlay", ["", "x", "::1", "127.0.0.2", "224.0.0.1", "0.0.0.0", "255.255.255.255"])
def test_a_host_with_an_impossible_underlay_address_costs_only_itself_its_place(underlay: str) -> None:
    made = wanted(NETWORK, ME, [port("host-9", "02:00:00:00:00:02")], [*HOSTS, host("host-9", underlay)])
    assert made.peers == {"192.0.2.2", "192.0.2.3"}
    assert made.entries == frozenset()
    assert len(made.problems) == 1
    assert "host-9" in made.problems[0]


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", names.ZEROS, "nonsense", ""])
def test_a_port_with_a_mac_that_no_interface_has_is_left_out_and_said(mac: str) -> None:
    made = wanted(NETWORK, ME, [port("host-2", mac), port("host-2", "02:00:00:00:00:02")], HOSTS)
    assert made.entries == {("02:00:00:00:00:02", "192.0.2.2")}
    assert len(made.problems) == 1


def test_a_host_with_our_own_underlay_address_is_no_peer() -> None:
    hosts = [*HOSTS, host("host-4", "192.0.2.1")]
    made = wanted(NETWORK, ME, [port("host-4", "02:00:00:00:00:04")], hosts)
    assert made.peers == {"192.0.2.2", "192.0.2.3"}
    assert made.entries == frozenset()


def test_loopback_serves_a_single_host_and_is_refused_for_two() -> None:
    assert wanted(NETWORK, ME, [], [host(ME, "127.0.0.1")]).local == "127.0.0.1"
    with pytest.raises(NetworkError, match="is loopback; set `underlay:`"):
        wanted(NETWORK, ME, [], [host(ME, "127.0.0.1"), host("host-2", "192.0.2.2")])


def test_a_host_without_a_record_of_its_own_is_refused() -> None:
    with pytest.raises(NetworkError, match="host-1 has no underlay address"):
        wanted(NETWORK, ME, [], HOSTS[1:])


# --- plan ----------------------------------------------------------------------------------------

macs = st.integers(1, 6).map(lambda n: f"02:00:00:00:00:{n:02x}")
underlays = st.integers(2, 6).map(lambda n: f"192.0.2.{n}")
ports_of_a_mac = st.dictionaries(macs, underlays).map(lambda found: frozenset(found.items()))
addresses = st.integers(1, 4).flatmap(lambda n: st.sampled_from([f"10.0.0.{n}", f"fd00::{n}"]))
neighbours = st.dictionaries(addresses, macs).map(lambda found: frozenset(found.items()))
zeros = st.frozensets(underlays.map(lambda underlay: (names.ZEROS, underlay)))

wanteds = st.builds(
    WantedNetwork,
    uuid=st.just("n"),
    vni=st.just(VNI),
    mtu=st.sampled_from([1400, 1450]),
    local=st.sampled_from(["192.0.2.1", "192.0.2.100"]),
    peers=st.frozensets(underlays),
    entries=ports_of_a_mac,
    neighbours=neighbours,
    taps=st.frozensets(st.sampled_from(["ect1", "ect2", "ect3", "ect4"])).map(
        lambda taps: frozenset(Tap(name, "02:00:00:00:00:01", ()) for name in taps)
    ),
)
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


@st.composite
def founds(draw: st.DrawFn) -> FoundNetwork:
    bridge, vxlan = draw(bridges), draw(vxlans)
    found = FoundNetwork(vni=VNI, bridge=bridge, vxlan=vxlan, is_guarded=draw(st.booleans()))
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
        found = replace(found, ports=frozenset(FoundPort(name, draw(st.booleans())) for name in taps))
    loose = draw(st.frozensets(st.sampled_from(["ect3", "ect4"])))
    found = replace(found, loose=frozenset(FoundPort(name, draw(st.booleans())) for name in loose))
    ruled = draw(st.frozensets(st.sampled_from(["ect1", "ect3", "ect5"])))
    return replace(found, ruled=ruled, has_rules=bool(ruled) or found.is_guarded)


def applied(changes: tuple[terms.Change, ...], found: FoundNetwork) -> FoundNetwork:
    links, parts = FakeLinks(), list[Part]()
    links.networks[VNI] = replace(found, loose=frozenset())
    links.taps = {port.name: port.is_hardened for port in found.loose}
    after = {"is_guarded": found.is_guarded, "ruled": found.ruled, "has_rules": found.has_rules}
    for change in changes:
        match change:
            case terms.Guard(part):
                parts.append(part)
                ruled = part.kept | {tap.name for tap in part.taps}
                after = {"is_guarded": True, "ruled": ruled, "has_rules": True}
            case terms.Unguard():
                after = {"is_guarded": False, "ruled": frozenset(), "has_rules": False}
            case _:
                links.apply(change)
    return replace(links.found(VNI, [port.name for port in found.loose]), **after)


def assert_is(wanted: WantedNetwork, found: FoundNetwork) -> None:
    assert found.is_guarded
    assert found.bridge == FoundBridge("bridge", names.bridge_mac(VNI), wanted.mtu, True, True, True)
    assert found.vxlan == FoundVxlan("vxlan", VNI, wanted.local, 4789, False, True, wanted.mtu, True, True, True)
    assert all(port.is_hardened for port in found.ports)
    assert not {port.name for port in found.loose} & wanted.tap_names
    assert found.entries <= wanted.forwarding() <= found.entries | found.foreign_entries
    assert found.neighbours == wanted.neighbours


@given(wanteds, founds())
def test_the_plan_leads_from_what_is_found_to_what_is_wanted_and_then_is_empty(
    wanted: WantedNetwork, found: FoundNetwork
) -> None:
    after = applied(plan(wanted, found), found)
    assert_is(wanted, after)
    assert plan(wanted, after) == ()


@given(wanteds, founds())
def test_the_plan_leaves_entries_and_ports_that_are_not_ours(wanted: WantedNetwork, found: FoundNetwork) -> None:
    changes = plan(wanted, found)
    after = applied(changes, found)
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
    half = applied(changes[: data.draw(st.integers(0, len(changes)))], found)
    assert_is(wanted, applied(plan(wanted, half), half))


@given(wanteds, founds())
def test_no_device_goes_up_before_it_is_hardened_attached_and_guarded(
    wanted: WantedNetwork, found: FoundNetwork
) -> None:
    changes = plan(wanted, found)
    for index, change in enumerate(changes):
        if isinstance(change, terms.SetUp):
            before = applied(changes[:index], found)
            device = before.bridge if change.device == names.bridge_name(VNI) else before.vxlan
            assert before.is_guarded
            assert device is not None
            assert device.is_hardened
            assert before.vxlan is not None
            assert before.vxlan.is_attached


@given(wanteds, founds())
def test_a_tap_that_is_there_keeps_its_rules_though_its_port_is_forgotten(
    wanted: WantedNetwork, found: FoundNetwork
) -> None:
    there = {port.name for port in found.ports | found.loose}
    part = mesh.part(wanted, found)
    assert part.kept == (found.ruled & there) - wanted.tap_names
    assert part.taps == wanted.taps


@given(founds())
def test_removal_leaves_nothing_and_never_takes_a_bridge_from_under_a_port(found: FoundNetwork) -> None:
    if found.ports:
        with pytest.raises(NetworkError, match="still has ports"):
            plan(None, found)
        return
    after = applied(plan(None, found), found)
    assert (after.bridge, after.vxlan, after.entries, after.neighbours) == (None, None, frozenset(), frozenset())
    assert not after.has_rules
    assert plan(None, after) == ()


@pytest.mark.parametrize(
    "found",
    [
        FoundNetwork(VNI, bridge=FoundBridge("veth")),
        FoundNetwork(VNI, vxlan=FoundVxlan("bridge")),
        FoundNetwork(VNI, vxlan=FoundVxlan("vxlan", vni=99)),
        FoundNetwork(VNI, vxlan=FoundVxlan("vxlan", vni=None)),
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


def test_a_network_of_1000_hosts_and_10000_guests_is_compared_within_50_ms() -> None:
    """With an IPv4 and an IPv6 address each: 11,000 forwarding entries and 30,000 neighbours."""
    hosts = [host(f"host-{n}", f"10.1.{n // 250}.{n % 250 + 1}") for n in range(1000)]
    ports = [
        port(
            f"host-{n % 1000}",
            f"02:00:00:00:{n // 256:02x}:{n % 256:02x}",
            1,
            f"10.50.{n // 256}.{n % 256}/16",
            f"fd00::{n + 1:x}/64",
        )
        for n in range(10_000)
    ]
    aim = wanted(NETWORK, "host-0", ports, hosts)
    empty = replace(aim, peers=frozenset(), entries=frozenset(), neighbours=frozenset())
    found = applied(plan(empty, FoundNetwork(VNI)), FoundNetwork(VNI))
    found = replace(found, entries=aim.forwarding(), neighbours=aim.neighbours)
    moved = [*ports[1:], structs.replace(ports[0], provider="host-5", epoch=2)]
    durations_ms = []
    for _ in range(15):
        began = time.thread_time()
        changes = plan(wanted(NETWORK, "host-0", moved, hosts), found)
        durations_ms.append((time.thread_time() - began) * 1000)
        assert changes == (
            terms.PutEntry(VNI, ports[0].mac, "10.1.0.6"),
            *(terms.PutNeighbour(VNI, a, ports[0].mac) for a in ("10.50.0.0", "fd00::1", "fe80::ff:fe00:0")),
        )
    assert min(durations_ms) < 50, durations_ms
