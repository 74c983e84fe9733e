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
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from frames import SERVICE_PORT, icmp

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.network import mesh, names, terms
from ecompute.network.filter import NftFilter
from ecompute.network.links import NetlinkLinks
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.terms import WantedNetwork

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
VNI = 0x1234
DEADLINE_S = 5.0
NETWORK = Network(
    uuid="n",
    namespace="system",
    name="default",
    cidr="10.50.0.0/24",
    cidr6="fd00:50::/64",
    vni=VNI,
    mtu=1450,
    gateway="10.50.0.254",
    gateway6="fd00:50::fe",
    created_at="",
)


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
    n: int
    port: str
    """The name of its device on the host's bridge."""
    routed: tuple[str, ...] = ()

    @property
    def mac(self) -> str:
        return f"02:00:00:00:00:{self.n:02x}"

    @property
    def ip(self) -> str:
        return f"10.50.0.{self.n}"

    @property
    def ip6(self) -> str:
        return f"fd00:50::{self.n:x}"

    def document(self, provider: str) -> Port:
        """Its port in etcd, on the host ``provider``."""
        return Port(
            interface_uuid=f"00000000-00{self.n:x}0-0000-0000-000000000000",
            instance_uuid=f"guest {self.n}",
            provider=provider,
            epoch=1,
            mac=self.mac,
            addresses=(f"{self.ip}/24", f"{self.ip6}/64"),
            routed=self.routed,
        )

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

    def ping6(self, ip: str, *, timeout_s: float = DEADLINE_S) -> bool:
        """The same by ICMPv6."""
        with self.space.entered():
            raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            index = socket.if_nametoindex("eth0")
        with raw:
            deadline = time.monotonic() + timeout_s
            identity = os.getpid() & 0xFFFF
            while time.monotonic() < deadline:
                raw.sendto(struct.pack("!BBHHH", 128, 0, 0, identity, 1), (ip, 0, 0, index))
                round_ends = min(deadline, time.monotonic() + 0.5)
                while (left := round_ends - time.monotonic()) > 0 and select.select([raw], [], [], left)[0]:
                    packet, (source, *_) = raw.recvfrom(2048)
                    if packet[0] == 129 and source.split("%")[0] == ip and packet[4:6] == struct.pack("!H", identity):
                        return True
        return False


@dataclass
class Host:
    space: Namespace
    underlay: str
    addresses: tuple[str, ...]
    members: list[Host] = field(repr=False)
    """All hosts of the network, itself too."""
    switch: Namespace
    """To which their legs are plugged, on its bridge `under`."""
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

    def wanted(self, network: Network = NETWORK) -> WantedNetwork:
        """What the network is to be here by the guests that there are, on all hosts."""
        ports = [guest.document(host.underlay) for host in self.members for guest in host.guests]
        members = [NetworkHost(provider=host.underlay, underlay=host.underlay) for host in self.members]
        made = mesh.wanted(network, self.underlay, ports, members)
        assert made.problems == ()
        return made

    def add_guest(self, n: int, port: str | None = None) -> Guest:
        """Plan a guest, and put its place on the bridge."""
        return self.plug(self.plan_guest(n, port))

    def plan_guest(self, n: int, port: str | None = None) -> Guest:
        """Make a guest's place, of which etcd would know from now on."""
        guest = Guest(Namespace(f"guest {n}"), n, port if port is not None else f"ect0000000000{n}")
        self.guests.append(guest)
        return guest

    def plug(self, guest: Guest, vni: int = VNI) -> Guest:
        """Put it on the bridge, and harden its port as it is done for a tap."""
        self.space.veth(guest.port, guest.space, "eth0")
        if guest.port.startswith(names.TAP_PREFIX):
            self.do(lambda: self.links.harden(guest.port))
        self.space(f"link set {guest.port} mtu 1450 master {names.bridge_name(vni)} up")
        guest.space(f"link set eth0 address {guest.mac} mtu 1450 up")
        guest.space(f"address add {guest.ip}/24 dev eth0")
        guest.space(f"address add {guest.ip6}/64 dev eth0 nodad")
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
