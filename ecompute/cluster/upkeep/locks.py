"""What an interface has locked, its addresses and its MAC, and how it is given up.

Reads, and adds to what a transaction compares and does; the caller commits it, together with whatever
takes the interface away. A lock that is not that interface's any more is left alone.

Safe from several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Interface, MacLock
from ecompute.cluster.store import Compare, Delete, Op, Store, Versioned, unchanged


class Locks:
    def __init__(self, store: Store) -> None:
        self._store = store

    def give_up(
        self,
        interfaces: Sequence[Interface],
        instance_uuid: str,
        compares: list[Compare],
        operations: list[Op],
        *,
        routed: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Give up all that ``interfaces`` of an instance have locked.

        Args:
            routed: networks and addresses that were handed to the interfaces besides; those that are no
                address of the network have no lock there.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        ours = {interface.uuid for interface in interfaces}
        addresses = [
            keys.address(interface.network_uuid, address.split("/")[0])
            for interface in interfaces
            for address in interface.addresses
        ]
        addresses += [keys.address(network, ip) for network, ip in routed]
        macs = [keys.mac(interface.network_uuid, interface.mac) for interface in interfaces]
        found: list[Versioned[AddressLock] | Versioned[MacLock]] = [
            *self._store.get_many(addresses, AddressLock).items,
            *self._store.get_many(macs, MacLock).items,
        ]
        for lock in found:
            if lock.value.instance_uuid == instance_uuid and lock.value.interface_uuid in ours:
                compares.append(unchanged(lock))
                operations.append(Delete(lock.key))
