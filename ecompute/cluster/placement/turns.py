"""One after the other, the claims of this process that write the same provider.

Placement refuses a claim when another one wrote one of its providers in between, and lets it be tried
again: all that the first try cost is lost. Claims of one namespace with a quota, or for the same host,
would do that to one another, so those of one process wait for each other here. It is politeness, not
safety: whoever has waited long enough goes on, and placement decides, as it does among processes.

Safe from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

PATIENCE_S = 2.0
"""How long a claim waits for its turn: some claims' time."""


class Turns:
    """Who writes which providers now."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy: set[str] = set()

    @contextmanager
    def taken(self, providers: Iterable[str], *, patience_s: float = PATIENCE_S) -> Iterator[None]:
        """Hold the turn at all of ``providers`` for the block.

        Args:
            patience_s: after which the block begins all the same, with those turns that are free.
        """
        wanted = frozenset(providers)
        with self._changed:
            self._changed.wait_for(lambda: wanted.isdisjoint(self._busy), patience_s)
            mine = wanted - self._busy
            self._busy |= mine
        try:
            yield
        finally:
            with self._changed:
                self._busy -= mine
                self._changed.notify_all()
