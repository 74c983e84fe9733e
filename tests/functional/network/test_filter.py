"""What a guest may send arrives; what it may not does not: neither beside it nor on another host."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from frames import (
    BROADCAST,
    ETH_P_ALL,
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    arp,
    drain,
    extended,
    frame,
    icmp,
    ipv4,
    ipv6,
    octets,
    udp,
    vxlan,
)
from netlab import VNI, Guest

from ecompute.network import names
from ecompute.network.filter import FilterState
from ecompute.network.terms import Tap

ME, NEAR, FAR = "02:00:00:00:00:01", "02:00:00:00:00:03", "02:00:00:00:00:02"
MY_IP, NEAR_IP, FAR_IP, GATEWAY = "10.50.0.1", "10.50.0.3", "10.50.0.2", "10.50.0.254"
MY_IP6, NEAR_IP6, FAR_IP6, GATEWAY6 = "fd00:50::1", "fd00:50::3", "fd00:50::2", "fd00:50::fe"
ROUTED, ROUTED6 = "203.0.113.7", "2001:db8:7::7"
MY_LL, NEAR_LL = names.link_local(ME), names.link_local(NEAR)
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
GATEWAY_MAC = names.gateway_mac(VNI)
ICMP6, UDP = socket.IPPROTO_ICMPV6, socket.IPPROTO_UDP


def ip(source: str = MY_IP, to: str = "10.50.0.255", protocol: int = UDP, payload: bytes | None = None) -> bytes:
    return ipv4(protocol, source, to, udp(b"x") if payload is None else payload)


def ip6(source: str = MY_IP6, to: str = ALL_NODES, protocol: int = UDP, payload: bytes | None = None) -> bytes:
    return ipv6(protocol, source, to, udp(b"x") if payload is None else payload)


def about(kind: int, target: str) -> bytes:
    """A neighbour solicitation (135) or advertisement (136)."""
    return struct.pack("!BBHI", kind, 0, 0, 0x60000000) + socket.inet_pton(socket.AF_INET6, target)


def advertisement() -> bytes:
    """A router's (RFC 4861, section 4.2)."""
    return struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)


def ports(source: int, to: int, payload: bytes = b"offer") -> bytes:
    return struct.pack("!HHHH", source, to, 8 + len(payload), 0) + payload


def bootp(mac: str) -> bytes:
    """A request for the client with ``mac`` (RFC 2131, figure 1), as far as that."""
    return struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 7, 0, 0) + octets(mac) + bytes(10)


def four(packet: bytes, mac: str = ME, to: str = BROADCAST) -> bytes:
    return frame(to, mac, ETH_P_IP, packet)


def six(packet: bytes, mac: str = ME, to: str = ALL_NODES_MAC) -> bytes:
    return frame(to, mac, ETH_P_IPV6, packet)


def asks(kind: int, mac: str, ip_: str, target: str = NEAR_IP, inside: str | None = None) -> bytes:
    return frame(BROADCAST, mac, ETH_P_ARP, arp(kind, inside or mac, ip_, target))


