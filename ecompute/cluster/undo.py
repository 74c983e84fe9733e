"""A list of undos, pushed before the side effects they undo.

Used as a context manager: left with an error, the undos run, last first; left cleanly, or after
`commit`, they do not. An undo is idempotent and may find nothing to do. One that fails does not
keep the others from running: it is collected in `failures`, for the object's record.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self


class Undo:
    """Not for use by several threads."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self.failures: list[tuple[str, Exception]] = []

    def push(self, name: str, action: Callable[[], object]) -> None:
        """Remember ``action``; ``name`` is what it undoes."""
        self._steps.append((name, action))

    def commit(self) -> None:
        """Forget every undo: what was done stays."""
        self._steps.clear()

    def run(self) -> None:
        """Run all undos now, last first."""
        while self._steps:
            name, action = self._steps.pop()
            try:
                action()
            except Exception as error:  # noqa: BLE001 - one undo that fails must not keep the others
                self.failures.append((name, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.run()
