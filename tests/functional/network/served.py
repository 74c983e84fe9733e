"""Hosts that serve networks, real but for their guests: each a network namespace with the product's reconcilers in it.

::

    world.hosts[0].add_guest("web", 5)     a guest's place on the host; `world.ensure` brings everything up to date
    guest.dhcp()                           what a DHCP client is told; `guest.settle` sets it up
    guest.ping("10.0.0.1"), guest.resolve("web")
    world.internet                         what is outside: 192.0.2.1 and 203.0.113.1 on the wire, 198.51.100.1 behind

All hosts have one device, `eth0`, for the underlay and for what leads out. Floating addresses are of 203.0.113.0/24,
which is on the same wire. Namespaces have no names and end with the test, but for those of the networks, which are
removed by `World.remove`.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.network import mesh, netns
from ecompute.network.egress import HostEgress
from ecompute.network.filter import NftFilter
from ecompute.network.gateway import namespace_name
from ecompute.network.gateway_memory import GatewayMemory
from ecompute.network.gateway_reconcile import GatewayReconciler
from ecompute.network.gateways import HostGateways
from ecompute.network.links import NetlinkLinks
from ecompute.network.metadata import FakeMetadata
from ecompute.network.names import bridge_name, tap_name
from ecompute.network.nft import Ledger
from ecompute.network.reconcile import NetworkReconciler
from eschedule.cloud.ports import ways_out

T = TypeVar("T")

VNI = 0x1234
INTERNET = "198.51.100.1"
GATEWAY = "10.0.0.1"
DEADLINE_S = 5.0
QUIET_S = 1.0
"""How long nothing must come for it to be said that nothing comes: what comes comes in milliseconds."""
PORT = 7


def a_network(**others: Any) -> Network:
    fields = {
        "uuid": "n",
        "namespace": "system",
        "name": "default",
        "cidr": "10.0.0.0/24",
        "cidr6": "fd00:1::/64",
        "vni": VNI,
        "mtu": 1450,
        "gateway": GATEWAY,
        "gateway6": "fd00:1::1",
        "has_dhcp": True,
        "has_nat": True,
        "has_dns": True,
        "domain": "default.internal",
        "created_at": "",
    }
    return Network(**{**fields, **others})


@dataclass
class Guest:
    """A guest's place: a namespace behind a veth pair whose outer end has a tap's name and is on the bridge."""

    space: Any
    port: Port
    network: Network
    directory: Path
    options: dict[str, str] = field(default_factory=dict)

    @property
    def ip(self) -> str:
        return self.port.addresses[0].split("/")[0]

    @property
    def tap(self) -> str:
        return tap_name(self.port.interface_uuid)

    def dhcp(self, *, tries: int = 3) -> dict[str, str]:
        """Ask for an address and return what was said, as busybox's client names it; nothing if nobody answers."""
        script, said = self.directory / "script", self.directory / "said"
        script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env > {said}\nexit 0\n')
        script.chmod(0o755)
        said.unlink(missing_ok=True)
        options = [option for name in ("mtu", "staticroutes", "search", "dns", "router") for option in ("-O", name)]
        with self.space.entered():
            subprocess.run(
                [
                    *_UDHCPC,
                    str(tries),
                    "-s",
                    script,
                    *options,
                ],
                capture_output=True,
                check=False,
                timeout=30,
                env={"PATH": os.environ["PATH"]},
            )
        if not said.exists():
            return {}
        return dict(line.split("=", 1) for line in said.read_text().splitlines() if "=" in line)

    def settle(self) -> None:
        """Set up the address and the default route as from a config drive, of an instance with this interface alone."""
        self.space(f"address replace {self.port.addresses[0]} dev eth0")
        if self.network.has_nat or ways_out([self.network])[0]:
            self.space(f"route replace default via {self.network.gateway}")
        for address in self.port.routed:
            self.space(f"address replace {address}/32 dev eth0")

    def ping(self, address: str, *, timeout_s: float = DEADLINE_S) -> bool:
        return pings(self.space, address, timeout_s=timeout_s)

    def resolve(self, name: str, server: str = GATEWAY) -> list[str]:
        """Return what the name server says of ``name``: addresses, or names for an address; nothing if it is silent."""
        with self.space.entered():
            done = subprocess.run(
                ["busybox", "nslookup", name, server], capture_output=True, text=True, check=False, timeout=60
            )
        said = done.stdout.split("\n\n", 1)[-1]
        return sorted({one or other for one, other in re.findall(r"^Address: (\S+)|name = (\S+)", said, re.MULTILINE)})

    def ask(self, address: str, port: int = PORT, *, timeout_s: float = DEADLINE_S, source_port: int = 0) -> str:
        return asks(self.space, address, port, timeout_s=timeout_s, source_port=source_port)


_UDHCPC = ("busybox", "udhcpc", "-f", "-n", "-q", "-i", "eth0", "-T", "1", "-A", "1", "-t")


