"""``record and intents → one claim → requests → commit``: how many instances start all, or none at all.

The record ``/gangs/<uuid>`` says *writing* until one write makes it *committed*; hosts do nothing for
a member before that. Every request rewrites the record and compares it, so that its revision is what
the next write, and the commit, must find: a gang that somebody else has ended meanwhile, or an etcd
that was put back, is seen by whatever is written next.

Left behind by a writer that dies

- before the claim: the record and intents. The lead cancels the record after the grace period
  (`ecompute.cluster.upkeep.gang_plan`), the audit deletes the intents.
- after it: claims besides. The audit releases those of intents, as of any launch.
- after some requests: instances that no host has begun. Once the record is cancelled their hosts refuse
  them, and they end as instances whose build failed, and are destroyed.
- after the commit: nothing; the gang is launched.

Only the writer commits. As long as it has not tried to, it may take everything back at once, without
asking the hosts (`GangClaim.cancel`): none can have begun. From the first commit that went unanswered
on it takes nothing back: it is the hosts' and the lead's.

A long launch shows that it lives by rewriting the record and its intents (`GangClaim.refresh`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.claims import INSTANCE_CONSUMER, incarnation_of
from ecompute.cluster.documents import Gang, GangState, Incarnation, Instance, Intent, timestamp
from ecompute.cluster.errors import ClaimRefused, CompareFailed, Conflict, StoreUnavailable
from ecompute.cluster.failpoint import reach
from ecompute.cluster.store import MAX_OPERATIONS, Compare, Delete, Op, Put, Store, Versioned, absent, unchanged

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

MEMBERS_LIMIT = 200
"""Of one gang: its claim is one request to placement, which takes some 40 ms for each."""
REFRESH_S = 20.0
"""How old the intents of a writer that lives become; a third of the grace period."""
COMMIT_TRIES = 10

FAILPOINTS = (
    "gang.begin",
    "gang.recorded",
    "gang.intended",
    "gang.claimed",
    "gang.requested",
    "gang.uncommitted",
    "gang.committed",
)
"""On the way of a gang that is launched; ``gang.requested`` after each of its requests."""
CANCEL_FAILPOINTS = ("gang.cancelled", "gang.withdrawn")

_INTENTS_AT_ONCE = MAX_OPERATIONS // 2 - 2
"""Of each are compared: its intent and its instance. And the record, and the incarnation."""
T = TypeVar("T")

_OVERHEAD = 2
"""Compares of every request besides those of its members: the record and the incarnation."""


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class GangClaim:
    """One gang's way from its record to its commit. Not for use by several threads."""

    def __init__(self, gangs: Gangs, record: Versioned[Gang], incarnation: Versioned[Incarnation]) -> None:
        self.uuid = record.value.uuid
        self.members = record.value.members
        self._gangs = gangs
        self._store = gangs.store
        self._record = record
        self._incarnation = incarnation
        self._intents: dict[str, Versioned[Intent]] = {}
        self._may_hold = False
        self._intended_s = gangs.clock()
        self.is_in_doubt = False
        """Whether a commit went unanswered, or somebody else has ended it: nothing is taken back any more."""

    # --- intents -------------------------------------------------------------------------------

    def intend(self, members: Sequence[str]) -> None:
        """Write the intents of ``members``."""
        self._write(*self._gangs.intents(members, self._record.value.namespace))
        self.intended(members)

    def intended(self, members: Iterable[str]) -> None:
        """Take note of intents that were written with the record's present revision."""
        revision = self._record.mod_revision
        for one in members:
            intent = self._gangs.intent(one, self._record.value.namespace)
            self._intents[one] = Versioned(keys.intent(one), intent, revision, revision, 0)

    def refresh(self, *, is_due: bool = False) -> None:
        """Write record and intents anew, if they are `REFRESH_S` old or ``is_due``.

        Raises:
            CompareFailed: somebody has ended this gang; see `is_void`.
            StoreUnavailable: it is not known whether they were written.
        """
        if not is_due and self._gangs.clock() - self._intended_s < REFRESH_S:
            return
        if not self._intents:
            self._write([], [])
        self._intended_s = self._gangs.clock()
        for some in _batches(list(self._intents.values()), _INTENTS_AT_ONCE):
            self._write([unchanged(one) for one in some], [Put(one.key, one.value) for one in some])
            self.intended(one.value.consumer for one in some)

    # --- claim ---------------------------------------------------------------------------------

    def take(
        self,
        wanted: Mapping[str, tuple[Mapping[str, Mapping[str, int]], Mapping[str, list[str]]]],
        stop: AbstractSet[str] = frozenset(),
    ) -> None:
        """Claim for every member ``(allocations, mappings)``, all or none.

        Args:
            stop: the providers whose refusal no other host can mend.

        Raises:
            ClaimRefused: nothing was claimed; its ``providers`` have no room.
            PlacementUnavailable: it is not known whether it was written. Leave it to the audit.
        """
        from ecompute.cluster.placement import ClaimRequest

        claims = [
            ClaimRequest(
                consumer=one,
                allocations=wanted[one][0],
                mappings=wanted[one][1],
                project_id=self._record.value.namespace,
                user_id=self._record.value.writer,
                consumer_type=INSTANCE_CONSUMER,
            )
            for one in self.members
        ]
        held_before, self._may_hold = self._may_hold, True
        try:
            self._gangs.placement.claim_many(claims, stop=frozenset(stop))
        except ClaimRefused:
            self._may_hold = held_before
            raise
        reach("gang.claimed")

    # --- requests ------------------------------------------------------------------------------

    def request(self, members: Sequence[str], compares: Iterable[Compare], operations: Iterable[Op]) -> None:
        """Write the requests of ``members``, in one transaction.

        Raises:
            CompareFailed: nothing was written; see `is_void`.
            StoreUnavailable: where it may be written, ask `settle`.
        """
        self._write(
            [*(unchanged(self._intents[one]) for one in members), *compares],
            [*(Delete(keys.intent(one)) for one in members), *operations],
        )
        for one in members:
            del self._intents[one]
        reach("gang.requested")

    def fits(self, members: int, compares: Iterable[Compare], operations: Iterable[Op]) -> bool:
        """Whether a request of so many members and conditions is within what one transaction takes."""
        most = max(len(list(compares)) + members + _OVERHEAD, len(list(operations)) + members + 1)
        return most <= MAX_OPERATIONS

    def settle(self, members: Sequence[str]) -> bool:
        """After a request whose answer was lost: return whether it was written. If not, it never will be.

        Raises:
            Conflict: somebody else has ended this gang, and it is theirs now.
            StoreUnavailable: etcd does not answer; leave it to the upkeep.
        """
        try:
            self._write([], [])
            return False
        except CompareFailed:
            record = self._store.get(self._record.key, Gang)
            instance = self._store.get(keys.instance(members[0]), Instance)
            is_ours = (
                record is not None
                and instance is not None
                and record.value == self._record.value
                and record.mod_revision == instance.create_revision
            )
            if not is_ours or record is None:
                self.is_in_doubt = True
                raise self._ended() from None
            self._record = record
            for one in members:
                self._intents.pop(one, None)
            return True

    def is_void(self) -> bool:
        """Whether somebody has ended this gang meanwhile: the lead, the audit, or a restore."""
        record = self._store.get(self._record.key, Gang)
        found = self._store.get_many([keys.intent(one) for one in self._intents], Intent).items
        revisions = {item.value.consumer: item.mod_revision for item in found}
        incarnation = self._store.get(keys.INCARNATION, Incarnation)
        return (
            record is None
            or record.mod_revision != self._record.mod_revision
            or any(revisions.get(one) != intent.mod_revision for one, intent in self._intents.items())
            or incarnation is None
            or incarnation.value.id != self._incarnation.value.id
        )

    def same_incarnation(self) -> Compare:
        """Return the comparison that what is allocated for this gang carries besides."""
        return unchanged(self._incarnation)

    def verify(self, compares: Sequence[Compare]) -> None:
        """See that ``compares`` hold, and that this gang is still its writer's.

        Raises:
            CompareFailed: something does not hold; see `is_void`.
            StoreUnavailable: the record may have been written anew, and this gang is void then.
        """
        self._write(compares, [])

    # --- the end -------------------------------------------------------------------------------

    def commit(self, compares: Sequence[Compare]) -> None:
        """Let all hosts begin.

        Args:
            compares: what must still hold of the hosts.

        Raises:
            CompareFailed: it is certain that it was not committed: read again, or `cancel`.
            Conflict: somebody else has ended this gang.
            StoreUnavailable: it is not known whether it was committed.
        """
        reach("gang.uncommitted")
        committed = structs.replace(self._record.value, state=GangState.COMMITTED)
        for left in reversed(range(COMMIT_TRIES)):
            try:
                self._store.commit(
                    [unchanged(self._record), unchanged(self._incarnation), *compares],
                    [Put(self._record.key, committed)],
                )
            except CompareFailed:
                record = self._store.get(self._record.key, Gang)
                if record is not None and record.value == committed:
                    break  # by an earlier try, whose answer was lost
                if self.is_in_doubt:
                    raise self._ended() from None
                raise
            except StoreUnavailable as error:
                self.is_in_doubt = self.is_in_doubt or error.may_be_written
                if not left:
                    raise
                self._gangs.pause()
            else:
                break
        self._intents.clear()
        reach("gang.committed")

    def cancel(self, withdraw: Callable[[Versioned[Instance]], bool]) -> bool:
        """Take everything back, of a gang that was certainly never committed; return whether that was done.

        What is in doubt is left to the upkeep, and so is what somebody else has ended.

        Args:
            withdraw: ends an instance that no host has begun: releases its claim, and deletes its keys;
                returns whether it is gone. Where one is not, the record stays for the lead, which knows by it
                that the instance is to be destroyed.

        Raises:
            Unavailable: the rest is left to the upkeep.
        """
        if self.is_in_doubt:
            return False
        try:
            self._store.commit(
                [unchanged(self._record)],
                [Put(self._record.key, structs.replace(self._record.value, state=GangState.CANCELLED))],
            )
        except CompareFailed:
            return False
        reach("gang.cancelled")
        found = self._store.get_many([keys.instance(one) for one in self.members], Instance)
        is_clean = not found.unreadable
        for instance in found.items:
            is_clean = withdraw(instance) and is_clean
            reach("gang.withdrawn")
        for some in _batches(list(self._intents.values()), _INTENTS_AT_ONCE):
            self._withdraw_intents(some)
        if is_clean:
            self._forget()
        return is_clean

    def _withdraw_intents(self, intents: Sequence[Versioned[Intent]]) -> None:
        try:
            self._store.commit([unchanged(one) for one in intents], [Delete(one.key) for one in intents])
        except CompareFailed:
            return  # the audit is at it
        if self._may_hold:
            for one in intents:
                self._gangs.placement.release(one.value.consumer)

    def _forget(self) -> None:
        """Delete the record: no member has an instance, and none can come."""
        record = self._store.get(self._record.key, Gang)
        if record is None or record.value.state is not GangState.CANCELLED:
            return
        with suppress(CompareFailed):  # the lead is at it
            self._store.commit([unchanged(record)], [Delete(record.key)])

    # --- writing -------------------------------------------------------------------------------

    def _write(self, compares: Sequence[Compare], operations: Sequence[Op]) -> None:
        """Write, and the record anew with it."""
        revision = self._store.commit(
            [unchanged(self._record), unchanged(self._incarnation), *compares],
            [Put(self._record.key, self._record.value), *operations],
        )
        self._record = replace(self._record, mod_revision=revision)

    def _ended(self) -> Conflict:
        return Conflict(
            f"gang {self.uuid} took too long and was given up for dead",
            hint="see `eschedule list` for what became of it, and launch it again",
        )


