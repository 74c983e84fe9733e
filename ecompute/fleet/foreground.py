"""``ecompute fleet``: a fleet in the foreground, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
import time

from ecompute.fleet.fleet import Fleet, FleetSettings

SIGNAL_PERIOD_S = 1.0
"""A signal that another thread took waits for the main one."""


def run_in_foreground(settings: FleetSettings) -> int:
    """Run the fleet until it is told to end; return the exit status.

    Raises:
        CloudError: it cannot be started; nothing of it is left running.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:5.1f} s] {text}\n")
        sys.stdout.flush()

    fleet = Fleet(settings, say=say)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            fleet.start()
        except BaseException as error:  # noqa: BLE001 - it is raised by the main thread
            failures.append(error)
            stopping.set()

    # Beside the main thread, which a signal is to find waiting.
    starting = threading.Thread(target=start, name="fleet-start", daemon=True)
    starting.start()
    while not stopping.wait(SIGNAL_PERIOD_S):
        pass
    say("stopping: the hosts finish their steps and are reserved")
    fleet.end()
    starting.join()
    fleet.stop()
    if failures:
        raise failures[0]
    say("stopped")
    return 0
