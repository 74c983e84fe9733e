"""Nothing of a guest gets into its host, the control plane, other hosts or other networks by the way out."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack

import pytest
from frames import ETH_P_IP, drain, frame, ipv4, ipv6, octets
from msgspec.structs import replace
from served import GATEWAY, INTERNET, PORT, QUIET_S, VNI, Guest, World, pings, serving, wait_for

from ecompute.network import netns

FLOATING = "203.0.113.50"


@pytest.fixture(params=["behind NAT", "with a floating address"])
def guest(world: World, request: pytest.FixtureRequest) -> Guest:
    floating = None if request.param == "behind NAT" else FLOATING
    made = world.hosts[0].add_guest("web", 5, floating=floating)
    made.settle()
    made.space("-6 route add default via fe80::a9fe:a9fe dev eth0")
    assert made.ping(INTERNET)
    return made


def test_no_address_of_its_host_answers(world: World, guest: Guest, services: ExitStack) -> None:
    host = world.hosts[0]
    services.enter_context(serving(host.space))
    host.space("address add 2001:db8::11/64 dev eth0 nodad")
    host.space("address add 172.31.0.1/32 dev lo")
    host.space.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    for address in (host.underlay, host.near, "172.31.0.1", "169.254.0.1", transit_of(world)):
        assert not guest.ping(address, timeout_s=QUIET_S)
        assert guest.ask(address, timeout_s=QUIET_S) == ""
        assert not connects(guest, address)
    for address in ("2001:db8::11", host.space.link_local("eth0")):
        assert not pings(guest.space, f"{address}%eth0" if address.startswith("fe80") else address, timeout_s=QUIET_S)
    # The service is there: from elsewhere it is reached.
    assert pings(world.internet, host.underlay)


def test_no_port_of_the_gateway_answers_but_those_of_its_services(world: World, guest: Guest) -> None:
    """A daemon of the operator's that listens on all addresses of all namespaces would not be reached either."""
    listening = []

    def listen() -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(socket.AF_INET6, kind)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.bind(("::", PORT))
            listening.append(one)
        listening[0].listen()

    netns.in_namespace(world.hosts[0].namespace(), listen)
    try:
        for address in (GATEWAY, "169.254.169.254"):
            assert not connects(guest, address)
            with guest.space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.sendto(b"x", (address, PORT))
        assert not select.select(listening, [], [], QUIET_S)[0]
    finally:
        for one in listening:
            one.close()


def test_neither_other_hosts_nor_the_control_plane_are_reached(world: World, guest: Guest, services: ExitStack) -> None:
    second = world.hosts[1]
    second.add_guest("db", 6)
    services.enter_context(serving(second.space))
    services.enter_context(serving(world.internet))
    for address in (second.underlay, "192.0.2.99"):
        assert pings(world.hosts[0].space, address)
        assert not guest.ping(address, timeout_s=QUIET_S)
        assert guest.ask(address, timeout_s=QUIET_S) == ""
        assert not connects(guest, address)
    assert guest.ask("192.0.2.1")


def test_no_packet_for_the_port_of_vxlan_leaves_the_host(world: World, guest: Guest) -> None:
    second = world.hosts[1]
    other = second.add_guest("db", 6)
    other.settle()
    inner = frame("02:00:00:34:00:06", guest.port.mac, ETH_P_IP, ipv4(1, guest.ip, other.ip, b"\x08\0\xf7\xff\0\0\0\0"))
    forged = b"\x08\0\0\0" + (0x1234).to_bytes(3, "big") + b"\0" + inner
    with world.internet.entered():
        wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        wire.bind(("", 4789))
    with other.space.entered():
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        heard.bind(("eth0", 0))
    with wire, heard:
        drain(heard, 0)
        for address in (second.underlay, second.near, INTERNET, "192.0.2.1", FLOATING):
            for source_port in (0, 4789, 53):
                with guest.space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
                    sending.bind(("", source_port))
                    sending.sendto(forged, (address, 4789))
                    # In fragments, whose second half has no port.
                    sending.setsockopt(socket.IPPROTO_IP, 10, 0)
                    sending.sendto(forged.ljust(3000, b"\0"), (address, 4789))
        assert not select.select([wire], [], [], QUIET_S)[0]
        assert [got for got in drain(heard, 0) if got[6:12] == octets(guest.port.mac)] == []


def test_another_networks_uplink_and_guests_are_not_reached(world: World, guest: Guest, services: ExitStack) -> None:
    host = world.hosts[0]
    other = host.add_guest("db", 77, network=replace(world.network, uuid="m", vni=77))
    other.settle()
    services.enter_context(serving(other.space))
    transit = transit_of(world, 77)
    for address in (transit, "10.0.0.77"):
        assert not guest.ping(address, timeout_s=QUIET_S)
        assert guest.ask(address, timeout_s=QUIET_S) == ""
    # Nor by a route of the guest's own making, past its gateway's address.
    guest.space(f"route add {transit}/32 via {GATEWAY}")
    assert not guest.ping(transit, timeout_s=QUIET_S)


def test_nothing_with_an_address_of_inside_leaves_the_host_even_without_the_rules_inside(
    world: World, guest: Guest
) -> None:
    with world.internet.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        wire.bind(("h1", 0))
    world.hosts[0].inside("nft", "delete", "table", "inet", "ecompute")
    with wire:
        drain(wire, 0)
        with guest.space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for _ in range(5):
                sending.sendto(b"x", (INTERNET, 9))
        sources = {socket.inet_ntoa(got[26:30]) for got in drain(wire, QUIET_S)}
    assert guest.ip not in sources
    assert not any(source.startswith("169.254.") for source in sources)


def test_nobody_outside_gets_to_a_guest_without_an_address_of_its_own(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    guest = host.add_guest("web", 5)
    guest.settle()
    services.enter_context(serving(guest.space))
    for address in (guest.ip, transit_of(world)):
        world.internet(f"route replace {address}/32 via {host.underlay} dev wan")
        assert not pings(world.internet, address, timeout_s=QUIET_S)


def test_what_comes_by_ipv6_leads_nowhere(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    host.space.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    world.internet("address add 2001:db8::1/64 dev wan nodad")
    host.space("address add 2001:db8::11/64 dev eth0 nodad")
    with guest.space.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
    with world.internet.entered():
        wire = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        wire.bind(("::", PORT))
    with raw, wire:
        packet = b"\x9c\x40" + PORT.to_bytes(2, "big") + (9).to_bytes(2, "big") + b"\0\0x"
        for source in ("fd00:1::5", "2001:db8::77"):
            for target in ("2001:db8::1", "2001:db8::11"):
                raw.send(frame("06:ec:01:00:12:34", guest.port.mac, 0x86DD, ipv6(17, source, target, packet)))
        assert not select.select([wire], [], [], QUIET_S)[0]
    assert "ecu" not in host.space("-6 address show")
    wait_for(lambda: guest.ping("fe80::a9fe:a9fe%eth0"), "the gateway itself answers")


def transit_of(world: World, vni: int = VNI) -> str:
    host = world.hosts[0]
    (line,) = [line for line in host.space(f"route show dev ecu{vni:06x}").splitlines() if line.startswith("169.254.")]
    return line.split()[0]


def connects(guest: Guest, address: str) -> bool:
    with guest.space.entered(), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(QUIET_S)
        try:
            connection.connect((address, PORT))
        except OSError:
            return False
        return True
