"""Compares placement, etcd and what hosts say, and repairs what two looks in a row agree is wrong.

What that is, is decided in `decide.leaks`, from two looks of the same auditor (`looks`); here the
decisions are carried out. A look reads placement first and etcd after it, so that a claim
on its way is never seen without its intent or its instance. A claim is released only after its host
has said, moments ago, that nothing of it is there. An instance without a claim is given it again (`reclaim`).

The *short* look is for intents alone, which are few; the *full* one reads the allocations of every
host in use, a few requests a second. The lead audits always; ``eschedule audit`` does the same beside
it: every write compares what was read, and a claim that is released twice is released once.

One thread at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.asking import NOTHING, PRESENCE, ask
from ecompute.cluster.documents import Operation, UsedUuid
from ecompute.cluster.errors import CloudError, CompareFailed, Unavailable
from ecompute.cluster.events import HOST, INSTANCE, LEAD, Events
from ecompute.cluster.freshness import FRESH_S, Reading
from ecompute.cluster.store import Compare, Delete, DeletePrefix, Op, Put, Store, Versioned, absent, clock_s, unchanged
from ecompute.cluster.upkeep.decide import GRACE_S, Leaks, Look, Question, keep, leaks, releases
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone, NotLeading
from ecompute.cluster.upkeep.findings import Finding, findings
from ecompute.cluster.upkeep.looks import take_full, take_short
from ecompute.cluster.upkeep.misfits import Misfit
from ecompute.cluster.upkeep.reclaim import Outcome, Reclaimer

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

ANSWER_TIMEOUT_S = 10.0
SHORT_AUDIT_PERIOD_S = 20.0
FULL_AUDIT_PERIOD_S = 900.0
FIRST_FULL_AUDITS_S = 65.0
"""A new lead takes its first two full looks this far apart, so that what its predecessor left is
found soon."""
PAUSE_S = 0.25
"""Before each of many requests to placement: launches come first."""

log = logging.getLogger(__name__)


class Audit:
    """One auditor, with its memory of the looks before.

    Args:
        guard: what every transaction compares besides: the leader's term.
        events: where repairs are recorded; the lead's by default.
        pause: called with seconds between requests to placement.
        grace_s: how far apart two looks are that are believed.
        answer_timeout_s: how long a host is waited for; one that is silent is asked nothing more that turn.
        reading_clock: see `Reading`.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        guard: Callable[[], list[Compare]],
        clock: Callable[[], float] = time.monotonic,
        *,
        events: Events | None = None,
        pause: Callable[[float], object] = lambda seconds: None,
        grace_s: float = GRACE_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        reading_clock: Callable[[], float] = clock_s,
    ) -> None:
        self._store = store
        self._placement = placement
        self._guard = guard
        self._clock = clock
        self._events = Events(store, LEAD) if events is None else events
        self._pause = pause
        self._grace_s = grace_s
        self._answer_timeout_s = answer_timeout_s
        self._reading_clock = reading_clock
        self._each = EachAlone()
        self._reclaimer = Reclaimer(store, placement, self._events, guard, clock=reading_clock)
        self._before: dict[bool, Look | None] = {True: None, False: None}
        self._told: dict[bool, frozenset[Finding]] = {True: frozenset(), False: frozenset()}

    def run(self, *, is_full: bool) -> tuple[str, ...]:
        """Take a look, and repair what it and the one before agree on; return what was released.

        Raises:
            Unavailable: etcd or placement does not answer; call again.
        """
        found = self.look(is_full=is_full)
        now = frozenset(findings(found))
        for finding in sorted(now - self._told[is_full], key=lambda f: (f.what, f.subject)):
            (log.warning if finding.is_wrong else log.info)(
                "%s %s; to do: %s", finding.what, finding.subject, finding.repair
            )
        self._told[is_full] = now
        return self.repair(found)

    def look(self, *, is_full: bool) -> Leaks:
        """Take a look; return what it and the one before agree on.

        Raises:
            Unavailable: etcd or placement does not answer; call again.
        """
        now = (
            take_full(self._store, self._placement, self._clock, lambda: self._pause(PAUSE_S))
            if is_full
            else take_short(self._store, self._placement, self._clock)
        )
        before = self._before[is_full]
        self._before[is_full] = keep(before, now, self._grace_s)
        return leaks(before, now, self._grace_s)

    def repair(self, found: Leaks) -> tuple[str, ...]:
        """Repair what was found; return the consumers whose claims were released."""
        deleted = frozenset(
            consumer
            for consumer, revision in found.intents.items()
            if self._each(f"intent {consumer} could not be given up", self._give_up, consumer, revision)
        )
        for orphans, reason in (
            (found.orphans, "its instance is nowhere any more"),
            (found.vacant, "the host has no port there any more"),
        ):
            for key, revision in orphans.items():
                self._each(f"{key} could not be deleted", self._delete, key, revision, reason)
        for key, belonging in found.ownerless.items():
            reason = f"there is no {belonging.owner}"
            compares = [absent(belonging.owner)]
            self._each(f"{key} could not be deleted", self._delete, key, belonging.mod_revision, reason, compares)
        for misfit in found.misfits:
            if misfit.operations:
                self._each(f"{misfit.kind} {misfit.subject} could not be put right", self._put_right, misfit)
        silent: set[str] = set()
        released = tuple(
            consumer
            for consumer in dict.fromkeys(question.consumer for question in found.questions)
            if self._each(f"claim {consumer} could not be released", self._release, consumer, found, deleted, silent)
        )
        wanting = (*found.unbacked, *found.short, *found.beyond)
        self._reclaimer.keep(wanting)
        for uuid in wanting:
            self._pause(PAUSE_S)
            outcome = self._each(f"instance {uuid} could not be given its claim again", self._reclaimer.reclaim, uuid)
            if outcome is Outcome.CLAIMED:
                log.info("instance %s has its claim again", uuid)
        return released

    def obey(self, found: Leaks) -> None:
        """Do what is done on an operator's word alone, and only for what two looks agree on.

        Raises:
            Unavailable: etcd or placement does not answer.
        """
        for uuid in found.beyond:
            what = f"instance {uuid} could not be given its claim again"
            self._each(what, self._reclaimer.reclaim, uuid, is_replacing=True)
        for provider in found.hostless:
            self.remove_hostless(provider)
        for provider in found.abandoned:
            self._each(f"what {provider} has told could not be deleted", self._forget, provider)

    def remove_hostless(self, provider: str) -> bool:
        """Remove a provider, and all below it, that is no host's and holds nothing; return whether that was done.

        A host that is away may come back as it: see `obey`.

        Raises:
            Unavailable: etcd or placement does not answer.
        """
        theirs = (keys.node(provider), keys.alive(provider), keys.assignments(provider))
        if any(self._store.count(key) for key in theirs):
            return False
        tree = [found.uuid for found in self._placement.providers(in_tree=provider)]
        if any(self._placement.provider_allocations(uuid) for uuid in tree):
            return False
        try:
            for uuid in sorted(tree, key=lambda uuid: uuid == provider):  # what is below it first
                self._guard()
                self._placement.delete_provider(uuid)
        except Unavailable:
            raise
        except CloudError as error:
            log.warning("%s", error)
            return False
        log.warning("removed provider %s: no host has it", provider)
        return True

    def _give_up(self, consumer: str, mod_revision: int) -> bool:
        """Delete an intent that nobody has written since the look; a uuid that a client chose is spent with it.

        Its claim may be released only after that, and only once: were the uuid launched with again, an
        auditor that slept before its release would take the new claim away.
        """
        key = keys.used_uuid(consumer)
        used = self._store.get(key, UsedUuid)
        compares = [absent(key) if used is None else unchanged(used)]
        operations: list[Op] = []
        if used is not None and not used.value.is_spent:
            operations.append(Put(key, structs.replace(used.value, is_spent=True)))
        return self._delete(
            keys.intent(consumer), mod_revision, "its writer has done nothing for a while", compares, operations
        )

    def _forget(self, provider: str) -> None:
        """Delete what a host told of itself that is no more: its copies, and its audit."""
        theirs = (keys.node(provider), keys.alive(provider))
        try:
            self._store.commit(
                [*map(absent, theirs), *self._guard()],
                [DeletePrefix(keys.copies(provider)), Delete(keys.audit(provider))],
            )
        except CompareFailed:
            return  # it is back
        log.warning("deleted what %s had told: no host has it", provider)

    def _put_right(self, misfit: Misfit) -> bool:
        """Put right what nobody has written since the look."""
        operations = list(misfit.operations)
        if misfit.instance_uuid is not None:
            says = f"the audit has put right {misfit.kind} {misfit.subject}"
            operations.append(self._events.record(INSTANCE, misfit.instance_uuid, "repaired", says))
        try:
            self._store.commit([*misfit.compares, *self._guard()], operations)
        except CompareFailed:
            return False
        log.warning("put right %s %s", misfit.kind, misfit.subject)
        return True

    def _release(self, consumer: str, found: Leaks, deleted: frozenset[str], silent: set[str]) -> bool:
        """Ask the hosts of one claim, and release it at once where they say that nothing is there.

        Args:
            deleted: the consumers whose intent was deleted just now.
            silent: hosts that did not answer, and are asked nothing more.
        """
        reading = Reading(self._reading_clock)
        # The looks, and the deletion of its intent, may be long ago: etcd may have been put back since.
        if any(self._store.count(key) for key in (keys.intent(consumer), keys.instance(consumer))):
            return False
        questions = tuple(question for question in found.questions if question.consumer == consumer)
        nothing_there = self._without_anything(questions, silent)
        if not releases(replace(found, questions=questions), deleted, nothing_there):
            return False
        if not self._placement.release(consumer, reading.holds(self._guard)):
            return False  # somebody else has
        log.warning("released claim %s: nobody held it", consumer)
        says = f"claim {consumer} was released: nobody held it"
        self._record(questions[-1].provider, "claim.released", says)
        return True

    def _delete(
        self,
        key: str,
        mod_revision: int,
        reason: str,
        compares: list[Compare] | None = None,
        operations: list[Op] | None = None,
    ) -> bool:
        """Delete a key that nobody has written since the look."""
        as_read = Versioned(key, None, mod_revision, mod_revision, 0)
        try:
            self._store.commit(
                [unchanged(as_read), *(compares or []), *self._guard()], [Delete(key), *(operations or [])]
            )
        except CompareFailed:
            return False
        log.warning("deleted %s: %s", key, reason)
        return True

    def _without_anything(self, questions: Iterable[Question], silent: set[str]) -> frozenset[Question]:
        """Return those of which their hosts say that nothing is there; take note of who is ``silent``."""
        found: set[Question] = set()
        questions = tuple(questions)
        # All of them together within the time that the reading is good for.
        timeout_s = min(self._answer_timeout_s, 0.8 * FRESH_S / max(1, len(questions)))
        for question in questions:
            if question.provider in silent:
                continue  # the look after this one asks it again
            asked = Operation(kind=PRESENCE, instance_uuid=question.consumer)
            answered = ask(self._store, question.provider, asked, timeout_s=timeout_s)
            if answered is None:
                silent.add(question.provider)
                log.info("host %s does not answer the audit within %g s", question.provider, timeout_s)
            elif answered.answer == NOTHING:
                found.add(question)
        return frozenset(found)

    def _record(self, provider: str, type_: str, message: str) -> None:
        """Keep it among the host's events: the object that it was about is no more."""
        try:
            self._store.commit(self._guard(), [self._events.record(HOST, provider, type_, message)])
        except NotLeading:
            raise
        except CloudError as error:
            log.info("it could not be recorded: %s", error)


def _audit(charge: Charge) -> Audit:
    return Audit(charge.store, charge.placement, charge.guard, charge.clock, events=charge.events, pause=charge.pause)


def _begin_short(charge: Charge) -> Callable[[], object]:
    audit = _audit(charge)
    return lambda: audit.run(is_full=False)


def _begin_full(charge: Charge) -> Callable[[], object]:
    audit = _audit(charge)
    next_s = charge.clock()
    has_looked = False

    def turn() -> None:
        nonlocal next_s, has_looked
        if charge.clock() < next_s:
            return
        audit.run(is_full=True)
        next_s = charge.clock() + (FULL_AUDIT_PERIOD_S if has_looked else FIRST_FULL_AUDITS_S)
        has_looked = True

    return turn


# On threads of their own, since they wait for hosts' answers and spare placement: neither keeps a finish
# waiting, nor the full look the intents.
AUDIT = Duty("audit", SHORT_AUDIT_PERIOD_S, _begin_short)
FULL_AUDIT = Duty("audit-all", SHORT_AUDIT_PERIOD_S, _begin_full)
