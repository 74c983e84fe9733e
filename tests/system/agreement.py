"""Whether placement, etcd, libvirt, disks, networks and the hosts' memories say the same of every instance.

`differences` looks at everything once and returns each difference as a sentence; `agree` looks until there is
none, or time is up and the test fails with all of them. Nothing is taken from the product's own way of looking
at a host: domains come from libvirt's XML, devices and entries from ``ip`` and ``bridge``, processes from /proc.

What has to hold:

- etcd has the keys that follow from its instances, networks and hosts, those and no others (`_keys`), and the
  documents under them say the same;
- placement has an allocation for each instance, of exactly its resources, on its provider, and no other;
- each instance has one running domain, one QEMU, its three files and its tap on its host, and none elsewhere;
- each host has the devices, forwarding entries and filter that its guests' networks need, and no others;
- each host has the gateways of those networks: namespaces, dnsmasqs, translations, routes, rules, and no others;
- each host remembers its guests as running, and nothing else but what it has removed.

An instance in ``error`` (its build failed) holds addresses and keys, but no claim, and nothing is on its host.
One that is ``deleting`` agrees only while its host's daemon does not run. Where a daemon does not run, its
forwarding entries and lease are not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import on_gateway
import on_host
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import (
    AddressLock,
    Alive,
    Assignment,
    Booted,
    Floating,
    Instance,
    MacLock,
    Network,
    NetworkHost,
    Node,
    Port,
    Power,
    Role,
    Seen,
    State,
    Vni,
)
from ecompute.cluster.events import HOST, LEAD, rings

if TYPE_CHECKING:
    from cloud import Cluster, Host


def agree(cluster: Cluster, *, timeout_s: float, **exceptions: Any) -> None:
    deadline = time.monotonic() + timeout_s
    # Until time is up the first difference is enough: what costs most to look at comes last.
    while next(differences(cluster, **exceptions), None) is not None:
        if time.monotonic() > deadline:
            found = list(differences(cluster, **exceptions))
            if not found:
                return
            lines = "\n".join(f"  - {difference}" for difference in found)
            raise AssertionError(f"no agreement after {timeout_s:g} s:\n{lines}")
        time.sleep(0.2)


@dataclass
class Picture:
    """What etcd says, read once."""

    keys: set[str]
    instances: dict[str, Instance]
    assignments: dict[tuple[str, str], Assignment]
    seen: dict[tuple[str, str], Seen]
    booted: dict[str, Booted]
    nodes: dict[str, Node]
    alive: dict[str, Alive]
    networks: dict[str, Network]
    ports: dict[tuple[str, str], Port]
    locks: dict[tuple[str, str], AddressLock]
    macs: dict[tuple[str, str], MacLock]
    members: dict[tuple[str, str], NetworkHost]
    vnis: dict[str, Vni]
    floating: dict[str, Floating]
    unreadable: list[str] = field(default_factory=list)

    def handed(self, interface_uuid: str) -> tuple[str | None, set[str]]:
        """Return the floating address of an interface, and those that are routed to it beside its own."""
        attached = [one for one in self.floating.values() if one.interface_uuid == interface_uuid]
        translated = next((one.ip for one in attached if not one.is_routed), None)
        own = {
            address.split("/")[0]
            for instance in self.instances.values()
            for interface in instance.with_ports
            for address in interface.addresses
            if interface.uuid == interface_uuid
        }
        locked = {
            ip
            for (_, ip), lock in self.locks.items()
            if lock.interface_uuid == interface_uuid and not lock.is_resting and ip not in own
        }
        return translated, locked | {one.ip for one in attached if one.is_routed}

    def running(self) -> dict[str, Instance]:
        return {uuid: i for uuid, i in self.instances.items() if i.state is State.INITIAL}


def differences(
    cluster: Cluster,
    *,
    off: Collection[str] = (),
    crashed: Collection[str] = (),
    lost: Collection[str] = (),
    foreign: Collection[str] = (),
) -> Iterator[str]:
    """Yield what does not agree.

    Args:
        off: uuids of guests that are to be defined and off (somebody shut them down).
        crashed: uuids of guests that are to be defined and off because their QEMU ended.
        lost: uuids of instances that are to be reported as lost, with their claim kept.
        foreign: uuids of domains and consumers, and names of files, that are there and not ours.
    """
    etcd = _read(cluster)
    hosts = {host.provider: host for host in cluster.hosts if (host.state / "provider-uuid").exists()}
    yield from etcd.unreadable
    yield from _keys(etcd, hosts)
    down = dict.fromkeys(off, Power.OFF) | dict.fromkeys(crashed, Power.CRASHED)
    yield from _documents(etcd, hosts, down, set(lost))
    yield from _placement(cluster, etcd, hosts, set(foreign))
    for provider, host in hosts.items():
        mine = {uuid: i for uuid, i in etcd.running().items() if i.provider == provider and uuid not in lost}
        leaving = {uuid for uuid, i in etcd.instances.items() if i.provider == provider and i.state is State.DELETING}
        ignored = set(lost) | (set() if host.is_running else leaving)
        on = {uuid: instance for uuid, instance in mine.items() if uuid not in down}
        for difference in (
            *on_host.domains(host, mine, set(on), ignored | set(foreign)),
            *on_host.files(host, mine, ignored | set(foreign)),
            *on_host.devices(host, etcd, provider, mine, set(on), ignored),
            *on_host.memory(host, mine, ignored),
            *on_gateway.gateways(host, etcd, provider, mine, ignored),
        ):
            yield f"{host.name}: {difference}"


# --- etcd ----------------------------------------------------------------------------------------


def _read(cluster: Cluster) -> Picture:
    store = cluster.store
    everything = set(store.keys("/")[0])
    unreadable: list[str] = []

    def listed(prefix: str, kind: Any, *, depth: int, below: str | None = None) -> dict[Any, Any]:
        found = {}
        listing = store.list(prefix, kind) if below is None else None
        if listing is not None:
            unreadable.extend(f"{key} cannot be read: {reason}" for key, reason in listing.unreadable)
            items = listing.items
        else:
            wanted = [key for key in everything if len(keys.parts(key)) == depth and f"/{below}/" in key]
            items = store.get_many([key for key in wanted if key.startswith(prefix)], kind).items
        for item in items:
            parts = keys.parts(item.key)
            found[parts[-1] if depth == 2 else (parts[1], parts[-1])] = item.value
        return found

    networks = [key for key in everything if key.startswith(keys.NETWORKS) and len(keys.parts(key)) == 2]
    return Picture(
        keys=everything,
        instances=listed(keys.INSTANCES, Instance, depth=2),
        assignments=listed(keys.HOSTS, Assignment, depth=3),
        seen=listed(keys.SEEN, Seen, depth=3),
        booted=listed(keys.BOOTED, Booted, depth=2),
        nodes=listed(keys.NODES, Node, depth=2),
        alive=listed(keys.ALIVE, Alive, depth=2),
        networks={item.value.uuid: item.value for item in store.get_many(networks, Network).items},
        ports=listed(keys.NETWORKS, Port, depth=4, below="ports"),
        locks=listed(keys.NETWORKS, AddressLock, depth=4, below="addresses"),
        macs=listed(keys.NETWORKS, MacLock, depth=4, below="macs"),
        members=listed(keys.NETWORKS, NetworkHost, depth=4, below="hosts"),
        vnis=listed(keys.VNIS, Vni, depth=2),
        floating=listed(keys.FLOATING, Floating, depth=2),
        unreadable=unreadable,
    )


def _keys(etcd: Picture, hosts: dict[str, Host]) -> Iterator[str]:
    wanted = {keys.INCARNATION}
    optional = {keys.SCHEMA, keys.lead("upkeep")}
    optional |= {key for key in etcd.keys if key.startswith(f"{keys.EVENTS}{LEAD}/{HOST}/")}  # with the host
    for uuid, instance in etcd.instances.items():
        provider, spec = instance.provider, instance.spec
        wanted |= {
            keys.instance(uuid),
            keys.assignment(provider, uuid),
            keys.seen(provider, uuid),
            keys.booted(uuid),
            keys.name(instance.namespace, "instance", instance.name, uuid),
        }
        if spec.has_user_data:
            wanted.add(keys.secrets(provider, uuid))
        for interface in spec.interfaces:
            network = interface.network_uuid
            wanted |= {keys.network(network), keys.port(network, interface.uuid), keys.network_host(network, provider)}
            wanted |= {keys.address(network, address.split("/")[0]) for address in interface.addresses}
            wanted.add(keys.mac(network, interface.mac))
            port = etcd.ports.get((network, interface.uuid))
            routed = () if port is None else port.routed
            wanted |= {keys.address(network, ip) for ip in routed if ip not in etcd.floating}
        if instance.gang is not None:
            wanted.add(keys.gang(instance.gang))
        if instance.group is not None:
            wanted |= {keys.group(instance.group), keys.member(instance.group, uuid)}
            # The group's name, which its members do not know.
            optional |= {key for key in etcd.keys if key.endswith(f"/{instance.group}") and "/group/" in key}
        events = {key for key in etcd.keys if key.startswith(tuple(rings("instance", uuid, provider)))}
        if not events:
            yield f"instance {uuid} has no event"
        optional |= events
    for ip, floating in etcd.floating.items():
        wanted |= {keys.floating(ip), keys.name(floating.namespace, "floating", ip, ip), keys.pool(floating.pool)}
    optional |= {key for key in etcd.keys if key.startswith(keys.POOLS)}
    for network in etcd.networks.values():
        wanted |= {keys.network(network.uuid), keys.vni(network.vni)}
        wanted.add(keys.name(network.namespace, "network", network.name, network.uuid))
        if network.physical is not None:
            segment = network.physical if network.vlan is None else f"{network.physical}.{network.vlan}"
            wanted.add(keys.name("system", "segment", segment, network.uuid))
    for provider, host in hosts.items():
        wanted.add(keys.node(provider))
        (wanted if host.is_running else optional).add(keys.alive(provider))
        optional.add(keys.admin(provider))
        optional |= {key for key in etcd.keys if key.startswith(keys.copies(provider))}
        optional |= {key for key in etcd.keys if key.startswith(keys.event_ring(HOST, provider, provider))}
    # What was given up goes when it has rested.
    optional |= {keys.address(network, ip) for (network, ip), lock in etcd.locks.items() if lock.is_resting}
    # A gang's record goes some minutes after its last member.
    optional |= {key for key in etcd.keys if key.startswith(keys.GANGS)}
    for key in sorted(wanted - etcd.keys):
        yield f"etcd lacks {key}"
    for key in sorted(etcd.keys - wanted - optional):
        yield f"etcd has {key}, which nothing needs"


def _documents(etcd: Picture, hosts: dict[str, Host], down: dict[str, Power], lost: set[str]) -> Iterator[str]:
    for uuid, instance in etcd.instances.items():
        host = hosts.get(instance.provider)
        if host is None:
            yield f"instance {uuid} is on {instance.provider}, which is no host"
            continue
        yield from (f"instance {uuid}: {text}" for text in _of_instance(etcd, instance, host, down, lost))
    for (network_uuid, interface_uuid), port in etcd.ports.items():
        for address in port.addresses:
            lock = etcd.locks.get((network_uuid, address.split("/")[0]))
            if lock is None or (lock.interface_uuid, lock.instance_uuid) != (interface_uuid, port.instance_uuid):
                yield f"port {interface_uuid} has {address}, whose lock is {lock}"
        mac = etcd.macs.get((network_uuid, port.mac))
        if mac is None or (mac.interface_uuid, mac.instance_uuid) != (interface_uuid, port.instance_uuid):
            yield f"port {interface_uuid} has {port.mac}, whose lock is {mac}"
    for ip, floating in etcd.floating.items():
        port = etcd.ports.get((floating.network_uuid or "", floating.interface_uuid or ""))
        if floating.interface_uuid is not None and (port is None or port.instance_uuid != floating.instance_uuid):
            yield f"{ip} is attached to interface {floating.interface_uuid}, whose port is {port}"
    for network in etcd.networks.values():
        if (vni := etcd.vnis.get(str(network.vni))) is None or vni.network_uuid != network.uuid:
            yield f"network {network.uuid} has VNI {network.vni}, which is of {vni}"
    for (_, provider), member in etcd.members.items():
        node = etcd.nodes.get(provider)
        if node is None or (member.provider, member.underlay) != (provider, node.underlay):
            yield f"member {member} does not agree with {node}"
    for provider, host in hosts.items():
        if host.is_running and (node := etcd.nodes.get(provider)) is not None and node.hold is not None:
            yield f"{host.name} is on hold: {node.hold}"


def _of_instance(
    etcd: Picture, instance: Instance, host: Host, down: dict[str, Power], lost: set[str]
) -> Iterator[str]:
    uuid, provider = instance.uuid, instance.provider
    assignment, seen, booted = (
        etcd.assignments.get((provider, uuid)),
        etcd.seen.get((provider, uuid)),
        etcd.booted.get(uuid),
    )
    if assignment is None or seen is None or booted is None:
        return  # said by _keys
    for name in ("namespace", "name", "generation", "epoch", "spec"):
        if getattr(instance, name) != getattr(assignment, name):
            yield f"its {name} is {getattr(instance, name)!r} and {getattr(assignment, name)!r} in its assignment"
    role = Role.RUN if instance.state is State.INITIAL else Role.ABSENT
    if assignment.role is not role:
        yield f"its state is {instance.state} and its role {assignment.role}"
    if instance.state is State.DELETING:
        if host.is_running:
            yield f"it is still deleting; its host reports {seen.state}"
        return
    if (seen.epoch, seen.generation) != (instance.epoch, instance.generation):
        yield f"its host reports epoch {seen.epoch} and generation {seen.generation}"
    if not seen.is_assigned:
        yield "its host says that nobody asked for it"
    if (booted.provider, booted.state, booted.power, booted.addresses, booted.error) != (
        provider,
        seen.state,
        seen.power,
        seen.addresses,
        seen.error,
    ):
        yield f"/booted says {booted} and /seen {seen}"
    if uuid in lost:
        if seen.state is not State.ERROR or seen.is_gone:
            yield f"it is lost and its host reports {seen.state}, gone {seen.is_gone}"
        return
    if instance.state is State.ERROR:
        if not seen.is_gone or not instance.error:
            yield f"it is in error {instance.error!r} and its host reports {seen.state}, gone {seen.is_gone}"
        return
    power = down.get(uuid, Power.ON)
    addresses = tuple(address for interface in instance.spec.interfaces for address in interface.addresses)
    if (seen.state, seen.power, seen.error, seen.is_gone) != (State.CREATED, power, None, False):
        yield f"its host reports {seen.state}, power {seen.power}, error {seen.error!r}, gone {seen.is_gone}"
    if instance.leaving:
        yield f"interfaces are still leaving it: {instance.leaving}"
    if seen.addresses != addresses:
        yield f"its addresses are {addresses} and its host reports {seen.addresses}"
    for interface in instance.spec.interfaces:
        port = etcd.ports.get((interface.network_uuid, interface.uuid))
        floating, routed = etcd.handed(interface.uuid)
        wanted = Port(
            interface_uuid=interface.uuid,
            instance_uuid=uuid,
            provider=provider,
            epoch=instance.epoch,
            mac=interface.mac,
            addresses=interface.addresses,
            name=instance.name.lower(),
            floating=floating,
            routed=tuple(sorted(routed)),
        )
        if port is None or structs.replace(port, routed=tuple(sorted(port.routed))) != wanted:
            yield f"its interface is {wanted} and its port {port}"
        network = etcd.networks.get(interface.network_uuid)
        if network is not None and (network.vni, network.mtu) != (interface.vni, interface.mtu):
            yield f"its interface is {interface} and its network {network}"


# --- placement -----------------------------------------------------------------------------------


def _placement(cluster: Cluster, etcd: Picture, hosts: dict[str, Host], foreign: set[str]) -> Iterator[str]:
    claims = cluster.claims
    wanted = {
        uuid: {
            instance.provider: {
                "VCPU": instance.spec.resources.vcpus,
                "MEMORY_MB": instance.spec.resources.memory_mb,
                "DISK_GB": instance.spec.resources.disk_gb,
            }
        }
        if instance.group is None
        else dict(instance.claim)  # with the row of its group
        for uuid, instance in etcd.instances.items()
        if instance.state is not State.ERROR
    }
    consumers = set()
    for provider in claims.providers():
        if any(provider.name == f"{host}/groups" for host in hosts):
            continue
        if provider.uuid not in hosts:
            yield f"placement has the provider {provider.name} ({provider.uuid}), which is no host"
        elif provider.name != hosts[provider.uuid].name:
            yield f"placement calls {hosts[provider.uuid].name} {provider.name}"
        consumers |= set(claims.provider_allocations(provider.uuid))
    for provider_uuid, host in hosts.items():
        vcpus = claims.inventories(provider_uuid).inventories.get("VCPU")
        is_open = vcpus is not None and vcpus.reserved < vcpus.total
        if (host.is_running and not is_open) or (host.is_stopped_cleanly and is_open):
            yield f"{host.name} has {vcpus} in placement; its daemon {'runs' if host.is_running else 'has stopped'}"
    for uuid in sorted(consumers - set(wanted) - foreign):
        yield f"placement has an allocation of {uuid}, which is no instance that holds one"
    for uuid, allocations in wanted.items():
        found = claims.allocations(uuid)
        if found.allocations != allocations:
            yield f"instance {uuid} claims {found.allocations} and has {allocations}"
        elif (found.project_id, found.consumer_type) != (etcd.instances[uuid].namespace, "ECOMPUTE_INSTANCE"):
            yield f"the claim of {uuid} is of project {found.project_id} and type {found.consumer_type}"
