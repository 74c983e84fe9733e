"""Hosts on one underlay, and a guest that tries everything on them."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ecompute.network import names

sys.path.insert(0, str(Path(__file__).parent))

from frames import (
    BROADCAST,
    ETH_P_ALL,
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    arp_request,
    checksum,
    drain,
    frame,
    icmp,
    ipv4,
    ipv6,
    octets,
    udp,
)
from netlab import VNI, Guest, Host, Namespace
from served import World


@pytest.fixture
def namespaces() -> Iterator[Callable[[str], Namespace]]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:

        def make(name: str) -> Namespace:
            space = Namespace(name)
            stack.callback(os.close, space.fd)
            return space

        yield make


@pytest.fixture
def make_world(namespaces: Callable[[str], Any]) -> Iterator[Callable[..., World]]:
    """Make worlds of `served`, with a network like the usual one but for what is given."""
    made: list[World] = []

    def make(**network: Any) -> World:
        made.append(World(namespaces, **network))
        return made[-1]

    yield make
    for world in made:
        world.remove()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture
def services() -> Iterator[ExitStack]:
    """What guests ask of is opened here, and closed at the end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_hosts(namespaces: Callable[[str], Namespace]) -> Callable[[int], tuple[Host, ...]]:
    """Hosts on one underlay, as careless as a host may be: it routes, and has many addresses."""

    def make(count: int) -> tuple[Host, ...]:
        switch = namespaces("the underlay")
        switch("link add under type bridge mcast_snooping 0")
        switch("link set under up")
        made: list[Host] = []
        for n in range(1, count + 1):
            space = namespaces(f"host {n}")
            space.veth("under0", switch, f"host{n}")
            switch(f"link set host{n} master under up")
            extra = (f"198.51.100.{n}", f"172.31.0.{n}", f"169.254.7.{n}")
            space("link set under0 up")
            space(f"address add 192.0.2.{n}/24 dev under0")
            space(f"address add 2001:db8::{n}/64 dev under0 nodad")
            for address in extra:
                space(f"address add {address}/32 dev lo")
            space.set("ipv4/ip_forward", 1)
            space.set("ipv6/conf/all/forwarding", 1)
            addresses = (f"192.0.2.{n}", *extra, "127.0.0.1", f"2001:db8::{n}")
            made.append(Host(space, f"192.0.2.{n}", addresses, made, switch))
        return tuple(made)

    return make


@pytest.fixture
def hosts(make_hosts: Callable[[int], tuple[Host, ...]]) -> tuple[Host, ...]:
    return make_hosts(2)


# --- what a guest may try ------------------------------------------------------------------------


