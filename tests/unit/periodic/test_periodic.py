"""`Periodic`: at once, at the period, when woken; never twice at a time; ended by nothing but stop."""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ecompute.cluster.errors import Unavailable
from ecompute.cluster.periodic import Periodic

DEADLINE_S = 10.0
NEVER_S = 3600.0


@pytest.fixture
def made() -> Iterator[Callable[..., Periodic]]:
    all_made: list[Periodic] = []

    def make(function: Callable[[], object], period_s: float = NEVER_S, **rest: object) -> Periodic:
        periodic = Periodic("test", function, period_s=period_s, **rest)  # type: ignore[arg-type]
        all_made.append(periodic)
        return periodic

    yield make
    for periodic in all_made:
        assert periodic.stop(DEADLINE_S)


class Calls:
    """Counts calls; `wait` returns once there was another one."""

    def __init__(self) -> None:
        self.queue: queue.Queue[float] = queue.Queue()

    def __call__(self) -> None:
        self.queue.put(time.monotonic())

    def wait(self) -> float:
        return self.queue.get(timeout=DEADLINE_S)


def test_the_first_call_is_made_at_once(made: Callable[..., Periodic]) -> None:
    calls = Calls()
    made(calls).start()
    calls.wait()


def test_the_next_call_is_made_after_the_period(made: Callable[..., Periodic]) -> None:
    calls = Calls()
    made(calls, period_s=0.05, jitter_s=0.0).start()
    first, second = calls.wait(), calls.wait()
    assert second - first >= 0.05


def test_jitter_comes_from_the_given_generator(made: Callable[..., Periodic]) -> None:
    class Earliest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return min(a, b)

    calls = Calls()
    made(calls, period_s=NEVER_S, jitter_s=NEVER_S, rng=Earliest()).start()
    for _ in range(3):
        calls.wait()


def test_the_period_is_measured_with_the_given_clock(made: Callable[..., Periodic]) -> None:
    calls = Calls()
    hours = itertools.count(step=2 * NEVER_S)
    made(calls, clock=lambda: next(hours)).start()
    for _ in range(3):
        calls.wait()


def test_wake_calls_at_once(made: Callable[..., Periodic]) -> None:
    calls = Calls()
    periodic = made(calls)
    periodic.start()
    for _ in range(3):
        calls.wait()
        periodic.wake()
    calls.wait()


def test_many_wakes_during_a_call_lead_to_one_more(made: Callable[..., Periodic]) -> None:
    entered, leave = queue.Queue[None](), threading.Semaphore(0)

    def function() -> None:
        entered.put(None)
        assert leave.acquire(timeout=DEADLINE_S)

    periodic = made(function)
    periodic.start()
    entered.get(timeout=DEADLINE_S)
    for _ in range(5):
        periodic.wake()
    leave.release()
    entered.get(timeout=DEADLINE_S)
    leave.release()
    periodic.stop(DEADLINE_S)
    assert entered.empty()


def test_an_exception_does_not_end_it_and_is_logged_once(
    made: Callable[..., Periodic], caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()
    texts = iter(["etcd is away", "etcd is away", "etcd is gone", "etcd is away"])

    def fail() -> None:
        calls()
        if text := next(texts, None):
            raise Unavailable(text)

    caplog.set_level(logging.INFO)
    periodic = made(fail)
    periodic.start()
    for _ in range(4):
        calls.wait()
        periodic.wake()
    calls.wait()
    assert periodic.stop(DEADLINE_S)
    assert [record.getMessage() for record in caplog.records] == [
        "test: etcd is away",
        "test: etcd is gone",
        "test: works again, after 4 failures",
    ]


def test_an_error_that_nobody_foresaw_is_logged_with_its_place(
    made: Callable[..., Periodic], caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()

    def fail() -> None:
        calls()
        raise KeyError("x")

    periodic = made(fail)
    periodic.start()
    calls.wait()
    periodic.stop(DEADLINE_S)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info


def test_stop_waits_for_the_call_that_runs(made: Callable[..., Periodic]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def function() -> None:
        entered.set()
        leave.wait(DEADLINE_S)

    periodic = made(function)
    periodic.start()
    assert entered.wait(DEADLINE_S)
    assert not periodic.stop(0.01)
    leave.set()
    assert periodic.stop(DEADLINE_S)
    assert not periodic.is_running


def test_the_function_may_stop_it(made: Callable[..., Periodic]) -> None:
    calls = Calls()

    def function() -> None:
        periodic.stop()
        calls()

    periodic = made(function, period_s=0.001)
    periodic.start()
    calls.wait()
    assert periodic.stop(DEADLINE_S)
    assert calls.queue.empty()


def test_what_was_stopped_before_it_began_never_begins(made: Callable[..., Periodic]) -> None:
    periodic = made(lambda: pytest.fail("called"))
    assert periodic.stop()
    periodic.start()
    periodic.wake()
    assert not periodic.is_running


def test_starting_twice_is_starting_once(made: Callable[..., Periodic]) -> None:
    calls = Calls()
    periodic = made(calls)
    periodic.start()
    periodic.start()
    calls.wait()
    periodic.stop(DEADLINE_S)
    assert calls.queue.empty()
