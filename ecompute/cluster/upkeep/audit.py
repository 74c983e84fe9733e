"""Finds what nobody holds any more: intents without a request, claims without an instance.

What is a leak is decided in `decide.leaks`, from two looks of the same auditor; here the looks are
taken and the decisions carried out. A look reads placement first and etcd after it, so that a claim
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

from ecompute.cluster import keys
from ecompute.cluster.asking import NOTHING, PRESENCE, ask
from ecompute.cluster.documents import Alive, Assignment, Instance, Intent, Node, Operation, Seen
from ecompute.cluster.errors import CompareFailed, NotFound
from ecompute.cluster.store import Compare, Delete, Store, Versioned, unchanged
from ecompute.cluster.upkeep.decide import Held, HostLook, Leaks, Look, Question, keep, leaks, releases

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

ANSWER_TIMEOUT_S = 20.0

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
        now = self._look(is_full=is_full)
        before = self._before[is_full]
        found = leaks(before, now)
        self._before[is_full] = keep(before, now)
        for consumer in found.foreign:
            log.info("consumer %s in placement is not of a type of ours; it is left alone", consumer)
        for consumer in found.stranded:
            log.warning("claim %s belongs to nobody, and its host cannot say whether it is empty", consumer)
        return self._repair(found)

    def _repair(self, found: Leaks) -> tuple[str, ...]:
        deleted = frozenset(
            consumer for consumer, revision in found.intents.items() if self._delete(consumer, revision)
        )
        nothing_there = frozenset(question for question in found.questions if self._is_nothing_there(question))
        released = releases(found, deleted, nothing_there)
        for consumer in released:
            self._placement.release(consumer)
            log.warning("released claim %s: nobody held it", consumer)
        return released

    def _delete(self, consumer: str, mod_revision: int) -> bool:
        """Delete a stale intent; its writer, if it sleeps, cannot write its request any more."""
        key = keys.intent(consumer)
        try:
            self._store.commit(
                [unchanged(Versioned(key, None, mod_revision, mod_revision, 0)), *self._guard()], [Delete(key)]
            )
        except CompareFailed:
            return False
        log.warning("gave up intent %s: its writer has done nothing for a while", consumer)
        return True

    def _is_nothing_there(self, question: Question) -> bool:
        asked = Operation(kind=PRESENCE, instance_uuid=question.consumer)
        answered = ask(self._store, question.provider, asked, timeout_s=ANSWER_TIMEOUT_S)
        return answered is not None and answered.answer == NOTHING

    def _look(self, *, is_full: bool) -> Look:
        began_s = self._clock()
        if is_full:
            allocations = self._all_allocations()
        else:
            stale = [keys.last(key) for key in self._store.keys(keys.INTENTS)[0]]
            allocations = self._allocations_of(stale)
        intents = {keys.last(item.key): item.mod_revision for item in self._store.list(keys.INTENTS, Intent).items}
        if is_full:
            instances = frozenset(keys.last(key) for key in self._store.keys(keys.INSTANCES)[0])
        else:
            wanted = [keys.instance(consumer) for consumer in allocations]
            instances = frozenset(keys.last(i.key) for i in self._store.get_many(wanted, Instance).items)
        providers = {provider for held in allocations.values() for provider in held.providers}
        unclaimed = allocations.keys() - instances
        return Look(
            began_s=began_s,
            ended_s=self._clock(),
            allocations=allocations,
            intents=intents,
            instances=instances,
            hosts=self._hosts(providers if unclaimed else set(), unclaimed),
        )

    def _all_allocations(self) -> dict[str, Held]:
        consumers: set[str] = set()
        for provider in self._placement.providers():
            try:
                consumers |= set(self._placement.provider_allocations(provider.uuid))
            except NotFound:
                continue  # removed meanwhile
        instances = {keys.last(key) for key in self._store.keys(keys.INSTANCES)[0]}
        # What has an instance is no leak: one look at each of the others tells its type.
        return self._allocations_of(sorted(consumers - instances))

    def _allocations_of(self, consumers: list[str]) -> dict[str, Held]:
        held = {}
        for consumer in consumers:
            found = self._placement.allocations(consumer)
            if found.allocations:
                held[consumer] = Held(frozenset(found.allocations), found.consumer_type or "")
        return held

    def _hosts(self, providers: set[str], consumers: set[str]) -> dict[str, HostLook]:
        hosts = {}
        for provider in sorted(providers):
            alive = self._store.get(keys.alive(provider), Alive)
            node = self._store.get(keys.node(provider), Node)
            assigned = self._store.get_many([keys.assignment(provider, c) for c in sorted(consumers)], Assignment)
            reported = self._store.get_many([keys.seen(provider, c) for c in sorted(consumers)], Seen)
            hosts[provider] = HostLook(
                is_alive=alive is not None,
                is_on_hold=node is None or node.value.hold is not None,
                guests=frozenset(item.value.uuid for item in assigned.items)
                | frozenset(item.value.uuid for item in reported.items if not item.value.is_gone),
            )
        return hosts