def pings(space: Any, address: str, *, timeout_s: float = DEADLINE_S) -> bool:
    """Whether an echo request is answered in time."""
    deadline = time.monotonic() + timeout_s
    with space.entered():
        while True:
            command = ["busybox", "ping", "-c", "1", "-W", "1", address]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return True
            if time.monotonic() > deadline:
                return False


def asks(space: Any, address: str, port: int, *, timeout_s: float = DEADLINE_S, source_port: int = 0) -> str:
    """Ask a `Service` by UDP, again and again; return by whom it says that it was asked, or nothing."""
    with space.entered():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.bind(("", source_port))
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                asking.sendto(b"who am I", (address, port))
                if select.select([asking], [], [], min(0.3, left))[0]:
                    said, (source, _) = asking.recvfrom(2048)
                    return said.decode() if source == address else f"{source} answers for {address}"
            except OSError:
                time.sleep(0.05)  # refused, or no way there: it may be there in a moment
        return ""


class Service:
    """Answers by UDP, in a namespace, who has asked; and takes TCP connections. On all addresses."""

    def __init__(self, space: Any, port: int = PORT) -> None:
        with space.entered():
            self._process = subprocess.Popen(
                ["python3", "-c", _SERVICE, str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


_SERVICE = """
import socket, sys, threading
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
for one in (udp, tcp):
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_IP, 8, 1)
    one.bind(("::", int(sys.argv[1])))
tcp.listen()
def answer():
    while True:
        said, ancillary, _, source = udp.recvmsg(2048, 512)
        told = source[0].removeprefix("::ffff:").encode()
        # From the address that was asked: a host has many.
        udp.sendmsg([told], [one for one in ancillary if one[:2] == (0, 8)], 0, source)
threading.Thread(target=answer, daemon=True).start()
print("ready", flush=True)
while True:
    connection, source = tcp.accept()
    try:
        connection.sendall(source[0].removeprefix("::ffff:").encode())
        while data := connection.recv(100):
            connection.sendall(data)
    except OSError:
        pass
    connection.close()
"""


class Host:
    """One host. What is done in it is done by `do`."""

    def __init__(self, world: World, number: int, directory: Path) -> None:
        self.world = world
        self.provider = str(uuid4())
        self.space = world.make(f"host {number}")
        self.underlay = f"192.0.2.{10 + number}"
        self.near = f"203.0.113.{10 + number}"
        """As what its guests are seen at a floating address."""
        self.directory = directory / f"host-{number}"
        self.directory.mkdir()
        self.guests: list[Guest] = []
        self.space.veth("eth0", world.internet, f"h{number}")
        world.internet(f"link set h{number} master wan up")
        self.space("link set eth0 up")
        self.space(f"address add {self.underlay}/24 dev eth0")
        self.space(f"address add {self.near}/24 dev eth0")
        self.space("route add default via 192.0.2.1")
        self.links = NetlinkLinks()
        self.ledger = Ledger()
        self.filter = NftFilter(self.ledger)
        self.changes: list[Any] = []
        self.boot_id = "first"
        self.egress: str | None = None
        """As configured; None: the device of the default route."""
        self.restart()

    def restart(self) -> None:
        """As when the daemon is started anew: nothing is remembered but what is on the disk."""
        if hasattr(self, "gateways"):
            self.gateways.close()
        self.mesh = NetworkReconciler(self.links, self.filter)
        self.gateways = self.reconciler()

    def reconciler(self, on_change: Callable[[Any], None] | None = None) -> GatewayReconciler:
        return GatewayReconciler(
            HostGateways(self.provider, self.directory / "networks"),
            HostEgress(self.egress, self.directory / "egress.json", boot_id=self.boot_id, ledger=self.ledger),
            self.provider,
            GatewayMemory(self.directory / "memory"),
            upstream=lambda: (INTERNET,),
            control_plane=lambda: self.world.control_plane,
            metadata=FakeMetadata(),
            on_change=on_change,
        )

    def do(self, action: Callable[[], T]) -> T:
        with self.space.entered():
            return action()

    def namespace(self, vni: int = VNI) -> str:
        return namespace_name(vni, self.provider)

    def inside(self, *command: str, vni: int = VNI) -> str:
        """Run a program in a network's namespace."""
        return netns.in_namespace(
            self.namespace(vni),
            lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout,
        )

    def add_guest(self, name: str, number: int, *, network: Network | None = None, **others: Any) -> Guest:
        network = network or self.world.network
        port = Port(
            interface_uuid=str(uuid4()),
            instance_uuid=str(uuid4()),
            provider=self.provider,
            epoch=1,
            mac=others.pop("mac", f"02:00:00:{network.vni % 256:02x}:00:{number:02x}"),
            addresses=(f"10.0.0.{number}/24", f"fd00:1::{number}/64"),
            name=name,
            **others,
        )
        guest = Guest(self.world.make(f"guest {name}"), port, network, self.directory)
        self.guests.append(guest)
        self.world.ensure()
        self.space.veth(guest.tap, guest.space, "eth0")
        self.do(lambda: self.links.harden(guest.tap))
        self.space(f"link set {guest.tap} mtu {network.mtu} master {bridge_name(network.vni)} up")
        guest.space(f"link set eth0 address {port.mac} mtu {network.mtu} up")
        self.world.ensure()
        return guest

    def remove_guest(self, guest: Guest) -> None:
        self.space(f"link delete {guest.tap}")
        self.guests.remove(guest)
        self.world.ensure()

    def networks(self) -> dict[str, Network]:
        return {guest.network.uuid: guest.network for guest in self.guests}

    def ensure(self, network: Network, *, gateways: GatewayReconciler | None = None) -> tuple[Any, ...]:
        ports, hosts = self.world.ports(network), self.world.members(network)

        def act() -> tuple[Any, ...]:
            wanted = mesh.wanted(network, self.provider, ports, hosts)
            self.mesh.ensure(wanted)
            here = replace(network, mtu=self.mesh.mtu(wanted))
            return (gateways or self.gateways).ensure(here, ports, hosts)

        return self.do(act)

    def leave(self, vni: int) -> None:
        self.do(lambda: self.gateways.remove(vni))
        self.do(lambda: self.mesh.remove(vni))

    def present(self) -> frozenset[int]:
        return self.do(lambda: self.gateways.present() | self.mesh.present())

    def everything(self) -> list[str]:
        """Return whatever there is that a gateway may leave: to be compared."""
        commands = (
            "ip -br link show",
            "ip -br -4 address show",
            "ip -4 route show table all",
            "ip neighbour show proxy",
            "ip neighbour show nud permanent",
            "nft -s list ruleset",
            "sysctl net.ipv4.conf.eth0 net.ipv4.neigh.eth0.proxy_delay net.ipv4.ip_forward",
        )
        found = [self.space.run(*command.split()) for command in commands]
        found[:5] = ["\n".join(sorted(text.splitlines())) for text in found[:5]]
        found.append(str(sorted(name for name in netns.taken() if name.endswith(self.provider[:8]))))
        found.append(str(sorted(str(path) for path in (self.directory / "networks").rglob("*"))))
        return [*found, str(sorted(dnsmasqs(self.directory)))]


def dnsmasqs(directory: Path) -> dict[int, str]:
    """Return the processes that run with files below ``directory``, and those files."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_text(errors="replace").split("\0")
            except OSError:
                continue
            if arguments[0] == "dnsmasq" and str(directory) in arguments[1]:
                found[int(entry.name)] = arguments[1]
    return found


class World:
    """Two hosts and what is outside of them."""

    def __init__(self, make: Callable[[str], Any], **network: Any) -> None:
        self.make = make
        self.network = a_network(**network)
        self.control_plane: frozenset[str] = frozenset({"192.0.2.99"})
        self._directory = tempfile.TemporaryDirectory(prefix="ecompute-")
        directory = Path(self._directory.name)
        directory.chmod(0o711)
        self.internet = make("internet")
        self.internet("link add wan type bridge forward_delay 0")
        self.internet("link set wan up")
        for address in ("192.0.2.1/24", "192.0.2.99/24", "203.0.113.1/24", f"{INTERNET}/32"):
            self.internet(f"address add {address} dev wan")
        self.hosts = [Host(self, number, directory) for number in (1, 2)]

    def ports(self, network: Network) -> list[Port]:
        return [g.port for host in self.hosts for g in host.guests if g.network.uuid == network.uuid]

    def members(self, network: Network) -> list[NetworkHost]:
        return [
            NetworkHost(provider=host.provider, underlay=host.underlay)
            for host in self.hosts
            if network.uuid in host.networks()
        ]

    def ensure(self) -> None:
        """Bring all hosts up to date with what etcd would say."""
        for host in self.hosts:
            for network in host.networks().values():
                host.ensure(network)

    def change(self, guest: Guest, **fields: Any) -> None:
        """Change a guest's port, as by a transaction; the hosts follow."""
        guest.port = replace(guest.port, **fields)
        self.ensure()

    def remove(self) -> None:
        for host in self.hosts:
            for guest in host.guests:
                host.space.run("sh", "-c", f"ip link delete {guest.tap} || true")
            for vni in host.present():
                host.leave(vni)
            host.gateways.close()
            assert dnsmasqs(host.directory) == {}
        self._directory.cleanup()


@contextmanager
def serving(space: Any, port: int = PORT) -> Iterator[Service]:
    service = Service(space, port)
    try:
        yield service
    finally:
        service.close()


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = DEADLINE_S) -> T:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return value


def listing(space: Any, *command: str) -> Any:
    return json.loads(space.run(*command) or "[]")
