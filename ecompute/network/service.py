"""The dnsmasq of each network: found, started, told, ended.

One a network, below ``directory/<VNI>``. It puts itself into the background once it works, is nobody's child, and
goes on while the daemon is gone: guests keep their DHCP. It is found again by its pid file, or among all processes if
that is lost; neither a number nor a name proves anything: the process must have been started with our file, whose name
has the digest of what is in it, and be in the network's namespace. It is ended by its process id, held so that it
cannot become another's.

Files that it reads anew at a signal are written before the signal, and `told` after it: killed in between, it is
told again. Everything that is written is in place as a whole or not at all.

Any thread may call this, one at a time for a network; `start` in a thread of the network's namespace.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from ecompute.cluster.errors import NetworkError, one_line
from ecompute.cluster.failpoint import reach
from ecompute.network import netns, programs
from ecompute.network.dnsmasq import Files, Paths, without_former
from ecompute.network.gateway_terms import FoundService

PROGRAM = "dnsmasq"
TIMEOUT_S = 10.0
END_TIMEOUT_S = 5.0
USERS = ("dnsmasq", "nobody")
FAILPOINTS = ("dnsmasq.written", "dnsmasq.listed", "dnsmasq.signalled", "dnsmasq.ended")


class Services:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._pids: dict[int, int] = {}
        """Of those that were found or started."""

    def paths(self, vni: int) -> Paths:
        directory = self._directory / f"{vni:06x}"
        return Paths(directory, _user(directory))

    def found(self, vni: int, namespace: str) -> FoundService:
        """Return what is there; a process outside of ``namespace`` is there, and does not run for us."""
        paths, inside = self.paths(vni), netns.identity(namespace)
        # Where neither its namespace nor its files are there, there has been none.
        pid, conf = self._process(vni, is_thorough=inside is not None or paths.directory.exists())
        is_inside = pid is not None and netns.identity_at(Path(f"/proc/{pid}/ns/net")) == inside
        told, lan = _read_told(_told(paths))
        return FoundService(
            is_running=is_inside,
            conf=conf,
            told=told,
            lan=lan,
            has_files=paths.directory.exists(),
        )

    def pid(self, vni: int) -> int | None:
        """Return the process id of the network's dnsmasq, if it runs."""
        return self._process(vni)[0]

    def start(self, vni: int, files: Files, lan: int) -> None:
        """Start it in the namespace of this thread; one that runs is ended first.

        Raises:
            NetworkError: it is missing, or did not start; says what it said.
        """
        self.stop(vni)
        paths = self.paths(vni)
        _make(paths.directory)
        conf = paths.conf(files.conf_digest)
        for other in paths.directory.glob("dnsmasq-*.conf"):
            if other != conf:
                other.unlink(missing_ok=True)
        _write(conf, files.conf)
        # First, so that what it was told is lost only with what it makes of that.
        if (given := _given(paths, files)) is not None:
            _write(paths.given, given)
        _write_lists(paths, files)
        _write(_told(paths), f"{files.told_digest} {lan}\n")
        reach("dnsmasq.written")
        try:
            done = subprocess.run(
                [PROGRAM, f"--conf-file={conf}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
                cwd="/",
                env=programs.environment(),
            )
        except FileNotFoundError as error:
            raise NetworkError("the program dnsmasq is missing", hint="install the package dnsmasq-base") from error
        except subprocess.TimeoutExpired as error:
            raise NetworkError(f"dnsmasq did not start within {TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            raise NetworkError(f"dnsmasq did not start: {one_line(done.stderr, 200)}")

    def tell(self, vni: int, files: Files, lan: int) -> None:
        """Have it read its lists anew; where an address is another guest's now, start it anew: see `start`."""
        paths = self.paths(vni)
        if _given(paths, files) is not None:
            self.start(vni, files, lan)
            return
        _, lan_then = _read_told(_told(paths))
        _write_lists(paths, files)
        reach("dnsmasq.listed")
        _signal(*self._process(vni), paths, signal.SIGHUP)
        reach("dnsmasq.signalled")
        _write(_told(paths), f"{files.told_digest} {lan_then}\n")

    def stop(self, vni: int) -> None:
        """End it, wherever it runs and whatever its pid file says. It may be gone.

        Raises:
            NetworkError: it does not end.
        """
        paths = self.paths(vni)
        pid, conf = self._process(vni, is_thorough=paths.directory.exists())
        if pid is not None:
            _signal(pid, conf, paths, signal.SIGTERM, is_awaited=True)
            reach("dnsmasq.ended")
        with self._lock:
            self._pids.pop(vni, None)
        paths.pid.unlink(missing_ok=True)

    def remove(self, vni: int) -> None:
        """Take its files away, after it has ended."""
        try:
            shutil.rmtree(self.paths(vni).directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise NetworkError(f"the files of dnsmasq cannot be removed: {error.strerror}") from error

    def _process(self, vni: int, *, is_thorough: bool = False) -> tuple[int | None, str | None]:
        """Return the network's process, and the digest that it was started with.

        Args:
            is_thorough: look at all processes of the machine if the pid file names none of ours.
        """
        paths = self.paths(vni)
        known: list[int] = []
        with contextlib.suppress(OSError, ValueError):
            known.append(int(paths.pid.read_text(encoding="ascii")))
        with self._lock:
            known += [self._pids[vni]] if vni in self._pids else []
        for pid in (*known, *(_pids() if is_thorough else ())):
            if (conf := _conf_of(pid, paths)) is not None:
                with self._lock:
                    self._pids[vni] = pid
                return pid, conf
        return None, None


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())


def _conf_of(pid: int, paths: Paths) -> str | None:
    """Return the digest in the command line of a dnsmasq of these paths; None if the process is none."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return None
    if len(arguments) != 2 or Path(os.fsdecode(arguments[0])).name != PROGRAM:
        return None
    file = Path(os.fsdecode(arguments[1]).removeprefix("--conf-file="))
    digest = file.name.removeprefix("dnsmasq-").removesuffix(".conf")
    return digest if file == paths.conf(digest) else None


def _signal(
    pid: int | None, conf: str | None, paths: Paths, number: signal.Signals, *, is_awaited: bool = False
) -> None:
    """Signal a process that was found to be ours, if it still is."""
    if pid is None:
        return
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _conf_of(pid, paths) != conf:
            return  # it ended, and the number may be another's
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(held, number)
        if is_awaited and not _has_ended(held):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held, signal.SIGKILL)
            if not _has_ended(held):
                raise NetworkError(f"dnsmasq (process {pid}) does not end, even when killed")
    finally:
        os.close(held)


def _has_ended(held: int) -> bool:
    """Wait for a process; return whether it has ended in time."""
    poll = select.poll()
    poll.register(held, select.POLLIN)
    return bool(poll.poll(END_TIMEOUT_S * 1000))


def _told(paths: Paths) -> Path:
    return paths.directory / "told"


def _read_told(path: Path) -> tuple[str | None, int | None]:
    try:
        digest, lan = path.read_text(encoding="ascii").split()
        return digest, int(lan)
    except (OSError, ValueError):
        return None, None


def _given(paths: Paths, files: Files) -> str | None:
    """Return the leases that it is to hold, if it holds others: see `dnsmasq.without_former`."""
    given, before = _text(paths.given), _text(paths.leases)
    wanted = without_former(given, before, files.leases)
    return None if wanted == given else wanted


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in (directory, directory.parent):
            path.chmod(0o711)
    except OSError as error:
        raise NetworkError(f"{directory} cannot be made: {error.strerror}") from error


def _write_lists(paths: Paths, files: Files) -> None:
    _write(paths.leases, files.leases)
    _write(paths.names, files.names)


def _write(path: Path, text: str) -> None:
    """Replace a file at once; dnsmasq reads it as another user."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="ascii")
        new.chmod(0o644)
        new.replace(path)
    except OSError as error:
        raise NetworkError(f"{path} cannot be written: {error.strerror}", hint="free space on that disk") from error


def _user(directory: Path) -> str:
    """Return as whom dnsmasq can read files there: one without rights, unless that one cannot get there."""
    if all(parent.stat().st_mode & 0o001 for parent in directory.parents if parent.exists()):
        for user in USERS:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(user).pw_name
    return "root"
