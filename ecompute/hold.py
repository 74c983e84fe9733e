"""Whether this host may act on what etcd says.

Etcd's data can be lost, or put back from an older snapshot. Acted upon, an older etcd would have
guests built twice and removed by mistake. So a host remembers which data it knew (incarnation,
cluster id, highest revision) and *holds* when it meets other data: it builds nothing and removes
nothing, reports why, and takes no new claims, until an operator has seen to it.

A host that never belonged to a cluster begins one where there is none; no other host does.

Safe from several threads: what is known is read, judged and written under one lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from uuid import uuid4

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Incarnation, Unreadable, timestamp
from ecompute.cluster.errors import CompareFailed, NotPermitted
from ecompute.cluster.store import ClusterStatus, Put, Store, absent
from ecompute.instances.memory import Cluster, Memory

log = logging.getLogger(__name__)


def judge(known: Cluster | None, incarnation: str | None, status: ClusterStatus) -> str | None:
    """Return why the data in etcd is not what this host knew; ``None`` if it is. Pure."""
    if known is None:
        return None
    if known.hold is not None:
        return known.hold
    if incarnation is None:
        return f"etcd has lost its data (incarnation {known.incarnation} is gone)"
    if incarnation != known.incarnation:
        return f"etcd holds another incarnation ({incarnation}; this host knew {known.incarnation})"
    if status.cluster_id != known.cluster_id:
        return f"etcd is another cluster ({status.cluster_id:x}; this host knew {known.cluster_id:x})"
    if status.revision < known.revision:
        return f"etcd was put back to an older state (revision {status.revision}; this host has seen {known.revision})"
    return None


class Hold:
    """Compares etcd with this host's memory.

    Args:
        host: this host's name, for the incarnation it may have to begin.
        on_change: told of the new reason, or ``None``, when it changes.
    """

    def __init__(
        self,
        store: Store,
        memory: Memory,
        *,
        host: str,
        on_change: Callable[[str | None], None] = lambda reason: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._memory = memory
        self._host = host
        self._on_change = on_change
        self._now = now
        self._lock = threading.Lock()
        self._known = memory.cluster()
        self._reason: str | None = "etcd has not been looked at yet"

    @property
    def reason(self) -> str | None:
        """Why this host holds, or ``None``."""
        return self._reason

    def suspect(self, reason: str) -> None:
        """Hold from now on, because etcd was seen to go back: only `adopt` ends it."""
        with self._lock:
            if self._known is not None:
                self._keep(structs.replace(self._known, hold=reason))
            self._set(reason)

    def examine(self) -> str | None:
        """Look at etcd and return why to hold, or ``None``.

        Raises:
            StoreUnavailable: etcd does not answer; what held before holds on.
        """
        try:
            found = self._store.get(keys.INCARNATION, Incarnation)
        except Unreadable as error:
            self._set(f"{error}")
            return self.reason
        found_id = None if found is None else found.value.id
        if found_id is None and self._memory.is_blank():
            found_id = self._begin()
        status = self._store.status()
        with self._lock:
            known = self._known
            reason = judge(known, found_id, status)
            if reason is None and found_id is not None:
                revision = max(status.revision, known.revision if known is not None else 0)
                self._keep(Cluster(incarnation=found_id, cluster_id=status.cluster_id, revision=revision))
            elif known is not None and status.revision < known.revision:
                self._keep(structs.replace(known, hold=reason))  # the revision will grow past it again
            self._set(reason)
            return reason

    def witness(self, revision: int) -> None:
        """Remember that this host acts on data of ``revision``."""
        with self._lock:
            if self._known is not None and revision > self._known.revision:
                self._keep(structs.replace(self._known, revision=revision))

    def adopt(self) -> Cluster:
        """Take the data that etcd has now for this host's own: an operator's decision.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        found = self._store.get(keys.INCARNATION, Incarnation)
        found_id = self._begin() if found is None else found.value.id
        status = self._store.status()
        adopted = Cluster(incarnation=found_id, cluster_id=status.cluster_id, revision=status.revision)
        with self._lock:
            self._keep(adopted)
            self._set(None)
        return adopted

    def _begin(self) -> str:
        incarnation = Incarnation(id=str(uuid4()), made_by=self._host, made_at=timestamp(self._now()))
        try:
            self._store.commit([absent(keys.INCARNATION)], [Put(keys.INCARNATION, incarnation)])
        except CompareFailed:
            found = self._store.get(keys.INCARNATION, Incarnation)
            if found is not None:
                return found.value.id
            raise
        except NotPermitted as error:
            raise NotPermitted(
                "etcd holds no cluster yet, and this host's user may not begin one",
                keys=error.keys,
                hint="`eschedule host enrol` of any host begins it",
            ) from error
        log.info("began incarnation %s", incarnation.id)
        return incarnation.id

    def _keep(self, cluster: Cluster) -> None:
        if cluster != self._known:
            self._memory.remember_cluster(cluster)
            self._known = cluster

    def _set(self, reason: str | None) -> None:
        if reason != self._reason:
            self._reason = reason
            if reason is not None:
                log.error("on hold: %s", reason)
            self._on_change(reason)
