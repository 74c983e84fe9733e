"""A namespace's limits as rows in placement: what each claim carries, and what the provider gives. Pure.

A namespace with a limit has a provider of its own, with the four classes of `CLASSES`. Every claim of
the namespace writes a row for each of them beside its host's rows, in the same write: placement lets
the sum be no more than the total. Where no limit is set there is neither provider nor row. A class
without a limit is counted as well, under a total that is never reached.

The provider is another one each time a namespace that had no limit is given one, so that whoever is
still at work on the former one cannot touch it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ecompute.cluster.documents import Instance, Quota, QuotaPhase
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import MAX_INT, Inventory

CLASS_PREFIX = "CUSTOM_QUOTA_"
CLASSES = {name: CLASS_PREFIX + name for name in ("VCPU", "MEMORY_MB", "DISK_GB", "INSTANCES")}
"""What may be limited, and the class that counts it."""

PROVIDER_PREFIX = "quota-"


def provider_name(namespace: str, provider: str) -> str:
    """Return what the provider is called in placement, where names are unique."""
    return f"{PROVIDER_PREFIX}{namespace}-{provider[:8]}"


def namespace_of(provider_name: str) -> str | None:
    """Return the namespace in the name of a quota's provider; None: it is the name of another thing."""
    if not provider_name.startswith(PROVIDER_PREFIX):
        return None
    namespace, _, tail = provider_name.removeprefix(PROVIDER_PREFIX).rpartition("-")
    return namespace if namespace and len(tail) == 8 else None


def rows(totals: Mapping[str, int]) -> dict[str, int]:
    """Return the rows of one instance.

    Args:
        totals: ``{class: amount}``, all that it asks for.
    """
    counted = {**totals, "INSTANCES": 1}
    return {ours: counted[name] for name, ours in CLASSES.items() if counted.get(name, 0) > 0}


def totals_of(instance: Instance) -> dict[str, int]:
    """Return what an instance asked for of what may be limited."""
    resources = instance.spec.resources
    return {"VCPU": resources.vcpus, "MEMORY_MB": resources.memory_mb, "DISK_GB": resources.disk_gb}


def inventories(quota: Quota) -> dict[str, Inventory]:
    """Return what the provider is to have: while it counts, room for everything."""
    limits = quota.limits if quota.phase is QuotaPhase.HELD else {}
    return {ours: _inventory(limits.get(name)) for name, ours in CLASSES.items()}


def _inventory(limit: int | None) -> Inventory:
    if limit is None:
        return Inventory(total=MAX_INT)
    # Placement has no total of zero.
    return Inventory(total=limit) if limit > 0 else Inventory(total=1, reserved=1)


def checked_limit(name: str, limit: int) -> int:
    """Return ``limit``.

    Raises:
        InvalidInput: it cannot be one.
    """
    if not 0 <= limit <= MAX_INT:
        raise InvalidInput(
            f"{limit} is no limit for {name}", hint=f"give a whole number from 0 to {MAX_INT}, or none for no limit"
        )
    return limit
