"""Takes away what is left of groups in placement: classes of groups that are no more, and empty providers.

A class is taken from a place where no claim holds it, if its group is gone, or is together at another
place; placement refuses to take what is held. A launch that has prepared a place and not claimed yet is
refused there, and prepares again. Providers that carry no class are taken after two looks, so as not to
be in the way of a launch that has just made one.

Reads all hosts' trees with one question, and one provider a zone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ecompute.cluster import groups, keys
from ecompute.cluster.documents import Group, Zone
from ecompute.cluster.errors import NotFound, Refused
from ecompute.cluster.upkeep.duties import Charge, Duty

PERIOD_S = 600.0
PAUSE_S = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Carrier:
    """A provider that was made for groups, as it was seen."""

    place: str
    """The host's provider, or the zone's name."""
    used: Mapping[str, int]
    """``{class: how many hold it}``"""


def ownerless(
    carriers: Mapping[str, Carrier], uuids: Iterable[str], placed: Mapping[str, Group]
) -> dict[str, set[str]]:
    """Return ``{provider: the classes that may be taken from it}``. Pure.

    Args:
        carriers: by provider; read before the rest.
        uuids: of all groups there are.
        placed: by uuid, the groups whose members are together.
    """
    known = set(uuids)
    found: dict[str, set[str]] = {}
    for provider, carrier in carriers.items():
        for name, used in carrier.used.items():
            uuid = groups.group_of(name)
            if uuid is None or used:
                continue
            is_elsewhere = groups.is_together(name) and uuid in placed and placed[uuid].place != carrier.place
            if uuid not in known or is_elsewhere:
                found.setdefault(provider, set()).add(name)
    return found


class _Turn:
    """One term of the lead."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._empty: frozenset[str] = frozenset()

    def run(self) -> None:
        charge, placement = self._charge, self._charge.placement
        carriers = {**self._of_hosts(), **self._of_zones()}
        uuids = [keys.last(key) for key in charge.store.keys(keys.GROUPS)[0] if len(keys.parts(key)) == 2]
        together = {
            uuid
            for carrier in carriers.values()
            for name in carrier.used
            if groups.is_together(name) and (uuid := groups.group_of(name)) is not None
        }
        placed = charge.store.get_many([keys.group(uuid) for uuid in sorted(together)], Group).items
        taken = ownerless(carriers, uuids, {item.value.uuid: item.value for item in placed})
        for provider, names in sorted(taken.items()):
            self._take(provider, names)
        self._remove_classes(set(uuids))
        hosts = {groups.provider_of_host(carrier.place) for carrier in carriers.values()}
        empty = frozenset(provider for provider, carrier in carriers.items() if not carrier.used and provider in hosts)
        for provider in sorted(empty & self._empty):
            charge.pause(PAUSE_S)
            try:
                placement.delete_provider(provider)
            except Refused as error:
                log.info("%s", error)
        self._empty = empty

    def _of_hosts(self) -> dict[str, Carrier]:
        trees = self._charge.placement.trees(count=self._charge.store.count(keys.NODES))
        return {
            provider: Carrier(summary.parent_provider_uuid, {n: use.used for n, use in summary.resources.items()})
            for provider, summary in trees.items()
            if summary.parent_provider_uuid is not None
            and provider == groups.provider_of_host(summary.parent_provider_uuid)
        }

    def _of_zones(self) -> dict[str, Carrier]:
        placement = self._charge.placement
        found = {}
        for zone in self._charge.store.list(keys.ZONES, Zone).items:
            try:
                found[zone.value.provider] = Carrier(zone.value.name, placement.usages(zone.value.provider))
            except NotFound:
                continue  # made at first use
            self._charge.pause(PAUSE_S)
        return found

    def _take(self, provider: str, names: set[str]) -> None:
        self._charge.pause(PAUSE_S)
        try:
            self._charge.placement.change_inventories(
                provider, lambda found: {name: have for name, have in found.items() if name not in names}
            )
        except NotFound:
            return
        except Refused as error:
            log.info("%s", error)
            return
        log.info("took %d classes of former groups from provider %s", len(names), provider)

    def _remove_classes(self, uuids: set[str]) -> None:
        placement = self._charge.placement
        for prefix in groups.PREFIXES:
            for name in placement.classes(prefix):
                if groups.group_of(name) not in uuids:
                    self._charge.pause(PAUSE_S)
                    try:
                        placement.delete_class(name)
                    except Refused as error:
                        log.info("%s", error)


GROUPS = Duty("groups", PERIOD_S, lambda charge: _Turn(charge).run)
"""Takes away what former groups left in placement."""
