"""Who said no to a claim: the host, so that the next one may be tried, or a quota, so that none need be.

Placement answers both with 409 and the same code, and its message is for people. What decides is
the claim itself (which of its providers belong to the candidate, and which were set beside them)
and the inventories and usages of those providers.

Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ecompute.cluster.placement.documents import Allocations, Inventory

Scope = Literal["host", "quota"]


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider has, and how much of it is taken."""

    inventories: Mapping[str, Inventory]
    usages: Mapping[str, int]

    def takes(self, resources: Mapping[str, int]) -> bool:
        return all(
            (inventory := self.inventories.get(name)) is not None
            and inventory.takes(amount, used=self.usages.get(name, 0))
            for name, amount in resources.items()
        )


def beside_the_host(allocations: Allocations, mappings: Mapping[str, list[str]]) -> frozenset[str]:
    """Return the providers whose refusal no other host can mend: quotas and groups.

    Placement names every provider of a candidate in its ``mappings``: the host, its children, what
    shares disk with it. A row that was set beside them is on none of those. Without mappings, the
    provider that serves VCPU is the host.
    """
    of_the_candidate = {provider for providers in mappings.values() for provider in providers}
    if not of_the_candidate:
        of_the_candidate = {provider for provider, resources in allocations.items() if "VCPU" in resources}
    if not of_the_candidate:
        return frozenset()
    return frozenset(allocations) - of_the_candidate


def scope_of(allocations: Allocations, beside: frozenset[str], rooms: Mapping[str, Room | None]) -> Scope | None:
    """Return who refuses ``allocations`` now; None: nobody does any more, it may be sent again.

    Args:
        allocations: the claim.
        beside: the providers in it that are not of the host.
        rooms: every provider in it; None for one that is gone.
    """
    refusing = {
        provider
        for provider, resources in allocations.items()
        if (room := rooms[provider]) is None or not room.takes(resources)
    }
    if refusing & beside:
        return "quota"
    return "host" if refusing else None
