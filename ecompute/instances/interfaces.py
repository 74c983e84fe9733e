"""Which interfaces a domain lacks, and which it has that it is not to have. Pure.

An interface is told by its tap, whose name is made of its uuid. What is not ours (taps of other names) is
left, and so is the interface on the host's own bridge (``bridge`` in the configuration), which comes with
the domain's definition and goes with it.

Any thread may call it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID, uuid5

from ecompute.hypervisor.domain import FoundInterface, TapPlan
from ecompute.network.names import TAP_PREFIX, tap_name


@dataclass(frozen=True)
class Difference:
    missing: tuple[TapPlan, ...] = ()
    surplus: tuple[FoundInterface, ...] = ()

    @property
    def is_mac_taken(self) -> bool:
        """Whether one that is not to be there has the MAC of one that is missing."""
        return bool({one.mac for one in self.missing} & {one.mac for one in self.surplus})


def lan_uuid(instance_uuid: str, bridge: str) -> str:
    """Return the uuid of an instance's interface on a bridge of the host's own."""
    return str(uuid5(UUID(instance_uuid), bridge))


def difference(instance_uuid: str, wanted: Collection[TapPlan], found: Collection[FoundInterface]) -> Difference:
    """Compare the interfaces of an instance's domain with those that its assignment names.

    Args:
        wanted: of the assignment, without the one on the host's own bridge.
    """
    taps = {one.tap for one in wanted}
    there = {one.tap for one in found}
    surplus = (
        one
        for one in found
        if one.tap.startswith(TAP_PREFIX)
        and one.tap not in taps
        and one.tap != tap_name(lan_uuid(instance_uuid, one.bridge))
    )
    return Difference(
        missing=tuple(one for one in wanted if one.tap not in there),
        surplus=tuple(sorted(surplus, key=lambda one: one.tap)),
    )
