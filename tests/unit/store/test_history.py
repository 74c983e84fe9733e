"""Rollbacks are found, and nothing else is taken for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.store.history import History, Position, contradiction


def test_each_way_of_going_back_has_its_reason() -> None:
    before = Position(0xA, 100, 5)
    assert contradiction(before, Position(0xA, 100, 5)) is None
    assert contradiction(before, Position(0xA, 101, 6)) is None
    assert "another cluster: id b, before a" in (contradiction(before, Position(0xB, 200, 9)) or "")
    assert "went back to revision 99" in (contradiction(before, Position(0xA, 99, 5)) or "")
    assert "went back to term 4" in (contradiction(before, Position(0xA, 101, 4)) or "")


def test_a_rollback_is_told_once_and_the_new_history_followed() -> None:
    history = History()
    history.answered(history.mark(), Position(1, 100, 5))
    first, second = history.mark(), history.mark()
    assert history.answered(first, Position(1, 50, 5))
    assert history.answered(second, Position(1, 51, 5)) is None
    assert history.position == Position(1, 50, 5)
    assert history.answered(history.mark(), Position(1, 52, 5)) is None
    assert history.answered(history.mark(), Position(1, 40, 5))


def test_answers_that_pass_each_other_are_no_rollback() -> None:
    history = History()
    history.answered(history.mark(), Position(1, 100, 5))
    slow = history.mark()
    history.answered(history.mark(), Position(1, 110, 6))
    assert history.answered(slow, Position(1, 105, 5)) is None
    assert history.position == Position(1, 110, 6)


def test_a_watch_of_an_older_history_raises_nothing_in_the_new_one() -> None:
    history = History()
    history.answered(history.mark(), Position(1, 100, 5))
    stream = history.mark()
    history.saw(stream, 120)
    assert history.position == Position(1, 120, 5)
    assert history.answered(history.mark(), Position(1, 50, 5))
    history.saw(stream, 130)
    assert history.position == Position(1, 50, 5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9)), max_size=40))
def test_one_history_read_by_many_at_once_is_never_a_rollback(steps: list[tuple[int, int, int]]) -> None:
    """Each step writes, sends a question, and lets one question that is under way be answered."""
    history = History()
    revision, term = 1, 1
    under_way = []
    for writes, elections, pick in steps:
        revision, term = revision + writes, term + elections
        # an answer shows a state from between its question and its arrival: at the earliest, this one
        under_way.append((history.mark(), Position(7, revision, term)))
        mark, position = under_way.pop(pick % len(under_way)) if pick % 2 else under_way[-1]
        assert history.answered(mark, position) is None
