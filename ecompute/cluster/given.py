"""What a host's provider has of traits and aggregates, and whose each is.

The daemon's are the traits of processor, accelerator and bridges, `closing.DISABLED`, and the aggregates of its
shards; operators' the traits that they give the host, and the aggregate of its zone. All others stay.
Two write them: the host, which knows all of it (`merge_traits`, `merge_aggregates`), and the operator's
tool, which has placement know at once what was said, since the host may be dead (`Said`).

Pure: no clock, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ecompute.cluster.closing import DISABLED
from ecompute.cluster.errors import InvalidInput, one_line
from ecompute.cluster.shards import aggregates_of, all_aggregates

PHYSNET = "CUSTOM_PHYSNET_"
"""How the trait begins of a host that has the bridge of a physical network."""
OUR_TRAITS = ("HW_CPU_X86_", "CUSTOM_VIRT_", PHYSNET)
"""How traits begin that the host itself says."""

_PHYSICAL = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)


def check_physical(name: str) -> str:
    """Return ``name``, if operators may call a bridge so.

    Raises:
        InvalidInput: no trait could say it, or two names would be one trait.
    """
    if len(name) > 63 or not _PHYSICAL.fullmatch(name):
        raise InvalidInput(
            f"{one_line(name, 80)!r} cannot be the name of a physical network",
            hint="use small letters, digits and single hyphens between them, at most 63, like lan or rack-2",
        )
    return name


def physnet_trait(name: str) -> str:
    """Return the trait of hosts that have the bridge that operators call ``name``."""
    return PHYSNET + check_physical(name).replace("-", "_").upper()


def physical_of(trait: str) -> str | None:
    """Return what operators call the bridge that ``trait`` is about; None: it is about something else."""
    return trait.removeprefix(PHYSNET).replace("_", "-").lower() if trait.startswith(PHYSNET) else None


@dataclass(frozen=True)
class Said:
    """What operators say of a host, as far as placement is to know it.

    Args:
        traits: what they gave it.
        former_traits: what they had given it, and took away.
        zone: the aggregate of its zone, or None.
        zones: the aggregates of all zones.
    """

    traits: frozenset[str] = frozenset()
    former_traits: frozenset[str] = frozenset()
    zone: str | None = None
    zones: frozenset[str] = frozenset()

    def with_traits(self, found: AbstractSet[str]) -> frozenset[str]:
        """Return the traits ``found`` as they are to be by this."""
        return frozenset((found - self.former_traits) | self.traits)

    def with_zone(self, found: AbstractSet[str]) -> frozenset[str]:
        """Return the aggregates ``found`` as they are to be by this."""
        return frozenset((found - self.zones) | ({self.zone} if self.zone is not None else set()))


def merge_traits(
    found: AbstractSet[str],
    measured: AbstractSet[str],
    known: AbstractSet[str],
    *,
    said: Said,
    is_hidden: bool = False,
) -> frozenset[str]:
    """Return all traits that the provider is to have.

    Args:
        found: what it has.
        measured: what the daemon says of processor, accelerator and bridges.
        known: the standard traits of this placement. An older one lacks some, and would refuse all
            of a set that names one of them.
        said: by operators.
        is_hidden: it is to be in no answer.
    """
    others = {trait for trait in found if not trait.startswith(OUR_TRAITS)}
    ours = {trait for trait in measured if trait.startswith("CUSTOM_") or trait in known}
    return (said.with_traits(others) | ours) - {DISABLED} | ({DISABLED} if is_hidden else set())


def merge_aggregates(found: AbstractSet[str], provider: str, said: Said) -> frozenset[str]:
    """Return all aggregates that the provider is to be in: others' as found, its shards and its zone."""
    return said.with_zone(found - all_aggregates()) | aggregates_of(provider)
