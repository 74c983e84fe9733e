"""What a figure is, and how it is printed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table; ``ratio`` is ours by limit."""

    name: str
    ours: float
    limit: float
    unit: str
    ratio: float
    budget: str
    rounds: int


def figure(name: str, ours: list[float], limit: list[float], unit: str, budget: str) -> Figure:
    mine, raw = statistics.median(ours), statistics.median(limit)
    return Figure(name, round(mine, 3), round(raw, 3), unit, round(mine / raw, 2) if raw else 0.0, budget, len(ours))


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append how long the block took, in ms."""
    began = time.monotonic()
    yield
    into.append((time.monotonic() - began) * 1000)


def table(figures: Sequence[Figure]) -> str:
    width = max([len(f.name) for f in figures] + [6])
    lines = [f"{'figure':<{width}} {'ours':>9} {'limit':>9} {'unit':<12} {'ratio':>6} {'budget':>10} {'rounds':>6}"]
    lines += [
        f"{f.name:<{width}} {f.ours:>9.2f} {f.limit:>9.2f} {f.unit:<12} {f.ratio:>6.2f} {f.budget:>10} {f.rounds:>6}"
        for f in figures
    ]
    return "\n".join(lines)
