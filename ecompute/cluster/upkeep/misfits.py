"""What does not fit together of interfaces, ports, locks, members and floating addresses, and its repair. Pure.

All of them are written together, in transactions that compare each other: what does not fit was written by
hand, or lost. Each misfit is the transaction that puts it right, with what was read compared, so that two looks
agree on it only if nobody has written any of it in between.

The instance says which interfaces there are; the port is put right by it, and by what is locked for it or
attached to it, and all the rest by the port. What an instance that is being destroyed has is left to its end.
What belongs to an instance that cannot be found is left to `decide.leaks`, which asks its host first. A port
goes only when the host has reported that the guest is without the interface: see `decide.finish`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from ecompute.cluster import keys
from ecompute.cluster.addressing import label
from ecompute.cluster.documents import (
    AddressLock,
    Floating,
    Instance,
    Interface,
    MacLock,
    Network,
    NetworkHost,
    Port,
    Seen,
    State,
)
from ecompute.cluster.floating import freed, is_attached, is_said, is_target, without
from ecompute.cluster.store import Compare, Delete, Op, Put, Versioned, absent, unchanged


class Kind(StrEnum):
    """Stable, for programs."""

    FLOATING = "floating-without-port"
    STRANGE = "port-with-strange-address"
    PORT = "port-without-interface"
    INTERFACE = "interface-without-port"
    LOCK = "lock-without-port"
    UNLOCKED = "port-without-lock"
    TAKEN = "port-with-foreign-lock"
    UNMEMBERED = "port-without-member"


@dataclass(frozen=True)
class Misfit:
    """One thing that does not fit, and the transaction that puts it right; without operations none does."""

    kind: Kind
    subject: str
    """A key, or an interface's uuid."""
    compares: tuple[Compare, ...] = ()
    operations: tuple[Op, ...] = ()
    instance_uuid: str | None = None
    """Whose it is, where that is compared as well: the repair is an event of it."""


@dataclass(frozen=True)
class Holder:
    """What of an instance matters here; a whole one takes more room."""

    key: str
    mod_revision: int
    name: str
    provider: str
    epoch: int
    generation: int
    is_wanted: bool
    """Neither being destroyed, nor failed."""
    is_ending: bool
    interfaces: tuple[Interface, ...]
    """Those that it is to have."""
    with_ports: frozenset[tuple[str, str]]
    """Network and interface of these, and of those that are leaving."""

    @classmethod
    def of(cls, item: Versioned[Instance]) -> Holder:
        value = item.value
        return cls(
            key=item.key,
            mod_revision=item.mod_revision,
            name=value.name,
            provider=value.provider,
            epoch=value.epoch,
            generation=value.generation,
            is_wanted=value.state is State.INITIAL,
            is_ending=value.state is State.DELETING,
            interfaces=value.spec.interfaces,
            with_ports=frozenset((interface.network_uuid, interface.uuid) for interface in value.with_ports),
        )

    def unchanged(self) -> Compare:
        return unchanged(Versioned(self.key, None, self.mod_revision, self.mod_revision, 0))

    def has(self, network_uuid: str, interface_uuid: str) -> bool:
        return (network_uuid, interface_uuid) in self.with_ports


@dataclass(frozen=True)
class Wires:
    """One network as it was read: after the instances, and before what hosts report."""

    network: Versioned[Network]
    ports: Sequence[Versioned[Port]] = ()
    addresses: Sequence[Versioned[AddressLock]] = ()
    macs: Sequence[Versioned[MacLock]] = ()
    members: Sequence[Versioned[NetworkHost]] = ()
    unreadable: frozenset[str] = frozenset()
    """Keys that nothing is concluded from."""

    @property
    def uuid(self) -> str:
        return keys.last(self.network.key)


@dataclass(frozen=True)
class Known:
    """What was read of everything else.

    Args:
        holders: all instances by uuid.
        floating: all floating addresses by address.
        seen: the reports about those instances with a port too many, by uuid.
        underlays: by provider.
    """

    holders: Mapping[str, Holder] = field(default_factory=dict)
    floating: Mapping[str, Versioned[Floating]] = field(default_factory=dict)
    seen: Mapping[str, Versioned[Seen]] = field(default_factory=dict)
    underlays: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def wanted(self) -> Mapping[str, Sequence[tuple[str, Interface]]]:
        """The interfaces that there are to be, with their instances, by network."""
        found: dict[str, list[tuple[str, Interface]]] = {}
        for uuid, holder in self.holders.items():
            for interface in holder.interfaces if holder.is_wanted else ():
                if is_plain(interface.uuid, interface.network_uuid):
                    found.setdefault(interface.network_uuid, []).append((uuid, interface))
        return found


