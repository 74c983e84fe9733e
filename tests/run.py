"""Run pytest, and end with it whatever it has started.

Services that tests start put themselves into the background, and a worker that hangs or crashes stops none of
its own. So this program becomes the parent of every orphan among its descendants and collects it. What is still
there when pytest has ended is named and killed, its network namespaces are removed, and the run has failed, as
it has when it does not end within `LIMIT_S`. Temporary files that are not pytest's lie in a directory that goes
with the run. pytest's own times are in pyproject.toml: a test is interrupted after ten minutes, and its worker
ends a minute later if it does not heed that.

A program, not a module to import: ``python tests/run.py ARGUMENT…``, which are pytest's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S = 3600
"""Nothing that tests do takes that long, on any machine."""

PATIENCE_S = 10.0
"""What was told to end has this long to do so."""

_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str], *, patience_s: float = PATIENCE_S) -> int:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Not ignored, which would be inherited: at the terminal Ctrl-C reaches pytest too, which stops in order.
    signal.signal(signal.SIGINT, lambda *_: None)
    scratch = Path(tempfile.mkdtemp(prefix="ect-"))
    scratch.chmod(0o711)  # PostgreSQL runs as another account
    # What pytest keeps of a red run stays where it always is.
    own = {"TMPDIR": str(scratch), "PYTEST_DEBUG_TEMPROOT": tempfile.gettempdir()}
    pytest = subprocess.Popen([sys.executable, "-m", "pytest", *arguments], env=os.environ | own)

    def interrupt(number: int, _: object) -> None:
        why = f"not done after {LIMIT_S} s" if number == signal.SIGALRM else "told to end"
        print(f"tests: {why}: pytest is interrupted, and killed if that does not end it", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pytest.pid, signal.SIGKILL if interrupted else signal.SIGINT)
        interrupted.append(number)
        signal.alarm(60)

    interrupted: list[int] = []
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(LIMIT_S)
    status = collect_until(pytest)
    signal.alarm(0)
    left = end_descendants(patience_s)
    for command in left:
        print(f"tests: left behind by pytest, and killed: {command}", file=sys.stderr)
    shutil.rmtree(scratch, ignore_errors=True)
    if (left or interrupted) and os.geteuid() == 0:
        remove_namespaces()
    return status or int(bool(left or interrupted))


def collect_until(child: subprocess.Popen[bytes]) -> int:
    """Collect whatever ends, until it is ``child``; return its status, as a shell does."""
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            child.returncode = code
            return code if code >= 0 else 128 - code


def end_descendants(patience_s: float) -> list[str]:
    """Wait a little for all descendants to end, kill those that do not; return what these were."""
    deadline = time.monotonic() + patience_s
    killed: dict[int, str] = {}
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        there = descendants()
        if not there or time.monotonic() > deadline + PATIENCE_S:  # what hangs in the kernel stays
            return list(killed.values())
        if time.monotonic() > deadline:
            for pid in there:
                killed.setdefault(pid, command_of(pid))
                # Ours and not yet collected, or below one that is: the id has not passed to another.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = children.get(os.getpid(), [])
    for pid in found:
        found += children.get(pid, [])
    return found


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return f"{pid} {arguments.decode(errors='replace')[:200].strip()}"
    return str(pid)


def remove_namespaces() -> None:
    sys.path.insert(0, str(Path(__file__).parent / "system"))
    from cloud import remove_leftovers

    remove_leftovers()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
