"""Gives an instance back what placement has lost of its claim: it holds all that `Instance.claim` says, or as before.

Placement may be emptied or set back while guests run. Their hosts register again and say how many of
their guests have no claim (`Node.unclaimed`), and the audit finds the others. The room is the guest's,
who uses it already; what is claimed again is what the request wrote down, with the rows beside the host
(quota, group), whose providers and classes are made anew where they are gone.

No intent is written: what a death leaves is a claim of an instance, which is right, or, where that was
destroyed in the same moment, one of nobody, which the audit finds and asks its host about. A release
never follows a claim here: etcd alone is no reason for one.

What an instance holds beyond its claim is left to it, and told: another version may be moving it. On an
operator's word it is replaced by the claim.

An instance that is being destroyed, or that failed, is left alone; one that turns so between the look
and the claim has its claim released by its finish, or by the audit.

Safe from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from ecompute.cluster import groups, keys, quotas
from ecompute.cluster.claims import INSTANCE_CONSUMER
from ecompute.cluster.documents import Assignment, Instance, Node, Policy, Quota, Role, State, Zone
from ecompute.cluster.errors import CloudError, CompareFailed, InvalidInput, NotFound, OutOfDate, Refused, Unavailable
from ecompute.cluster.events import INSTANCE, Events
from ecompute.cluster.freshness import Reading
from ecompute.cluster.store import Compare, Store, Versioned, clock_s, unchanged
from ecompute.cluster.upkeep.decide import Unlike, unlike
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone

if TYPE_CHECKING:
    from ecompute.cluster.placement import ConsumerAllocations, Inventory, Placement

PERIOD_S = 30.0
PAUSE_S = 0.25
"""Between two instances: about four requests a second."""
WRITER = "upkeep"
"""Whose claim it is, for people."""

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    NOT_WANTED = "not wanted"
    """There is no such instance, or it is to hold nothing."""
    HELD = "held"
    """Placement knows its claim, and nothing else of it."""
    UNKNOWN = "unknown"
    """Its document does not say what was claimed."""
    BEYOND = "beyond"
    """It holds what was not claimed for it: an operator's matter."""
    CLAIMED = "claimed"
    REFUSED = "refused"
    """There is no room for it any more: an operator's matter. Its guest is left alone."""