FORBIDDEN = {
    "another's MAC": four(ip(), mac=NEAR),
    "a MAC of nobody": four(ip(), mac="02:00:00:00:00:99"),
    "the gateway's MAC": four(ip(), mac=GATEWAY_MAC),
    "another's MAC in IPv6": six(ip6(), mac=NEAR),
    "ARP: another has its address": asks(2, ME, NEAR_IP),
    "ARP: the gateway is here": asks(2, ME, GATEWAY),
    "ARP: another's address in a question": asks(1, ME, NEAR_IP, FAR_IP),
    "ARP: its address is at another's MAC": asks(2, ME, MY_IP, inside=NEAR),
    "ARP: an answer from no address": asks(2, ME, "0.0.0.0"),
    "ARP: an address of the metadata service": asks(2, ME, "169.254.169.254"),
    "ARP: is another's address free?": asks(1, ME, "0.0.0.0", NEAR_IP),
    "RARP": frame(BROADCAST, ME, 0x8035, arp(3, ME, MY_IP, MY_IP)),
    "IPv4 from another's address": four(ip(NEAR_IP)),
    "IPv4 from the gateway's": four(ip(GATEWAY)),
    "IPv4 from the outside": four(ip("8.8.8.8")),
    "IPv4 from no address": four(ip("0.0.0.0", "255.255.255.255")),
    "IPv4 from a loopback address": four(ip("127.0.0.1")),
    "IPv6 from another's address": six(ip6(NEAR_IP6)),
    "IPv6 from the gateway's": six(ip6(GATEWAY6)),
    "IPv6 from another's link-local address": six(ip6(NEAR_LL)),
    "IPv6 from the metadata service's": six(ip6("fe80::a9fe:a9fe")),
    "IPv6 from the outside": six(ip6("2001:4860:4860::8888")),
    "IPv6 from no address": six(ip6("::")),
    "neighbour advertisement: another's address": six(ip6(MY_LL, protocol=ICMP6, payload=about(136, NEAR_IP6))),
    "neighbour advertisement: the gateway's": six(ip6(MY_IP6, protocol=ICMP6, payload=about(136, GATEWAY6))),
    "neighbour advertisement behind options": six(
        ip6(MY_IP6, protocol=60, payload=extended(ICMP6, about(136, NEAR_IP6)))
    ),
    "another's address is tried out": six(ip6("::", protocol=ICMP6, payload=about(135, NEAR_IP6))),
    "DHCP offer": four(ip(to="255.255.255.255", payload=ports(67, 68))),
    "DHCP offer to one": four(ip(to=NEAR_IP, payload=ports(67, 68)), to=NEAR),
    "DHCP offer from a routed address": four(ip(ROUTED, "255.255.255.255", payload=ports(67, 68))),
    "DHCP offer from no address": four(ip("0.0.0.0", "255.255.255.255", payload=ports(67, 68))),
    "DHCP offer from another port": four(ip(to="255.255.255.255", payload=ports(1067, 68))),
    "DHCP offer to one from another port": four(ip(to=NEAR_IP, payload=ports(1067, 68)), to=NEAR),
    "DHCP discovery in another's name": four(ip("0.0.0.0", "255.255.255.255", payload=ports(68, 67, bootp(NEAR)))),
    "DHCP release in another's name": four(ip(MY_IP, GATEWAY, payload=ports(68, 67, bootp(NEAR)))),
    "DHCP request too short to say for whom": four(ip(MY_IP, GATEWAY, payload=ports(68, 67))),
    "DHCPv6 offer from another port": six(ip6(MY_LL, payload=ports(1547, 546))),
    "DHCPv6 offer": six(ip6(MY_LL, payload=ports(547, 546))),
    "DHCPv6 offer behind options": six(ip6(MY_LL, protocol=0, payload=extended(UDP, ports(547, 546)))),
    "router advertisement": six(ip6(MY_LL, protocol=ICMP6, payload=advertisement())),
    "router advertisement from its address": six(ip6(MY_IP6, protocol=ICMP6, payload=advertisement())),
    "router advertisement behind options": six(ip6(MY_LL, protocol=60, payload=extended(ICMP6, advertisement()))),
    "router advertisement behind two headers": six(
        ip6(MY_LL, protocol=0, payload=extended(60, extended(ICMP6, advertisement())))
    ),
    "router advertisement in a fragment": six(
        ip6(MY_LL, protocol=44, payload=struct.pack("!BBHI", ICMP6, 0, 1, 7) + advertisement())
    ),
    "the headers of one in a first fragment": six(
        ip6(MY_LL, protocol=44, payload=struct.pack("!BBHI", 60, 0, 1, 7) + extended(ICMP6, b""))
    ),
    "redirect in IPv6": six(ip6(MY_LL, protocol=ICMP6, payload=struct.pack("!BBHI", 137, 0, 0, 0) + bytes(32))),
    "redirect in IPv4": four(ip(protocol=socket.IPPROTO_ICMP, payload=icmp(5, bytes(4) + ip()))),
    "router advertisement in IPv4": four(ip(protocol=socket.IPPROTO_ICMP, payload=icmp(9, bytes(4)))),
    "a VLAN's tag": frame(BROADCAST, ME, 0x8100, struct.pack("!HH", 5, ETH_P_IP) + ip()),
    "a tag of no VLAN": frame(BROADCAST, ME, 0x8100, struct.pack("!HH", 0, ETH_P_IP) + ip()),
    "two tags": frame(BROADCAST, ME, 0x88A8, struct.pack("!HHHH", 5, 0x8100, 6, ETH_P_IP) + ip()),
    "a tagged router advertisement": frame(
        ALL_NODES_MAC,
        ME,
        0x8100,
        struct.pack("!HH", 5, ETH_P_IPV6) + ip6(MY_LL, protocol=ICMP6, payload=advertisement()),
    ),
    "802.2": frame(BROADCAST, ME, 38, bytes.fromhex("424203") + bytes(35)),
    "spanning tree": frame("01:80:c2:00:00:00", ME, 38, bytes.fromhex("424203") + bytes(35)),
    "PPPoE": frame(BROADCAST, ME, 0x8863, bytes(40)),
    "MPLS": frame(BROADCAST, ME, 0x8847, bytes(40)),
    "an experiment": frame(BROADCAST, ME, 0x88B5, bytes(40)),
}

