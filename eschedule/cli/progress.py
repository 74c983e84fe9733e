"""The progress line: what is being done, and for how long. On a terminal only.

One thread.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from ecompute.cluster.errors import one_line

FALLBACK_WIDTH = 80


class Progress:
    """One line on standard error that rewrites itself, and is gone at the end.

    Args:
        stream: standard error, where it is a terminal; silent on anything else.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._began_s = clock()
        self._is_shown = self._stream is not None and self._stream.isatty()
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def step(self, text: str) -> None:
        """Show ``text`` as what is being done now."""
        if not self._is_shown:
            return
        took = f" ({self._clock() - self._began_s:.0f} s)"
        # A line that wraps could not be rewritten.
        line = one_line(text, max(1, self._width() - 1 - len(took))) + took
        self._write("\r" + line.ljust(self._length))
        self._length = len(line)

    def clear(self) -> None:
        """Take the line away: something else is to be written."""
        if self._length:
            self._write("\r" + " " * self._length + "\r")
            self._length = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._is_shown = False  # the terminal has gone; the work goes on

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or FALLBACK_WIDTH
        except (OSError, ValueError):
            return FALLBACK_WIDTH
