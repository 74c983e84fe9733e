"""How retries are spread, without a network."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.placement.transport import TRIES_WITHOUT_ANSWER, pause_s


def test_pauses_double_and_stay_short() -> None:
    assert [pause_s(n, 1.0) for n in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_half_of_a_pause_is_chance(tries: int, share: float) -> None:
    assert pause_s(tries, 0) <= pause_s(tries, share) <= 2 * pause_s(tries, 0)


def test_a_service_that_is_down_is_told_within_three_seconds_of_pauses() -> None:
    assert sum(pause_s(n, 1.0) for n in range(1, TRIES_WITHOUT_ANSWER)) < 3
