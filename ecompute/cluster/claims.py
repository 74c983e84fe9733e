"""``intent → claim → request``: how capacity is taken so that a crash between any two is found.

Left behind by a writer that dies

- after the intent: an intent with no allocation. The audit deletes it after the grace period.
- after the claim: an intent and an allocation. The audit deletes the intent, *then* releases the
  claim: a writer that slept meanwhile finds its intent gone when it compares it in the request.
- after the request: nothing; the request deleted the intent in its own transaction.

The consumer of the allocation is the instance's uuid. Uuids are random and not used twice: a
consumer's generation does not tell one life of a uuid from the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING

from ecompute.cluster import keys
from ecompute.cluster.chosen import Chosen
from ecompute.cluster.documents import Incarnation, Instance, Intent, timestamp
from ecompute.cluster.errors import (
    ClaimRefused,
    CompareFailed,
    Conflict,
    ForeignConsumer,
    OnHold,
    OutOfDate,
    Outrun,
    StoreUnavailable,
)
from ecompute.cluster.failpoint import reach
from ecompute.cluster.freshness import Reading
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, Versioned, absent, clock_s, unchanged

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

INSTANCE_CONSUMER = "ECOMPUTE_INSTANCE"
"""Consumer types of ours begin with ``ECOMPUTE_``; others are reported, never touched."""

SETTLE_TRIES = 3
REFRESH_S = 10.0
"""How old the intent of a launch that lives becomes, about."""

FAILPOINTS = ("claim.before_intent", "claim.intended", "claim.claimed", "claim.requested")


def incarnation_of(store: Store) -> Versioned[Incarnation]:
    """Return which life of its data this etcd has.

    Raises:
        OnHold: it holds no cloud: no host has registered, or its data was lost.
    """
    found = store.get(keys.INCARNATION, Incarnation)
    if found is None:
        raise OnHold(
            "etcd holds no cloud: no host has ever registered in it, or its data was lost",
            hint="start `ecompute run` on a host; after a loss, restore etcd from a backup",
        )
    return found


class Claim:
    """One consumer's way from intent to request. Not for use by several threads."""

    def __init__(
        self,
        claims: Claims,
        intent: Versioned[Intent],
        incarnation: Versioned[Incarnation],
        chosen: Chosen | None = None,
    ) -> None:
        self.consumer = intent.value.consumer
        self._chosen = chosen
        self._has_claimed = False
        self._taken: Reading | None = None
        """Since when it may hold something; of a chosen uuid, nothing older is given back."""
        self._is_foreign = False
        self._claims = claims
        self._written_s = claims.clock()
        self._intent = intent
        self._incarnation = incarnation
        self.is_in_doubt = False
        """Whether a request went unanswered, or the claim of a chosen uuid was not seen to be taken by us.
        It may have been written, and an etcd that was put back since would not show it: the claim may be
        in use whatever etcd says, and only its host, which the audit asks, can tell. Neither `release`
        nor `give_up` touches it then."""

    def take(
        self,
        allocations: Mapping[str, Mapping[str, int]],
        mappings: Mapping[str, list[str]] | None,
        stop: AbstractSet[str] = frozenset(),
    ) -> None:
        """Claim ``allocations`` ({provider: {class: amount}}) in placement, all or none.

        Args:
            stop: the providers whose refusal no other host can mend: quotas.

        Raises:
            ClaimRefused: no room there, or no quota (see its scope); another host may be tried with
                the same intent.
            Outrun: others wrote first each time; nothing is held, and another host may be tried.
            ForeignConsumer: the uuid is in use by another tool. Give it up: that touches no claim then.
            PlacementUnavailable: it is not known whether it was written. Give it back, or leave it
                to the audit.
        """
        self._has_claimed = True
        self._taken = Reading(self._claims.clock)
        # Where etcd has lost what it knew, a uuid that a client chose may hold the claim of a guest that
        # runs: what is found under it, and not written by us, is not ours to give back.
        was_in_doubt, self.is_in_doubt = self.is_in_doubt, self.is_in_doubt or self._chosen is not None
        try:
            is_new = self._claims.placement.claim(
                self.consumer,
                allocations,
                mappings or {},
                project_id=self._intent.value.namespace,
                user_id=self._intent.value.writer,
                consumer_type=INSTANCE_CONSUMER,
                stop=stop,
            )
        except ForeignConsumer:
            self._is_foreign = True
            self.is_in_doubt, self._taken = was_in_doubt, None
            raise
        except (ClaimRefused, Outrun):
            self.is_in_doubt, self._taken = was_in_doubt, None
            raise
        if is_new:
            self.is_in_doubt = was_in_doubt
        reach("claim.claimed")

    def request(self, compares: list[Compare], operations: list[Op]) -> int:
        """Write the request; it holds only while the intent and the incarnation are as they were.

        Raises:
            CompareFailed: nothing was written. `is_void` says whether the intent was the reason.
            StoreUnavailable: where it may be written, ask `settle`, and then the same host again: no
                other may be asked for this claim any more.
        """
        also, besides = ([], []) if self._chosen is None else self._chosen.request()
        was_in_doubt, self.is_in_doubt = self.is_in_doubt, True
        try:
            revision = self._claims.store.commit(
                [unchanged(self._intent), unchanged(self._incarnation), *compares, *also],
                [Delete(self._intent.key), *operations, *besides],
            )
        except CompareFailed:
            self.is_in_doubt = was_in_doubt
            raise
        except StoreUnavailable as error:
            self.is_in_doubt = was_in_doubt or error.may_be_written
            raise
        reach("claim.requested")
        return revision

    def same_incarnation(self) -> Compare:
        """Return the comparison that what is allocated for this claim carries besides."""
        return unchanged(self._incarnation)

    def settle(self) -> bool:
        """After a request whose answer was lost: return whether it was written. If not, it never will be.

        The intent is written anew, which no transaction that compares the old one survives: one that
        is still on its way can then not land behind our back.

        Raises:
            StoreUnavailable: etcd does not answer; leave it to the audit.
        """
        store = self._claims.store
        for tries_left in reversed(range(SETTLE_TRIES)):
            try:
                revision = store.commit([unchanged(self._intent)], [Put(self._intent.key, self._intent.value)])
            except CompareFailed:
                found = store.get(self._intent.key, Intent)
                if found is None or found.value != self._intent.value:
                    return store.get(keys.instance(self.consumer), Instance) is not None
                self._intent = found  # an earlier try of ours was written, unanswered
                return False
            except StoreUnavailable as error:
                if not (error.may_be_written and tries_left):
                    raise
            else:
                break
        self._intent = replace(self._intent, mod_revision=revision)
        return False

    def refresh(self) -> None:
        """Write the intent anew, if it is `REFRESH_S` old: who waits for this launch, and the audit, see that it lives.

        Raises:
            CompareFailed: somebody has taken it for dead.
            StoreUnavailable: it is not known whether it was written.
        """
        if self._claims.clock() - self._written_s < REFRESH_S:
            return
        revision = self._claims.store.commit([unchanged(self._intent)], [Put(self._intent.key, self._intent.value)])
        self._intent = replace(self._intent, mod_revision=revision)
        self._written_s = self._claims.clock()

    def is_void(self) -> bool:
        """Whether the audit, or a restore, has taken this claim away meanwhile."""
        intent = self._claims.store.get(self._intent.key, Intent)
        incarnation = self._claims.store.get(keys.INCARNATION, Incarnation)
        return (
            intent is None
            or intent.mod_revision != self._intent.mod_revision
            or incarnation is None
            or incarnation.value.id != self._incarnation.value.id
        )

    def release(self) -> None:
        """Give the claim back, and keep the intent for the next try.

        Raises:
            Conflict: it is in doubt, or, of a chosen uuid, the intent is gone or it was taken long ago: give it up.
        """
        if self.is_in_doubt:
            raise Conflict(
                f"it is not known whether {self.consumer} was requested", hint=f"see `eschedule doctor {self.consumer}`"
            )
        if self._chosen is None:
            self._claims.placement.release(self.consumer)
        elif self._taken is not None:
            if self.is_void():
                raise Conflict(f"the uuid {self.consumer} is not this launch's any more", hint="launch it again")
            try:
                self._claims.placement.release(self.consumer, self._taken.check)
            except OutOfDate as error:
                raise Conflict(
                    f"{self.consumer} was not launched, and what it claimed is left to the audit: that took too long",
                    hint="launch it again in some minutes",
                ) from error
        self._taken = None

    def give_up(self) -> bool:
        """Give back intent and claim, in that order; return whether that was done.

        What is in doubt is left to the audit. With the intent deleted, no request that is still
        under way can be written. If it was written after all, it deleted the intent, and the claim
        is the instance's: False.

        Nobody but this launch claims for a uuid that it made up. Of a chosen one, also the claim that was not
        taken just now is left to the audit, and the one whose intent somebody has taken: etcd may have been put
        back meanwhile, and a client have launched with the uuid again, whose guest then runs on this claim.
        """
        is_chosen = self._chosen is not None
        if self.is_in_doubt or (is_chosen and self._taken is not None and self._taken.is_old):
            return False
        store = self._claims.store
        has_claimed = self._has_claimed and not self._is_foreign
        besides = [] if self._chosen is None else self._chosen.give_up(has_claimed=has_claimed)
        try:
            store.commit([unchanged(self._intent)], [Delete(self._intent.key), *besides])
        except CompareFailed:
            if is_chosen or store.get(keys.instance(self.consumer), Instance) is not None:
                return False
        if not is_chosen and not self._is_foreign:
            self._claims.placement.release(self.consumer)
        elif self._taken is not None:
            try:
                self._claims.placement.release(self.consumer, self._taken.check)
            except OutOfDate:
                return False
        return True


