"""Hosts and guests' places as network namespaces without names: they end with the test, whatever happens.

A host has an underlay leg, addresses that a guest might try to reach, and services on all of them.
A guest's place is a namespace behind a veth pair whose outer end is on a host's bridge, as a tap is.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from ecompute.network import names, terms
from ecompute.network.filter import NftFilter
from ecompute.network.links import NetlinkLinks
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.terms import WantedNetwork

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
VNI = 0x1234
DEADLINE_S = 5.0
SERVICE_PORT = 7
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 3, 0x0800, 0x0806, 0x86DD
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Namespace:
    """A network namespace; what is done inside `entered` is done there, child programs included."""

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, name: str) -> None:
        self.name = name
        with open("/proc/thread-self/ns/net") as here:
            assert self._libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            assert self._libc.setns(here.fileno(), CLONE_NEWNET) == 0
        self("link set lo up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        with open("/proc/thread-self/ns/net") as here:
            assert self._libc.setns(self.fd, CLONE_NEWNET) == 0
            try:
                yield
            finally:
                assert self._libc.setns(here.fileno(), CLONE_NEWNET) == 0

    def run(self, *command: str) -> str:
        with self.entered():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def __call__(self, ip_command: str) -> str:
        return self.run("ip", *ip_command.split())

    def set(self, setting: str, value: int) -> None:
        with self.entered(), open(f"/proc/sys/net/{setting}", "w") as file:
            file.write(str(value))

    def mac(self, device: str) -> str:
        return self(f"-br link show {device}").split()[2]

    def link_local(self, device: str) -> str:
        """The IPv6 address that ``device`` would have made of its MAC."""
        mac = bytes.fromhex(self.mac(device).replace(":", ""))
        host = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
        return socket.inet_ntop(socket.AF_INET6, b"\xfe\x80" + bytes(6) + host)

    def veth(self, mine: str, other: Namespace, theirs: str) -> None:
        self(f"link add {mine} type veth peer name {theirs} netns /proc/{os.getpid()}/fd/{other.fd}")


@dataclass
class Guest:
    space: Namespace
    mac: str
    ip: str
    port: str
    """The name of its device on the host's bridge."""

    def ping(self, ip: str, *, size_bytes: int = 8, timeout_s: float = DEADLINE_S) -> bool:
        """Whether an ICMP echo with that much behind its IP and ICMP headers is answered in time."""
        with self.space.entered():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            deadline = time.monotonic() + timeout_s
            identity = os.getpid() & 0xFFFF
            while time.monotonic() < deadline:
                raw.sendto(icmp(8, struct.pack("!HH", identity, 1) + bytes(size_bytes)), (ip, 0))
                round_ends = min(deadline, time.monotonic() + 0.5)
                while (left := round_ends - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
                    packet, (source, _) = raw.recvfrom(2048)
                    if source == ip and packet[20] == 0 and packet[24:26] == struct.pack("!H", identity):
                        return True
        return False


@dataclass
class Host:
    space: Namespace
    underlay: str
    peer: str
    addresses: tuple[str, ...]
    links: NetlinkLinks = field(default_factory=NetlinkLinks)
    rules: NftFilter = field(default_factory=NftFilter)
    guests: list[Guest] = field(default_factory=list)

    def reconciler(self, on_change: Callable[[terms.Change], None] | None = None) -> NetworkReconciler:
        return NetworkReconciler(self.links, self.rules, on_change)

    def ensure(self, wanted: WantedNetwork | None = None) -> tuple[terms.Change, ...]:
        with self.space.entered():
            return self.reconciler().ensure(wanted if wanted is not None else self.wanted())

    def remove(self, vni: int = VNI) -> tuple[terms.Change, ...]:
        with self.space.entered():
            return self.reconciler().remove(vni)

    def do(self, action: Callable[[], T]) -> T:
        with self.space.entered():
            return action()

    def wanted(self, *entries: tuple[str, str]) -> WantedNetwork:
        return WantedNetwork("n", VNI, 1450, self.underlay, frozenset({self.peer}), frozenset(entries))

    def add_guest(self, n: int, port: str | None = None) -> Guest:
        """Put a guest's place on the bridge, and harden its port as it is done for a tap."""
        name = port if port is not None else f"ect0000000000{n}"
        guest = Guest(Namespace(f"guest {n}"), f"02:00:00:00:00:0{n}", f"10.50.0.{n}", name)
        self.space.veth(guest.port, guest.space, "eth0")
        if port is None:
            self.do(lambda: self.links.harden(guest.port))
        self.space(f"link set {guest.port} mtu 1450 master {names.bridge_name(VNI)} up")
        guest.space(f"link set eth0 address {guest.mac} mtu 1450 up")
        guest.space(f"address add {guest.ip}/24 dev eth0")
        self.guests.append(guest)
        return guest

    def services(self) -> tuple[socket.socket, ...]:
        """UDP and TCP on every address of the host, as etcd or ssh might be."""
        with self.space.entered():
            udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        for service in (udp, tcp):
            service.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            service.bind(("::", SERVICE_PORT))
        tcp.listen()
        return udp, tcp


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
def hosts(namespaces: Callable[[str], Namespace]) -> tuple[Host, Host]:
    """Two hosts on one underlay, as careless as a host may be: it routes, and has many addresses."""
    first, second = namespaces("host 1"), namespaces("host 2")
    first.veth("under0", second, "under0")
    made = []
    for n, space in ((1, first), (2, second)):
        extra = (f"198.51.100.{n}", f"172.31.0.{n}", f"169.254.7.{n}")
        space("link set under0 up")
        space(f"address add 192.0.2.{n}/24 dev under0")
        space(f"address add 2001:db8::{n}/64 dev under0 nodad")
        for address in extra:
            space(f"address add {address}/32 dev lo")
        space.set("ipv4/ip_forward", 1)
        space.set("ipv6/conf/all/forwarding", 1)
        addresses = (f"192.0.2.{n}", *extra, "127.0.0.1", f"2001:db8::{n}")
        made.append(Host(space, f"192.0.2.{n}", f"192.0.2.{3 - n}", addresses))
    return made[0], made[1]


# --- what a guest may try ------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def icmp(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + body)) + body


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def frame(to: str, mine: str, kind: int, payload: bytes) -> bytes:
    return octets(to) + octets(mine) + struct.pack("!H", kind) + payload


def arp_request(mine: str, my_ip: str, ip: str) -> bytes:
    header = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, 1)
    return header + octets(mine) + socket.inet_aton(my_ip) + bytes(6) + socket.inet_aton(ip)


