"""The worker pool: serial for one instance, parallel for many, and never held up by one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ecompute.cluster.errors import Cancelled, DeadlineExceeded
from ecompute.instances.lanes import STUCK_LIMIT, Lanes, Stuck, Work

DEADLINE_S = 10.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        threading.Event().wait(0.005)


@pytest.fixture
def opened() -> Iterator[list[Lanes]]:
    lanes: list[Lanes] = []
    yield lanes
    for pool in lanes:
        pool.close(DEADLINE_S)


def test_one_instance_is_never_worked_on_twice_at_the_same_time(opened: list[Lanes]) -> None:
    at_work, most, runs = 0, 0, 0
    lock = threading.Lock()

    def work(work: Work) -> None:
        nonlocal at_work, most, runs
        with lock:
            at_work, runs = at_work + 1, runs + 1
            most = max(most, at_work)
        threading.Event().wait(0.002)
        with lock:
            at_work -= 1

    lanes = Lanes(work, count=4)
    opened.append(lanes)
    for _ in range(50):
        lanes.wake("a")
    eventually(lanes.is_idle)
    assert most == 1
    assert 1 <= runs <= 50


def test_a_wake_during_the_work_leads_to_one_more_run(opened: list[Lanes]) -> None:
    started, go_on = threading.Event(), threading.Event()
    runs: list[str] = []

    def work(work: Work) -> None:
        runs.append(work.uuid)
        started.set()
        assert go_on.wait(DEADLINE_S)

    lanes = Lanes(work, count=2)
    opened.append(lanes)
    lanes.wake("a")
    assert started.wait(DEADLINE_S)
    lanes.wake("a")
    lanes.wake("a")
    go_on.set()
    eventually(lambda: len(runs) == 2 and lanes.is_idle())


def test_different_instances_run_side_by_side(opened: list[Lanes]) -> None:
    together = threading.Barrier(3, timeout=DEADLINE_S)
    lanes = Lanes(lambda work: together.wait() and None, count=3)  # type: ignore[func-returns-value]
    opened.append(lanes)
    for uuid in "abc":
        lanes.wake(uuid)
    eventually(lanes.is_idle)
    assert not together.broken


def test_a_step_past_its_deadline_sets_its_instance_aside_and_frees_the_lane(opened: list[Lanes]) -> None:
    hang = threading.Event()
    stuck: list[Stuck] = []
    done: list[str] = []

    def work(work: Work) -> None:
        if work.uuid == "hangs" and not hang.is_set():
            with work.step("start", 0.01):
                assert hang.wait(DEADLINE_S)
        done.append(work.uuid)

    lanes = Lanes(work, count=1, on_stuck=stuck.append)
    opened.append(lanes)
    lanes.wake("hangs")
    eventually(lambda: stuck == [Stuck("hangs", "start")])
    lanes.wake("other")
    eventually(lambda: done == ["other"])
    lanes.wake("hangs")
    assert lanes.stuck() == [Stuck("hangs", "start")], "an instance that is set aside is not taken up again"
    hang.set()
    eventually(lambda: done == ["other", "hangs"])
    assert lanes.stuck() == []


def test_a_thread_that_comes_back_late_goes_no_further(opened: list[Lanes]) -> None:
    hang = threading.Event()
    seen: list[str] = []
    stuck: list[Stuck] = []

    def work(work: Work) -> None:
        if hang.is_set():
            return
        try:
            with work.step("start", 0.01):
                hang.wait(DEADLINE_S)
            seen.append("went on")
        except DeadlineExceeded:
            seen.append("ended")

    lanes = Lanes(work, count=1, on_stuck=stuck.append)
    opened.append(lanes)
    lanes.wake("a")
    eventually(lambda: bool(stuck))
    hang.set()
    eventually(lambda: seen == ["ended"])


def test_when_too_many_hang_it_is_said_once(opened: list[Lanes]) -> None:
    hang = threading.Event()
    said: list[list[Stuck]] = []

    def work(work: Work) -> None:
        if not hang.is_set():
            with work.step("stop", 0.01):
                assert hang.wait(DEADLINE_S)

    lanes = Lanes(work, count=2, on_exhausted=said.append)
    opened.append(lanes)
    for number in range(STUCK_LIMIT + 2):
        lanes.wake(str(number))
    eventually(lambda: len(lanes.stuck()) == STUCK_LIMIT + 2)
    assert len(said) == 1
    assert len(said[0]) >= STUCK_LIMIT
    hang.set()
    eventually(lanes.is_idle)


def test_a_cancelled_run_ends_at_its_next_step_and_is_run_again(opened: list[Lanes]) -> None:
    started, go_on = threading.Event(), threading.Event()
    ends: list[str] = []

    def work(work: Work) -> None:
        try:
            with work.step("first", DEADLINE_S):
                started.set()
                assert go_on.wait(DEADLINE_S)
            with work.step("second", DEADLINE_S):
                ends.append("reached")
        except Cancelled:
            ends.append("cancelled")

    lanes = Lanes(work, count=1)
    opened.append(lanes)
    lanes.wake("a")
    assert started.wait(DEADLINE_S)
    lanes.cancel("a")
    go_on.set()
    eventually(lambda: ends == ["cancelled", "reached"])


def test_closing_waits_for_the_step_in_hand_and_takes_nothing_new() -> None:
    started, go_on = threading.Event(), threading.Event()
    ends: list[str] = []

    def work(work: Work) -> None:
        try:
            with work.step("first", DEADLINE_S):
                started.set()
                assert go_on.wait(DEADLINE_S)
                ends.append("first")
            with work.step("second", DEADLINE_S):
                ends.append("second")
        except Cancelled:
            ends.append("cancelled")

    released = threading.Event()
    lanes = Lanes(work, count=1, release_thread=released.set)
    lanes.wake("a")
    lanes.wake("b")
    assert started.wait(DEADLINE_S)
    assert not lanes.close(0.01)
    go_on.set()
    assert lanes.close(DEADLINE_S)
    assert ends == ["first", "cancelled"]
    assert released.wait(DEADLINE_S), "a thread that ends gives back what belongs to it"


def test_work_that_raises_does_not_end_its_lane(opened: list[Lanes], caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def work(work: Work) -> None:
        if work.uuid == "bad":
            raise RuntimeError("unexpected")
        done.append(work.uuid)

    lanes = Lanes(work, count=1)
    opened.append(lanes)
    lanes.wake("bad")
    lanes.wake("good")
    eventually(lambda: done == ["good"])
    assert "bad" in caplog.text


def test_there_is_no_thread_before_there_is_work_and_none_but_the_spare_after_it(opened: list[Lanes]) -> None:
    together = threading.Barrier(3, timeout=DEADLINE_S)
    released: list[int] = []
    lanes = Lanes(
        lambda work: together.wait() and None,  # type: ignore[func-returns-value]
        count=3,
        spare=1,
        idle_s=0.02,
        release_thread=lambda: released.append(1),
    )
    opened.append(lanes)
    assert lanes._threads == 0
    for uuid in "abc":
        lanes.wake(uuid)
    eventually(lambda: lanes.is_idle() and lanes._threads == 1)
    eventually(lambda: len(released) == 2)
    for uuid in "def":
        lanes.wake(uuid)
    eventually(lanes.is_idle)
    assert not together.broken


def test_who_asked_is_told_when_all_is_done(opened: list[Lanes]) -> None:
    idle = threading.Event()
    go_on = threading.Event()
    lanes = Lanes(lambda work: go_on.wait(DEADLINE_S) and None, count=2, on_idle=idle.set)  # type: ignore[func-returns-value]
    opened.append(lanes)
    for uuid in "abc":
        lanes.wake(uuid)
    assert not idle.is_set()
    go_on.set()
    assert idle.wait(DEADLINE_S)
    assert lanes.is_idle()
