"""Forgets uuids that clients chose, and the keys that stand for them, long after they were used up.

A duty of the lead. It notes in ``/uuids/<uuid>`` when it first saw that it is spent, and deletes it
`KEPT_DAYS` later, with the ``/idempotency`` keys that mean it, in one transaction: as long as hosts
remember what they removed. A launch with the same uuid or key is then a new one. Died in between, the
next turn goes on. Times are compared with this host's own clock.

Both ranges are streamed; of what is due, `AT_ONCE` a turn are kept in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import IdempotencyKey, UsedUuid, timestamp
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import Delete, Put, Versioned, absent, unchanged
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone

PERIOD_S = 6 * 3600.0
KEPT_DAYS = 90
AT_ONCE = 10_000
PAUSE_S = 0.02
"""Between two transactions."""


class Forgetter:
    """One term's.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, charge: Charge, now: Callable[[], float] = time.time) -> None:
        self._charge = charge
        self._now = now
        self._each = EachAlone()

    def __call__(self) -> None:
        """Note what is newly spent, and forget what has been for long.

        Raises:
            Unavailable: etcd does not answer; call again.
            NotLeading: the term has ended.
        """
        store = self._charge.store
        new: list[Versioned[UsedUuid]] = []
        due: dict[str, Versioned[UsedUuid]] = {}
        for used in store.each(keys.UUIDS, UsedUuid):
            if not used.value.is_spent or len(new) + len(due) >= AT_ONCE:
                continue
            if used.value.spent_at is None:
                new.append(used)
            elif datetime.fromisoformat(used.value.spent_at).timestamp() + KEPT_DAYS * 86400 <= self._now():
                due[used.value.uuid] = used
        for used in new:
            self._charge.pause(PAUSE_S)
            self._each(f"{used.key} could not be noted as spent", self._note, used)
        meaning: dict[str, list[Versioned[IdempotencyKey]]] = {}
        for key in store.each(keys.IDEMPOTENCY, IdempotencyKey) if due else ():
            if key.value.uuid in due:
                meaning.setdefault(key.value.uuid, []).append(key)
        for uuid, used in due.items():
            self._charge.pause(PAUSE_S)
            self._each(f"{used.key} could not be forgotten", self._forget, used, meaning.get(uuid, []))

    def _note(self, used: Versioned[UsedUuid]) -> None:
        noted = structs.replace(used.value, spent_at=timestamp(self._now()))
        self._commit(used, [Put(used.key, noted)])

    def _forget(self, used: Versioned[UsedUuid], meaning: list[Versioned[IdempotencyKey]]) -> None:
        self._commit(used, [Delete(used.key), *(Delete(key.key) for key in meaning)], meaning)

    def _commit(
        self,
        used: Versioned[UsedUuid],
        operations: list[Put | Delete],
        meaning: list[Versioned[IdempotencyKey]] | None = None,
    ) -> None:
        uuid = used.value.uuid
        nothing = [absent(keys.instance(uuid)), absent(keys.intent(uuid))]
        try:
            self._charge.store.commit(
                [unchanged(used), *(unchanged(key) for key in meaning or ()), *nothing, *self._charge.guard()],
                operations,
            )
        except CompareFailed:
            return  # the next turn reads it anew


SPENT = Duty("spent-uuids", PERIOD_S, Forgetter)
