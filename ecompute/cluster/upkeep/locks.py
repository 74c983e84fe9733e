"""What an interface has locked, its addresses and its MAC, and how it is given up.

An address rests for some minutes before it is anybody's again: whoever spoke with the guest that had it
may not have noticed yet. Its lock stays under a lease that nobody keeps, so that etcd ends it. A
lease is shared by all that is given up within a minute, and the last of that rest a minute less. Where
etcd gives no lease, addresses do not rest. A MAC is free at once.

Reads, and adds to what a transaction compares and does; the caller commits it, together with whatever
takes the interface away. A lock that is not that interface's any more is left alone.

Safe from several threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Interface, MacLock
from ecompute.cluster.errors import CloudError
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, Versioned, unchanged

REST_S = 300
SHARED_S = 60.0
RETRY_S = 10.0
"""For so long no lease is asked for again where etcd gave none: those who finish do not wait for it."""

log = logging.getLogger(__name__)


class Locks:
    """Args:
    clock: monotonic seconds.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._lease = 0
        self._until_s = 0.0
        """When another lease is asked for."""

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
        for mac in self._store.get_many(macs, MacLock).items:
            if mac.value.instance_uuid == instance_uuid and mac.value.interface_uuid in ours:
                compares.append(unchanged(mac))
                operations.append(Delete(mac.key))
        for lock in self._store.get_many(addresses, AddressLock).items:
            if lock.value.instance_uuid == instance_uuid and lock.value.interface_uuid in ours:
                compares.append(unchanged(lock))
                operations.append(self.rest(lock))

    def lease_has_ended(self) -> None:
        """Take another lease from now on: a transaction failed for want of the one that it named."""
        with self._lock:
            self._lease, self._until_s = 0, 0.0

    def rest(self, lock: Versioned[AddressLock]) -> Op:
        """Return what gives up one address; the caller compares its lock."""
        lease = self._shared_lease()
        if not lease:
            return Delete(lock.key)
        return Put(lock.key, structs.replace(lock.value, is_resting=True), lease=lease)

    def _shared_lease(self) -> int:
        """Return the lease of this minute; 0: etcd gives none."""
        with self._lock:
            if self._clock() < self._until_s:
                return self._lease
        try:
            lease, shared_s = self._store.unkept_lease(REST_S), SHARED_S
        except CloudError as error:
            log.warning("addresses that are given up do not rest: %s", error)
            lease, shared_s = 0, RETRY_S
        with self._lock:
            self._lease, self._until_s = lease, self._clock() + shared_s
        return lease
