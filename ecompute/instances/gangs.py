"""The gangs that instances of this host wait for: read, and followed until they have begun or ended.

An assignment of a gang is inert until ``/gangs/<uuid>`` says committed. Only the records that an
instance here waits for are followed, each as one key: what one gang costs the other hosts is nothing.

The watch wakes; the lane reads the record itself. Safe from several threads; nothing here waits but
for one read of etcd.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ecompute.cluster import keys
from ecompute.cluster.documents import Gang, GangState
from ecompute.cluster.store import Change, Follow, Store, Watcher


class Gangs:
    """What this host knows of gangs.

    Args:
        wake: called with the uuid of each instance that waits, whenever its gang may have changed.
    """

    def __init__(self, store: Store, watcher: Watcher, wake: Callable[[str], None]) -> None:
        self._store = store
        self._watcher = watcher
        self._wake = wake
        self._lock = threading.Lock()
        self._gang_of: dict[str, str] = {}
        self._waiting: dict[str, set[str]] = {}
        self._follows: dict[str, Follow[Gang]] = {}

    def state(self, gang: str, instance_uuid: str) -> GangState | None:
        """Return what the record of ``gang`` says now; None: there is none.

        While it is not committed, ``instance_uuid`` is woken at each change, until `leave`.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        state = self._read(gang)
        if state is not GangState.COMMITTED:
            self._join(gang, instance_uuid)
            # What changed between the read and the joining woke nobody.
            state = self._read(gang)
        if state is GangState.COMMITTED:
            self.leave(instance_uuid)
        return state

    def leave(self, instance_uuid: str) -> None:
        """Wake ``instance_uuid`` for its gang no more. Idempotent."""
        with self._lock:
            gang = self._gang_of.pop(instance_uuid, None)
            if gang is None:
                return
            self._waiting[gang].discard(instance_uuid)
            if self._waiting[gang]:
                return
            del self._waiting[gang]
            follow = self._follows.pop(gang)
        follow.stop()

    @property
    def followed(self) -> frozenset[str]:
        """The gangs that somebody here waits for."""
        with self._lock:
            return frozenset(self._follows)

    def _read(self, gang: str) -> GangState | None:
        found = self._store.get(keys.gang(gang), Gang)
        return None if found is None else found.value.state

    def _join(self, gang: str, instance_uuid: str) -> None:
        with self._lock:
            if self._gang_of.get(instance_uuid) == gang:
                return
        self.leave(instance_uuid)
        with self._lock:
            self._gang_of[instance_uuid] = gang
            self._waiting.setdefault(gang, set()).add(instance_uuid)
            if gang not in self._follows:
                self._follows[gang] = self._watcher.follow(
                    keys.gang(gang), Gang, lambda change: self._changed(gang, change)
                )

    def _changed(self, gang: str, change: Change[Gang]) -> None:
        with self._lock:
            waiting = sorted(self._waiting.get(gang, ()))
        for uuid in waiting:
            self._wake(uuid)
