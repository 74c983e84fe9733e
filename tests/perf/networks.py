"""What networks cost a host, in namespaces that stand for hosts and for guests' places."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import wire
from arrival import Cloud, arrival
from asked import asked
from by_hand import ByHand
from figures import Figure, cpu_ms, figure, timed
from lab import Host, a_network, a_world
from msgspec import structs

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.network import mesh
from ecompute.network.fake import FakeLinks
from ecompute.network.plan import plan
from ecompute.network.terms import FoundNetwork, Guard

FIRST, SECOND = 0x1234, 0x1235


@dataclass(frozen=True)
class Options:
    directory: Path
    sizes: list[int]
    rounds: int


def guests_of(host: Host, other: Host, network: Network) -> tuple[list[Port], list[NetworkHost]]:
    """Return a port on ``host`` and one on ``other``, and both hosts."""
    ports = [
        Port(
            interface_uuid=f"0000000{n}-{network.vni:04x}-4000-8000-000000000000",
            instance_uuid=f"guest {n}",
            provider=one.provider,
            epoch=1,
            mac=f"02:00:00:{network.vni % 256:02x}:00:0{n}",
            addresses=(f"10.0.0.{4 + n}/24", f"fd00:1::{4 + n}/64"),
            name=f"guest-{n}",
        )
        for n, one in enumerate((host, other), 1)
    ]
    return ports, [NetworkHost(provider=one.provider, underlay=one.underlay) for one in (host, other)]


def up(rounds: int) -> list[Figure]:
    """Bring a network up on a host: the first one, and one beside another that is there."""
    networks = [a_network(uuid=f"n{vni}", vni=vni) for vni in (FIRST, SECOND)]
    took: dict[str, tuple[list[float], list[float]]] = {"the first": ([], []), "one more": ([], [])}
    used: dict[str, tuple[list[float], list[float]]] = {which: ([], []) for which in took}
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(a_world())
        ours, other = world.hosts
        raw = Host(world, 3, ours.directory.parent)
        stack.callback(raw.gateways.close)
        first, second = (
            ByHand(networks[0], raw.provider, *guests_of(raw, other, networks[0]), raw.directory / "networks"),
            None,
        )
        second = ByHand(
            networks[1], raw.provider, *guests_of(raw, other, networks[1]), raw.directory / "networks", first
        )

        def raise_ours(network: Network) -> None:
            ports, hosts = guests_of(ours, other, network)
            with ours.mesh.session():
                ours.mesh.ensure(mesh.wanted(network, ours.provider, ports, hosts))
                ours.gateways.ensure(network, ports, hosts)

        def one(which: str, our_way: Callable[[], None], raw_way: Callable[[], None], turn: int) -> None:
            ways = list(zip(took[which], used[which], (ours, raw), (our_way, raw_way), strict=True))
            for times, cpu, host, way in ways[:: (1, -1)[turn % 2]]:
                before = cpu_ms()
                with host.space.entered(), timed(times):
                    way()
                cpu.append(cpu_ms() - before)

        for number in range(-1, rounds):
            print(f"  network-up: round {number + 1} of {rounds}", file=sys.stderr)
            with contextlib.ExitStack() as down:
                down.callback(lambda: ours.do(lambda: [_leave(ours, network.vni) for network in networks[::-1]]))
                down.callback(lambda: raw.do(lambda: [way.down() for way in (second, first)]))
                one("the first", lambda: raise_ours(networks[0]), first.up, number)
                one("one more", lambda: raise_ours(networks[1]), second.up, number)
            if number < 0:  # nothing had been loaded yet
                for into in (*took.values(), *used.values()):
                    for values in into:
                        values.clear()
    return [
        made
        for which in took
        for made in (
            figure(f"a network brought up, {which} / by hand", *took[which], "ms", "≤ 1.5 x"),
            figure(f"a network brought up, {which} / by hand: CPU", *used[which], "ms", "-"),
        )
    ]


def compare(rounds: int) -> list[Figure]:
    """The pure comparison of a network of 1,000 hosts and 10,000 guests, of which one has moved."""
    with a_world() as world:
        cloud = Cloud(world.hosts[0], 1000)
    wanted = partial(mesh.wanted, cloud.network, cloud.host.provider, hosts=cloud.members)
    before = wanted(ports=cloud.ports)
    links = FakeLinks()
    devices = replace(before, peers=frozenset(), entries=frozenset(), neighbours=frozenset())
    for change in plan(devices, FoundNetwork(cloud.network.vni)):
        if not isinstance(change, Guard):
            links.apply(change)
    found = replace(
        links.found(cloud.network.vni),
        entries=before.forwarding(),
        neighbours=before.neighbours,
        is_guarded=True,
    )
    moved = structs.replace(cloud.ports[1], provider=cloud.members[2].provider, epoch=2)
    ports = [cloud.ports[0], moved, *cloud.ports[2:]]
    took = []
    for _ in range(3 * rounds):
        began = time.thread_time()
        changes = plan(wanted(ports=ports), found)
        took.append((time.thread_time() - began) * 1000)
        assert len(changes) == 1
    return [figure("comparing 1,000 hosts and 10,000 guests / limit", took, [50.0], "ms of CPU", "≤ 50 ms")]


def _leave(host: Host, vni: int) -> None:
    host.gateways.remove(vni)
    host.mesh.remove(vni)


FIGURES: dict[str, Callable[[Options], list[Figure]]] = {
    "throughput": lambda options: wire.Wire(options.rounds).throughput(),
    "network-up": lambda options: up(options.rounds),
    "arrival": lambda options: arrival(options.sizes, options.rounds),
    "compare": lambda options: compare(options.rounds),
    "metadata": lambda options: asked(options.directory, options.rounds),
}
