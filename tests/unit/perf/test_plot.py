"""The plot that the bench draws."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

# The bench is a directory of scripts, not a package.
sys.path.insert(0, str(Path(__file__).parents[2] / "perf"))
from plot import HEIGHT, WIDTH, draw

SVG = "{http://www.w3.org/2000/svg}"
times = st.floats(min_value=0.01, max_value=1e6)
curves = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20),
    st.dictionaries(st.integers(min_value=1, max_value=10_000), times, min_size=1),
    max_size=8,
)


@given(curves)
def test_every_point_is_drawn_within_the_picture(lines: dict[str, dict[int, float]]) -> None:
    root = ET.fromstring(draw(lines))
    circles = root.findall(f"{SVG}circle")
    assert len(circles) == sum(len(line) for line in lines.values())
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= WIDTH
        assert 0 <= float(circle.attrib["cy"]) <= HEIGHT
    assert len(root.findall(f"{SVG}polyline")) == len(lines)


def test_a_dearer_way_is_drawn_higher_and_more_hosts_further_right() -> None:
    root = ET.fromstring(draw({"cheap": {10: 10.0, 1000: 20.0}, "dear": {10: 100.0, 1000: 900.0}}))
    at = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.findall(f"{SVG}circle")]
    assert at[0][0] < at[1][0]
    assert at[0][1] > at[1][1] > at[2][1] > at[3][1]


@pytest.mark.parametrize("name", ["<script>", 'a & "b"'])
def test_names_are_text_and_nothing_else(name: str) -> None:
    assert name in [element.text for element in ET.fromstring(draw({name: {1: 1.0}})).iter(f"{SVG}text")]
