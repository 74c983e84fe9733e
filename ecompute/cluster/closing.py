"""What it is in placement that a host takes nothing new, whoever says so.

A host that drains, is in maintenance, lost, on hold or only starting is *closed* by two things:

- the trait `DISABLED`, which every question for candidates forbids, keeps it out of answers;
- ``reserved = total`` for what every guest needs makes placement refuse claims from older answers.
  Guests keep what they hold, and may still shrink or leave.

Neither stops a claim that was taken a moment before. Therefore ``/admin/<provider>`` is rewritten
*first*: every request compares it, and one that had read the old key fails. Whoever closes a host
(the operator's tool, the lead, the host itself) does so in that order: `/admin`, trait, reserve. If
it dies between two of them, the host's own keeper does the rest, and for a host that is dead, the lead.

Only the host opens itself.

Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from ecompute.cluster.documents import Admin
from ecompute.cluster.placement.documents import Inventory

VCPU = "VCPU"
MEMORY_MB = "MEMORY_MB"
DISK_GB = "DISK_GB"
CLASSES = frozenset({VCPU, MEMORY_MB, DISK_GB})
"""What every guest needs some of."""

DISABLED = "COMPUTE_STATUS_DISABLED"
"""A standard trait (os-traits)."""


def closed(inventories: Mapping[str, Inventory]) -> dict[str, Inventory]:
    """Return ``inventories`` with all reserved that a guest needs; others stay as they are."""
    return {
        name: msgspec.structs.replace(item, reserved=item.total) if name in CLASSES else item
        for name, item in inventories.items()
    }


def closed_traits(traits: AbstractSet[str]) -> frozenset[str]:
    """Return ``traits`` with the one that keeps a host out of answers."""
    return frozenset(traits | {DISABLED})


def said(admin: Admin, **changes: Any) -> Admin:
    """Return ``admin`` with ``changes``, counting one turn more where its effective state is another.

    By the turn a host that was away finds that it was closed meanwhile, though it is active again.
    """
    after = msgspec.structs.replace(admin, **changes)
    return after if after.effective is admin.effective else msgspec.structs.replace(after, turn=admin.turn + 1)
