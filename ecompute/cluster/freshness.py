"""For how long what etcd said is a reason to give a claim back.

A write to placement can compare nothing in etcd. Who reads, sleeps, and releases then, may do so after etcd
was put back: the intent is there again, or a client has launched with the uuid again, and the claim is that
of a guest that runs. A lead looks at its lease. A tool holds none, so it looks at its clock: putting etcd
back takes longer than `FRESH_S`, and nothing is released on what was asked before that.

Safe from several threads.
"""

from __future__ import annotations

from collections.abc import Callable

from ecompute.cluster.errors import OutOfDate
from ecompute.cluster.store import clock_s

FRESH_S = 15.0
"""As long as a lead's lease (`ecompute.cluster.upkeep.lead`)."""


class Reading:
    """What is asked of etcd from now on, as the reason for one release.

    Args:
        clock: seconds, monotonic; by default they go on while the machine sleeps.
    """

    def __init__(self, clock: Callable[[], float] = clock_s) -> None:
        self._clock = clock
        self._began_s = clock()

    @property
    def is_old(self) -> bool:
        return self._clock() - self._began_s >= FRESH_S

    def check(self) -> None:
        """See that it is not old; called right before each try of the release.

        Raises:
            OutOfDate: it is: read again, or leave the claim to the audit.
        """
        if self.is_old:
            raise OutOfDate(f"what was read more than {FRESH_S:g} s ago is no reason to release a claim")

    def holds(self, guard: Callable[[], object]) -> Callable[[], None]:
        """Return what sees, right before each try, that ``guard`` holds too: placement cannot compare it."""

        def check() -> None:
            guard()
            self.check()

        return check
