"""Reads what goes with interfaces, a network in memory at a time, and returns what does not fit together.

Instances first, then ports and locks, then reports: what is on its way is then seen too little, not too much.
All that lies below networks is read at one revision. Threads: any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

import msgspec

from ecompute.cluster import keys
from ecompute.cluster.documents import (
    AddressLock,
    Floating,
    MacLock,
    Network,
    NetworkHost,
    Node,
    Port,
    Seen,
    Unreadable,
    decode,
)
from ecompute.cluster.store import Store, Versioned
from ecompute.cluster.upkeep.misfits import (
    Holder,
    Known,
    Misfit,
    Wires,
    is_plain,
    misfits,
    port_key,
    strays,
    unattached,
)

T = TypeVar("T")


def take_misfits(store: Store, holders: Mapping[str, Holder]) -> frozenset[Misfit]:
    """Return what does not fit together now.

    Args:
        holders: all instances by uuid, read before.

    Raises:
        StoreUnavailable: etcd does not answer.
    """
    floating = store.list(keys.FLOATING, Floating)
    attached = {keys.last(item.key): item for item in floating.items}
    underlays = {item.value.provider: item.value.underlay for item in store.list(keys.NODES, Node).items}
    ports: dict[str, Versioned[Port] | None] = {
        key: None for item in floating.items if (key := port_key(item.value)) is not None
    }
    found: set[Misfit] = set()
    for wires in _networks(store, frozenset(key for key, _ in floating.unreadable)):
        reports = {
            keys.seen(holders[port.value.instance_uuid].provider, port.value.instance_uuid)
            for port in strays(wires, holders)
        }
        seen = {item.value.uuid: item for item in store.get_many(sorted(reports), Seen).items}
        found.update(misfits(wires, Known(holders, attached, seen, underlays)))
        ports.update({port.key: port for port in wires.ports if port.key in ports})
        for key in wires.unreadable & ports.keys():
            del ports[key]
    found.update(unattached(Known(holders, attached), ports))
    return frozenset(found)


@dataclass
class _Below:
    """What lies below one network."""

    unreadable: set[str]
    ports: list[Versioned[Port]] = field(default_factory=list)
    addresses: list[Versioned[AddressLock]] = field(default_factory=list)
    macs: list[Versioned[MacLock]] = field(default_factory=list)
    members: list[Versioned[NetworkHost]] = field(default_factory=list)

    def add(self, item: Versioned[msgspec.Raw]) -> None:
        match keys.parts(item.key)[2]:
            case "ports":
                self._add(item, Port, self.ports, _parts_of_port)
            case "addresses":
                self._add(item, AddressLock, self.addresses, _parts_of_lock)
            case "macs":
                self._add(item, MacLock, self.macs, _parts_of_lock)
            case "hosts":
                self._add(item, NetworkHost, self.members, lambda host: (host.provider,))

    def _add(
        self,
        item: Versioned[msgspec.Raw],
        kind: type[T],
        to: list[Versioned[T]],
        parts_of: Callable[[T], Iterable[str]],
    ) -> None:
        """Take what can be worked with; of all else, note that it is there."""
        read = _read(item, kind)
        if read is not None and is_plain(*parts_of(read.value)):
            to.append(read)
        else:
            self.unreadable.add(item.key)


def _networks(store: Store, unreadable: frozenset[str]) -> Iterator[Wires]:
    """Yield one network after the other; those that cannot be read are left out.

    Args:
        unreadable: other keys that nothing is to be concluded from.
    """
    # In the order of their keys, a network comes right before all that lies below it.
    items = (item for item in store.each(keys.NETWORKS, msgspec.Raw) if len(keys.parts(item.key)) in (2, 4))
    for _, group in groupby(items, lambda item: keys.parts(item.key)[1]):
        own, *rest = group
        network = _read(own, Network) if len(keys.parts(own.key)) == 2 else None
        if network is None:
            continue
        below = _Below(set(unreadable))
        for item in rest:
            below.add(item)
        yield Wires(network, below.ports, below.addresses, below.macs, below.members, frozenset(below.unreadable))


def _read(item: Versioned[msgspec.Raw], kind: type[T]) -> Versioned[T] | None:
    try:
        value = decode(bytes(item.value), kind, item.key)
    except Unreadable:
        return None
    return Versioned(item.key, value, item.mod_revision, item.create_revision, item.lease)


def _parts_of_lock(lock: AddressLock | MacLock) -> Iterable[str]:
    return lock.interface_uuid, lock.instance_uuid


def _parts_of_port(port: Port) -> Iterable[str]:
    handed = (port.floating,) if port.floating is not None else ()
    own = (address.split("/")[0] for address in port.addresses)
    return (port.interface_uuid, port.instance_uuid, port.provider, port.mac, *own, *handed, *port.routed)