class Claims:
    """Begins claims for one writer. Safe from several threads.

    Args:
        now: seconds since 1970.
        clock: monotonic seconds, which go on while the machine sleeps.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        *,
        writer: str,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = clock_s,
    ) -> None:
        self.store = store
        self.placement = placement
        self.clock = clock
        self._writer = writer
        self._now = now

    def begin(
        self,
        consumer: str,
        *,
        namespace: str,
        incarnation: Versioned[Incarnation] | None = None,
        chosen: Chosen | None = None,
    ) -> Claim:
        """Write the intent to create ``consumer``.

        Args:
            incarnation: as it was read, not long ago; None: it is read now.
            chosen: what is written besides where a client chose the uuid.

        Raises:
            OnHold: this etcd holds no cloud: no host has registered, or its data was lost.
            Conflict: the consumer has an instance, or is being claimed by somebody else.
            CompareFailed: ``incarnation`` is not that of today, or what was chosen is taken; its keys
                say which. Nothing was written.
        """
        incarnation = incarnation or incarnation_of(self.store)
        reach("claim.before_intent")
        key = keys.intent(consumer)
        intent = Intent(
            consumer=consumer,
            kind="create",
            namespace=namespace,
            writer=self._writer,
            made_at=timestamp(self._now()),
        )
        also, besides = ([], []) if chosen is None else chosen.begin()
        try:
            revision = self.store.commit(
                [absent(key), absent(keys.instance(consumer)), unchanged(incarnation), *also],
                [Put(key, intent), *besides],
            )
        except CompareFailed as error:
            if not {key, keys.instance(consumer)} & set(error.keys):
                raise
            raise Conflict(f"{consumer} is in use", hint="choose another uuid") from error
        reach("claim.intended")
        return Claim(
            self,
            Versioned(key, intent, revision, revision, 0),
            incarnation,
            None if chosen is None else chosen.begun(revision),
        )
