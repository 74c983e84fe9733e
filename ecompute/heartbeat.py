"""``/alive/<provider>``: there as long as the daemon keeps its lease.

The key is put once a lease and never rewritten. When the lease is lost (etcd was away, or this
process was stopped) another is taken as soon as etcd answers.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from ecompute.cluster import keys
from ecompute.cluster.documents import Alive, timestamp
from ecompute.cluster.errors import CloudError, CompareFailed, Conflict
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.retries import Retries
from ecompute.cluster.store import Lease, Put, Store, absent

TTL_S = 30
CHECK_PERIOD_S = 60.0
"""Beside being told when the lease is lost."""
RETRY_S = 5.0

log = logging.getLogger(__name__)


class Heartbeat:
    """Keeps one host's key alive from `start` to `stop`."""

    def __init__(
        self, store: Store, provider: str, name: str, *, rng: random.Random, now: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._key = keys.alive(provider)
        self._alive = Alive(provider=provider, name=name, since=timestamp(now()))
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._periodic = Periodic("heartbeat", self._keep, period_s=CHECK_PERIOD_S, rng=rng)
        self._retries = Retries("heartbeat", lambda key: self._periodic.wake(), rng=rng)

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        """End the lease, and the key with it."""
        self._retries.close()
        self._periodic.stop()
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.revoke()

    def _keep(self) -> None:
        try:
            self._take()
        except CloudError:
            self._retries.later(self._key, RETRY_S)
            raise

    def _take(self) -> None:
        with self._lock:
            if self._lease is not None and self._lease.is_held:
                return
        lease = self._store.lease(TTL_S, on_lost=self._periodic.wake)
        try:
            self._store.commit([absent(self._key)], [Put(self._key, self._alive, lease=lease.id)])
        except CompareFailed as error:
            lease.revoke()
            raise Conflict(
                f"{self._key} is there already",
                hint="it is this host's former life, and ends within 30 s, or another daemon with this uuid",
            ) from error
        except BaseException:
            lease.revoke()
            raise
        with self._lock:
            self._lease = lease
