"""A libvirtd of our own beside (or without) the machine's, with all that it writes under one directory.

libvirtd knows its directories from when it was compiled. So it is started in a mount namespace in
which ours are bound over them; nothing outside sees that. With the name of a network namespace it
runs in there, and so do its guests' taps: that makes a host of several on one machine.

``virtlogd`` and ``libvirtd`` are started as daemons (they put themselves into the background once
they listen), because both are to outlive us where guests do: a later `start_libvirtd` on the same
directory finds a running virtlogd and the guests, and takes them back.

Invariants: a process is signalled only after it was recognised as living on the directory: it sees
our directory under ``/run/libvirt``. It is signalled through a descriptor opened before that look,
so its id cannot have passed to another. The machine's libvirtd, its sockets and its configuration
are neither read nor touched; the configuration is written here, whole.

Threads: any; the methods of one `LibvirtProcess` are not to be called at the same time. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ecompute.cluster.errors import StepFailed

# what lies under our directory, and what it is bound over
_PLACES = {
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "etc": "/etc/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}

_CONFIGURATION = {
    "libvirtd.conf": (
        'unix_sock_rw_perms = "0700"\n'
        'unix_sock_ro_perms = "0700"\n'
        'auth_unix_rw = "none"\n'
        'auth_unix_ro = "none"\n'
        'log_outputs = "3:file:/var/log/libvirt/libvirtd.log"\n'
    ),
    "virtlogd.conf": 'log_outputs = "3:file:/var/log/libvirt/virtlogd.log"\n',
    "qemu.conf": (
        'user = "root"\n'
        'group = "root"\n'
        'security_driver = "none"\n'
        "namespaces = []\n"  # they would hide our bound directories from the guest's process
        "cgroup_controllers = []\n"
        "dynamic_ownership = 0\n"
        "remember_owner = 0\n"
        "hugetlbfs_mount = []\n"
    ),
}

_SCRIPT = """
set -e
directory=$1
shift
for pair in run:/run/libvirt lib:/var/lib/libvirt etc:/etc/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
    mkdir -p "${pair#*:}"
    mount --bind "$directory/${pair%%:*}" "${pair#*:}"
done
exec "$@"
"""

_REAPER = Path(__file__).with_name("reaper.py")
_REAPER_COMM = "libvirt-reaper"
"""What the reaper calls itself."""

_SOCKET_PATH_MAX = 107
"""What fits into a ``sockaddr_un``."""

_POLL_S = 0.02


class LibvirtProcess:
    """A private libvirtd: where it is reached, and how it is stopped.

    Made by `start_libvirtd`.
    """

    def __init__(self, directory: Path, netns: str | None) -> None:
        self.directory = directory
        self.netns = netns

    @property
    def uri(self) -> str:
        """Reaches it from anywhere on this machine, whatever namespaces the caller is in."""
        return f"qemu+unix:///system?socket={self.directory}/run/libvirt-sock"

    @property
    def pids(self) -> dict[str, list[int]]:
        """The processes that live on the directory, by their names (``libvirtd``, ``qemu-system-x86``)."""
        found: dict[str, list[int]] = {}
        for pid in _members(self.directory):
            with contextlib.suppress(OSError):
                found.setdefault(Path(f"/proc/{pid}/comm").read_text().strip(), []).append(pid)
        return found

    @property
    def is_running(self) -> bool:
        return bool(_daemon(self.directory, "libvirtd"))

    def start(self) -> None:
        """Start what does not run of virtlogd and libvirtd, and wait until both listen.

        Raises:
            StepFailed: a program is missing or ends at once; says what it said.
        """
        for name in ("virtlogd", "libvirtd"):
            if not _daemon(self.directory, name):
                self._start(name)

    def stop(self, *, keep_guests: bool = False, timeout_s: float = 10.0) -> None:
        """End libvirtd; unless ``keep_guests``, its guests, virtlogd and all else it started, too. Idempotent.

        Raises:
            StepFailed: something is there even after it was killed.
        """
        _end(self.directory, _daemon(self.directory, "libvirtd"), signal.SIGTERM, timeout_s)
        if keep_guests:
            return
        # Guests before what logs for them, and last the reapers, which by then have nothing left to wait for.
        for kept in (("virtlogd", _REAPER_COMM), (_REAPER_COMM,), ()):
            pids = [pid for name, ids in self.pids.items() if name not in kept for pid in ids]
            _end(self.directory, pids, signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End libvirtd, and nothing but it, as a crash would (SIGKILL)."""
        _end(self.directory, _daemon(self.directory, "libvirtd"), signal.SIGKILL, 5.0)

    def restart(self) -> None:
        """Stop libvirtd and start it again; guests run on."""
        self.stop(keep_guests=True)
        self.start()

    def _start(self, name: str) -> None:
        program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if program is None:
            raise StepFailed(f"{name} is not installed", hint="install libvirt-daemon-system")
        argv = ["ip", "netns", "exec", self.netns] if self.netns else []
        argv += ["unshare", "-m", "sh", "-c", _SCRIPT, "sh", str(self.directory)]
        argv += [sys.executable, "-I", "-S", str(_REAPER), program, "--daemon"]
        argv += ["--config", f"/etc/libvirt/{name}.conf", "--pid-file", f"/run/libvirt/{name}.pid"]
        # Its own session: Ctrl-C at the terminal must not reach it before it has detached itself.
        # Its output goes to a file: what it leaves in the background would keep a pipe open.
        output = self.directory / "log" / f"{name}.start"
        try:
            with output.open("wb") as file:
                done = subprocess.run(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    timeout=30,
                    check=False,
                )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StepFailed(f"{name} cannot be started: {error}") from error
        if done.returncode:
            said = output.read_text(errors="replace") + _tail(self.directory / "log" / f"{name}.log")
            raise StepFailed(f"{name} ended with status {done.returncode} at its start: {said}")