def is_plain(*parts: str) -> bool:
    """Whether each of ``parts`` can be a part of a key: what was put there by hand may hold anything."""
    return all(part and "/" not in part and "\x00" not in part for part in parts)


def port_key(floating: Floating) -> str | None:
    """Return the key of the port that it is attached to; None: of none."""
    network, interface = floating.network_uuid or "", floating.interface_uuid or ""
    return keys.port(network, interface) if is_plain(network, interface) else None


def strays(wires: Wires, holders: Mapping[str, Holder]) -> list[Versioned[Port]]:
    """Return the ports of interfaces that their instances, which are there, do not have."""
    found = []
    for port in wires.ports:
        holder = holders.get(port.value.instance_uuid)
        if holder is not None and not holder.is_ending and not holder.has(wires.uuid, port.value.interface_uuid):
            found.append(port)
    return found


def misfits(wires: Wires, known: Known) -> Iterator[Misfit]:
    """Return what does not fit of one network and what is attached to its interfaces."""
    yield from _ports(wires, known)
    yield from _missing_ports(wires, known)
    yield from _locks(wires, known)
    yield from _members(wires, known)


def unattached(known: Known, ports: Mapping[str, Versioned[Port] | None]) -> Iterator[Misfit]:
    """Return the floating addresses that say that they are attached to what does not say so.

    Args:
        ports: all that floating addresses name, by key; None: there is none.
    """
    for item in known.floating.values():
        value = item.value
        key = port_key(value)
        if key is None and is_attached(value):
            yield Misfit(Kind.FLOATING, item.key, (unchanged(item),), (Put(item.key, freed(value)),))
        if key is None or key not in ports:
            continue
        port = ports[key]
        if port is not None and is_said(port.value, value):
            continue
        holder = known.holders.get(value.instance_uuid or "")
        if port is None and holder is not None and holder.has(value.network_uuid or "", value.interface_uuid or ""):
            continue  # the port is to be put there again, with this
        compares = (unchanged(item), absent(key) if port is None else unchanged(port))
        yield Misfit(Kind.FLOATING, item.key, compares, (Put(item.key, freed(value)),))


def _ports(wires: Wires, known: Known) -> Iterator[Misfit]:
    """Return ports without an interface, and those that name addresses which are not theirs."""
    gone = {port.key for port in strays(wires, known.holders)}
    locks = {keys.last(item.key): item for item in wires.addresses}
    for port in wires.ports:
        value = port.value
        holder = known.holders.get(value.instance_uuid)
        if holder is None or holder.is_ending:
            continue
        if port.key in gone:
            seen = known.seen.get(value.instance_uuid)
            if seen is not None and _is_without(holder, seen.value):
                without_it = (unchanged(port), holder.unchanged(), unchanged(seen))
                yield Misfit(Kind.PORT, port.key, without_it, (Delete(port.key),), value.instance_uuid)
            continue
        for ip in dict.fromkeys(ip for ip in (value.floating, *value.routed) if ip is not None):
            item, lock = known.floating.get(ip), locks.get(ip)
            is_theirs = item is not None and is_said(value, item.value)
            is_own = lock is not None and _is_of(lock.value, value) and value.floating != ip
            if is_theirs or is_own or keys.floating(ip) in wires.unreadable or _address(wires, ip) in wires.unreadable:
                continue
            read = (_as_read(keys.floating(ip), item), _as_read(_address(wires, ip), lock))
            struck = Put(port.key, without(value, ip))
            compares = (unchanged(port), holder.unchanged(), *read)
            yield Misfit(Kind.STRANGE, f"{port.key} {ip}", compares, (struck,), value.instance_uuid)


def _missing_ports(wires: Wires, known: Known) -> Iterator[Misfit]:
    there = {port.value.interface_uuid for port in wires.ports}
    for uuid, interface in known.wanted.get(wires.uuid, ()):
        key = keys.port(interface.network_uuid, interface.uuid)
        if interface.uuid in there or key in wires.unreadable:
            continue
        holder = known.holders[uuid]
        attached = [item for item in known.floating.values() if is_target(item.value, interface.uuid, uuid)]
        own = {address.split("/")[0] for address in interface.addresses}
        locks = [
            item
            for item in wires.addresses
            if item.value.interface_uuid == interface.uuid
            and not item.value.is_resting
            and keys.last(item.key) not in own
        ]
        port = Port(
            interface_uuid=interface.uuid,
            instance_uuid=uuid,
            provider=holder.provider,
            epoch=holder.epoch,
            mac=interface.mac,
            addresses=interface.addresses,
            name=label(holder.name),
            floating=next((item.value.ip for item in attached if not item.value.is_routed), None),
            routed=(
                *(keys.last(item.key) for item in locks),
                *(item.value.ip for item in attached if item.value.is_routed),
            ),
        )
        read: list[Compare] = [unchanged(item) for item in attached] + [unchanged(item) for item in locks]
        compares = (holder.unchanged(), unchanged(wires.network), absent(key), *read)
        yield Misfit(Kind.INTERFACE, interface.uuid, compares, (Put(key, port),), uuid)


