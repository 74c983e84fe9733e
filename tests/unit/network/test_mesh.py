from __future__ import annotations

from uuid import uuid4

import pytest
from msgspec import structs

from ecompute.cluster.addressing import is_unicast_mac
from ecompute.cluster.documents import Network, NetworkHost, NetworkKind, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network import names
from ecompute.network.mesh import wanted
from ecompute.network.terms import Physical, Tap, WantedNetwork

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


# --- physical networks ---------------------------------------------------------------------------

LAN = structs.replace(NETWORK, kind=NetworkKind.PHYSICAL, physical="lan", cidr=None)


def test_a_physical_network_is_on_the_bridge_that_operators_gave_its_name() -> None:
    ports = [port(ME, "02:00:00:00:00:01"), port("host-2", "02:00:00:00:00:02", 1, "10.0.0.2/24")]
    made = wanted(LAN, ME, ports, [], {"lan": "br0"})
    tap = Tap("ect00000000000", "02:00:00:00:00:01", None)
    assert made == WantedNetwork("n", VNI, 1450, None, Physical("br0"), taps=frozenset({tap}))
    assert made.tap_bridge == "br0"
    tagged = wanted(structs.replace(LAN, vlan=5), ME, ports, [], {"lan": "br0"})
    assert tagged.physical == Physical("br0", 5)
    assert tagged.tap_bridge == names.bridge_name(VNI)


def test_where_a_physical_network_has_a_range_a_guest_keeps_to_its_addresses() -> None:
    network = structs.replace(LAN, cidr="10.0.0.0/24")
    (tap,) = wanted(network, ME, [port(ME, "02:00:00:00:00:01", 1, "10.0.0.1/24")], [], {"lan": "br0"}).taps
    assert tap.addresses == ("10.0.0.1",)


def test_a_host_without_a_bridge_of_that_name_says_so() -> None:
    for bridges in ({}, {"dmz": "br0"}):
        with pytest.raises(NetworkError, match="operators call 'lan'; this host has none; name it under `bridges`"):
            wanted(LAN, ME, [], [], bridges)
