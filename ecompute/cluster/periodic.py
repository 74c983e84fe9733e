"""Something that is done again and again.

`Periodic` calls a function, waits a period with jitter (a thousand hosts that started together must
not ask together for ever), and calls it again. `Periodic.wake` calls it at once: start-up, an event
and the timer run the same code. A wake during a call leads to one more call after it, however many
they were, since what the call had read may be older than the event.

A call that raises does not end it. What is raised is logged once as long as it says the same; a
call that goes well again is logged too, and forgets what was said.

Threads: every method may be called from any; `wake` also from a signal handler's main thread while
a call runs. The function is called on a worker of the process's timers, so that waiting costs no
thread, and never by two at a time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from ecompute.cluster.errors import CloudError, one_line
from ecompute.cluster.timers import Timer, Timers, shared

JITTER = 0.1
REMEMBERED = 100
"""Of how many distinct errors in a row it is known that they were logged."""

log = logging.getLogger(__name__)


class Periodic:
    """Calls ``function`` at once, and then every period, from `start` to `stop`.

    Args:
        name: of the thread while it is called, and in the log.
        function: what it returns is ignored.
        period_s: from the end of a call to the beginning of the next.
        jitter_s: at most so much is added to a period, or taken from it; a tenth of it by default.
        rng: gives the jitter.
        clock: seconds, monotonic.
        timers: the process's by default.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], object],
        *,
        period_s: float,
        jitter_s: float | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        timers: Timers | None = None,
    ) -> None:
        self._name = name
        self._function = function
        self._period_s = period_s
        self._jitter_s = period_s * JITTER if jitter_s is None else jitter_s
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - spreads load, guards nothing
        self._clock = clock
        self._timers = timers or shared()
        # Reentrant: a signal handler may wake us while the main thread holds it.
        self._condition = threading.Condition(threading.RLock())
        self._is_started = False
        self._is_woken = False
        self._is_stopping = False
        self._is_queued = False
        self._caller: int | None = None
        self._timer: Timer | None = None
        self._due = 0.0
        self._said: set[str] = set()
        self._failures = 0

    @property
    def is_running(self) -> bool:
        """After `start`, until it was stopped and the last call has ended."""
        with self._condition:
            return self._is_started and (not self._is_stopping or self._caller is not None)

    def start(self) -> None:
        """Begin; the first call is made at once. Idempotent; not after `stop`."""
        with self._condition:
            if not self._is_started and not self._is_stopping:
                self._is_started = True
                self._queue()

    def wake(self) -> None:
        """Call the function now, or, while it is called, once more when that has ended."""
        with self._condition:
            self._is_woken = True
            if self._is_started and self._caller is None:
                self._queue()

    def stop(self, timeout_s: float | None = 30.0) -> bool:
        """Make no further call, and wait for the one that runs; return whether it has ended.

        May be called by the function itself, which then does not wait for itself. Idempotent.
        """
        with self._condition:
            self._is_stopping = True
            self._forget_timer()
            if self._caller == threading.get_ident():
                return False
            return self._condition.wait_for(lambda: self._caller is None, timeout_s)

    def _queue(self) -> None:
        """Have the function called by a worker, unless that is on its way. The lock is held."""
        if not self._is_queued and not self._is_stopping:
            self._is_queued = True
            self._forget_timer()
            self._timers.soon(self._name, self._run)

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _run(self) -> None:
        with self._condition:
            self._is_queued = False
            if self._is_stopping:
                return
            self._is_woken = False
            self._caller = threading.get_ident()
        try:
            self._call()
        finally:
            with self._condition:
                self._caller = None
                self._due = self._clock() + max(
                    0.0, self._period_s + self._rng.uniform(-self._jitter_s, self._jitter_s)
                )
                if self._is_stopping:
                    self._condition.notify_all()
                elif self._is_woken:
                    self._queue()
                else:
                    self._wait()

    def _wait(self) -> None:
        """Have the function called when it is due. The lock is held."""
        left_s = self._due - self._clock()
        if left_s <= 0:
            self._queue()
        else:
            self._timer = self._timers.later(left_s, self._name, self._look)

    def _look(self) -> None:
        with self._condition:
            # The timers' clock and ours may differ: a test turns on ours.
            if self._timer is not None and self._caller is None and not self._is_queued and not self._is_stopping:
                self._timer = None
                self._wait()

    def _call(self) -> None:
        try:
            self._function()
        except Exception as error:  # noqa: BLE001 - the next call may go well
            self._failed(error)
        else:
            if self._failures:
                log.info("%s: works again, after %d failures", self._name, self._failures)
            self._failures = 0
            self._said.clear()

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        text = one_line(f"{type(error).__name__}: {error}")
        if text in self._said:
            return
        if len(self._said) >= REMEMBERED:
            self._said.clear()
        self._said.add(text)
        if isinstance(error, CloudError):
            log.warning("%s: %s", self._name, error)
        else:
            log.error("%s: failed unexpectedly", self._name, exc_info=error)
