"""Places at which a test may have the process killed, to see what is left.

``ECOMPUTE_FAILPOINT=<name>`` kills this process with SIGKILL when it reaches the point of that name.
Unset, which is the rule, reaching one costs a comparison.
"""

from __future__ import annotations

import os
import signal

_armed = os.environ.get("ECOMPUTE_FAILPOINT")


def reach(name: str) -> None:
    """Die here if the environment says so."""
    if _armed is not None and _armed == name:
        os.kill(os.getpid(), signal.SIGKILL)