def probes(guest: Guest, host: Host, *, has_reserved: bool) -> Iterator[bytes]:
    """Frames with which a guest might get something out of a host, to every MAC that may be listened at.

    Frames to a reserved group address go up to the host from the port itself, not from its bridge.
    """
    devices = [names.bridge_name(VNI), names.vxlan_name(VNI), "under0", *(guest.port for guest in host.guests)]
    listening = [BROADCAST, *(host.space.mac(device) for device in devices)]
    if has_reserved:
        listening += [f"01:80:c2:00:00:{n:02x}" for n in range(17)]
    six = [address for address in host.addresses if ":" in address]
    six += [host.space.link_local(device) for device in devices]
    mine6 = guest.space.link_local("eth0")
    for mac in [*listening, "01:00:5e:00:00:01"]:
        for ip in [*(address for address in host.addresses if "." in address), "224.0.0.1", "255.255.255.255"]:
            yield frame(mac, guest.mac, ETH_P_ARP, arp_request(guest.mac, guest.ip, ip))
            # With a source that the host would answer to a neighbour of its underlay, too.
            for mine in (guest.ip, "192.0.2.77"):
                echo = icmp(8, struct.pack("!HH", 7, 1))
                yield frame(mac, guest.mac, ETH_P_IP, ipv4(socket.IPPROTO_ICMP, mine, ip, echo))
                yield frame(mac, guest.mac, ETH_P_IP, ipv4(socket.IPPROTO_UDP, mine, ip, udp(b"probe")))
        query = bytes([0x11, 10, 0, 0, 0, 0, 0, 0])
        query = query[:2] + struct.pack("!H", checksum(query)) + query[4:]
        yield frame(mac, guest.mac, ETH_P_IP, ipv4(socket.IPPROTO_IGMP, guest.ip, "224.0.0.1", query))
    for mac in [*listening, "33:33:00:00:00:01", "33:33:00:00:00:02"]:
        for ip in [*six, "ff02::1", "ff02::2"]:
            for kind, body in ((128, bytes(4)), (133, bytes(4)), (130, struct.pack("!HH", 100, 0) + bytes(16))):
                yield frame(mac, guest.mac, ETH_P_IPV6, ipv6(58, mine6, ip, struct.pack("!BBH", kind, 0, 0) + body))
            yield frame(mac, guest.mac, ETH_P_IPV6, ipv6(17, mine6, ip, udp(b"probe")))
    for ip in six:
        target = socket.inet_pton(socket.AF_INET6, ip)
        group = "ff02::1:ff" + target[13:14].hex() + ":" + target[14:].hex()
        solicit = struct.pack("!BBHI", 135, 0, 0, 0) + target + b"\1\1" + octets(guest.mac)
        for mac in [*listening, "33:33:ff:" + target[13:].hex(":")]:
            for to in (group, ip):
                yield frame(mac, guest.mac, ETH_P_IPV6, ipv6(58, mine6, to, solicit))


def probe(guest: Guest, others: list[Guest], targets: list[Host], *, has_reserved: bool) -> list[bytes]:
    """Send all probes and return the frames that ``guest`` hears and that no other guest has sent."""
    frames = [sent for host in targets for sent in probes(guest, host, has_reserved=has_reserved)]
    known = {octets(other.mac) for other in others}
    heard = []
    with guest.space.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with raw:
        raw.bind(("eth0", 0))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        for sent in frames:
            raw.send(sent)
            heard += drain(raw, 0)
        # What comes back comes at once: a packet is answered where it is received.
        heard += drain(raw, 0.3)
    return [got for got in heard if got[6:12] not in known]


def received(services: tuple[socket.socket, ...]) -> int:
    """Return how many datagrams have reached a host's service."""
    count = 0
    while select.select([services[0]], [], [], 0)[0]:
        services[0].recvfrom(4096)
        count += 1
    return count


@pytest.fixture
def attack() -> Callable[..., dict[str, int]]:
    """Let a guest try everything on hosts; return how often it got what, by what it is."""

    def run(guest: Guest, targets: list[Host], *, has_reserved: bool = True) -> dict[str, int]:
        others = [other for host in targets for other in host.guests if other is not guest]
        with ExitStack() as stack:
            services = [tuple(map(stack.enter_context, host.services())) for host in targets]
            before = [counters(host.space) for host in targets]
            heard = probe(guest, others, targets, has_reserved=has_reserved)
            after = [counters(host.space) for host in targets]
            results = {"heard": len(heard), "datagrams": sum(map(received, services))}
        for was, became in zip(before, after, strict=True):
            for name in was:
                results[name] = results.get(name, 0) + became[name] - was[name]
        return {name: count for name, count in results.items() if count}

    return run


def counters(space: Namespace) -> dict[str, int]:
    """Return how many echo requests the host's own IP has taken."""
    with space.entered(), open("/proc/thread-self/net/snmp") as file:
        names, values = (line.split() for line in file if line.startswith("Icmp:"))
    with space.entered(), open("/proc/thread-self/net/snmp6") as file:
        six = dict(line.split() for line in file)
    return {
        "echo requests": int(values[names.index("InEchos")]),
        "IPv6 echo requests": int(six["Icmp6InEchos"]),
        "neighbour solicitations": int(six["Icmp6InNeighborSolicits"]),
    }
