"""A guest on a bridge of the operator: what is behind that answers it, and it plays nothing that it is not."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import Any

import pytest
from frames import ETH_P_ALL, ETH_P_ARP, arp, drain, frame, ipv4, ipv6, udp
from msgspec import structs
from netlab import NETWORK, VNI, Guest, Host, Namespace

from ecompute.cluster.documents import NetworkKind
from ecompute.cluster.errors import NetworkError
from ecompute.network import mesh, names
from ecompute.network.filter import FilterState
from ecompute.network.terms import Tap

LAN = structs.replace(NETWORK, kind=NetworkKind.PHYSICAL, physical="lan", gateway=None, gateway6=None)
ANY = structs.replace(LAN, cidr=None, cidr6=None)
ALL_NODES_MAC = "33:33:00:00:00:01"
DHCP_OFFER = struct.pack("!HHHH", 67, 68, 13, 0) + b"offer"
OFFER_FROM_ELSEWHERE = struct.pack("!HHHH", 1067, 68, 13, 0) + b"offer"
DISCOVERY_OF_ANOTHER = struct.pack("!HHHH28x6B10x", 68, 67, 52, 0, *bytes.fromhex("020000000099"))
ADVERTISEMENT = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)


@pytest.fixture
def host(hosts: tuple[Host, ...]) -> Host:
    hosts[0].space("link add br0 type bridge mcast_snooping 0")
    hosts[0].space("link set br0 up")
    return hosts[0]


@pytest.fixture
def outside(host: Host, namespaces: Any) -> Guest:
    """Something of the operator on his bridge."""
    there = Guest(namespaces("outside"), 77, "eth9")
    host.space.veth("eth9", there.space, "eth0")
    host.space("link set eth9 master br0 up")
    there.space(f"link set eth0 address {there.mac} up")
    there.space(f"address add {there.ip}/24 dev eth0")
    return there


def ensure(host: Host, network: Any) -> Any:
    ports = [guest.document("me") for guest in host.guests]
    return host.do(lambda: host.reconciler().ensure(mesh.wanted(network, "me", ports, [], {"lan": "br0"})))


def add_guest(host: Host, network: Any) -> Guest:
    guest = host.plan_guest(1)
    ensure(host, network)
    host.space.veth(guest.port, guest.space, "eth0")
    host.do(lambda: host.links.harden(guest.port))
    host.space(f"link set {guest.port} master br0 up")
    guest.space(f"link set eth0 address {guest.mac} up")
    guest.space(f"address add {guest.ip}/24 dev eth0")
    return guest


def arrives(guest: Guest, outside: Guest, *frames: bytes) -> list[bool]:
    with ExitStack() as stack:
        sockets = []
        for space in (guest.space, outside.space):
            with space.entered():
                wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            wire.bind(("eth0", 0))
            sockets.append(wire)
        found = []
        for sent in frames:
            sockets[0].send(sent)
            found.append(sent in drain(sockets[1], 0.15))
        return found


def forbidden(guest: Guest) -> list[bytes]:
    own = names.link_local(guest.mac)
    return [
        frame("ff:ff:ff:ff:ff:ff", guest.mac, 0x0800, ipv4(17, guest.ip, "255.255.255.255", DHCP_OFFER)),
        frame("ff:ff:ff:ff:ff:ff", guest.mac, 0x0800, ipv4(17, guest.ip, "255.255.255.255", OFFER_FROM_ELSEWHERE)),
        frame("ff:ff:ff:ff:ff:ff", guest.mac, 0x0800, ipv4(17, guest.ip, "255.255.255.255", DISCOVERY_OF_ANOTHER)),
        frame(ALL_NODES_MAC, guest.mac, 0x86DD, ipv6(58, own, "ff02::1", ADVERTISEMENT)),
        frame("ff:ff:ff:ff:ff:ff", "02:00:00:00:00:99", 0x0800, ipv4(17, guest.ip, "10.50.0.255", udp(b"x"))),
        frame("ff:ff:ff:ff:ff:ff", guest.mac, ETH_P_ARP, arp(1, "02:00:00:00:00:99", guest.ip, "10.50.0.77")),
        frame("ff:ff:ff:ff:ff:ff", guest.mac, 0x8100, b"\0\5\x08\0" + ipv4(17, guest.ip, "10.50.0.255", udp(b"x"))),
    ]


def with_other_address(guest: Guest) -> list[bytes]:
    return [
        frame("ff:ff:ff:ff:ff:ff", guest.mac, 0x0800, ipv4(17, "10.50.0.9", "10.50.0.255", udp(b"x"))),
        frame("ff:ff:ff:ff:ff:ff", guest.mac, ETH_P_ARP, arp(1, guest.mac, "10.50.0.9", "10.50.0.77")),
    ]


def test_without_a_range_a_guest_may_have_any_address_but_no_other_mac(host: Host, outside: Guest) -> None:
    guest = add_guest(host, ANY)
    assert guest.ping(outside.ip)
    assert arrives(guest, outside, *with_other_address(guest)) == [True, True]
    vxlan = ipv4(17, "10.50.0.9", "10.50.0.255", struct.pack("!HHHH", 4444, 4789, 24, 0) + bytes(16))
    assert not any(arrives(guest, outside, *forbidden(guest), frame("ff:ff:ff:ff:ff:ff", guest.mac, 0x0800, vxlan)))


def test_with_a_range_a_guest_keeps_to_its_addresses(host: Host, outside: Guest) -> None:
    guest = add_guest(host, LAN)
    assert guest.ping(outside.ip)
    assert arrives(guest, outside, *with_other_address(guest)) == [False, False]
    assert not any(arrives(guest, outside, *forbidden(guest)))


def test_nothing_is_made_but_rules_and_they_go_again(host: Host, outside: Guest) -> None:
    def devices() -> list[str]:
        return [line.split(":")[1] for line in host.space("-oneline link show").splitlines()]

    before = devices()
    host.plan_guest(1)
    ensure(host, ANY)
    assert devices() == before
    assert ensure(host, ANY) == ()
    host.guests.clear()
    host.remove(VNI)
    assert devices() == before
    assert host.do(host.rules.state) is FilterState.ABSENT


def test_a_bridge_that_was_made_anew_gets_its_taps_back(host: Host, outside: Guest) -> None:
    guest = add_guest(host, ANY)
    host.space("link delete br0")
    with pytest.raises(NetworkError, match="on the bridge br0, which this host does not have"):
        ensure(host, ANY)
    host.space("link add br0 type bridge mcast_snooping 0")
    host.space("link set br0 up")
    host.space("link set eth9 master br0")
    ensure(host, ANY)
    assert guest.ping(outside.ip)


def test_a_tap_of_no_network_on_the_operators_bridge_is_filtered_by_its_mac(host: Host, outside: Guest) -> None:
    guest = host.plan_guest(1)
    host.guests.clear()
    tap = Tap(guest.port, guest.mac, None)
    host.do(lambda: host.reconciler().admit(frozenset({tap})))
    host.space.veth(guest.port, guest.space, "eth0")
    host.space(f"link set {guest.port} master br0 up")
    guest.space(f"link set eth0 address {guest.mac} up")
    guest.space(f"address add {guest.ip}/24 dev eth0")
    assert guest.ping(outside.ip)
    assert arrives(guest, outside, *with_other_address(guest)) == [True, True]
    assert not any(arrives(guest, outside, *forbidden(guest)))


def test_on_a_vlan_guests_reach_what_is_tagged_and_nothing_else(host: Host, outside: Guest) -> None:
    try:
        ensure(host, structs.replace(ANY, vlan=5))
    except NetworkError as error:
        if "not supported" not in str(error):
            raise
        pytest.skip(f"this kernel has no VLAN devices: {error}")
    guest = host.plan_guest(1)
    ensure(host, structs.replace(ANY, vlan=5))
    host.plug(guest)
    assert not guest.ping(outside.ip, timeout_s=0.6)
    tagged = Namespace("tagged")
    host.space.veth("eth8", tagged, "eth0")
    host.space("link set eth8 master br0 up")
    tagged("link set eth0 up")
    tagged("link add eth0.5 link eth0 type vlan id 5")
    tagged("address add 10.50.0.78/24 dev eth0.5")
    tagged("link set eth0.5 up")
    assert guest.ping("10.50.0.78")
