"""Whether a host takes new instances, from all that speaks for and against it. Pure.

Only the host opens itself, and only when

- it is not on hold, and has gone through everything once since it started;
- placement knows the claims of all its guests (an emptied placement would give their room away);
- operators and the lead say that it is active;
- everything that it was told to remove is gone (what was force-deleted while it was lost has given its room back).

Once open it stays so until one of these ends: what it is told to remove later is normal work.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ecompute.cluster.documents import AdminState


class Door(StrEnum):
    """How a host's provider stands in placement."""

    OPEN = "open"
    HIDDEN = "hidden"
    """In no answer, but its capacity is there: the claims of its own guests are put back."""
    CLOSED = "closed"
    """In no answer, and no claim passes. See `ecompute.cluster.closing`."""


@dataclass(frozen=True)
class Facts:
    """What is known when it is decided.

    Args:
        hold: why the host trusts nothing that etcd says, or None.
        state: what operators and the lead say; None: it cannot be read.
        has_converged: everything was gone through since the start.
        is_open: it was open, and neither operators nor the lead have closed it since.
        unclaimed: its guests of whose claims placement knows nothing.
        unremoved: what it was told to remove and has not yet.
    """

    hold: str | None = None
    state: AdminState | None = AdminState.ACTIVE
    has_converged: bool = True
    is_open: bool = False
    unclaimed: int = 0
    unremoved: int = 0


@dataclass(frozen=True)
class Standing:
    """``reason``: why it is not open, where that is the host's own; ``is_waiting``: for what nobody tells it of."""

    door: Door
    reason: str | None = None
    is_waiting: bool = False


def standing(facts: Facts) -> Standing:
    """Return how the host is to stand. Hidden comes before what operators say: the claims of a
    drained host's guests are to be put back too, and its ``/admin`` keeps everything else off."""
    if facts.hold is not None:
        return Standing(Door.CLOSED, "it is on hold")
    if facts.state is None:
        return Standing(Door.CLOSED, "what operators say of it cannot be read", is_waiting=True)
    if not (facts.is_open or facts.has_converged):
        return Standing(Door.CLOSED, "it goes through its instances" if facts.state is AdminState.ACTIVE else None)
    if facts.unclaimed:
        return Standing(
            Door.HIDDEN, f"placement has lost the claims of {_count(facts.unclaimed, 'instance')}", is_waiting=True
        )
    if facts.state is not AdminState.ACTIVE:
        return Standing(Door.CLOSED)
    if not facts.is_open and facts.unremoved:
        return Standing(Door.CLOSED, f"{_count(facts.unremoved, 'removal')} not done yet", is_waiting=True)
    return Standing(Door.OPEN)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
