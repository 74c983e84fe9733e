"""Makes placement what ``/quotas/<namespace>`` says, in steps of which any may be the last of its process.

Setting the first limit of a namespace whose instances run:

1. the provider is made, with room for everything (`create`);
2. the key is written, *counting*. From now on every request compares it: one whose claim carries no
   rows is refused, and claims again with them;
3. each instance that was requested before is given its rows: in its document, then in its allocation
   (`Instance.claim` is what a placement that lost it is given back);
4. the totals become the limits, and the key says *held*.

Changing a limit rewrites the key, then the totals. Without limits the key is deleted, then the rows are
taken away, then the provider (`remove`).

Left by a death: a provider without key (after 1, or in the removal), or a key that counts (2, 3), or
totals that lag behind the key (4). `converge` and `remove` take up any of them; ``quota set`` runs them
at once, and the lead's duty after it.

Several may run at once. Every change of a document compares the quota's key; a change of an
allocation compares its generation, and is looked at again. Who wrote totals looks afterwards whether
the key is still the one they were made from.

Safe from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from msgspec import structs

from ecompute.cluster import keys, quotas
from ecompute.cluster.documents import Instance, Quota, QuotaPhase
from ecompute.cluster.errors import CompareFailed, Conflict, NotFound, Refused
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.failpoint import reach
from ecompute.cluster.store import Compare, Put, Store, Versioned, absent, unchanged
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

TRIES = 20
PERIOD_S = 60.0
FULL_EVERY = 10
"""Turns: each looks at quotas that count; every so many, at all, and at what no quota names."""
PAUSE_S = 0.25
_PAGE = 100

FAILPOINTS = ("quota.made", "quota.written", "quota.counted", "quota.row", "quota.limited", "quota.held")

log = logging.getLogger(__name__)


class QuotaKeeper:
    """Carries quotas out.

    Args:
        guard: what every transaction compares besides: a leader's term. Called before writes to
            placement as well.
        pause: called between two instances, to burden nobody.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        guard: Callable[[], list[Compare]] = list,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._placement = placement
        self._guard = guard
        self._pause = pause

    def create(self, quota: Quota) -> None:
        """Make the provider of a quota that is about to be written: with room for everything."""
        self._ensure(quota)
        reach("quota.made")

    def converge(self, namespace: str) -> Versioned[Quota] | None:
        """Make placement what the namespace's key says; return the key as it then was, None if there is none.

        Raises:
            Conflict: it keeps changing.
            Unavailable: etcd or placement does not answer; call again.
        """
        key = keys.quota(namespace)
        for _ in range(TRIES):
            quota = self._store.get(key, Quota)
            if quota is None:
                return None
            try:
                done = self._converge(quota)
            except CompareFailed:
                continue
            now = self._store.get(key, Quota)
            if now is not None and now.mod_revision == done.mod_revision:
                return done
        raise Conflict(f"the quota of {namespace} keeps changing", hint="try again")

    def _converge(self, quota: Versioned[Quota]) -> Versioned[Quota]:
        self._ensure(quota.value)
        if quota.value.phase is QuotaPhase.HELD:
            return quota
        self._count(quota)
        reach("quota.counted")
        held = structs.replace(quota.value, phase=QuotaPhase.HELD)
        self._ensure(held)
        reach("quota.limited")
        revision = self._store.commit([unchanged(quota), *self._guard()], [Put(quota.key, held)])
        reach("quota.held")
        return Versioned(quota.key, held, revision, quota.create_revision, 0)

    def _ensure(self, quota: Quota) -> None:
        """Make the provider what the quota says. While it counts, totals that are there are left: see the module."""
        self._guard()
        wanted = quotas.inventories(quota)
        self._placement.ensure_provider(quota.provider, quotas.provider_name(quota.namespace, quota.provider))
        is_counting = quota.phase is QuotaPhase.COUNTING
        self._placement.change_inventories(
            quota.provider, lambda found: found if is_counting and found.keys() == wanted.keys() else wanted
        )

    # --- rows ----------------------------------------------------------------------------------

    def _count(self, quota: Versioned[Quota]) -> None:
        """Give every instance of the namespace that holds something its rows.

        Raises:
            CompareFailed: the quota has changed.
        """
        provider = quota.value.provider
        counted = self._placement.provider_allocations(provider)
        for instance in self._instances(quota.value.namespace):
            rows = quotas.rows(quotas.totals_of(instance.value))
            if instance.value.claim and provider not in instance.value.claim:
                self._note(instance, provider, rows, unchanged(quota))
                reach("quota.row")
            if instance.value.uuid not in counted:
                self._place(instance.value.uuid, provider, rows)
                self._pause()

    def _instances(self, namespace: str) -> Iterator[Versioned[Instance]]:
        uuids = sorted({keys.last(key) for key in self._store.keys(keys.names(namespace, INSTANCE))[0]})
        for start in range(0, len(uuids), _PAGE):
            page = [keys.instance(uuid) for uuid in uuids[start : start + _PAGE]]
            yield from self._store.get_many(page, Instance).items

    def _note(self, instance: Versioned[Instance] | None, provider: str, rows: dict[str, int], holds: Compare) -> None:
        """Write into the instance's document what it is to hold of ``provider``: ``rows``, or nothing.

        Raises:
            CompareFailed: the quota has changed.
        """
        for _ in range(TRIES):
            if instance is None:
                return  # destroyed meanwhile
            value = instance.value
            claim = {name: amounts for name, amounts in value.claim.items() if name != provider}
            if rows:
                claim[provider] = rows
            if claim == value.claim:
                return
            try:
                self._store.commit(
                    [unchanged(instance), holds, *self._guard()],
                    [Put(instance.key, structs.replace(value, claim=claim))],
                )
            except CompareFailed as error:
                if instance.key not in error.keys:
                    raise
                instance = self._store.get(instance.key, Instance)
                continue
            return
        raise Conflict(f"instance {instance.value.uuid if instance else ''} keeps changing", hint="try again")

    def _place(self, uuid: str, provider: str, rows: dict[str, int]) -> None:
        """Let ``uuid`` hold ``rows`` of ``provider`` besides, or nothing of it, if it holds anything at all."""
        for _ in range(TRIES):
            held = self._placement.allocations(uuid)
            if not held or held.allocations.get(provider, {}) == rows:
                return
            wanted = {name: amounts for name, amounts in held.allocations.items() if name != provider}
            if rows:
                wanted[provider] = rows
            self._guard()
            try:
                self._placement.replace(uuid, wanted, held)
            except Conflict:
                continue
            return
        raise Conflict(f"what {uuid} holds keeps changing", hint="try again")

    # --- the end -------------------------------------------------------------------------------

    def remove(self, namespace: str, provider: str) -> bool:
        """Take away the rows of a provider that no quota names, and the provider; return whether it is gone.

        What holds a row and has no instance is a claim under way, which its request will not survive,
        or one that the audit will find: the provider stays for it.

        Raises:
            Unavailable: etcd or placement does not answer; call again.
        """
        key = keys.quota(namespace)
        quota = self._store.get(key, Quota)
        if quota is not None and quota.value.provider == provider:
            return False
        holds = absent(key) if quota is None else unchanged(quota)
        try:
            for instance in self._instances(namespace):
                if provider in instance.value.claim:
                    self._note(instance, provider, {}, holds)
            holders = sorted(self._placement.provider_allocations(provider))
            known = self._store.get_many([keys.instance(uuid) for uuid in holders], Instance).items
            for item in known:
                self._place(item.value.uuid, provider, {})
                self._pause()
            self._guard()
            self._placement.delete_provider(provider)
        except (CompareFailed, Refused) as error:
            log.info("the provider of a former quota of %s stays for now: %s", namespace, error)
            return False
        except NotFound:
            return True
        return True


