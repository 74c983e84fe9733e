"""Places at which a test may have the process killed or stopped, to see what is left or comes meanwhile.

``ECOMPUTE_FAILPOINT=<name>`` kills this process with SIGKILL when it reaches the point of that name;
``<name>:stop`` stops it there with SIGSTOP, the first time, until somebody sends SIGCONT. Several, with
blanks between them, are reached one after the other. Unset, which is the rule, reaching one costs a comparison.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_armed = os.environ.get("ECOMPUTE_FAILPOINT", "").split()


def reach(name: str) -> None:
    """Die or stop here if the environment says so."""
    if not _armed:
        return
    if _armed[0] == name:
        os.kill(os.getpid(), signal.SIGKILL)
    elif _armed[0] == f"{name}:stop":
        del _armed[0]
        os.kill(os.getpid(), signal.SIGSTOP)


def around(names: Iterable[str]) -> tuple[str, ...]:
    """Return the points before and after each of ``names``."""
    return tuple(f"{name}.{side}" for name in names for side in ("before", "after"))


@contextmanager
def passing(name: str) -> Iterator[None]:
    """Around what is done: reach the point before it, and if it went well the one after it."""
    reach(f"{name}.before")
    yield
    reach(f"{name}.after")
