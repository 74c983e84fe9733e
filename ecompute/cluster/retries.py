"""Doing a thing again later: a table of what is due, and one thread that wakes it.

A thing that is put off twice is done at the earlier of the two times, once. Safe from several threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Retries:
    """Calls ``wake`` with each thing that is due, until closed.

    Args:
        wake: must not block for long: other things are due.
    """

    def __init__(self, name: str, wake: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._wake = wake
        self._clock = clock
        self._changed = threading.Condition()
        self._due: dict[str, float] = {}
        self._is_closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def later(self, what: str, delay_s: float) -> None:
        """Wake ``what`` in ``delay_s`` seconds, or earlier if it is due earlier."""
        with self._changed:
            at = self._clock() + delay_s
            self._due[what] = min(at, self._due.get(what, at))
            self._changed.notify()

    def close(self) -> None:
        """Wake nothing any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and (left := self._left_s()) is not None and left > 0:
                    self._changed.wait(left)
                if self._is_closed:
                    return
                if not self._due:
                    self._changed.wait()
                    continue
                now = self._clock()
                due = [what for what, at in self._due.items() if at <= now]
                for what in due:
                    del self._due[what]
            for what in due:
                self._wake(what)

    def _left_s(self) -> float | None:
        return min(self._due.values()) - self._clock() if self._due else None
