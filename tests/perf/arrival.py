"""What a host does when a guest arrives elsewhere on a network that it is on, with few hosts and guests and with many.

The host is real but for its guests: its segment, filter and gateway, dnsmasq included, are those of the product. What
etcd would say of the others is made up. A round is one guest more on a host that is a member already, then one on a
host that was none; both go again, uncounted.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field

from counted import counted
from figures import Figure, cpu_ms, figure
from lab import Host, a_network, a_world

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.network import mesh

GUESTS_A_HOST = 10
PROVIDER = "elsewhere-{}"


@dataclass
class Spent:
    """By round."""

    messages: list[float] = field(default_factory=list)
    size_kib: list[float] = field(default_factory=list)
    programs: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


class Cloud:
    """What etcd says of one network: ``count`` hosts, the first of which is real."""

    def __init__(self, host: Host, count: int) -> None:
        self.host = host
        self.network: Network = a_network(cidr="10.0.0.0/16", uuid=f"of {count} hosts")
        self.members = [NetworkHost(provider=host.provider, underlay=host.underlay)]
        self.members += [self.member(number) for number in range(1, count)]
        self.ports = [self.port(number, number % count) for number in range(GUESTS_A_HOST * count)]

    def member(self, number: int) -> NetworkHost:
        return NetworkHost(provider=PROVIDER.format(number), underlay=f"10.{100 + (number >> 8)}.{number & 255}.1")

    def port(self, number: int, host: int) -> Port:
        last = number + 2
        return Port(
            interface_uuid=f"{number:08x}-0000-4000-8000-000000000000",
            instance_uuid=f"{number:08x}-0000-4000-8000-000000000001",
            provider=PROVIDER.format(host) if host else self.host.provider,
            epoch=1,
            mac=f"02:00:00:00:{last >> 8:02x}:{last & 255:02x}",
            addresses=(f"10.0.{last >> 8}.{last & 255}/16", f"fd00:1::{last:x}/64"),
            name=f"guest-{number}",
        )

    def follow(self) -> None:
        """As `Memberships` does on an event."""
        self.host.mesh.follow(mesh.wanted(self.network, self.host.provider, self.ports, self.members))
        self.host.gateways.follow(self.network, self.ports, self.members)


def arrival(sizes: list[int], rounds: int) -> list[Figure]:
    """One guest that arrives elsewhere: messages to the kernel, programs, and CPU."""
    spent: dict[str, dict[int, Spent]] = {
        "on a member": {size: Spent() for size in sizes},
        "on a host that was none": {size: Spent() for size in sizes},
    }
    for size in sizes:
        with a_world() as world:
            host = world.hosts[0]
            cloud = Cloud(host, size)
            with host.space.entered():
                print(f"  arrival: {size} hosts, {len(cloud.ports)} guests", file=sys.stderr)
                try:
                    _rounds(cloud, {way: by_size[size] for way, by_size in spent.items()}, rounds)
                finally:
                    host.gateways.remove(cloud.network.vni)
                    host.mesh.remove(cloud.network.vni)
    few, many = sizes[0], sizes[-1]
    made = []
    for way, by_size in spent.items():
        for size in sizes:
            said = by_size[size]
            print(
                f"  {way}, {size} hosts: {statistics.median(said.messages):.0f} messages,"
                f" {statistics.median(said.size_kib):.1f} KiB, {statistics.median(said.programs):.0f} programs,"
                f" {statistics.median(said.cpu_ms):.0f} ms of CPU",
                file=sys.stderr,
            )
        name = f"a guest arrives {way}, {many:,} hosts / {few:,}"
        last, first = by_size[many], by_size[few]
        made += [
            figure(f"{name}: netlink", last.messages, first.messages, "messages", "1"),
            figure(f"{name}: netlink", last.size_kib, first.size_kib, "KiB", "1"),
            figure(f"{name}: programs", last.programs, first.programs, "started", "1"),
            figure(f"{name}: CPU", last.cpu_ms, first.cpu_ms, "ms", "-"),
        ]
    return made


def _rounds(cloud: Cloud, spent: dict[str, Spent], rounds: int) -> None:
    cloud.follow()
    ports, members = cloud.ports, cloud.members
    for _ in range(rounds + 1):
        for way, into in spent.items():
            if way == "on a member":
                cloud.ports = [*ports, cloud.port(len(ports), 1)]
            else:
                cloud.ports = [*ports, cloud.port(len(ports), len(members))]
                cloud.members = [*members, cloud.member(len(members))]
            before = cpu_ms()
            with counted() as asked:
                cloud.follow()
            into.cpu_ms.append(cpu_ms() - before)
            into.messages.append(asked.messages)
            into.size_kib.append(asked.size_bytes / 1024)
            into.programs.append(len(asked.programs))
            cloud.ports, cloud.members = ports, members
            cloud.follow()
    for into in spent.values():  # the first round has loaded what was not needed before
        for values in (into.messages, into.size_kib, into.programs, into.cpu_ms):
            del values[0]
