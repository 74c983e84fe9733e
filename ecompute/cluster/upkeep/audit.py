"""Finds what nobody holds any more: intents without a request, claims and keys without an instance.

What is a leak is decided in `decide.leaks`, from two looks of the same auditor (`looks`); here the
decisions are carried out. A look reads placement first and etcd after it, so that a claim
on its way is never seen without its intent or its instance. A claim is released only after its host
has said that nothing of it is there.

The *short* look is for intents alone, which are few; the *full* one reads every allocation of every
host. One thread at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.asking import NOTHING, PRESENCE, ask
from ecompute.cluster.documents import Operation, UsedUuid
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, Versioned, unchanged
from ecompute.cluster.upkeep.decide import Leaks, Look, Question, keep, leaks, releases
from ecompute.cluster.upkeep.duties import Charge, Duty
from ecompute.cluster.upkeep.looks import take_full, take_short

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

ANSWER_TIMEOUT_S = 20.0
SHORT_AUDIT_PERIOD_S = 20.0
FULL_AUDIT_PERIOD_S = 900.0
FIRST_FULL_AUDITS_S = 65.0
"""A new lead takes its first two full looks this far apart, so that what its predecessor left is
found soon."""

log = logging.getLogger(__name__)


class Audit:
    """One auditor, with its memory of the looks before.

    Args:
        guard: what every transaction compares besides: the leader's term.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        guard: Callable[[], list[Compare]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._placement = placement
        self._guard = guard
        self._clock = clock
        self._before: dict[bool, Look | None] = {True: None, False: None}

    def run(self, *, is_full: bool) -> tuple[str, ...]:
        """Take a look, and repair what it and the one before agree on; return what was released.

        Raises:
            Unavailable: etcd or placement does not answer; call again.
        """
        now = (
            take_full(self._store, self._placement, self._clock)
            if is_full
            else take_short(self._store, self._placement, self._clock)
        )
        before = self._before[is_full]
        found = leaks(before, now)
        self._before[is_full] = keep(before, now)
        for consumer in found.foreign:
            log.info("consumer %s in placement is not of a type of ours; it is left alone", consumer)
        for consumer in found.stranded:
            log.warning("claim %s belongs to nobody, and its host cannot say whether it is empty", consumer)
        for uuid in found.unbacked:
            log.error("instance %s has no allocation in placement (was it set back?); its guest is left alone", uuid)
        return self._repair(found)

    def _repair(self, found: Leaks) -> tuple[str, ...]:
        deleted = frozenset(
            consumer
            for consumer, revision in found.intents.items()
            if self._delete(keys.intent(consumer), revision, "its writer has done nothing for a while", consumer)
        )
        for key, revision in found.orphans.items():
            self._delete(key, revision, "its instance is nowhere any more")
        nothing_there = frozenset(question for question in found.questions if self._is_nothing_there(question))
        released = releases(found, deleted, nothing_there)
        for consumer in released:
            self._guard()  # placement cannot compare it: at least it held a moment ago
            self._placement.release(consumer)
            log.warning("released claim %s: nobody held it", consumer)
        return released

    def _delete(self, key: str, mod_revision: int, reason: str, consumer: str | None = None) -> bool:
        """Delete a key that nobody has written since the look.

        Args:
            consumer: whose intent it is. A uuid that a client chose is spent with it: a claim that is
                found under it later is then never another launch's.
        """
        as_read = Versioned(key, None, mod_revision, mod_revision, 0)
        used = None if consumer is None else self._store.get(keys.used_uuid(consumer), UsedUuid)
        compares = [unchanged(as_read), *self._guard()]
        operations: list[Op] = [Delete(key)]
        if used is not None and not used.value.is_spent:
            compares.append(unchanged(used))
            operations.append(Put(used.key, structs.replace(used.value, is_spent=True)))
        try:
            self._store.commit(compares, operations)
        except CompareFailed:
            return False
        log.warning("deleted %s: %s", key, reason)
        return True

    def _is_nothing_there(self, question: Question) -> bool:
        asked = Operation(kind=PRESENCE, instance_uuid=question.consumer)
        answered = ask(self._store, question.provider, asked, timeout_s=ANSWER_TIMEOUT_S)
        return answered is not None and answered.answer == NOTHING


def _begin(charge: Charge) -> Callable[[], object]:
    audit = Audit(charge.store, charge.placement, charge.guard, charge.clock)
    next_full_s = charge.clock()
    has_looked = False

    def turn() -> None:
        """Look at the intents; every now and then, at everything."""
        nonlocal next_full_s, has_looked
        audit.run(is_full=False)
        now = charge.clock()
        if now >= next_full_s:
            next_full_s = now + (FULL_AUDIT_PERIOD_S if has_looked else FIRST_FULL_AUDITS_S)
            has_looked = True
            audit.run(is_full=True)

    return turn


AUDIT = Duty("audit", SHORT_AUDIT_PERIOD_S, _begin)
"""Waits for hosts' answers: on a thread of its own, it keeps no finish waiting."""