class Gangs:
    """Begins gangs for one writer. Safe from several threads.

    Args:
        now: seconds since 1970.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        *,
        writer: str,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.placement = placement
        self.clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._writer = writer
        self._now = now

    def intent(self, consumer: str, namespace: str) -> Intent:
        """Return the intent to create ``consumer``."""
        made_at = timestamp(self._now())
        return Intent(consumer=consumer, kind="create", namespace=namespace, writer=self._writer, made_at=made_at)

    def intents(self, members: Sequence[str], namespace: str) -> tuple[list[Compare], list[Op]]:
        """Return what writes the intents of ``members``."""
        return (
            [compare for one in members for compare in (absent(keys.intent(one)), absent(keys.instance(one)))],
            [Put(keys.intent(one), self.intent(one, namespace)) for one in members],
        )

    def pause(self) -> None:
        """Wait a little, at random, before something is tried again."""
        time.sleep(self._rng.uniform(0.05, 0.5))

    def begin(
        self, uuid: str, members: Sequence[str], *, namespace: str, incarnation: Versioned[Incarnation] | None = None
    ) -> GangClaim:
        """Write the record of gang ``uuid``, and the intents to create its ``members``.

        Args:
            members: uuids that were never used, each once; at most `MEMBERS_LIMIT`.

        Raises:
            OnHold: this etcd holds no cloud: no host has registered, or its data was lost.
            CompareFailed: the incarnation is another one now, or a uuid is in use.
        """
        reach("gang.begin")
        incarnation = incarnation or incarnation_of(self.store)
        record = Gang(
            uuid=uuid,
            namespace=namespace,
            members=tuple(members),
            writer=self._writer,
            made_at=timestamp(self._now()),
        )
        key = keys.gang(uuid)
        first, *rest = _batches(members, _INTENTS_AT_ONCE)
        compares, operations = self.intents(first, namespace)
        revision = self.store.commit([absent(key), unchanged(incarnation), *compares], [Put(key, record), *operations])
        claim = GangClaim(self, Versioned(key, record, revision, revision, 0), incarnation)
        claim.intended(first)
        reach("gang.recorded")
        for some in rest:
            claim.intend(some)
        reach("gang.intended")
        return claim
