"""``/copies/<provider>/<image>``: which images this host holds, so that guests of the same may be sent here.

Said when the cache has changed, and gone through from time to time. Nothing but rank is decided by
it: an entry too many or too few costs a download. Nothing is said while the host is on hold.

Threads: one call of the reporting at a time, on a worker of the timers; `wake` from any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from ecompute.cluster import keys
from ecompute.cluster.documents import Copy
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.store import MAX_OPERATIONS, Compare, Delete, Op, Put, Store, absent, unchanged
from ecompute.storage.images import Held

PERIOD_S = 600.0


class Copies:
    """Reports for one host, from `start` to `stop`.

    Args:
        held: says what the cache holds, by the digest of each image's URL.
        is_held: whether the host is on hold.
    """

    def __init__(
        self,
        store: Store,
        provider: str,
        held: Callable[[], Mapping[str, Held]],
        *,
        is_held: Callable[[], bool],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._provider = provider
        self._held = held
        self._is_held = is_held
        self._periodic = Periodic("copies", self.report, period_s=PERIOD_S, rng=rng)

    def start(self) -> None:
        self._periodic.start()

    def wake(self) -> None:
        """The cache has changed."""
        self._periodic.wake()

    def stop(self) -> None:
        self._periodic.stop()

    def report(self) -> int:
        """Put what is held and not said, remove what is said and not held; return how many keys that were.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        if self._is_held():
            return 0
        wanted = {
            keys.copy_of(self._provider, digest): Copy(url=held.url, sha256=held.sha256, size_bytes=held.size_bytes)
            for digest, held in self._held().items()
        }
        listing = self._store.list(keys.copies(self._provider), Copy)
        found = {item.key: item for item in listing.items}
        compares: list[Compare] = []
        operations: list[Op] = []
        for key, copy in wanted.items():
            if key not in found or found[key].value != copy:
                compares.append(unchanged(found[key]) if key in found else absent(key))
                operations.append(Put(key, copy))
        for key, item in found.items():
            if key not in wanted:
                compares.append(unchanged(item))
                operations.append(Delete(key))
        for start in range(0, len(operations), MAX_OPERATIONS):
            part = slice(start, start + MAX_OPERATIONS)
            try:
                self._store.commit(compares[part], operations[part])
            except CompareFailed:
                self.wake()  # another life of this host wrote; read again
                return 0
        return len(operations)
