"""Which of the hosts that could take it should be asked first. Pure: the seed is an argument.

Schedulers that all took the best host would all take the same one. So the best max(8, 5 %) are
drawn in random order, weighted by their room, and the rest follow by rank: a lost claim still has
somewhere to go.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

TOP = 8
TOP_SHARE = 0.05
"""Of those whose daemon answers, so many are drawn in random order: the larger of both."""
MIN_WEIGHT = 0.05
"""What a host weighs that would be full: it stays possible."""


@dataclass(frozen=True)
class Ranked:
    """One candidate with what its rank is made of."""

    index: int
    """Its place in placement's answer."""
    provider: str
    free_share: float
    """The smallest share of any requested class that would stay free, 0 to 1."""
    is_alive: bool


def free_share(room: Sequence[tuple[float, int, int]]) -> float:
    """Return the smallest share that stays free.

    Args:
        room: for each requested class its capacity, what is used, and what is asked for.
    """
    shares = [(capacity - used - amount) / capacity for capacity, used, amount in room if capacity > 0]
    return max(0.0, min(shares, default=0.0))


def rank(candidates: Sequence[Ranked], seed: int) -> list[Ranked]:
    """Return ``candidates`` in the order in which they should be tried.

    Hosts whose daemon answers come first: a request to another waits until that host is back.
    Among them the emptier are the likelier (spread). The order does not depend on the order of
    ``candidates``.
    """
    rng = random.Random(seed)  # noqa: S311 - spreads load, guards nothing
    rest = sorted(candidates, key=lambda c: (not c.is_alive, -c.free_share, c.provider, c.index))
    answering = sum(1 for c in rest if c.is_alive) or len(rest)
    drawn = []
    for left in range(min(answering, max(TOP, math.ceil(answering * TOP_SHARE))), 0, -1):
        weights = [MIN_WEIGHT + c.free_share for c in rest[:left]]
        drawn.append(rest.pop(rng.choices(range(left), weights)[0]))
    return drawn + rest
