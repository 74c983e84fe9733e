"""Programs that the embedded cloud and the tests start: etcd, placement, libvirtd.

A `Child` runs in a session of its own, so that Ctrl-C at the terminal reaches only us and we stop
the children last and in order. Its output goes to a file, never to a pipe that nobody reads. It is
started without `preexec_fn` (no Python runs between fork and exec), which is safe beside threads
and open gRPC channels.

Invariants: only processes that were started here are signalled: by a process id that we have not yet
reaped, so that it cannot have passed to somebody else, or, for what a killed run of ours left behind,
by the id together with the moment it was started. What the program itself put into another session
(libvirtd's guests) is left alone.

Threads: `start`, `stop`, `kill` and the rest may be called from any thread; the signalling ones
take a lock.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from ecompute.cluster.errors import StepFailed

_POLL_S = 0.02
"""How often a condition is looked at again while we wait for it."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of ``host`` that was free a moment ago.

    Somebody else may take it before the program that it is meant for binds it: callers start again
    with another port when that happens.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def stop_leftover(pid_file: Path, *, term_timeout_s: float = 10.0, kill_timeout_s: float = 5.0) -> bool:
    """End the process that ``pid_file`` names, if it is still the one that was started then.

    Such a process is left when we are killed before our children; it would hold its data's lock.

    Returns:
        Whether there was one.
    """
    try:
        identity = pid_file.read_text(encoding="utf-8").strip()
        pid = int(identity.split()[0])
        handle = os.pidfd_open(pid)
    except (OSError, ValueError, IndexError, OverflowError):
        return False
    try:
        # The handle is open: if the id still belongs to that process now, the handle does for good.
        if _identity(pid) != identity:
            return False
        for number, timeout_s in ((signal.SIGTERM, term_timeout_s), (signal.SIGKILL, kill_timeout_s)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
                signal.pidfd_send_signal(handle, signal.SIGCONT)
            if select.select([handle], [], [], timeout_s)[0]:
                break
        return True
    finally:
        os.close(handle)


def _identity(pid: int) -> str | None:
    """Return what tells this process from any other that had or will have its id."""
    try:
        # The name, in brackets, may hold spaces; the start time is field 22.
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except (OSError, IndexError):
        return None
    return f"{pid} {started} {boot}"


class Child:
    """One program that we started.

    Args:
        name: what people call it, in errors.
        argv: the program and its arguments; found on PATH, never run through a shell.
        log: the file that its output is appended to; its directory is made.
        env: its whole environment; None: ours.
        cwd: its working directory; None: ours.
        pid_file: written while it runs; starting first ends what a killed run left behind.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pid_file: Path | None = None,
    ) -> None:
        self.name = name
        self.argv = [str(part) for part in argv]
        self.log = log
        self.env = env
        self.cwd = cwd
        self.pid_file = pid_file
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()

    @property
    def pid(self) -> int:
        """The process id of the last start.

        Raises:
            StepFailed: it was never started.
        """
        if self._process is None:
            raise StepFailed(f"{self.name} was never started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._has_ended(self._process)

    @property
    def exit_status(self) -> int | None:
        """As in `subprocess`: negative for a signal; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> Self:
        """Start the program; nothing happens if it runs.

        Raises:
            StepFailed: the program is not installed, or may not be run.
        """
        with self._lock:
            if self.is_running:
                return self
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.pid_file is not None:
                stop_leftover(self.pid_file)
            try:
                with self.log.open("ab") as log:
                    self._process = subprocess.Popen(
                        self.argv,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=None if self.env is None else dict(self.env),
                        cwd=self.cwd,
                        start_new_session=True,
                    )
            except OSError as error:
                raise StepFailed(f"{self.name} cannot be started: {self.argv[0]}: {error.strerror}") from error
            if self.pid_file is not None:
                self.pid_file.write_text(_identity(self._process.pid) or "", encoding="utf-8")
            return self

    def wait_ready(self, is_ready: Callable[[], bool], *, timeout_s: float) -> Self:
        """Wait until ``is_ready()`` is true.

        Raises:
            StepFailed: the program ended meanwhile, or the time was up; says what its log ends with.
        """
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if not self.is_running:
                raise StepFailed(f"{self.name} ended with status {self.exit_status}: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise StepFailed(f"{self.name} is not ready after {timeout_s:g} s: {self.log_tail()}")
            time.sleep(_POLL_S)
        return self

    def wait(self, timeout_s: float) -> bool:
        """Wait until the program has ended by itself; return whether it has."""
        return self._process is None or self._wait_ended(self._process, timeout_s)

    def stop(self, *, term_timeout_s: float = 10.0, kill_timeout_s: float = 5.0) -> None:
        """Ask the program to end (SIGTERM); if it has not within ``term_timeout_s``, kill its session.

        What is left of its session after it ended is killed, too. Idempotent.

        Raises:
            StepFailed: it is there even after ``kill_timeout_s`` (it hangs in the kernel).
        """
        with self._lock:
            process = self._process
            if process is None or process.returncode is not None:
                return
            if not self._has_ended(process):
                process.send_signal(signal.SIGTERM)
                self._signal_group(process, signal.SIGCONT)  # a suspended program would never see the first one
                self._wait_ended(process, term_timeout_s)
            self._kill_group(process, kill_timeout_s)

    def kill(self, *, timeout_s: float = 5.0) -> None:
        """End the whole session at once, as a power cut would (SIGKILL). Idempotent."""
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                self._kill_group(self._process, timeout_s)

    def suspend(self) -> None:
        """Freeze the session (SIGSTOP): its sockets stay open and nothing answers on them."""
        self._signal_if_running(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a suspended session go on (SIGCONT)."""
        self._signal_if_running(signal.SIGCONT)

    def log_tail(self, limit_bytes: int = 2000) -> str:
        """Return the end of the log, for errors."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - limit_bytes))
                return log.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal_if_running(self, number: signal.Signals) -> None:
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                self._signal_group(self._process, number)

    @staticmethod
    def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        # The leader is not reaped yet, so its id still names this group and no other.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    def _kill_group(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        self._signal_group(process, signal.SIGKILL)
        if not self._wait_ended(process, timeout_s):
            raise StepFailed(f"{self.name} (process {process.pid}) does not end, even when killed")
        process.wait()
        if self.pid_file is not None:
            self.pid_file.unlink(missing_ok=True)

    @staticmethod
    def _has_ended(process: subprocess.Popen[bytes]) -> bool:
        """Whether it has ended; does not reap it, so that its group can still be named."""
        if process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    @classmethod
    def _wait_ended(cls, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not cls._has_ended(process):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
