"""Limits of namespaces: shown with their use, set, and taken away.

What setting one means for instances that run is `ecompute.cluster.upkeep.quotas`. Safe from several
threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from msgspec import structs

from ecompute.cluster import keys, quotas
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import Quota, QuotaPhase
from ecompute.cluster.errors import CompareFailed, Conflict, NotFound
from ecompute.cluster.failpoint import reach
from ecompute.cluster.store import Delete, Put, Versioned, absent, unchanged
from ecompute.cluster.upkeep.quotas import QuotaKeeper
from eschedule.cloud.half_done import half_done

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

TRIES = 20


@dataclass(frozen=True)
class QuotaView:
    """The limits of a namespace and what is used of them. Without a limit nothing is counted."""

    namespace: str
    quota: Quota | None
    used: Mapping[str, int]

    def limit(self, name: str) -> int | None:
        return None if self.quota is None else self.quota.limits.get(name)

    @property
    def phase(self) -> QuotaPhase | None:
        return None if self.quota is None else self.quota.phase


class Quotas:
    """The quotas of a cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._store = cloud.store

    def view(self, namespace: str) -> QuotaView:
        """Return the limits and the use of ``namespace``."""
        found = self._store.get(keys.quota(namespace), Quota)
        return self._view(namespace, None if found is None else found.value)

    def all(self) -> list[QuotaView]:
        """Return every namespace that has a limit."""
        return [self._view(item.value.namespace, item.value) for item in self._store.list(keys.QUOTAS, Quota).items]

    def namespaces(self) -> list[str]:
        """Return the namespaces that have a limit."""
        return [keys.last(key) for key in self._store.keys(keys.QUOTAS)[0]]

    def _view(self, namespace: str, quota: Quota | None) -> QuotaView:
        return QuotaView(namespace, quota, {} if quota is None else used_of(self._cloud, quota))

    def set(
        self,
        namespace: str,
        change: Mapping[str, int | None],
        on_step: Callable[[str], None] = lambda text: None,
    ) -> QuotaView:
        """Change the limits of ``namespace``, and return once they hold.

        Args:
            change: ``{name: limit}``, None for no limit; what is not named stays.

        Raises:
            InvalidInput: a limit cannot be one.
            Conflict: somebody else is changing them too.
            Unavailable: what was begun is finished by the next call, or by the lead; that of placement says
                what took effect.
        """
        checked = {name: None if limit is None else quotas.checked_limit(name, limit) for name, limit in change.items()}
        keeper = QuotaKeeper(self._store, self._cloud.placement)
        for _ in range(TRIES):
            found = self._store.get(keys.quota(namespace), Quota)
            limits = {} if found is None else dict(found.value.limits)
            limits |= {name: limit for name, limit in checked.items() if limit is not None}
            limits = {name: limit for name, limit in limits.items() if checked.get(name, limit) is not None}
            try:
                if not limits:
                    return self._remove(namespace, found, keeper, on_step)
                self._write(namespace, found, limits, keeper)
            except CompareFailed:
                continue
            on_step("counting what is there already")
            with half_done(
                f"the limits of {namespace} are written",
                "they hold once the lead, or this command again, has told placement",
            ):
                keeper.converge(namespace)
            with half_done(f"the limits of {namespace} hold", "what is used of them cannot be shown"):
                return self.view(namespace)
        raise Conflict(f"the quota of {namespace} keeps changing", hint="try again")

    def _write(
        self, namespace: str, found: Versioned[Quota] | None, limits: dict[str, int], keeper: QuotaKeeper
    ) -> None:
        if found is not None:
            if found.value.limits != limits:
                self._store.commit([unchanged(found)], [Put(found.key, structs.replace(found.value, limits=limits))])
            return
        incarnation = incarnation_of(self._store)
        quota = Quota(namespace=namespace, provider=str(uuid4()), phase=QuotaPhase.COUNTING, limits=limits)
        with half_done(f"namespace {namespace} still has no limit", "say it again when placement answers"):
            keeper.create(quota)
        key = keys.quota(namespace)
        try:
            self._store.commit([absent(key), unchanged(incarnation)], [Put(key, quota)])
        except CompareFailed:
            keeper.remove(namespace, quota.provider)
            raise
        reach("quota.written")

    def _remove(
        self,
        namespace: str,
        found: Versioned[Quota] | None,
        keeper: QuotaKeeper,
        on_step: Callable[[str], None],
    ) -> QuotaView:
        if found is not None:
            self._store.commit([unchanged(found)], [Delete(found.key)])
            on_step("taking the rows away")
            with half_done(
                f"namespace {namespace} has no limit any more",
                "what counted them in placement is taken away by the lead, or by this command again",
            ):
                keeper.remove(namespace, found.value.provider)
        return QuotaView(namespace, None, {})


def used_of(cloud: Cloud, quota: Quota) -> dict[str, int]:
    """Return ``{name: amount}`` that claims hold of ``quota``, empty while placement does not know it."""
    try:
        usages = cloud.placement.usages(quota.provider)
    except NotFound:
        return {}
    return {name: usages.get(ours, 0) for name, ours in quotas.CLASSES.items()}