ALLOWED = {
    "IPv4": four(ip()),
    "IPv4 to one": four(ip(to=NEAR_IP), to=NEAR),
    "IPv4 from a routed address": four(ip(ROUTED)),
    "ARP: a question": asks(1, ME, MY_IP),
    "ARP: an answer": frame(NEAR, ME, ETH_P_ARP, arp(2, ME, MY_IP, NEAR_IP)),
    "ARP: it is here": asks(2, ME, MY_IP, MY_IP),
    "ARP: a routed address is here": asks(2, ME, ROUTED, ROUTED),
    "ARP: is the address free?": asks(1, ME, "0.0.0.0", MY_IP),
    "DHCP discovery": four(ip("0.0.0.0", "255.255.255.255", payload=ports(68, 67, bootp(ME)))),
    "DHCP renewal": four(ip(MY_IP, GATEWAY, payload=ports(68, 67, bootp(ME)))),
    "IPv6": six(ip6()),
    "IPv6 from its link-local address": six(ip6(MY_LL)),
    "IPv6 from a routed address": six(ip6(ROUTED6)),
    "IPv6 in fragments": six(ip6(protocol=44, payload=struct.pack("!BBHI", UDP, 0, 1, 7) + udp(b"x"))),
    "neighbour solicitation": six(ip6(MY_LL, protocol=ICMP6, payload=about(135, NEAR_IP6))),
    "neighbour advertisement": six(ip6(MY_LL, protocol=ICMP6, payload=about(136, MY_IP6))),
    "its own address is tried out": six(ip6("::", protocol=ICMP6, payload=about(135, MY_IP6))),
    "groups joined without an address": six(
        ip6("::", protocol=0, payload=extended(ICMP6, struct.pack("!BBHHH", 143, 0, 0, 0, 0)))
    ),
    "router solicitation": six(ip6(MY_LL, protocol=ICMP6, payload=struct.pack("!BBHI", 133, 0, 0, 0))),
    "DHCPv6 discovery": six(ip6(MY_LL, payload=ports(546, 547))),
    "echo": four(ip(protocol=socket.IPPROTO_ICMP, payload=icmp(8, bytes(4)))),
}


class Listening:
    """Hears at several places whether a frame arrives."""

    def __init__(self, stack: ExitStack, places: dict[str, tuple[Any, str]]) -> None:
        self._wires = {}
        for name, (space, device) in places.items():
            with space.entered():
                wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            wire.bind((device, 0))
            self._wires[name] = wire

    def heard(self, sent: bytes, quiet_s: float = 0.15) -> set[str]:
        """Return where ``sent`` came, with a tag that it had taken away or not."""
        content = sent[14:]
        places = set()
        for name, wire in self._wires.items():
            if any(got[-len(content) :] == content or content[4:] == got[14:] for got in drain(wire, quiet_s)):
                places.add(name)
        return places


