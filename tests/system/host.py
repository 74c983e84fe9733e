"""One host of the system tests: a namespace, a libvirtd, a daemon; see `cloud`."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import libvirt
import yaml

from ecompute.dev.cloud import Host as Daemon
from ecompute.dev.cloud import wait_until_open
from ecompute.dev.hosts import Underlay
from ecompute.dev.libvirtd import start_libvirtd

BOOT_TIMEOUT_S = 90.0
"""Six seconds on an idle machine; ten guests booting at once on two cores take their time."""

T = TypeVar("T")

libvirt.registerErrorHandler(lambda context, error: None, None)  # errors are raised; none is printed


def wait_for(condition: Callable[[], T | None], *, timeout_s: float = 30.0, what: str = "") -> T:
    """Return what ``condition`` returns once that is true; fail when time is up."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what or 'what was waited for'}"
        time.sleep(0.05)
    return value


class Result(NamedTuple):
    """What a program ended with."""

    status: int
    stdout: str
    stderr: str


class Host:
    """One host. Its namespace and libvirtd are there from the beginning; its daemon is started by `start`."""

    def __init__(self, name: str, directory: Path, underlay: Underlay, settings: dict[str, Any]) -> None:
        self.name = name
        self.directory = directory
        self.netns, self.address = underlay.add()
        directory.mkdir(parents=True)
        self._probed = directory.parents[1] / "libvirt-cache"
        if self._probed.exists():
            shutil.copytree(self._probed, directory / "libvirt" / "cache" / "qemu")
        self.libvirtd = start_libvirtd(directory / "libvirt", netns=self.netns)
        self.state = directory / "state"
        own = {"name": name, "state_dir": str(self.state), "libvirt": self.libvirtd.uri, "underlay": self.address}
        self.settings = settings | own
        (directory / "compute.yaml").write_text(yaml.safe_dump(self.settings, sort_keys=False))
        self._daemon: Daemon | None = None
        self._connection: Any = None
        self.is_stopped_cleanly = False

    # --- the daemon ---

    def start(self, *, failpoint: str | None = None, wait: bool = True, programs: Path | None = None) -> None:
        """Start ``ecompute run``; unless told otherwise or it is to die, wait until it takes instances.

        Args:
            programs: the one directory in which it finds programs of others.
        """
        assert not self.is_running
        env = {} if failpoint is None else {"ECOMPUTE_FAILPOINT": failpoint}
        if programs is not None:
            env["PATH"] = str(programs)
        self.is_stopped_cleanly = False
        self._daemon = Daemon(self.directory, netns=self.netns, env=env).start()
        if wait and failpoint is None:
            wait_until_open(self._daemon)
            self._keep_what_libvirt_has_probed()

    def _keep_what_libvirt_has_probed(self) -> None:
        """Looking at what QEMU can do takes libvirt a second or two: once a run is enough."""
        if not self._probed.exists():
            new = self._probed.with_name(f"libvirt-cache.{self.netns}")
            shutil.copytree(self.directory / "libvirt" / "cache" / "qemu", new)
            with contextlib.suppress(OSError):  # another host was first
                new.rename(self._probed)

    def stop(self) -> int | None:
        """Ask the daemon to end (SIGTERM) and wait for it; return its exit status."""
        daemon = self.daemon
        daemon.stop()
        self.is_stopped_cleanly = daemon.child.exit_status == 0
        return daemon.child.exit_status

    def kill(self) -> None:
        """End the daemon as a crash would (SIGKILL)."""
        if self._daemon is not None:
            self._daemon.kill()

    def restart(self, **how: Any) -> None:
        self.stop()
        self.start(**how)

    def wait_dead(self, timeout_s: float = 60.0, what: str = "its failpoint") -> None:
        """Wait until the daemon has ended by itself: its failpoint was reached."""
        assert self.daemon.child.wait(timeout_s), f"{self.name}'s daemon did not reach {what} within {timeout_s:g} s"
        self.daemon.kill()  # what is left of its session

    def die_at(self, failpoint: str) -> None:
        """Start the daemon, and see to it that it kills itself there: a point that is not reached fails the test."""
        self.start(failpoint=failpoint)
        self.wait_dead(what=failpoint)
        assert self.daemon.child.exit_status == -signal.SIGKILL, f"{self.name} ended by itself, not at {failpoint}"

    @property
    def is_suspended(self) -> bool:
        """Whether the daemon is stopped, by `Child.suspend` or at a failpoint ``<name>:stop``."""
        state = Path(f"/proc/{self.daemon.child.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state not in ("Z", "X"), f"{self.name} ended: {self.daemon.child.log_tail()}"
        return state in ("T", "t")

    @property
    def daemon(self) -> Daemon:
        assert self._daemon is not None, "start it first"
        return self._daemon

    @property
    def is_running(self) -> bool:
        return self._daemon is not None and self._daemon.child.is_running

    @property
    def provider(self) -> str:
        """The uuid of its resource provider."""
        return (self.state / "provider-uuid").read_text().strip()

    @property
    def log(self) -> str:
        return (self.directory / "ecompute.log").read_text(errors="replace")

    # --- what is on it ---

    @property
    def libvirt(self) -> Any:
        """A connection (``libvirt.virConnect``) to its libvirtd; opened anew when that was restarted."""
        if self._connection is None or not self._connection.isAlive():
            self.disconnect()
            self._connection = libvirt.open(self.libvirtd.uri)
        return self._connection

    def disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.close()
            self._connection = None

    def domain(self, uuid: str) -> Any:
        """Return the ``libvirt.virDomain``; `libvirt.libvirtError` if there is none."""
        return self.libvirt.lookupByUUIDString(uuid)

    def domains(self) -> dict[str, bool]:
        """Return the uuids of all domains, and whether each is active."""
        found = {}
        for domain in self.libvirt.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):  # it went meanwhile
                found[domain.UUIDString()] = bool(domain.isActive())
        return found

    def guest_pids(self) -> dict[str, list[int]]:
        """Return the process ids of the QEMUs on this host by the uuid of their guest."""
        found: dict[str, list[int]] = {}
        for name, pids in self.libvirtd.pids.items():
            for pid in pids if name.startswith("qemu-system") else ():
                with contextlib.suppress(OSError, ValueError):
                    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    found.setdefault(arguments[arguments.index(b"-uuid") + 1].decode(), []).append(pid)
        return found

    def files(self, uuid: str) -> Path:
        return self.state / "instances" / uuid

    def console(self, uuid: str) -> str:
        path = self.files(uuid) / "console.log"
        return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""

    def wait_console(self, uuid: str, text: str, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        """Wait until the guest has written ``text``; return all it has written."""
        wait_for(lambda: text in self.console(uuid), timeout_s=timeout_s, what=f"{text!r} on the console of {uuid}")
        return self.console(uuid)

    def run(self, *argv: str, check: bool = True) -> Result:
        """Run a program in this host's network namespace."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.netns, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return Result(done.returncode, done.stdout, done.stderr)
