"""The worker pool: one instance is one lane, and a lane that hangs holds up nobody else.

Work is an instance's uuid and nothing more: what is to be done is read when the work begins. The
same uuid is never worked on by two threads; woken while at work, it is worked on once more
afterwards. Python threads cannot be killed, so a step that passes its deadline makes its thread
*stuck*: the instance is set aside, and a new thread takes the lane's place. If the stuck thread ever
returns, it notices at its next step, ends, and its instance is taken up again. When `STUCK_LIMIT`
threads are stuck at once the daemon had better start anew: `on_exhausted` is called, once.

Threads are started when there is work and none is idle, and end after `IDLE_S` without any, but for
a few spare ones. Deadlines are looked after while something is at work. So a pool at rest costs nothing.

Every method may be called from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ecompute.cluster.errors import Cancelled, DeadlineExceeded
from ecompute.cluster.timers import Timers, shared

STUCK_LIMIT = 8
SUPERVISE_PERIOD_S = 0.5
IDLE_S = 30.0

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Work:
    """One run over one instance, as the code that does it sees it."""

    uuid: str
    clock: Callable[[], float]
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _abandoned: threading.Event = field(default_factory=threading.Event)
    _step: str = ""
    _deadline: float | None = None

    @contextmanager
    def step(self, name: str, deadline_s: float) -> Iterator[None]:
        """Run one step under a deadline.

        Raises:
            Cancelled: the instance is not wanted as it was when the run began; nothing was done.
            DeadlineExceeded: this thread was set aside meanwhile; another may be at work.
        """
        self.check()
        self._step, self._deadline = name, self.clock() + deadline_s
        try:
            yield
        finally:
            self._deadline = None
            if self._abandoned.is_set():
                raise DeadlineExceeded(f"{self._step} of {self.uuid} took too long and was set aside")

    def check(self) -> None:
        """Raise as `step` does, between steps."""
        if self._abandoned.is_set():
            raise DeadlineExceeded(f"{self._step} of {self.uuid} took too long and was set aside")
        if self._cancelled.is_set():
            raise Cancelled(f"{self.uuid} has changed while it was worked on")

    def cancel(self) -> None:
        """Ask the run to end at its next step: what it works towards is not wanted any more."""
        self._cancelled.set()

    def overdue_step(self) -> str | None:
        """Return the step whose deadline has passed, or nothing."""
        deadline = self._deadline
        return self._step if deadline is not None and self.clock() > deadline else None

    def abandon(self) -> None:
        self._abandoned.set()


@dataclass(frozen=True)
class Stuck:
    """An instance that was set aside, and the step that did not return."""

    uuid: str
    step: str


class Lanes:
    """Runs ``work`` for the instances that were woken, ``count`` at a time.

    Args:
        work: does all there is to do for ``Work.uuid``, and handles its own errors; what it raises
            all the same is logged.
        count: how many instances are worked on side by side.
        spare: how many idle threads do not end.
        on_stuck: told when an instance is set aside; on a thread of the timers.
        on_exhausted: told once, when `STUCK_LIMIT` threads are stuck at the same time.
        on_idle: told each time that nothing waits and nothing is at work any more; on a worker's thread.
        release_thread: called on each worker thread when it ends, for what belongs to a thread.
    """

    def __init__(
        self,
        work: Callable[[Work], None],
        *,
        count: int,
        spare: int = 1,
        idle_s: float = IDLE_S,
        on_stuck: Callable[[Stuck], None] = lambda stuck: None,
        on_exhausted: Callable[[list[Stuck]], None] = lambda stuck: None,
        on_idle: Callable[[], None] = lambda: None,
        release_thread: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        timers: Timers | None = None,
    ) -> None:
        self._work = work
        self._count = count
        self._spare = spare
        self._idle_s = idle_s
        self._on_stuck = on_stuck
        self._on_exhausted = on_exhausted
        self._on_idle = on_idle
        self._release_thread = release_thread
        self._clock = clock
        self._timers = timers or shared()
        self._changed = threading.Condition()
        self._queue: deque[str] = deque()
        self._again: set[str] = set()
        self._running: dict[str, Work] = {}
        self._stuck: dict[str, Work] = {}
        self._is_closing = False
        self._is_exhausted = False
        self._serial = 0
        self._threads = 0
        """Of the pool: those that are stuck do not count."""
        self._idle = 0
        self._is_supervised = False

    def wake(self, uuid: str) -> None:
        """See to it that ``uuid`` is worked on, once, from now on."""
        with self._changed:
            if self._is_closing:
                return
            if uuid in self._running or uuid in self._stuck:
                self._again.add(uuid)
            elif uuid not in self._queue:
                self._queue.append(uuid)
            self._staff()

    def cancel(self, uuid: str) -> None:
        """Ask a run over ``uuid`` that is under way to end at its next step, and run it again."""
        with self._changed:
            work = self._running.get(uuid)
            if work is not None:
                work.cancel()
                self._again.add(uuid)

    def stuck(self) -> list[Stuck]:
        with self._changed:
            return [Stuck(uuid, work._step) for uuid, work in self._stuck.items()]

    def at_work(self) -> frozenset[str]:
        """Return what waits or is at work; the stuck do not count."""
        with self._changed:
            return frozenset({*self._queue, *self._running})

    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is at work; the stuck do not count."""
        with self._changed:
            return not self._queue and not self._running

    def close(self, timeout_s: float) -> bool:
        """Take no new work, and wait until the work in hand has finished its step.

        Returns whether it all ended in time.
        """
        with self._changed:
            self._is_closing = True
            self._queue.clear()
            self._again.clear()
            for work in self._running.values():
                work.cancel()
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    def _staff(self) -> None:
        """Wake a thread for what waits, or start one. The lock is held."""
        if not self._queue:
            return
        if self._idle:
            self._changed.notify_all()  # who closes waits on it too
        if self._idle < len(self._queue) and self._threads < self._count:
            self._serial += 1
            try:
                threading.Thread(target=self._run, name=f"lane-{self._serial}", daemon=True).start()
            except RuntimeError as error:  # the machine gives no thread: those that there are go on
                log.error("no thread for %d instances: %s", len(self._queue), error)
                return
            self._threads += 1

    def _run(self) -> None:
        try:
            while True:
                work = self._take()
                if work is None:
                    return
                try:
                    self._work(work)
                except Exception:
                    log.exception("work on instance %s ended unexpectedly", work.uuid)
                if not self._put_back(work):
                    return
        finally:
            self._release_thread()

    def _take(self) -> Work | None:
        with self._changed:
            while not self._queue and not self._is_closing:
                self._idle += 1
                is_woken = self._changed.wait_for(lambda: self._queue or self._is_closing, self._idle_s)
                self._idle -= 1
                if not is_woken and self._threads > self._spare:
                    break
            if self._is_closing or not self._queue:
                self._threads -= 1
                return None
            work = Work(self._queue.popleft(), self._clock)
            self._running[work.uuid] = work
            self._supervise_later()
            return work

    def _put_back(self, work: Work) -> bool:
        """Note that ``work`` has ended; return whether its thread still belongs to the pool."""
        with self._changed:
            was_stuck = self._stuck.get(work.uuid) is work
            if was_stuck:
                del self._stuck[work.uuid]
                self._again.add(work.uuid)
            else:
                del self._running[work.uuid]
            if work.uuid in self._again and not self._is_closing:
                self._again.discard(work.uuid)
                self._queue.append(work.uuid)
                self._staff()
            is_idle = not self._queue and not self._running
            self._changed.notify_all()
        if is_idle:
            self._on_idle()
        return not was_stuck

    def _supervise_later(self) -> None:
        """Look after the deadlines as long as something is at work. The lock is held."""
        if not self._is_supervised and self._running:
            self._is_supervised = True
            self._timers.later(SUPERVISE_PERIOD_S, "lanes-supervisor", self._supervise)

    def _supervise(self) -> None:
        with self._changed:
            self._is_supervised = False
            found: list[Stuck] = []
            for uuid, work in list(self._running.items()):
                step = work.overdue_step()
                if step is None:
                    continue
                work.abandon()
                del self._running[uuid]
                self._stuck[uuid] = work
                found.append(Stuck(uuid, step))
                self._threads -= 1
                self._staff()
            exhausted = len(self._stuck) >= STUCK_LIMIT and not self._is_exhausted
            self._is_exhausted = self._is_exhausted or exhausted
            everyone = [Stuck(uuid, work._step) for uuid, work in self._stuck.items()]
            self._supervise_later()
            if found:
                self._changed.notify_all()  # who closes waits for nothing that hangs
        for stuck in found:
            self._on_stuck(stuck)
        if exhausted:
            self._on_exhausted(everyone)
