"""Notices that processes end that are nobody's children.

Each is held by a descriptor of the kernel's (pidfd_open(2)), which is readable once it has ended. One thread waits
for all of them, and is there while there are any; nothing is asked again and again. It needs no further descriptor: a
process that may open no more hears of those that it watches all the same.

Threads: any.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Deaths:
    """``tell`` is called with the number under which a process was watched, once it has ended."""

    def __init__(self, tell: Callable[[int], None] = lambda number: None) -> None:
        self.tell = tell
        self._lock = threading.Lock()
        self._held: dict[int, tuple[int, int]] = {}
        """Number → process id and descriptor."""
        self._dropped: list[int] = []
        """Descriptors that the thread closes: it may wait for them."""
        self._thread: threading.Thread | None = None
        self._wake: int | None = None

    def watch(self, number: int, pid: int) -> None:
        """Watch a process in place of the one that was watched under this number, if the machine lets us."""
        with self._lock:
            if number in self._held and self._held[number][0] == pid and self._wake is not None:
                return
            self._drop(number)
            try:
                self._held[number] = pid, os.pidfd_open(pid)
            except ProcessLookupError:
                pass
            except OSError as error:
                log.warning("that process %d ends will not be noticed at once: %s", pid, error.strerror)
            self._look_again()

    def forget(self, number: int) -> None:
        """Watch it no more; that it ends then is told to nobody."""
        with self._lock:
            self._drop(number)
            self._look_again()

    def close(self) -> None:
        with self._lock:
            for number in list(self._held):
                self._drop(number)
            self._look_again()

    def _drop(self, number: int) -> None:
        held = self._held.pop(number, None)
        if held is not None and self._wake is None:
            os.close(held[1])
        elif held is not None:
            self._dropped.append(held[1])

    def _look_again(self) -> None:
        """Have the thread wait for what is held now. The lock is held."""
        if self._wake is not None:
            os.eventfd_write(self._wake, 1)
        elif self._held:
            try:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            except OSError as error:
                log.warning("that processes end will not be noticed at once: %s", error.strerror)
                return
            self._thread = threading.Thread(target=self._wait, args=(self._wake,), name="deaths", daemon=True)
            self._thread.start()

    def _wait(self, wake: int) -> None:
        while True:
            with self._lock:
                for descriptor in self._dropped:
                    os.close(descriptor)
                self._dropped.clear()
                if not self._held:
                    self._wake = None
                    os.close(wake)
                    return
                held = {descriptor: number for number, (_, descriptor) in self._held.items()}
            for number in self._ended(wake, held):
                try:
                    self.tell(number)
                except Exception:
                    log.exception("nobody foresaw this when %d ended", number)

    def _ended(self, wake: int, held: dict[int, int]) -> list[int]:
        """Wait until one has ended, or others are held; return the numbers of those that have ended."""
        poll = select.poll()
        for descriptor in (wake, *held):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if wake in ready:
            os.eventfd_read(wake)
        ended = []
        with self._lock:
            for descriptor in ready - {wake}:
                number = held[descriptor]
                if number in self._held and self._held[number][1] == descriptor:
                    self._drop(number)
                    ended.append(number)
        return ended