class _Turn:
    """One term of the lead: what it saw without an owner twice is removed."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._keeper = QuotaKeeper(charge.store, charge.placement, charge.guard, self._pause)
        self._each = EachAlone()
        self._ownerless: frozenset[str] = frozenset()
        self._turns = 0

    def run(self) -> None:
        charge = self._charge
        is_full = self._turns % FULL_EVERY == 0
        # Placement first: the provider of a quota that is being made is there before its key.
        found = self._providers() if is_full else {}
        listed = charge.store.list(keys.QUOTAS, Quota).items
        self._turns += 1
        for item in listed:
            if is_full or item.value.phase is QuotaPhase.COUNTING:
                namespace = item.value.namespace
                self._each(f"the quota of {namespace} could not be carried out", self._keeper.converge, namespace)
                self._pause()
        if not is_full:
            return
        ownerless = frozenset(found.keys() - {item.value.provider for item in listed})
        for provider in sorted(ownerless & self._ownerless):
            namespace = found[provider]
            what = f"provider {provider} of a former quota of {namespace} could not be removed"
            if self._each(what, self._keeper.remove, namespace, provider):
                log.warning("removed provider %s: no quota of %s names it", provider, namespace)
        self._ownerless = ownerless

    def _pause(self) -> None:
        self._charge.pause(PAUSE_S)

    def _providers(self) -> dict[str, str]:
        """Return ``{provider: namespace}`` of all that were made for quotas."""
        return {
            provider.uuid: namespace
            for provider in self._charge.placement.providers()
            if (namespace := quotas.namespace_of(provider.name)) is not None
        }


QUOTAS = Duty("quotas", PERIOD_S, lambda charge: _Turn(charge).run)
"""Finishes what a `quota set` began and could not end."""