@pytest.fixture
def guests(hosts: Any) -> dict[str, Guest]:
    """One whose frames are tried, one beside it, one on the other host."""
    for host in hosts:
        host.ensure()
    made = {"me": hosts[0].plan_guest(1), "far": hosts[1].plan_guest(2), "near": hosts[0].plan_guest(3)}
    made["me"].routed = (ROUTED, ROUTED6)
    for host in hosts:
        host.ensure()
        for guest in host.guests:
            host.plug(guest)
    assert made["me"].ping(FAR_IP)
    assert made["me"].ping(NEAR_IP)
    assert made["me"].ping6(FAR_IP6)
    return made


def send(guest: Guest, *frames: bytes) -> None:
    with guest.space.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for sent in frames:
            raw.send(sent)


def test_nothing_that_a_guest_may_not_send_arrives_anywhere(hosts: Any, guests: dict[str, Guest]) -> None:
    arrived = {}
    with ExitStack() as stack:
        places = {name: (guests[name].space, "eth0") for name in ("near", "far")}
        listening = Listening(stack, places)
        for name, sent in FORBIDDEN.items():
            # Once as it is, and once to the guest on the other host alone.
            send(guests["me"], sent, octets(FAR) + sent[6:])
            if where := listening.heard(sent, 0.05):
                arrived[name] = where
    assert arrived == {}
    assert guests["me"].ping(FAR_IP)


def test_without_the_filter_all_of_it_arrives(hosts: Any, guests: dict[str, Guest]) -> None:
    """Else the test above would prove nothing."""
    for host in hosts:
        host.space.run("nft", "flush", "ruleset")
    with ExitStack() as stack:
        listening = Listening(stack, {"near": (guests["near"].space, "eth0")})
        lost = []
        for name, sent in FORBIDDEN.items():
            send(guests["me"], sent)
            if not listening.heard(sent):
                lost.append(name)
    assert lost == []


def test_what_a_guest_may_send_arrives(guests: dict[str, Guest]) -> None:
    lost = []
    with ExitStack() as stack:
        listening = Listening(stack, {"near": (guests["near"].space, "eth0")})
        for name, sent in ALLOWED.items():
            send(guests["me"], sent)
            if listening.heard(sent) != {"near"}:
                lost.append(name)
    assert lost == []


def test_on_another_host_arrives_what_is_not_of_the_host_itself(guests: dict[str, Guest]) -> None:
    """DHCP, routers' and gateways' frames stay at home, and so do questions for addresses."""
    at_home = {name for name in ALLOWED if name.startswith(("ARP", "DHCP", "router", "neighbour solicitation"))}
    at_home |= {"its own address is tried out"}
    with ExitStack() as stack:
        listening = Listening(stack, {"far": (guests["far"].space, "eth0")})
        arrived = set()
        for name, sent in ALLOWED.items():
            send(guests["me"], octets(FAR) + sent[6:])
            if listening.heard(sent):
                arrived.add(name)
    assert arrived == set(ALLOWED) - at_home


def test_a_tap_without_rules_of_its_own_passes_nothing(hosts: Any, guests: dict[str, Guest]) -> None:
    host = hosts[0]
    stranger = Guest(host.guests[0].space.__class__("stranger"), 9, "ect00000000009")
    host.plug(stranger)
    with ExitStack() as stack:
        listening = Listening(stack, {"near": (guests["near"].space, "eth0")})
        sent = four(ip("10.50.0.9"), mac=stranger.mac)
        send(stranger, sent)
        assert listening.heard(sent) == set()
    assert not stranger.ping(NEAR_IP, timeout_s=0.6)


def test_the_rules_are_there_before_the_tap_and_go_with_the_port(hosts: Any, guests: dict[str, Guest]) -> None:
    host = hosts[0]
    late = host.plan_guest(4)
    host.ensure()
    assert late.port in host.do(lambda: host.rules.taps(VNI))
    host.plug(late)
    assert late.ping(NEAR_IP)
    host.guests.remove(late)
    host.ensure()
    assert late.ping(NEAR_IP), "a tap that is there keeps its rules"
    host.space(f"link delete {late.port}")
    host.ensure()
    assert late.port not in host.do(lambda: host.rules.taps(VNI))


