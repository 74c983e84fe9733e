"""What is done later, or again and again, or beside: many such things on few threads.

One thread waits for what is due, and workers do it: one is started when there is work and none is
idle, at most `WORKERS`, and ends after `IDLE_S` without work. A process in which nothing is due for
long has no thread for it. A function that blocks holds up its worker and nothing else, until all
workers are blocked; what is due then waits.

All of a process share one `Timers` (`shared`): a thousand hosts in one process have no more threads
than one has.

Threads: every method may be called from any, also from a signal's handler. Functions run on the
workers, each under the name it was given with, and handle their own errors: what they raise is logged.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

WORKERS = 64
IDLE_S = 10.0
_RUBBISH = 1000
"""So many cancelled timers may lie in the heap before it is swept."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class Timer:
    """One thing that is due once; made by `Timers.later`."""

    __slots__ = ("_owner", "at", "function", "is_cancelled", "name")

    def __init__(self, owner: Timers, at: float, name: str, function: Callable[[], None]) -> None:
        self._owner = owner
        self.at = at
        self.name = name
        self.function = function
        self.is_cancelled = False

    def cancel(self) -> None:
        """Do it not, unless it has begun. Idempotent."""
        self._owner._cancel(self)


_Job = tuple[str, Callable[[], None]]


@dataclass(eq=False)
class _Worker:
    """A worker that rests, and what it is given to do."""

    has_job: threading.Semaphore
    job: _Job | None = None

    def give(self, job: _Job) -> None:
        self.job = job
        self.has_job.release()


class Timers:
    """See the module."""

    def __init__(self, *, workers: int = WORKERS, idle_s: float = IDLE_S) -> None:
        self._limit = workers
        self._idle_s = idle_s
        self._lock = threading.RLock()
        self._due_changed = threading.Condition(self._lock)
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        self._rubbish = 0
        self._queue: deque[_Job] = deque()
        """What waits for a worker, when there are as many as there may be."""
        self._waiter: threading.Thread | None = None
        self._workers = 0
        self._idle: list[_Worker] = []
        """The one that worked last is asked first, so that those that are not needed end."""

    def later(self, delay_s: float, name: str, function: Callable[[], None]) -> Timer:
        """Call ``function`` in ``delay_s`` seconds, on a worker that is named ``name`` meanwhile."""
        timer = Timer(self, time.monotonic() + max(0.0, delay_s), name, function)
        with self._lock:
            heapq.heappush(self._heap, (timer.at, next(self._serial), timer))
            if self._waiter is None:
                waiter = threading.Thread(target=self._wait, name="timers", daemon=True)
                waiter.start()
                self._waiter = waiter
            elif self._heap[0][2] is timer:
                self._due_changed.notify()
        return timer

    def soon(self, name: str, function: Callable[[], None]) -> None:
        """Call ``function`` now, on a worker."""
        job = name, function
        with self._lock:
            if self._idle:
                self._idle.pop().give(job)
                return
            self._queue.append(job)
            if self._workers < self._limit:
                try:
                    threading.Thread(target=self._work, name=name, daemon=True).start()
                except RuntimeError as error:  # the machine gives no thread: it waits for those that there are
                    log.error("no thread for %s: %s", name, error)
                    return
                self._workers += 1

    def _cancel(self, timer: Timer) -> None:
        with self._lock:
            if timer.is_cancelled:
                return
            timer.is_cancelled = True
            self._rubbish += 1
            if self._rubbish > _RUBBISH and self._rubbish > len(self._heap) // 2:
                self._heap = [entry for entry in self._heap if not entry[2].is_cancelled]
                heapq.heapify(self._heap)
                self._rubbish = 0

    def _wait(self) -> None:
        with self._lock:
            while True:
                now = time.monotonic()
                while self._heap and (self._heap[0][2].is_cancelled or self._heap[0][0] <= now):
                    timer = heapq.heappop(self._heap)[2]
                    if timer.is_cancelled:
                        self._rubbish = max(0, self._rubbish - 1)
                    else:
                        self.soon(timer.name, timer.function)
                if not self._due_changed.wait(self._heap[0][0] - now if self._heap else self._idle_s) and (
                    not self._heap
                ):
                    self._waiter = None
                    return

    def _work(self) -> None:
        worker = _Worker(threading.Semaphore(0))
        while (job := self._next(worker)) is not None:
            name, function = job
            threading.current_thread().name = name
            try:
                function()
            except Exception:
                log.exception("%s: failed unexpectedly", name)
            del job, function  # an idle worker keeps nothing alive

    def _next(self, worker: _Worker) -> _Job | None:
        """Return what ``worker`` is to do next; nothing if it is not needed any more."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._idle.append(worker)
        if not worker.has_job.acquire(timeout=self._idle_s):
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    self._workers -= 1
                    return None
            worker.has_job.acquire()  # it was given one at the last moment
        job, worker.job = worker.job, None
        return job


class Serial(Generic[T]):
    """Hands items to ``handle`` one after the other, on a worker that is there while there are any."""

    def __init__(self, name: str, handle: Callable[[T], None], timers: Timers | None = None) -> None:
        self._name = name
        self._handle = handle
        self._timers = timers or shared()
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._is_running = False
        self._is_closed = False
        self._runner = 0

    def put(self, item: T) -> None:
        """Have ``item`` handled after those before it; from any thread."""
        with self._changed:
            if self._is_closed:
                return
            self._items.append(item)
            if not self._is_running:
                self._is_running = True
                self._timers.soon(self._name, self._run)

    def close(self, timeout_s: float) -> bool:
        """Handle no further item, and wait for the one in hand; return whether it has ended."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            if self._runner == threading.get_ident():
                return False
            return self._changed.wait_for(lambda: not self._is_running, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._items:
                    self._is_running = False
                    self._runner = 0
                    self._changed.notify_all()
                    return
                self._runner = threading.get_ident()
                item = self._items.popleft()
            try:
                self._handle(item)
            except Exception:
                log.exception("%s: failed unexpectedly", self._name)


_SHARED = Timers()


def shared() -> Timers:
    """Return the `Timers` of this process."""
    return _SHARED