class Reclaimer:
    """Claims again for one upkeeper.

    Args:
        guard: what every transaction compares; also called right before a write to placement.
        clock: see `Reading`.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        events: Events,
        guard: Callable[[], list[Compare]],
        clock: Callable[[], float] = clock_s,
    ) -> None:
        self._store = store
        self._placement = placement
        self._events = events
        self._guard = guard
        self._clock = clock
        self._told: set[str] = set()
        """Of which it was said already that there is no room."""

    def reclaim(self, uuid: str, *, is_replacing: bool = False) -> Outcome:
        """Claim again what instance ``uuid`` is to hold, if it holds nothing or less.

        Args:
            is_replacing: also take from it what it holds beyond.

        Raises:
            OutOfDate: it took too long; call again.
            Unavailable: etcd or placement does not answer; call again.
        """
        reading = Reading(self._clock)
        instance = self._store.get(keys.instance(uuid), Instance)
        if instance is None or instance.value.state is not State.INITIAL:
            return Outcome.NOT_WANTED
        held = self._placement.allocations(uuid)
        claim = instance.value.claim
        how = unlike(claim, held.allocations) if claim and held else None
        if held and how is None:
            self._told.discard(uuid)
            return Outcome.HELD
        if not claim:
            self._tell(instance, "claim.lost", "placement has lost its claim, and what was claimed is not written down")
            return Outcome.UNKNOWN
        if how is Unlike.BEYOND and not is_replacing:
            self._tell(
                instance,
                "claim.unlike",
                "it holds what was not claimed for it; once it is known why: eschedule audit --repair",
            )
            return Outcome.BEYOND
        lost = "a part of its claim" if held else "its claim"
        try:
            self._claim(instance.value, held, reading)
        except (OutOfDate, Unavailable):
            raise
        except CloudError as error:
            self._tell(instance, "claim.lost", f"placement has lost {lost}, and refuses it now: {error}")
            return Outcome.REFUSED
        self._told.discard(uuid)
        text = f"placement had lost {lost}; it was claimed again"
        if how is Unlike.BEYOND:
            text = "it held what was not claimed for it; it holds its claim again"
        self._tell(instance, "claim.restored", text)
        self._told.discard(uuid)
        return Outcome.CLAIMED

    def keep(self, uuids: Iterable[str]) -> None:
        """Forget what was said of all others: they hold something again, or are no more."""
        self._told.intersection_update(uuids)

    def _claim(self, instance: Instance, held: ConsumerAllocations, reading: Reading) -> None:
        for provider, amounts in instance.claim.items():
            if provider != instance.provider:
                self._make_beside(instance, provider, set(amounts))
        self._guard()  # placement cannot compare it: at least it held a moment ago
        if held:
            reading.check()  # what it gives back of it is a release
            self._placement.replace(instance.uuid, instance.claim, held)
            return
        self._placement.claim(
            instance.uuid,
            instance.claim,
            instance.mappings,
            project_id=instance.namespace,
            user_id=WRITER,
            consumer_type=INSTANCE_CONSUMER,
        )

    def _make_beside(self, instance: Instance, provider: str, classes: set[str]) -> None:
        """Make what carries the rows of quota and group, where it is gone. What a host shares is not ours to make."""
        missing = self._missing(provider, classes)
        if not missing:
            return
        made: dict[str, Inventory] = {}
        name: str | None = None
        parent: str | None = None
        quota = self._store.get(keys.quota(instance.namespace), Quota)
        if quota is not None and quota.value.provider == provider:
            made, name = quotas.inventories(quota.value), quotas.provider_name(instance.namespace, provider)
        elif classes and all(groups.group_of(c) is not None for c in classes):
            made = {
                c: groups.inventory_of(Policy.AFFINITY if groups.is_together(c) else Policy.ANTI_AFFINITY)
                for c in classes
            }
            if provider == groups.provider_of_host(instance.provider):
                name, parent = groups.name_of_host(instance.provider), instance.provider
            else:
                zones = [item.value for item in self._store.list(keys.ZONES, Zone).items]
                name = next((groups.name_of_zone(zone.name) for zone in zones if zone.provider == provider), None)
        if name is None:
            raise Refused(f"provider {provider}, which it was claimed on, is gone", hint="it is to be made again first")
        self._guard()
        self._placement.ensure_provider(provider, name, parent=parent)
        self._placement.change_inventories(
            provider, lambda found: {**found, **{n: made[n] for n in made if n not in found}}
        )

    def _missing(self, provider: str, classes: set[str]) -> set[str]:
        try:
            return classes - self._placement.inventories(provider).inventories.keys()
        except NotFound:
            return classes

    def _tell(self, instance: Versioned[Instance], type_: str, message: str) -> None:
        """Record what was found, once as long as it stays so."""
        uuid = instance.value.uuid
        if uuid in self._told:
            return
        self._told.add(uuid)
        log.warning("instance %s: %s", uuid, message)
        try:
            self._store.commit(
                [unchanged(instance), *self._guard()], [self._events.record(INSTANCE, uuid, type_, message)]
            )
        except (CompareFailed, InvalidInput):
            self._told.discard(uuid)  # it was changed just now; it is looked at again


def _begin(charge: Charge) -> Callable[[], object]:
    reclaimer = Reclaimer(charge.store, charge.placement, charge.events, charge.guard)
    each = EachAlone()

    def turn() -> None:
        """Claim again for the guests of hosts that say so: together with placement's answer, two looks."""
        looked: set[str] = set()
        for node in charge.store.each(keys.NODES, Node):
            if not node.value.unclaimed or node.value.hold is not None:
                continue
            for item in charge.store.list(keys.assignments(node.value.provider), Assignment).items:
                if item.value.role is Role.RUN:
                    charge.pause(PAUSE_S)
                    uuid = item.value.uuid
                    looked.add(uuid)
                    each(f"instance {uuid} could not be given its claim again", reclaimer.reclaim, uuid)
        reclaimer.keep(looked)

    return turn


CLAIMS = Duty("claims", PERIOD_S, _begin)
"""Gives the guests of an emptied placement their claims back, soon; the audit finds the rest."""
