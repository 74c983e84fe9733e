"""Run a program that puts itself into the background, and collect what it and its children leave behind.

libvirt takes a guest for running until its process id is free. A guest is nobody's child, so it is for
the machine's init to collect it; in a container there may be none, or one that looks every few seconds,
and each end of a guest would wait for it. This little program becomes the parent of all orphans among
its descendants, and collects them at once. It ends when none is left.

A program, not a module to import: ``python -I -S reaper.py PROGRAM ARGUMENT…``. It ends with the status
of the program's start; its background half stays.
"""

import ctypes
import os
import signal
import subprocess
import sys

_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> int:
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        status = os.read(reader, 1)
        return status[0] if status else 125
    os.close(reader)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(_PR_SET_NAME, b"libvirt-reaper", 0, 0, 0)
    try:
        status_of_start = subprocess.call(argv) & 0xFF
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201 - its output is a log file
        status_of_start = 127
    os.write(writer, bytes([status_of_start]))
    os.close(writer)
    os.chdir("/")
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
