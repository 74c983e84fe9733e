"""Patience with what sticks: longer each time, forgotten when it goes well, kept over a restart."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ecompute.instances.patience import FIRST_PAUSE_S, LONGEST_PAUSE_S, Patience, pause_s


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@given(st.integers(0, 10_000))
def test_a_pause_never_shrinks_and_has_an_end(times: int) -> None:
    assert 0 <= pause_s(times) <= pause_s(times + 1) <= LONGEST_PAUSE_S


def test_what_never_stuck_and_what_stuck_once_is_not_kept_waiting(tmp_path: Path) -> None:
    Patience(tmp_path / "stuck.json").stuck(["a"])
    again = Patience(tmp_path / "stuck.json")
    assert again.left_s("a") == again.left_s("b") == 0


def test_what_sticks_again_is_left_alone_after_the_next_start_for_longer_each_time(tmp_path: Path) -> None:
    path, clock = tmp_path / "stuck.json", Clock()
    waits = []
    for _ in range(4):
        patience = Patience(path, clock)
        waits.append(patience.left_s("a"))
        patience.stuck(["a"])
    assert waits == [0, 0, FIRST_PAUSE_S, 2 * FIRST_PAUSE_S]
    last = Patience(path, clock)
    clock.now_s += 4 * FIRST_PAUSE_S - 1
    assert last.left_s("a") == 1
    clock.now_s += 1
    assert last.left_s("a") == 0


def test_what_went_well_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "stuck.json"
    for _ in range(3):
        Patience(path).stuck(["a", "b"])
    Patience(path).went_well("a")
    again = Patience(path)
    assert again.left_s("a") == 0
    assert again.left_s("b") > 0
    again.went_well("b")
    assert not path.exists()


def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "stuck.json"
    path.write_text("{")
    patience = Patience(path)
    assert patience.left_s("a") == 0
    patience.stuck(["a"])
    patience.stuck(["a"])
    assert Patience(path).left_s("a") > 0