def start_libvirtd(directory: Path, *, netns: str | None = None) -> LibvirtProcess:
    """Start a libvirtd whose files all lie under ``directory``, or take back the one that runs there.

    Args:
        directory: made where it is missing; kept, it remembers its domains. Its path is short enough
            for a socket in it.
        netns: the name of the network namespace (``ip netns``) to run it in.

    Returns:
        the running libvirtd.

    Raises:
        StepFailed: it cannot be started; says why.
    """
    directory = directory.absolute()
    process = LibvirtProcess(directory, netns)
    if len(os.fsencode(directory / "run" / "libvirt-admin-sock")) > _SOCKET_PATH_MAX:
        raise StepFailed(f"{directory} is too long for the path of a socket", hint="take a shorter directory")
    for name in _PLACES:
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "run").chmod(0o700)
    for name, text in _CONFIGURATION.items():
        (directory / "etc" / name).write_text(text)
    process.start()
    return process


def _lives_on(directory: Path, pid: int) -> bool:
    """Whether the process sees ``directory``/run in the place of ``/run/libvirt``."""
    try:
        return Path(f"/proc/{pid}/root/run/libvirt").samefile(directory / "run")
    except OSError:
        return False


def _members(directory: Path) -> list[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in pids if _lives_on(directory, pid)]


def _daemon(directory: Path, name: str) -> list[int]:
    """The process id in the daemon's pid file, as a list, if that process lives on the directory."""
    try:
        pid = int((directory / "run" / f"{name}.pid").read_text())
        is_it = _lives_on(directory, pid) and Path(f"/proc/{pid}/comm").read_text().strip() == name
    except (OSError, ValueError):
        return []
    return [pid] if is_it else []


@contextlib.contextmanager
def _handles(directory: Path, pids: list[int]) -> Iterator[dict[int, int]]:
    """Descriptors of those of ``pids`` that are there and live on the directory, by process id."""
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(OSError):
                handle = os.pidfd_open(pid)
                # Looked at after the descriptor was opened: now it is known whose it is.
                if _lives_on(directory, pid):
                    handles[pid] = handle
                else:
                    os.close(handle)
        yield handles
    finally:
        for handle in handles.values():
            os.close(handle)


def _end(directory: Path, pids: list[int], first: signal.Signals, timeout_s: float) -> None:
    """Signal the processes and wait for their end; kill those that have not ended in time."""
    with _handles(directory, pids) as handles:
        for number, wait_s in ((first, timeout_s), (signal.SIGKILL, 5.0)):
            for handle in handles.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                    signal.pidfd_send_signal(handle, signal.SIGCONT)
            deadline = time.monotonic() + wait_s
            while any(not select.select([handle], [], [], 0)[0] for handle in handles.values()):
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_S)
            else:
                return
        raise StepFailed(f"processes {sorted(handles)} on {directory} do not end, even when killed")


def _tail(path: Path, limit: int = 1000) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-limit:]
    return ""
