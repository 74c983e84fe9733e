"""A hundred operations on networks in an order that nobody chose, on real hosts; then everything is compared.

Nobody waits for one before the next is asked: the hosts are always behind. What is printed says which it was;
``CHURN_SEED`` has the same asked again. The guests only halt, and let go of no interface while they run: one is taken
from those that are off.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from cloud import MEMORY_MB, Cluster
from outside import POOL

from ecompute.cluster.documents import Interface, Network, State
from ecompute.cluster.errors import CloudError
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FloatingAddresses, Target
from eschedule.cloud.instances import Instances
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.interfaces import Interfaces
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.cloud.pools import Pools
from eschedule.cloud.routes import Routes
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

OPERATIONS = 100
GUESTS = 6
ADDRESSES = 6
NAMESPACE = "system"
NETWORKS = (
    NetworkRequest("one", "10.50.0.0/24"),
    NetworkRequest("other", "10.50.0.0/24", cidr6="fd00:50::/64"),
    NetworkRequest("bare", "10.51.0.0/24", has_nat=False, has_dns=False),
)


def test_after_a_hundred_operations_in_any_order_every_rule_is_what_etcd_says(outer_cluster: Cluster) -> None:
    seed = int(os.environ.get("CHURN_SEED") or random.randrange(1 << 32))
    print(f"CHURN_SEED={seed}")
    with Cloud.from_file(outer_cluster.config) as cloud:
        pools, networks = Pools(cloud), Networks.of(cloud)
        pools.create("outer", POOL)
        made = [networks.create(NAMESPACE, request).value for request in NETWORKS]
        churn = Churn(outer_cluster, cloud, made, random.Random(seed))
        for number in range(OPERATIONS):
            print(number, churn.do_something())
        outer_cluster.agree(timeout_s=120, off=churn.off)
        churn.end()
        outer_cluster.agree(timeout_s=60)
        for network in made:
            networks.delete(network.uuid, NAMESPACE)
        pools.delete("outer")


@dataclass
class Churn:
    cluster: Cluster
    cloud: Cloud
    networks: list[Network]
    rng: random.Random
    guests: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    routed: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.instances = Instances(self.cloud)
        others = random.Random(self.rng.random())  # so that the order of what is done follows from the seed
        self.floating = FloatingAddresses(self.cloud, rng=others)
        self.interfaces = Interfaces(self.cloud, rng=others)
        self.routes = Routes(self.cloud, rng=others)
        self.launcher = Launcher(self.cloud, rng=others)
        self.deeds: dict[Callable[[], str | None], int] = {
            self.launch: 6,
            self.destroy: 3,
            self.plug: 5,
            self.unplug: 4,
            self.switch_off: 2,
            self.give: 5,
            self.attach: 6,
            self.detach: 4,
            self.give_back: 2,
            self.route: 2,
            self.unroute: 1,
            self.kill: 1,
        }

    def do_something(self) -> str:
        """Do one thing that can be done now, and say which."""
        while True:
            deed = self.rng.choices(list(self.deeds), weights=list(self.deeds.values()))[0]
            try:
                done = deed()
            except CloudError as error:
                print(f"  {deed.__name__}: {error}")
                continue
            if done is not None:
                return f"{deed.__name__} {done}"

    def end(self) -> None:
        ending = [self.instances.find(uuid, NAMESPACE) for uuid in self.guests]
        for one in ending:
            self.instances.destroy(one)
        for one in ending:
            self.instances.wait(one, until=frozenset(), timeout_s=120)
        for view in self.floating.all(NAMESPACE):
            self.floating.delete(view.floating.ip, NAMESPACE)

    # --- what may be done, each returning what it was done to, or None where there is nothing to do it to

    def launch(self) -> str | None:
        if len(self.guests) >= GUESTS:
            return None
        interfaces = tuple(InterfaceRequest(network=self._network()) for _ in range(self.rng.randint(1, 2)))
        query = self.cluster.query(memory_mb=MEMORY_MB)
        image = str(self.cluster.idle_image)
        uuid = self.launcher.launch(LaunchRequest(query=query, image=image, interfaces=interfaces)).uuid
        self.guests.append(uuid)
        return f"{uuid} on {', '.join(str(one.network) for one in interfaces)}"

    def destroy(self) -> str | None:
        if len(self.guests) < GUESTS // 2:
            return None
        uuid = self.guests.pop(self.rng.randrange(len(self.guests)))
        if uuid in self.off:
            self.off.remove(uuid)
        self.instances.destroy(self.instances.find(uuid, NAMESPACE))
        return uuid

    def plug(self) -> str | None:
        if (uuid := self._created(self.guests)) is None:
            return None
        network = self._network()
        self.interfaces.add(uuid, NAMESPACE, InterfaceRequest(network=network))
        return f"{network} to {uuid}"

    def unplug(self) -> str | None:
        if (uuid := self._created(self.off)) is None or (interface := self._interface(uuid)) is None:
            return None
        self.interfaces.remove(uuid, NAMESPACE, interface.uuid)
        return f"{interface.uuid} of {uuid}"

    def switch_off(self) -> str | None:
        if (uuid := self._created([uuid for uuid in self.guests if uuid not in self.off])) is None:
            return None
        provider = self.instances.find(uuid, NAMESPACE).value.provider
        next(host for host in self.cluster.hosts if host.provider == provider).domain(uuid).destroy()
        self.off.append(uuid)
        return uuid

    def give(self) -> str | None:
        if len(self.floating.all(NAMESPACE)) >= ADDRESSES:
            return None
        return self.floating.create(NAMESPACE).ip

    def attach(self) -> str | None:
        free = [view.floating.ip for view in self.floating.all(NAMESPACE) if view.floating.interface_uuid is None]
        if not free or not self.guests:
            return None
        ip, uuid = self.rng.choice(free), self.rng.choice(self.guests)
        if (interface := self._interface(uuid)) is None:
            return None
        is_routed = self.rng.random() < 0.3
        self.floating.attach(ip, NAMESPACE, Target(uuid, interface=interface.uuid, is_routed=is_routed))
        return f"{ip} to {interface.uuid} of {uuid}{', routed' if is_routed else ''}"

    def detach(self) -> str | None:
        attached = [view.floating.ip for view in self.floating.all(NAMESPACE) if view.floating.interface_uuid]
        return self.floating.detach(self.rng.choice(attached), NAMESPACE).ip if attached else None

    def give_back(self) -> str | None:
        free = [view.floating.ip for view in self.floating.all(NAMESPACE) if view.floating.interface_uuid is None]
        if not free:
            return None
        ip = self.rng.choice(free)
        self.floating.delete(ip, NAMESPACE)
        return ip

    def route(self) -> str | None:
        if not self.guests or (interface := self._interface(uuid := self.rng.choice(self.guests))) is None:
            return None
        made = self.routes.add(interface.network_uuid, uuid, NAMESPACE, interface=interface.uuid)
        self.routed.append((interface.network_uuid, made.ip))
        return f"{made.ip} to {interface.uuid} of {uuid}"

    def unroute(self) -> str | None:
        if not self.routed:
            return None
        network, ip = self.routed.pop(self.rng.randrange(len(self.routed)))
        self.routes.remove(network, ip, NAMESPACE)
        return ip

    def kill(self) -> str | None:
        host = self.rng.choice(self.cluster.hosts)
        host.kill()
        host.start(wait=False)
        return host.name

    def _network(self) -> str:
        return self.rng.choice(self.networks).name

    def _created(self, among: list[str]) -> str | None:
        """Return one that is built, once it is."""
        if not among:
            return None
        uuid = self.rng.choice(among)
        until = frozenset({State.CREATED, State.ERROR})
        view = self.instances.wait(self.instances.find(uuid, NAMESPACE), until=until, timeout_s=60)
        assert view is not None and view.state is State.CREATED, f"{uuid}: {view}"
        return uuid

    def _interface(self, uuid: str) -> Interface | None:
        interfaces = self.instances.find(uuid, NAMESPACE).value.spec.interfaces
        return self.rng.choice(interfaces) if interfaces else None