def ipv4(protocol: int, my_ip: str, ip: str, payload: bytes) -> bytes:
    def header(sum_: int) -> bytes:
        return struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(payload), 1, 0, 64, protocol, sum_),
            socket.inet_aton(my_ip),
            socket.inet_aton(ip),
        )

    return header(checksum(header(0))) + payload


def ipv6(protocol: int, my_ip: str, ip: str, payload: bytes) -> bytes:
    """An IPv6 packet; the checksum of an ICMPv6 or UDP payload is filled in."""
    source, target = socket.inet_pton(socket.AF_INET6, my_ip), socket.inet_pton(socket.AF_INET6, ip)
    place = 2 if protocol == socket.IPPROTO_ICMPV6 else 6
    pseudo = source + target + struct.pack("!II", len(payload), protocol)
    payload = payload[:place] + struct.pack("!H", checksum(pseudo + payload)) + payload[place + 2 :]
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 255) + source + target + payload


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 40000, SERVICE_PORT, 8 + len(payload), 0) + payload


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


def drain(raw: socket.socket, quiet_s: float) -> list[bytes]:
    heard = []
    while select.select([raw], [], [], quiet_s)[0]:
        got, address = raw.recvfrom(4096)
        if address[2] != socket.PACKET_OUTGOING:
            heard.append(got)
    return heard


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
