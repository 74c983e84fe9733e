"""The embedded cloud: etcd, placement on SQLite, libvirt and one host, started on this machine.

Everything lies under one directory, and the same directory brings the same cloud back: guests that
run go on running while it is down. The parts run in sessions of their own and are stopped last
first, so that the daemon can still reserve its host and report when Ctrl-C is pressed.

Where a libvirt serves the machine already, it is used; else a private one is started. That one
outlives us as long as guests run, since their consoles are in its hands.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import yaml

from ecompute.cluster import config, keys
from ecompute.cluster.documents import Alive
from ecompute.cluster.errors import CloudError, StepFailed
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.dev import hosts
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.guest_image import build_cached
from ecompute.dev.libvirtd import LibvirtProcess, start_libvirtd
from ecompute.dev.placement import PlacementProcess, start_placement
from ecompute.dev.processes import Child, free_port
from ecompute.hypervisor.connection import answers

SYSTEM_LIBVIRT = "qemu:///system"
DAEMON_READY_S = 120.0
DAEMON_STOP_S = 90.0
POLL_S = 0.05

Say = Callable[[str], None]


class Host:
    """One ``ecompute run``, as a child.

    Args:
        directory: its ``compute.yaml`` lies there; its log goes there.
        netns: the network namespace it runs in, or ``None``.
        env: added to its environment.
    """

    def __init__(self, directory: Path, *, netns: str | None = None, env: dict[str, str] | None = None) -> None:
        self.config = directory / "compute.yaml"
        self.log = directory / "ecompute.log"
        self._netns = netns
        self._env = env or {}
        self._child: Child | None = None

    def start(self) -> Self:
        enter = [] if self._netns is None else hosts.enter(self._netns)
        self._child = Child(
            "ecompute",
            [*enter, sys.executable, "-m", "ecompute", "--config", str(self.config), "run"],
            self.log,
            env={**os.environ, **self._env},
            pid_file=self.log.with_suffix(".pid"),
        ).start()
        return self

    @property
    def child(self) -> Child:
        assert self._child is not None, "start it first"
        return self._child

    def stop(self) -> None:
        """Let it finish the steps in hand, reserve its host and end."""
        if self._child is not None:
            self._child.stop(term_timeout_s=DAEMON_STOP_S)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()


class EmbeddedCloud:
    """The cloud under ``directory``.

    Args:
        say: told of each step, in words.
    """

    def __init__(self, directory: Path, *, say: Say = lambda text: None) -> None:
        self.directory = directory
        self.config = directory / "compute.yaml"
        self._say = say
        self._etcd: EtcdProcess | None = None
        self._placement: PlacementProcess | None = None
        self._libvirt: LibvirtProcess | None = None
        self.host: Host | None = None

    def start(self) -> Self:
        """Start what does not run; return once the host is open for instances.

        Raises:
            StepFailed: a part did not start; its log's end is in the text. What had been started is
                stopped again.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self) -> None:
        self._say("starting the small guest image")
        image = build_cached(self.directory / "guest-image")
        self._say("starting etcd")
        self._etcd = start_etcd(self.directory / "etcd", port=_remembered_port(self.directory / "etcd.port"))
        self._say("starting placement")
        self._placement = start_placement(
            self.directory / "placement", port=_remembered_port(self.directory / "placement.port")
        )
        libvirt_uri = SYSTEM_LIBVIRT
        if not answers(SYSTEM_LIBVIRT):
            self._say("starting libvirt, of its own: none serves this machine")
            self._libvirt = start_libvirtd(self.directory / "libvirt")
            libvirt_uri = self._libvirt.uri
        host, port = self._etcd.endpoint.rsplit(":", 1)
        settings = {
            "state_dir": str(self.directory / "host"),
            "etcd": {"host": host, "port": int(port)},
            "placement": {"endpoint": self._placement.endpoint},
            "libvirt": libvirt_uri,
            "image": {"default": str(image), "allow_paths": [str(image.parent)]},
        }
        own = self.directory / "own.yaml"
        if own.exists():
            settings |= yaml.safe_load(own.read_text(encoding="utf-8")) or {}
        new = self.config.with_suffix(".new")
        new.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        new.replace(self.config)
        self._say("starting ecompute")
        self.host = Host(self.directory).start()
        wait_until_open(self.host)

    def has_guests(self) -> bool:
        """Whether guests of this cloud are on this machine."""
        instances = self.directory / "host" / "instances"
        return instances.exists() and any(path.is_dir() for path in instances.iterdir())

    def is_running(self) -> str | None:
        """Return which part has ended by itself, or ``None`` while all run."""
        if self.host is not None and not self.host.child.is_running:
            return f"ecompute (see {self.host.log})"
        if self._etcd is not None and not self._etcd.is_running:
            return "etcd"
        if self._placement is not None and not self._placement.is_running:
            return "placement"
        return None

    def host_exit_status(self) -> int | None:
        return None if self.host is None else self.host.child.exit_status

    def restart_host(self) -> None:
        if self.host is not None:
            self.host.start()

    def stop(self) -> None:
        """Stop all parts, the daemon first. Guests go on running."""
        if self.host is not None:
            self._say("stopping ecompute")
            self.host.stop()
        if self._libvirt is not None:
            self._libvirt.stop(keep_guests=self.has_guests())
        if self._placement is not None:
            self._say("stopping placement and etcd")
            self._placement.stop()
        if self._etcd is not None:
            self._etcd.stop()
        self.host = self._libvirt = self._placement = self._etcd = None

    def remove(self) -> None:
        """Remove the whole directory of a stopped cloud without guests.

        Raises:
            CloudError: guests are on it.
        """
        if self.has_guests():
            raise CloudError(
                f"guests are on the cloud under {self.directory}",
                hint="start it again with `ecompute dev` and destroy them with `eschedule destroy`",
            )
        shutil.rmtree(self.directory, ignore_errors=True)


def wait_until_open(host: Host, timeout_s: float = DAEMON_READY_S) -> str:
    """Wait until a daemon answers and its host takes instances; return its provider uuid.

    Raises:
        StepFailed: it ended, or took too long; the end of its log is in the text.
    """
    settings = config.load(host.config)
    identity = settings.state_dir / "provider-uuid"
    store, placement = Store(settings.etcd), Placement(settings.placement)
    deadline = time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if not host.child.is_running:
                raise StepFailed(f"ecompute ended: {host.child.log_tail(800)}")
            if identity.exists():
                provider = identity.read_text(encoding="ascii").strip()
                if store.get(keys.alive(provider), Alive) is not None and _is_open(placement, provider):
                    return provider
            time.sleep(POLL_S)
    finally:
        store.close()
    raise StepFailed(f"ecompute was not ready after {timeout_s:.0f} s: {host.child.log_tail(800)}")


def _is_open(placement: Placement, provider: str) -> bool:
    if placement.provider(provider) is None:
        return False
    vcpus = placement.inventories(provider).inventories.get("VCPU")
    return vcpus is not None and vcpus.reserved < vcpus.total


def _remembered_port(path: Path) -> int:
    """Return the port that ``path`` remembers, the same at each start; made up the first time."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    port = free_port()
    new = path.with_suffix(".new")
    new.write_text(f"{port}\n", encoding="ascii")
    new.replace(path)
    return port
