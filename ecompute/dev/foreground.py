"""``ecompute dev``: the embedded cloud in the foreground, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

from ecompute.daemon import EXIT_STUCK
from ecompute.dev.cloud import EmbeddedCloud

LOOK_PERIOD_S = 1.0


def run_in_foreground(directory: Path) -> int:
    """Run the cloud under ``directory`` until SIGINT, SIGTERM or SIGHUP; return the exit status."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    began = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - began:5.1f} s] {text}\n")
        sys.stdout.flush()

    cloud = EmbeddedCloud(directory, say=say).start()
    try:
        say("ready")
        sys.stdout.write(
            "\nIn another terminal:\n\n"
            f"  export ECOMPUTE_CONFIG={cloud.config}\n"
            "  eschedule launch --name web-1 --wait\n\n"
            f"Logs and state are under {directory}. Ctrl-C stops the cloud; guests go on running.\n"
        )
        sys.stdout.flush()
        while not stopping.wait(LOOK_PERIOD_S):
            ended = cloud.is_running()
            if ended is not None and cloud.host_exit_status() == EXIT_STUCK:
                say("ecompute asked to be started anew")
                cloud.restart_host()
            elif ended is not None:
                say(f"{ended} has ended by itself; stopping the rest")
                return 1
    finally:
        cloud.stop()
        if cloud.has_guests():
            say(f"stopped; its guests go on running, and `ecompute dev --directory {directory}` takes them back")
        else:
            say("stopped")
    return 0
