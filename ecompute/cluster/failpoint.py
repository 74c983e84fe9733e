"""Places at which a test may have the process killed or stopped, to see what is left or comes meanwhile.

``ECOMPUTE_FAILPOINT=<name>`` kills this process with SIGKILL when it reaches the point of that name;
``<name>:stop`` stops it there with SIGSTOP, the first time, until somebody sends SIGCONT.
Unset, which is the rule, reaching one costs a comparison.
"""

from __future__ import annotations

import os
import signal

_armed = os.environ.get("ECOMPUTE_FAILPOINT")


def reach(name: str) -> None:
    """Die or stop here if the environment says so."""
    global _armed
    if _armed is None:
        return
    if _armed == name:
        os.kill(os.getpid(), signal.SIGKILL)
    elif _armed == f"{name}:stop":
        _armed = None
        os.kill(os.getpid(), signal.SIGSTOP)
