"""Doing a thing again later: a table of what is due, which wakes it.

A thing that is put off twice is done at the earlier of the two times, once. Delays are spread by
`JITTER`: what failed together, because etcd was away, does not come back together. Waiting costs no
thread (see `ecompute.cluster.timers`). Safe from several threads.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from ecompute.cluster.timers import Timer, Timers, shared

JITTER = 0.25
"""Of a delay, by which it may be shorter or longer."""


class Retries:
    """Calls ``wake`` with each thing that is due, until closed.

    Args:
        name: of the thread while it wakes.
        wake: must not block for long: other things are due.
        rng: gives the jitter.
    """

    def __init__(
        self,
        name: str,
        wake: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        rng: random.Random | None = None,
        timers: Timers | None = None,
    ) -> None:
        self._name = name
        self._wake = wake
        self._clock = clock
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - spreads load, guards nothing
        self._timers = timers or shared()
        self._lock = threading.Lock()
        self._due: dict[str, float] = {}
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._is_closed = False

    def later(self, what: str, delay_s: float) -> None:
        """Wake ``what`` in about ``delay_s`` seconds, or earlier if it is due earlier."""
        with self._lock:
            at = self._clock() + delay_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
            self._due[what] = min(at, self._due.get(what, at))
            self._set_timer()

    def close(self) -> None:
        """Wake nothing any more; a wake under way is not waited for."""
        with self._lock:
            self._is_closed = True
            self._due.clear()
            self._forget_timer()

    def _set_timer(self) -> None:
        """Wait for what is due first. The lock is held."""
        if self._is_closed or not self._due:
            return
        at = min(self._due.values())
        if self._timer is not None and self._timer_at <= at:
            return
        self._forget_timer()
        self._timer_at = at
        self._timer = self._timers.later(at - self._clock(), self._name, self._fire)

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _fire(self) -> None:
        with self._lock:
            self._timer = None
            now = self._clock()
            due = [what for what, at in self._due.items() if at <= now]
            for what in due:
                del self._due[what]
            self._set_timer()
        for what in due:
            self._wake(what)