def _locks(wires: Wires, known: Known) -> Iterator[Misfit]:
    """Return locks that no port has, and what ports have that is not locked for them."""
    ports = {port.value.interface_uuid: port for port in wires.ports}
    held: list[Versioned[AddressLock] | Versioned[MacLock]] = [*wires.addresses, *wires.macs]
    for lock in held:
        if isinstance(lock.value, AddressLock) and lock.value.is_resting:
            continue
        holder = known.holders.get(lock.value.instance_uuid)
        port = ports.get(lock.value.interface_uuid)
        if holder is None or holder.is_ending or (port is not None and keys.last(lock.key) in _held_by(port.value)):
            continue
        key = keys.port(wires.uuid, lock.value.interface_uuid)
        if (port is None and holder.has(wires.uuid, lock.value.interface_uuid)) or key in wires.unreadable:
            continue  # the port is to be put there again
        compares = (unchanged(lock), holder.unchanged(), _as_read(key, port))
        yield Misfit(Kind.LOCK, lock.key, compares, (Delete(lock.key),), lock.value.instance_uuid)
    locked = {lock.key: lock for lock in held}
    for port in wires.ports:
        value = port.value
        holder = known.holders.get(value.instance_uuid)
        if holder is None or not holder.is_wanted or not holder.has(wires.uuid, value.interface_uuid):
            continue
        interface, instance = value.interface_uuid, value.instance_uuid
        address_lock = AddressLock(interface_uuid=interface, instance_uuid=instance)
        wanted: dict[str, AddressLock | MacLock] = {
            _address(wires, address.split("/")[0]): address_lock for address in value.addresses
        }
        wanted[keys.mac(wires.uuid, value.mac)] = MacLock(interface_uuid=interface, instance_uuid=instance)
        for key, document in wanted.items():
            found = locked.get(key)
            if key in wires.unreadable or (found is not None and _is_of(found.value, value)):
                continue
            is_free = found is None or (isinstance(found.value, AddressLock) and found.value.is_resting)
            if is_free:
                compares = (unchanged(port), holder.unchanged(), _as_read(key, found))
                yield Misfit(Kind.UNLOCKED, key, compares, (Put(key, document),), instance)
            else:
                yield Misfit(Kind.TAKEN, key, (unchanged(port), _as_read(key, found)))


def _members(wires: Wires, known: Known) -> Iterator[Misfit]:
    """Return hosts with a port that are no members; a member without a port is found by `owners`."""
    uuid = wires.uuid
    if any("/ports/" in key or "/hosts/" in key for key in wires.unreadable):
        return
    of = {port.value.provider for port in wires.ports}
    there = {member.value.provider for member in wires.members}
    for provider in sorted(of - there):
        underlay = known.underlays.get(provider)
        if underlay is None or not keys.is_uuid(provider):
            continue
        key = keys.network_host(uuid, provider)
        some = min((port for port in wires.ports if port.value.provider == provider), key=lambda port: port.key)
        put = Put(key, NetworkHost(provider=provider, underlay=underlay))
        yield Misfit(Kind.UNMEMBERED, key, (unchanged(some), absent(key)), (put,))


def _is_without(holder: Holder, seen: Seen) -> bool:
    """Whether the host has reported that the guest has what its instance says, and no more."""
    is_so = seen.epoch == holder.epoch and seen.generation >= holder.generation
    return is_so and seen.state is State.CREATED and seen.error is None


def _is_of(lock: AddressLock | MacLock, port: Port) -> bool:
    if isinstance(lock, AddressLock) and lock.is_resting:
        return False
    return (lock.interface_uuid, lock.instance_uuid) == (port.interface_uuid, port.instance_uuid)


def _held_by(port: Port) -> Iterable[str]:
    return (*(address.split("/")[0] for address in port.addresses), *port.routed, port.mac)


def _address(wires: Wires, ip: str) -> str:
    return keys.address(wires.uuid, ip)


Read = Versioned[AddressLock] | Versioned[MacLock] | Versioned[Floating] | Versioned[Port]


def _as_read(key: str, item: Read | None) -> Compare:
    return absent(key) if item is None else unchanged(item)
