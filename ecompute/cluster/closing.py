"""Whether a host takes anything new, and what it is in placement that it does not.

`bar_of` is the one rule of who has closed it, by what it reports and what is said of it in etcd.

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
from dataclasses import dataclass
from typing import Any

import msgspec

from ecompute.cluster.documents import Admin, AdminState, Node
from ecompute.cluster.placement.documents import Inventory

VCPU = "VCPU"
MEMORY_MB = "MEMORY_MB"
DISK_GB = "DISK_GB"
CLASSES = frozenset({VCPU, MEMORY_MB, DISK_GB})
"""What every guest needs some of."""

DISABLED = "COMPUTE_STATUS_DISABLED"
"""A standard trait (os-traits)."""


@dataclass(frozen=True)
class Bar:
    """What keeps new instances off a host: ``word`` is one for a table, ``says`` stands behind the host's name."""

    word: str
    says: str


def bar_of(node: Node | None, admin: Admin | None) -> Bar | None:
    """Return what keeps new instances off a host; None: nothing does. Whether it answers is another question."""
    if node is None:
        return Bar("unknown", "has never registered in etcd")
    if node.hold is not None:
        return Bar("hold", f"is on hold: {node.hold}")
    if admin is None or admin.effective is AdminState.ACTIVE:
        return None if node.stopped is None else Bar("stopped", f"was stopped at {node.stopped}")
    said = {
        AdminState.LOST: f"is lost since {admin.lost_since}",
        AdminState.DRAINING: "is draining",
        AdminState.MAINTENANCE: "is in maintenance",
    }[admin.effective]
    return Bar(str(admin.effective), said + (f": {admin.reason}" if admin.reason else ""))


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
