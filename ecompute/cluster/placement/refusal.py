"""Who said no to claims: a host, so that the next one may be tried, or a quota, so that none need be.

Placement answers both with 409 and the same code, and its message is for people. What decides is
what the inventories and usages of the claims' providers leave room for, and which of these providers
the caller has named as those whose refusal no other host can mend.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

import msgspec

from ecompute.cluster.placement.documents import Allocations, Inventory

Scope = Literal["host", "quota"]

Demand = Mapping[str, Mapping[str, Sequence[int]]]
"""``{provider: {class: one amount a claim}}``"""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider has, and how much of it is taken."""

    inventories: Mapping[str, Inventory]
    usages: Mapping[str, int]

    def takes(self, amounts: Mapping[str, Sequence[int]]) -> bool:
        """Whether all ``amounts`` would be given, each as a claim of its own."""
        return all(self._takes_all(name, several) for name, several in amounts.items())

    def _takes_all(self, name: str, amounts: Sequence[int]) -> bool:
        inventory = self.inventories.get(name)
        if inventory is None:
            return False
        used = self.usages.get(name, 0)
        for amount in amounts:
            if not inventory.takes(amount, used=used):
                return False
            used += amount
        return True


def demand_of(claims: Iterable[Allocations]) -> dict[str, dict[str, list[int]]]:
    """Return what ``claims`` want together of each provider."""
    demand: dict[str, dict[str, list[int]]] = {}
    for allocations in claims:
        for provider, resources in allocations.items():
            for name, amount in resources.items():
                demand.setdefault(provider, {}).setdefault(name, []).append(amount)
    return demand


def refusing(demand: Demand, rooms: Mapping[str, Room | None]) -> frozenset[str]:
    """Return which providers have no room for their part of ``demand``.

    Args:
        rooms: of the providers that are asked about; None for one that is gone.
    """
    return frozenset(
        provider for provider, room in rooms.items() if room is None or not room.takes(demand.get(provider, {}))
    )


def scope_of(refusing: AbstractSet[str], stop: AbstractSet[str]) -> Scope | None:
    """Return what the refusal of ``refusing`` means; None: nobody refuses any more, it may be sent again.

    Args:
        refusing: the providers that have no room.
        stop: those whose refusal ends the launch.
    """
    if refusing & stop:
        return "quota"
    return "host" if refusing else None


def ask_first(demand: Demand, stop: AbstractSet[str], said: str) -> list[str]:
    """Return the providers of ``demand`` in the order in which they should be looked at.

    Those that placement's words name are the likeliest, and with those of ``stop`` they come first,
    as one who both refuse stops. The words save reads, and decide nothing.
    """
    return sorted(demand, key=lambda provider: (provider not in said and provider not in stop, provider))
