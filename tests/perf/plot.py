"""A plot of cost against hosts, as SVG, for docs: logarithmic axes, one line a way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 210, 20, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by the colour-blind, too (Okabe and Ito)."""


def draw(curves: Mapping[str, Mapping[int, float]]) -> str:
    """Return the SVG.

    Args:
        curves: for each line its name and its points: hosts, ms.
    """
    points = [(x, y) for curve in curves.values() for x, y in curve.items() if y > 0]
    if not points:
        points = [(1, 1.0), (10, 10.0)]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y = 10 ** math.floor(math.log10(min(y for _, y in points)))
    high_y = 10 ** math.ceil(math.log10(max(y for _, y in points)))
    span_x = math.log(high_x / low_x) or 1.0
    span_y = math.log(high_y / low_y) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * math.log(x / low_x) / span_x
        up = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(y / low_y) / span_y
        return round(across, 1), round(up, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    tick = low_y
    while tick <= high_y:
        for y in [tick, 2 * tick, 5 * tick] if tick < high_y else [tick]:
            _, up = at(low_x, y)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up}" y2="{up}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{up + 4}" text-anchor="end">{y:g} ms</text>')
        tick *= 10
    for x in sorted({x for x, _ in points}):
        across, down = at(x, low_y)
        parts.append(f'<text x="{across}" y="{down + 18}" text-anchor="middle">{x:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">hosts</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = [at(x, y) for x, y in sorted(curve.items()) if y > 0]
        if line:
            path = " ".join(f"{x},{y}" for x, y in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in line]
        key = TOP + 16 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 16}" y="{key}" width="12" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 34}" y="{key + 6}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
