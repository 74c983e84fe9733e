"""Which of the hosts that could take it should be asked first. Pure: the seed is an argument.

A host's points are a sum, and every term of it is kept as a reason, with the words that people read
in ``eschedule launch --dry-run``. Nothing here refuses a host: placement does.

Schedulers that all took the best host would all take the same one. So the best max(8, 5 %) are
drawn in random order, weighted by their points, and the rest follow by rank: a lost claim still has
somewhere to go. A host a whole point ahead is some hundred times as likely to be first as the next
one; at equal points all are equally likely.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

TOP = 8
TOP_SHARE = 0.05
"""Of those whose daemon answers, so many are drawn in random order: the larger of both."""
SHARPNESS = 5.0
"""How fast the likelihood falls with the points: by a factor e for a fifth of a point."""

IMAGE_POINTS = 0.3
"""Of a host that holds the image: it starts at once, where others fetch first."""
NETWORK_POINTS = 0.1
"""Of a host that is on all its networks: one tunnel less on every other member of each."""
LOAD_POINTS = -0.2
"""Of a host that is wholly busy now."""
AFFINITY_POINTS = 2.0
"""Of ever more instances with a tag that is wanted by 100; half of it for the first one."""
GROUP_POINTS = 2.0
"""Of what a soft group says, by 1."""


@dataclass(frozen=True)
class Reason:
    """One term of a host's points."""

    text: str
    points: float

    def __str__(self) -> str:
        return f"{self.text} ({self.points:+.2f})"


@dataclass(frozen=True)
class Ranked:
    """One candidate with what its rank is made of."""

    index: int
    """Its place in placement's answer."""
    provider: str
    free_share: float
    """The smallest share of any requested class that would stay free, 0 to 1."""
    is_alive: bool
    reasons: tuple[Reason, ...] = ()
    """Empty: its free share is all there is to say."""

    @property
    def points(self) -> float:
        return sum(reason.points for reason in self.reasons) if self.reasons else self.free_share


@dataclass(frozen=True)
class Wishes:
    """What makes one host better than another for a launch; all of it may be empty.

    Sets and maps are by provider; a host that is in none is a host of which that is not true.
    """

    is_packed: bool = False
    """The fullest first, instead of the emptiest."""
    image_holders: frozenset[str] = frozenset()
    networks: int = 0
    """How many it is to be on, of those that are tunnels between hosts."""
    on_networks: Mapping[str, int] = field(default_factory=dict)
    """Of how many of them a host has a member."""
    affinities: tuple[tuple[str, int], ...] = ()
    """Tag and weight, -100 to 100."""
    tagged: Mapping[str, Mapping[str, int]] | None = None
    """``{tag: {provider: how many instances}}``"""
    group: Mapping[str, float] | None = None
    """What a soft group says of a host, -1 to 1."""
    load: Mapping[str, float] | None = None
    """How busy it is now, 0 to 1."""


def free_share(room: Sequence[tuple[float, int, int]]) -> float:
    """Return the smallest share that stays free.

    Args:
        room: for each requested class its capacity, what is used, and what is asked for.
    """
    shares = [(capacity - used - amount) / capacity for capacity, used, amount in room if capacity > 0]
    return max(0.0, min(shares, default=0.0))


def weigh(candidate: Ranked, wishes: Wishes) -> Ranked:
    """Return ``candidate`` with its reasons."""
    provider, share = candidate.provider, candidate.free_share
    reasons = [
        Reason(f"{1 - share:.0%} of it is used then", 1 - share)
        if wishes.is_packed
        else Reason(f"{share:.0%} of it stays free", share)
    ]
    if provider in wishes.image_holders:
        reasons.append(Reason("it holds the image", IMAGE_POINTS))
    there = wishes.on_networks.get(provider, 0)
    if there:
        text = "it is on the network" if wishes.networks == 1 else f"it is on {there} of its {wishes.networks} networks"
        reasons.append(Reason(text, NETWORK_POINTS * there / wishes.networks))
    for tag, weight in wishes.affinities:
        there = (wishes.tagged or {}).get(tag, {}).get(provider, 0)
        if there:
            points = AFFINITY_POINTS * weight / 100 * there / (there + 1)
            reasons.append(Reason(f"{there} with tag {tag} there, wanted by {weight}", points))
    says = (wishes.group or {}).get(provider, 0.0)
    if says:
        reasons.append(Reason("what its group says", GROUP_POINTS * says))
    load = (wishes.load or {}).get(provider, 0.0)
    if load:
        reasons.append(Reason(f"{load:.0%} busy now", LOAD_POINTS * load))
    return replace(candidate, reasons=tuple(reasons))


def rank(candidates: Sequence[Ranked], seed: int) -> list[Ranked]:
    """Return ``candidates`` in the order in which they should be tried.

    Hosts whose daemon answers come first: a request to another waits until that host is back.
    The order does not depend on the order of ``candidates``.
    """
    rng = random.Random(seed)  # noqa: S311 - spreads load, guards nothing
    rest = sorted(candidates, key=lambda c: (not c.is_alive, -c.points, c.provider, c.index))
    answering = sum(1 for c in rest if c.is_alive) or len(rest)
    drawn = []
    for left in range(min(answering, max(TOP, math.ceil(answering * TOP_SHARE))), 0, -1):
        best = max(c.points for c in rest[:left])
        weights = [math.exp(SHARPNESS * (c.points - best)) for c in rest[:left]]
        drawn.append(rest.pop(rng.choices(range(left), weights)[0]))
    return drawn + rest
