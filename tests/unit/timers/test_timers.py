"""`Timers`, `Serial` and `Retries`: what is due is done once, by few threads, and none that rest."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from ecompute.cluster.retries import JITTER, Retries
from ecompute.cluster.timers import Serial, Timers

DEADLINE_S = 10.0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        threading.Event().wait(0.005)


def living(timers: Timers) -> int:
    return timers._workers + (timers._waiter is not None)


def test_what_is_due_first_is_done_first() -> None:
    timers = Timers(workers=1)
    done: SimpleQueue[int] = SimpleQueue()
    with timers._lock:  # nothing is done before all are known
        made = [timers.later(delay_s, "", lambda n=n: done.put(n)) for n, delay_s in enumerate((0.03, 0.01, 0.02))]
    order = sorted(range(3), key=lambda n: made[n].at)
    assert [done.get(timeout=DEADLINE_S) for _ in order] == order


def test_what_is_cancelled_is_not_done() -> None:
    timers = Timers(workers=1)
    done: SimpleQueue[str] = SimpleQueue()
    with timers._lock:  # it is not due before it is cancelled
        timers.later(0.01, "a", lambda: done.put("a")).cancel()
    timers.later(0.01, "b", lambda: done.put("b"))
    assert done.get(timeout=DEADLINE_S) == "b"
    assert done.empty()


def test_a_million_cancelled_timers_are_not_kept() -> None:
    timers = Timers()
    for _ in range(20_000):
        timers.later(3600, "x", lambda: None).cancel()
    assert len(timers._heap) < 3000


def test_one_that_blocks_holds_up_no_other() -> None:
    timers, leave, done = Timers(), threading.Event(), threading.Event()
    timers.soon("blocks", lambda: leave.wait(DEADLINE_S) and None)
    timers.later(0.01, "other", done.set)
    assert done.wait(DEADLINE_S)
    leave.set()


def test_there_are_never_more_workers_than_allowed_and_all_work_is_done() -> None:
    timers = Timers(workers=3)
    lock = threading.Lock()
    at_work, most, done = 0, 0, 0

    def work() -> None:
        nonlocal at_work, most, done
        with lock:
            at_work += 1
            most = max(most, at_work)
        threading.Event().wait(0.002)
        with lock:
            at_work, done = at_work - 1, done + 1

    for _ in range(100):
        timers.soon("work", work)
    eventually(lambda: done == 100)
    assert most <= 3


def test_threads_end_when_there_is_nothing_to_do_and_come_back() -> None:
    timers, done = Timers(idle_s=0.02), threading.Event()
    timers.later(0.01, "a", lambda: None)
    eventually(lambda: living(timers) == 0)
    timers.later(0.01, "b", done.set)
    assert done.wait(DEADLINE_S)
    eventually(lambda: living(timers) == 0)


def test_one_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    timers, done = Timers(workers=1), threading.Event()

    def fail() -> None:
        raise RuntimeError("unexpected")

    timers.soon("bad", fail)
    timers.soon("good", done.set)
    assert done.wait(DEADLINE_S)
    assert "bad" in caplog.text


def test_items_are_handled_one_after_the_other_in_their_order() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def handle(item: int) -> None:
        assert lock.acquire(blocking=False), "two at the same time"
        if item == 7:
            lock.release()
            raise RuntimeError("unexpected")
        seen.append(item)
        lock.release()

    serial = Serial("serial", handle, Timers())
    for number in range(200):
        serial.put(number)
    eventually(lambda: len(seen) == 199)
    assert seen == [number for number in range(200) if number != 7]
    assert serial.close(DEADLINE_S)
    serial.put(1000)
    assert seen[-1] == 199


def test_closing_waits_for_the_item_in_hand_and_drops_the_others() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[int] = []

    def handle(item: int) -> None:
        entered.set()
        assert leave.wait(DEADLINE_S)
        seen.append(item)

    serial = Serial("serial", handle, Timers())
    serial.put(1)
    serial.put(2)
    assert entered.wait(DEADLINE_S)
    assert not serial.close(0.01)
    leave.set()
    assert serial.close(DEADLINE_S)
    assert seen == [1]


class TestRetries:
    def test_each_is_woken_once_at_the_earlier_time(self) -> None:
        woken: SimpleQueue[str] = SimpleQueue()
        retries = Retries("retries", woken.put, timers=Timers())
        retries.later("a", 3600)
        retries.later("b", 0.03)
        retries.later("a", 0.01)
        assert {woken.get(timeout=DEADLINE_S), woken.get(timeout=DEADLINE_S)} == {"a", "b"}
        assert not retries._due, "neither will be woken again"
        assert woken.empty()
        retries.close()

    def test_a_delay_is_spread_by_the_jitter_and_not_more(self) -> None:
        delays: list[float] = []

        class Recording(Timers):
            def later(self, delay_s: float, name: str, function: Callable[[], None]):  # type: ignore[no-untyped-def]
                delays.append(delay_s)
                return super().later(3600, name, function)

        for seed in range(50):
            retries = Retries("r", lambda what: None, clock=lambda: 0.0, rng=random.Random(seed), timers=Recording())
            retries.later("a", 10.0)
            retries.close()
        assert all(10 * (1 - JITTER) <= delay <= 10 * (1 + JITTER) for delay in delays)
        assert max(delays) - min(delays) > 1

    def test_nothing_is_woken_after_closing(self) -> None:
        woken: list[str] = []
        timers = Timers(workers=1)
        retries = Retries("retries", woken.append, timers=timers)
        with timers._lock:  # it is not due before all is closed
            retries.later("a", 0.01)
            retries.close()
        retries.later("b", 0.0)
        after = threading.Event()
        timers.later(0.05, "after", after.set)
        assert after.wait(DEADLINE_S)
        assert woken == []
