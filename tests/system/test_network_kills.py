"""``kill -9`` at every change of a network: when a host joins it, when it leaves it, when something is put right.

The changes are taken from the product's own plans, in the order in which it makes them. The daemon dies before one,
is started and dies after it, is started and dies before the next: so at each point one that knows nothing goes on from
what another has left. After some of them it is started for good, and everything must agree. A point that is never
reached is a failure: the test would show nothing.

The two hosts are killed side by side, each on a network of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloud import MEMORY_MB, Cluster
from host import Host
from outside import POOL

from ecompute.cluster.documents import Network, NetworkHost, Port, State
from ecompute.cluster.errors import NotFound
from ecompute.cluster.failpoint import around
from ecompute.network import (
    egress,
    gateway,
    gateway_memory,
    gateways,
    membership,
    mesh,
    metadata,
    names,
    netns,
    outside,
    reconcile,
    service,
)
from ecompute.network import plan as segment
from ecompute.network.dnsmasq import Paths
from ecompute.network.gateway_terms import FoundGateway, FoundOuter, FoundService
from ecompute.network.terms import FoundBridge, FoundNetwork, FoundVxlan
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FloatingAddresses, Target
from eschedule.cloud.instances import Instances
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.cloud.pools import Pools
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

HOSTS = 2
DEATHS = 9
"""After so many everything must agree."""

EVERY = (
    *egress.FAILPOINTS,
    *gateway_memory.FAILPOINTS,
    *gateways.FAILPOINTS,
    *membership.FAILPOINTS,
    *metadata.FAILPOINTS,
    *netns.FAILPOINTS,
    *outside.FAILPOINTS,
    *reconcile.FAILPOINTS,
    *service.FAILPOINTS,
)

WITHIN = {
    "gateway.MakeNamespace": ("netns.named",),
    "gateway.RemoveNamespace": ("netns.unmounted",),
    "gateway.PutTransit": ("transit.addressed", "transit.met"),
    "gateway.PutProxy": ("proxy.put",),
    "gateway.StartService": ("dnsmasq.written",),
    "gateway.TellService": ("dnsmasq.listed", "dnsmasq.signalled"),
}
"""What is done in several steps."""


def _at(changes: Sequence[str]) -> list[str]:
    """Return the points before, within and after each of ``changes``."""
    points = ((f"{change}.before", *WITHIN.get(change, ()), f"{change}.after") for change in dict.fromkeys(changes))
    return [point for some in points for point in some]


VNI, PROVIDER = 7, "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0001"
NETWORK = Network(
    uuid="n",
    namespace="system",
    name="n",
    cidr="10.20.0.0/24",
    vni=VNI,
    mtu=1450,
    gateway="10.20.0.1",
    has_dhcp=True,
    has_nat=True,
    has_dns=True,
    created_at="",
)
PORT = Port(
    interface_uuid="6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0002",
    instance_uuid="i",
    provider=PROVIDER,
    epoch=1,
    mac="02:00:00:00:00:01",
    addresses=("10.20.0.5/24",),
    floating="203.0.113.130",
    routed=("203.0.113.131",),
)


def _joining() -> list[str]:
    host = NetworkHost(provider=PROVIDER, underlay="192.0.2.1")
    devices = segment.plan(mesh.wanted(NETWORK, PROVIDER, [PORT], [host]), FoundNetwork(vni=VNI, carrier_mtu=1500))
    wanted = gateway.wanted(NETWORK, PROVIDER, [PORT], Paths(Path("/x")), transit="169.254.1.7")
    made = _at([gateways.point_of(change) for change in gateway.plan(wanted, FoundGateway(vni=VNI), "eth1")])
    told = made.index("gateway.StartService.after") + 1
    return [
        "network.marked",
        *_at([reconcile.point_of(change) for change in devices]),
        "gateway.memory.written",
        *("egress.ruled", "egress.written", "egress.remembered", "egress.half_set"),
        *made[:told],
        *("metadata.new", "metadata.written"),
        *made[told:],
    ]


def _leaving() -> list[str]:
    veth = FoundOuter("veth")
    found = FoundGateway(
        vni=VNI,
        has_namespace=True,
        has_name=True,
        outer_lan=veth,
        outer_up=veth,
        service=FoundService(conf="x", has_files=True),
        host_routes=frozenset({"203.0.113.130"}),
        proxied=frozenset({("203.0.113.130", "eth1")}),
    )
    bridge = FoundBridge("bridge")
    devices = FoundNetwork(vni=VNI, bridge=bridge, vxlan=FoundVxlan("vxlan", vni=VNI), has_rules=True)
    return [
        *("metadata.left", "metadata.forgotten"),
        *_at([gateways.point_of(change) for change in gateway.plan(None, found)]),
        *("egress.restored", "egress.forgotten", "egress.removed"),
        *_at([reconcile.point_of(change) for change in segment.plan(None, devices)]),
        "network.down",
    ]


HARMED_SEGMENT = {
    "mesh.TuneBridge": "ip link set {bridge} address 02:00:00:00:00:99",
    "mesh.SetMtu.ecx": "ip link set {vxlan} mtu 1300",
    "mesh.Entries": "bridge fdb flush dev {vxlan}; ip neighbour flush dev {vxlan} nud permanent; "
    "bridge fdb add 02:00:00:00:00:99 dev {vxlan} dst 192.0.2.9 self permanent; "
    "ip neighbour add 10.40.0.250 lladdr 02:00:00:00:00:99 dev {vxlan} nud permanent",
    "mesh.SetMtu.ect": "ip link set {tap} mtu 1300",
    "mesh.Harden.ect": "echo 0 > /proc/sys/net/ipv6/conf/{tap}/disable_ipv6",
    "mesh.AttachTap": "ip link set {tap} nomaster",
}
HARMED_INSIDE = {
    "gateway.DropAddress.lan": "ip -n {space} address add 192.0.2.9/32 dev lan",
    "gateway.DropAddress.up": "ip -n {space} address add 192.0.2.8/32 dev up",
    "gateway.DropRoute": "ip -n {space} route add 192.0.2.64/26 dev lan",
    "gateway.DropInnerNeighbour.lan": "ip -n {space} neighbour add 10.40.0.9 lladdr 02:00:00:00:00:99 dev lan",
    "gateway.DropInnerNeighbour.up": "ip -n {space} neighbour add 10.40.0.9 lladdr 02:00:00:00:00:99 dev up",
    "gateway.EndFlows": ":",  # a new daemon does not know that it was done
    "gateway.TellService": "echo 0 $(cut -d ' ' -f 2 {files}/told) > {files}/told",
}
HARMED_DEVICES = {
    "gateway.DeleteInner.lan": "ip link delete {lan} && ip -n {space} link add name lan type bridge",
    "gateway.DeleteInner.up": "ip link delete {up} && ip -n {space} link add name up type bridge",
}
"""What somebody may do while the daemon is down, in the order in which it is put right."""
HARMED = {"segment": HARMED_SEGMENT, "inside": HARMED_INSIDE, "devices": HARMED_DEVICES}

VLAN = around(
    ("mesh.AddVlan", "mesh.DeleteVlan", "mesh.AttachVlan", "mesh.Harden.ecv", "mesh.SetMtu.ecv", "mesh.SetUp.ecv")
)
"""Tried with stand-ins for devices (tests/unit/network): not every kernel has them."""

JOINING, LEAVING = _joining(), _leaving()
SERVED = ["metadata.started", "metadata.served"]
"""Beside the rest, which goes on meanwhile."""
ENDED = ["dnsmasq.ended"]
"""While it is stopped; who finds that it has ended stops none, and reaches no point behind that."""


def _shares(points: list[str], size: int = DEATHS) -> list[list[str]]:
    return [points[start : start + size] for start in range(0, len(points), size)]


def _at_each(*several: list[str]) -> pytest.MarkDecorator:
    """Have a test run at all points, some of them on each host at a time."""
    shares = [share for points in several for share in _shares(points)]
    pairs = [shares[start : start + HOSTS] for start in range(0, len(shares), HOSTS)]
    return pytest.mark.parametrize("shares", pairs, ids=["+".join(share[0] for share in pair) for pair in pairs])


@pytest.mark.parametrize("point", EVERY)
def test_the_daemon_is_killed_at_every_change(point: str) -> None:
    """A new change is killed at, or this says that it is not."""
    if point in VLAN:
        pytest.skip("changes of a VLAN device, which this kernel does not have")
    harmed = [change for changes in HARMED.values() for change in changes]
    assert point in {*JOINING, *SERVED, *LEAVING, *ENDED, *_at(harmed)}


class Tenant:
    """Has one guest with floating addresses on a network, on one host."""

    def __init__(self, cluster: Cluster, host: Host, cloud: Cloud, network: Network) -> None:
        self.cluster = cluster
        self.host = host
        self.network = network
        self._cloud = cloud
        self._instances = Instances(cloud)
        self._floating = FloatingAddresses(cloud)
        self._addresses = [self._floating.create("system").ip for _ in range(2)]
        self.uuid = ""

    def launch(self) -> None:
        query = self.cluster.query(self.host, memory_mb=MEMORY_MB)
        interfaces = (InterfaceRequest(network=self.network.uuid),)
        request = LaunchRequest(query=query, image=str(self.cluster.idle_image), interfaces=interfaces)
        self.uuid = Launcher(self._cloud).launch(request).uuid
        for address, is_routed in zip(self._addresses, (False, True), strict=True):
            self._floating.attach(address, "system", Target(self.uuid, is_routed=is_routed))

    def wait_created(self) -> None:
        found = self._instances.find(self.uuid, "system")
        view = self._instances.wait(found, until=frozenset({State.CREATED}), timeout_s=60)
        assert view is not None and view.state is State.CREATED, f"{self.uuid} is {view and view.state}"

    def destroy(self) -> None:
        self._instances.destroy(self._instances.find(self.uuid, "system"))

    def wait_gone(self) -> None:
        with contextlib.suppress(NotFound):
            self._instances.wait(self._instances.find(self.uuid, "system"), until=frozenset(), timeout_s=60)

    def die_at(self, points: Sequence[str]) -> None:
        for point in points:
            self.host.die_at(point)
        self.host.start()

    def harm(self, commands: Sequence[str]) -> None:
        hexadecimal = f"{self.network.vni:06x}"
        interface = self._instances.find(self.uuid, "system").value.spec.interfaces[0]
        for command in commands:
            done = command.format(
                bridge=names.bridge_name(self.network.vni),
                vxlan=names.vxlan_name(self.network.vni),
                lan=names.gateway_name(self.network.vni),
                up=names.uplink_name(self.network.vni),
                tap=names.tap_name(interface.uuid),
                space=gateway.namespace_name(self.network.vni, self.host.provider),
                files=self.host.state / "networks" / hexadecimal,
            )
            self.host.run("sh", "-ec", done)

    def give_back(self) -> None:
        for address in self._addresses:
            self._floating.delete(address, "system")


@pytest.fixture
def cloud(outer_cluster: Cluster) -> Iterator[Cloud]:
    with Cloud.from_file(outer_cluster.config) as cloud:
        cloud.store, cloud.placement, cloud.events, cloud.claims  # noqa: B018 - made here, not by two threads at once
        yield cloud


@pytest.fixture
def make_tenants(outer_cluster: Cluster, cloud: Cloud) -> Iterator[Callable[..., list[Tenant]]]:
    """Make a tenant for each host: all on the same network, or each on its own."""
    networks, pools = Networks.of(cloud), Pools(cloud)
    made: list[Tenant] = []

    def make(*, is_one: bool = False) -> list[Tenant]:
        pools.create("outer", POOL)
        cidrs = ["10.40.0.0/24"] * (1 if is_one else HOSTS)
        new = [networks.create("system", NetworkRequest(f"n-{n}", cidr)).value for n, cidr in enumerate(cidrs)]
        for number, host in enumerate(outer_cluster.hosts):
            made.append(Tenant(outer_cluster, host, cloud, new[number % len(new)]))
        return made

    yield make
    if outer_cluster.instances():
        return  # the test has failed, and the cluster with it
    for tenant in made:
        tenant.give_back()
    for uuid in {tenant.network.uuid for tenant in made}:
        networks.delete(uuid, "system")
    if made:
        pools.delete("outer")


def _each(deed: Callable[..., None], *arguments: Sequence[object]) -> None:
    """Do it for all, side by side."""
    with ThreadPoolExecutor(HOSTS) as pool:
        for done in [pool.submit(deed, *some) for some in zip(*arguments, strict=False)]:
            done.result()


def _end(tenants: list[Tenant]) -> None:
    for tenant in tenants:
        tenant.destroy()
    for tenant in tenants:
        tenant.wait_gone()


@_at_each(JOINING, SERVED)
def test_a_network_that_is_joined_is_whole_whenever_the_daemon_was_killed(
    outer_cluster: Cluster, make_tenants: Callable[..., list[Tenant]], shares: list[list[str]]
) -> None:
    def join(tenant: Tenant, points: list[str]) -> None:
        tenant.host.kill()
        tenant.launch()
        tenant.die_at(points)
        tenant.wait_created()

    tenants = make_tenants()[: len(shares)]
    _each(join, tenants, shares)
    outer_cluster.agree(timeout_s=60)
    _end(tenants)


@_at_each(LEAVING, ENDED)
def test_of_a_network_that_is_left_nothing_stays_whenever_the_daemon_was_killed(
    outer_cluster: Cluster, make_tenants: Callable[..., list[Tenant]], shares: list[list[str]]
) -> None:
    def leave(tenant: Tenant, points: list[str]) -> None:
        tenant.host.kill()
        tenant.destroy()
        tenant.die_at(points)
        tenant.wait_gone()

    tenants = make_tenants()[: len(shares)]
    for tenant in tenants:
        tenant.launch()
    for tenant in tenants:
        tenant.wait_created()
    outer_cluster.agree()  # the metadata service is handed its sockets a little later
    _each(leave, tenants, shares)
    outer_cluster.agree(timeout_s=60)


@pytest.mark.parametrize("what", HARMED)
def test_what_was_harmed_is_put_right_whenever_the_daemon_was_killed(
    outer_cluster: Cluster, make_tenants: Callable[..., list[Tenant]], what: str
) -> None:
    def mend(tenant: Tenant, points: list[str]) -> None:
        tenant.host.kill()
        tenant.harm(list(HARMED[what].values()))
        tenant.die_at(points)

    tenants = make_tenants(is_one=True)
    for tenant in tenants:
        tenant.launch()
    for tenant in tenants:
        tenant.wait_created()
    outer_cluster.agree()
    points = _at(list(HARMED[what]))
    half = len(points) // 4 * 2
    _each(mend, tenants, [points[:half], points[half:]])
    outer_cluster.agree(timeout_s=60)
    _end(tenants)