def test_guests_of_a_host_whose_daemon_starts_anew_are_not_cut_off(hosts: Any, guests: dict[str, Guest]) -> None:
    """It knows nothing yet of the other networks and taps."""
    host = hosts[0]
    host.rules = type(host.rules)()
    other = replace(host.wanted(), vni=VNI + 1, taps=frozenset())
    host.ensure(other)
    assert guests["me"].ping(NEAR_IP)
    assert guests["me"].ping(FAR_IP)
    assert host.ensure() == ()


# --- from the underlay ---------------------------------------------------------------------------


@pytest.fixture
def stranger(namespaces: Callable[[str], Any], hosts: Any) -> Any:
    """A machine on the underlay that is no host."""
    space = namespaces("a stranger")
    hosts[0].switch.veth("stranger", space, "under0")
    hosts[0].switch("link set stranger master under up")
    space("link set under0 up")
    space("address add 192.0.2.9/24 dev under0")
    space("address add 2001:db8::9/64 dev under0 nodad")
    return space


def forge(space: Any, source: str, to: str, vni: int, inner: bytes) -> None:
    """Send a VXLAN packet by hand."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with space.entered(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        sender.sendto(vxlan(vni, inner), (to, names.VXLAN_PORT))


INNER = four(ip(FAR_IP, NEAR_IP), mac=FAR, to=NEAR)


@pytest.fixture
def at_near(guests: dict[str, Guest]) -> Any:
    with ExitStack() as stack:
        yield Listening(stack, {"near": (guests["near"].space, "eth0")})


def test_a_packet_of_a_member_is_taken_and_one_of_a_stranger_is_not(hosts: Any, stranger: Any, at_near: Any) -> None:
    forge(hosts[1].space, "192.0.2.2", "192.0.2.1", VNI, INNER)
    assert at_near.heard(INNER) == {"near"}
    for source, to in (("192.0.2.9", "192.0.2.1"), ("2001:db8::9", "2001:db8::1")):
        forge(stranger, source, to, VNI, INNER)
        assert at_near.heard(INNER) == set()
    forge(hosts[1].space, "2001:db8::2", "2001:db8::1", VNI, INNER)
    assert at_near.heard(INNER) == set()


def test_a_member_of_another_network_is_a_stranger_to_this_one(hosts: Any, stranger: Any, at_near: Any) -> None:
    host = hosts[0]
    guest = host.plan_guest(5)
    host.guests.remove(guest)
    taps = frozenset({Tap(guest.port, guest.mac, (guest.ip,))})
    host.ensure(replace(host.wanted(), vni=VNI + 1, peers=frozenset({"192.0.2.9"}), taps=taps))
    host.plug(guest, VNI + 1)
    forge(stranger, "192.0.2.9", "192.0.2.1", VNI, INNER)
    assert at_near.heard(INNER) == set()
    with ExitStack() as stack:
        there = Listening(stack, {"the other": (guest.space, "eth0")})
        forge(stranger, "192.0.2.9", "192.0.2.1", VNI + 1, octets(BROADCAST) + INNER[6:])
        assert there.heard(INNER) == {"the other"}
        forge(hosts[1].space, "192.0.2.2", "192.0.2.1", VNI + 1, octets(BROADCAST) + INNER[6:])
        assert there.heard(INNER) == set()


def test_one_that_became_a_member_is_heard_and_one_that_left_is_not(hosts: Any, stranger: Any, at_near: Any) -> None:
    host = hosts[0]
    host.ensure(replace(host.wanted(), peers=frozenset({"192.0.2.2", "192.0.2.9"})))
    forge(stranger, "192.0.2.9", "192.0.2.1", VNI, INNER)
    assert at_near.heard(INNER) == {"near"}
    host.ensure()
    forge(stranger, "192.0.2.9", "192.0.2.1", VNI, INNER)
    assert at_near.heard(INNER) == set()


def test_a_vxlan_network_that_is_not_ours_is_left_alone(hosts: Any, stranger: Any, guests: dict[str, Guest]) -> None:
    """It may have the same port, and its members are none that etcd knows."""
    for space, mine, other in ((hosts[0].space, 1, 9), (stranger, 9, 1)):
        space(f"link add other type vxlan id 99 dstport 4789 local 192.0.2.{mine} remote 192.0.2.{other}")
        space(f"address add 172.30.0.{mine}/24 dev other")
        space("link set other up")
    assert Guest(stranger, 9, "").ping("172.30.0.1")


FROM_ELSEWHERE = {
    "DHCP offer": four(ip("10.50.0.77", "255.255.255.255", payload=ports(67, 68)), mac=FAR),
    "DHCP discovery": four(ip("0.0.0.0", "255.255.255.255", payload=ports(68, 67)), mac=FAR),
    "DHCPv6 offer": six(ip6("fe80::77", payload=ports(547, 546)), mac=FAR),
    "DHCPv6 discovery": six(ip6("fe80::77", payload=ports(546, 547)), mac=FAR),
    "router advertisement": six(ip6("fe80::77", protocol=ICMP6, payload=advertisement()), mac=FAR),
    "router solicitation": six(ip6("fe80::77", protocol=ICMP6, payload=struct.pack("!BBHI", 133, 0, 0, 0)), mac=FAR),
    "a gateway's MAC": four(ip("10.50.0.77"), mac=GATEWAY_MAC),
    "to a gateway's MAC": four(ip("10.50.0.77"), mac=FAR, to=GATEWAY_MAC),
    "ARP: the gateway is here": asks(2, FAR, GATEWAY),
    "ARP: where is the gateway?": asks(1, FAR, FAR_IP, GATEWAY),
    "ARP: the metadata service is here": asks(2, FAR, "169.254.169.254"),
    "neighbour advertisement: the gateway's": six(
        ip6("fe80::77", protocol=ICMP6, payload=about(136, GATEWAY6)), mac=FAR
    ),
    "neighbour solicitation: the gateway": six(ip6("fe80::77", protocol=ICMP6, payload=about(135, GATEWAY6)), mac=FAR),
    "neighbour advertisement: metadata": six(
        ip6("fe80::77", protocol=ICMP6, payload=about(136, "fe80::a9fe:a9fe")), mac=FAR
    ),
    "a tag": frame(BROADCAST, FAR, 0x8100, struct.pack("!HH", 5, ETH_P_IP) + ip(FAR_IP)),
    "802.2": frame(BROADCAST, FAR, 38, bytes.fromhex("424203") + bytes(35)),
}


def test_what_every_host_has_for_itself_does_not_come_from_another_one(hosts: Any, at_near: Any) -> None:
    arrived = []
    for name, inner in FROM_ELSEWHERE.items():
        forge(hosts[1].space, "192.0.2.2", "192.0.2.1", VNI, inner)
        if at_near.heard(inner, 0.05):
            arrived.append(name)
    assert arrived == []


def test_what_a_host_has_for_itself_does_not_leave_it(hosts: Any, guests: dict[str, Guest]) -> None:
    """Not even from a port that is not filtered, as the gateway's."""
    host = hosts[0]
    gateway = host.plan_guest(8, port="plain0")
    host.guests.remove(gateway)
    host.plug(gateway)
    left = []
    with ExitStack() as stack:
        under = Listening(stack, {"the underlay": (hosts[1].space, "under0")})
        for name, inner in FROM_ELSEWHERE.items():
            send(gateway, inner)
            if under.heard(inner, 0.05):
                left.append(name)
        passes = four(ip("10.50.0.77"), mac=gateway.mac)
        send(gateway, passes)
        assert under.heard(passes) == {"the underlay"}
    assert left == []


def test_a_network_is_closed_until_its_rules_are_there(hosts: Any, guests: dict[str, Guest]) -> None:
    host = hosts[0]
    host.space.run("nft", "flush", "chain", "bridge", "ecompute", "prerouting")
    host.space.run("nft", "flush", "map", "bridge", "ecompute", "taps")
    host.space.run("nft", "add", "rule", "bridge", "ecompute", "prerouting", "iifname", "ect*", "drop")
    assert not guests["me"].ping(NEAR_IP, timeout_s=0.6)
    host.ensure()
    assert guests["me"].ping(NEAR_IP)
    assert host.do(lambda: host.rules.state()) is FilterState.WHOLE
