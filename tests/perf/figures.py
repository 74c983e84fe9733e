"""What a figure is, and how it is printed."""

from __future__ import annotations

import resource
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
    lowest: float
    highest: float
    """The ratios of single rounds between which it lies."""
    budget: str
    rounds: int


def figure(name: str, ours: list[float], limit: list[float], unit: str, budget: str) -> Figure:
    mine, raw = statistics.median(ours), statistics.median(limit)
    limits = limit if len(limit) == len(ours) else [raw] * len(ours)
    ratios = [_ratio(*pair) for pair in zip(ours, limits, strict=True)]
    return Figure(
        name=name,
        ours=round(mine, 3),
        limit=round(raw, 3),
        unit=unit,
        ratio=_ratio(mine, raw),
        lowest=min(ratios),
        highest=max(ratios),
        budget=budget,
        rounds=len(ours),
    )


def _ratio(ours: float, limit: float) -> float:
    return round(ours / limit, 2) if limit else 0.0


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Append how long the block took, in ms."""
    began = time.monotonic()
    yield
    into.append((time.monotonic() - began) * 1000)


def cpu_ms() -> float:
    """Return the CPU time that this process and the programs that it has run have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) * 1000


def table(figures: Sequence[Figure]) -> str:
    width = max([len(f.name) for f in figures] + [6])
    head = f"{'figure':<{width}} {'ours':>9} {'limit':>9} {'unit':<12} {'ratio':>6} {'spread':>11} {'budget':>10}"
    lines = [f"{head} {'rounds':>6}"]
    for f in figures:
        measured = f"{f.name:<{width}} {f.ours:>9.2f} {f.limit:>9.2f} {f.unit:<12} {f.ratio:>6.2f}"
        spread = f"{f.lowest:.2f}-{f.highest:.2f}" if f.rounds > 1 else ""
        lines.append(f"{measured} {spread:>11} {f.budget:>10} {f.rounds:>6}")
    return "\n".join(lines)
