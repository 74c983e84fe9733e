"""A whole cloud on this machine, for the system tests: real etcd, placement, libvirt, ecompute, guests.

::

    cluster.hosts[0], cluster.hosts[1]     hosts: a network namespace each, with a libvirtd and `ecompute run` in it
    cluster.eschedule("list")              the console script, for real: (status, stdout, stderr)
    cluster.launch(host=cluster.hosts[0])  a guest that runs (its domain; `wait_booted` waits for the guest itself)
    cluster.launch_idle(host=…)            one that only halts, for tests that need no more than a domain
    cluster.destroy(guest.uuid)
    cluster.agree()                        placement, etcd, libvirt, disk, network and memory say the same (`agreement`)
    cluster.etcd, cluster.placement        may be killed, suspended, restarted: `ecompute.dev.{etcd,placement}`
    cluster.store, cluster.claims          the product's own clients, for a test to look (and to harm) with

    host.start(failpoint="define.before")  the daemon kills itself there; `wait_dead` waits for that
    host.stop() / kill() / restart()       of the daemon; guests stay
    host.libvirtd.kill() / restart()       of its libvirtd; guests stay
    host.libvirt                           a libvirt connection (libvirt-python); host.domains() what is there
    host.run("ip", "link")                 a program in its network namespace
    host.console(uuid)                     what the guest has written on its serial console
    wait_for(lambda: …, timeout_s=30, what="…")   the one way to wait: no sleeping in tests

Three fixtures (conftest.py): ``cluster``, two hosts, shared by all tests that leave it as they found it
(agreeing, without instances, all daemons running), ``outer_cluster``, the same with an egress network, and
``make_cluster(hosts=1, **settings)`` for one of the test's own, which it may break. After a failure a shared one is
thrown away and the next test gets a new one.

A running domain is enough for most tests: it takes half a second, a booted guest six, in which it keeps a
processor busy whether or not somebody waits for it: `launch_idle`. Guests get 96 MB.

All names begin with ``ecs<pid>c<n>`` (namespaces, devices, the directory): runs side by side do not meet, and
what a killed run has left is found and removed by the next one (`remove_leftovers`). Processes are ended by
their ids. The machine's only trace is a veth leg with two addresses of a /24: etcd and placement listen on
`cluster.address`; images may be fetched from `cluster.image_address`, and from no other of that network.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agreement
import yaml
from host import Host, Result, wait_for
from outside import Outside

from ecompute.cluster import config
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.guest_image import build_cached
from ecompute.dev.hosts import Underlay, free_network, ip, namespaces, remove_networks
from ecompute.dev.placement import PlacementProcess, start_placement

__all__ = ["Cluster", "Guest", "Host", "Result", "remove_leftovers", "wait_for"]

IMAGES = Path(__file__).parents[2] / ".cache" / "guest-image"
MEMORY_MB = 96
TOOL_TIMEOUT_S = 120.0

_clusters = 0


@dataclass(frozen=True)
class Guest:
    uuid: str
    name: str
    host: Host
    address: str


class Cluster:
    """See this module's head.

    Args:
        hosts: how many; all daemons are started, unless ``start`` is False.
        has_outside: whether the hosts have an egress network, with somebody on it (`outside`).
        settings: merged into each host's ``compute.yaml`` and the one of `eschedule`.
    """

    def __init__(
        self, base: Path, *, hosts: int = 2, start: bool = True, has_outside: bool = False, **settings: Any
    ) -> None:
        global _clusters
        _clusters += 1
        self.prefix = f"ecs{os.getpid()}c{_clusters}"
        self.directory = base / self.prefix
        self.directory.mkdir()
        self.hosts: list[Host] = []
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove)
            self._start(hosts, start, has_outside, settings)
            undo.pop_all()

    def _start(self, hosts: int, start: bool, has_outside: bool, settings: dict[str, Any]) -> None:
        with _alone():
            self.network = free_network()
            self.underlay = Underlay(self.prefix, self.network).start()
        self._stack.callback(self.underlay.remove)
        self.address = self.underlay.address
        self.image_address = str(self.network[2])
        ip("address", "add", f"{self.image_address}/{self.network.prefixlen}", "dev", self.underlay.leg)
        self.image = build_cached(IMAGES)
        self.idle_image = _build_idle(self.directory / "images")
        with ThreadPoolExecutor(2) as pool:
            placement = pool.submit(_start_placement, self.directory / "placement", self.address)
            self.etcd: EtcdProcess = self.start_etcd()
            self._stack.callback(self.etcd.kill)
            self.placement: PlacementProcess = placement.result()
            self._stack.callback(self.placement.kill)
        self.settings = {
            "etcd": self.etcd_settings(),
            "placement": {"endpoint": self.placement.endpoint},
            "inventory": {
                "memory_mb": 4096,
                "disk_gb": 20,
                "reserved": {"memory_mb": 0},
                "ratios": {"vcpus": 16.0},
            },
            "image": {
                "default": str(self.image),
                "allow_paths": [str(self.image.parent), str(self.idle_image.parent)],
                "allow_networks": [f"{self.image_address}/32"],
            },
            "accelerator": "tcg",
            **settings,
        }
        self.config = self.directory / "compute.yaml"
        self.config.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        loaded = config.load(self.config)
        self.store = Store(loaded.etcd)
        self._stack.callback(self.store.close)
        self.claims = Placement(loaded.placement)
        with ThreadPoolExecutor(4) as pool:
            for number in range(1, hosts + 1):
                self.hosts.append(self.add_host(f"host-{number}"))
            if has_outside:
                self.outside = Outside(self.underlay, self.directory)
                for number, host in enumerate(self.hosts, 1):
                    self.outside.join(host, number)
                self._stack.callback(self.outside.stop)
                self.outside.start()
            if start:
                list(pool.map(lambda host: host.start(), self.hosts))

    def start_etcd(self) -> EtcdProcess:
        return start_etcd(self.directory / "etcd", host=self.address, is_durable=False)

    def etcd_settings(self) -> dict[str, Any]:
        """Return what the configuration of `eschedule`, and of a host, says of etcd."""
        host, port = self.etcd.endpoint.rsplit(":", 1)
        return {"host": host, "port": int(port)}

    def host_settings(self, name: str) -> dict[str, Any]:
        """Return what a host's configuration says that is not its own doing."""
        return self.settings

    def add_host(self, name: str) -> Host:
        directory = self.directory / name
        self._stack.callback(self._remove_host, directory)
        return Host(name, directory, self.underlay, self.host_settings(name))

    def _remove_host(self, directory: Path) -> None:
        for host in self.hosts:
            if host.directory == directory:
                host.kill()
                host.disconnect()
                host.libvirtd.stop()
                remove_networks(host.netns)

    def remove(self) -> None:
        """End and remove everything, whatever state it is in; the logs stay in the directory. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # --- asking ---

    def command(self, *args: str | Path | int) -> list[str]:
        return [sys.executable, "-m", "eschedule", "--config", str(self.config), *map(str, args)]

    def eschedule(
        self,
        *args: str | Path | int,
        check: bool = True,
        timeout_s: float = TOOL_TIMEOUT_S,
        failpoint: str | None = None,
        stdin: bytes = b"",
    ) -> Result:
        """Run the console script to its end; ``check`` fails the test unless it exits 0."""
        done = subprocess.run(
            self.command(*args), input=stdin, capture_output=True, timeout=timeout_s, env=_environment(failpoint)
        )
        result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert not check or result.status == 0, f"eschedule {' '.join(map(str, args))}: {result}"
        return result

    @contextlib.contextmanager
    def eschedule_running(
        self, *args: str | Path | int, failpoint: str | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        """Run the console script beside the test; it is killed at the end if it has not ended."""
        with subprocess.Popen(
            self.command(*args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(failpoint),
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def query(self, host: Host | None = None, *, vcpus: int = 1, memory_mb: int = MEMORY_MB, disk_gb: int = 1) -> str:
        """Return a placement query, for ``host`` and no other if given."""
        query = f"resources=VCPU:{vcpus},MEMORY_MB:{memory_mb},DISK_GB:{disk_gb}"
        return query if host is None else f"{query}&in_tree={host.provider}"

    def launch(
        self,
        *options: str | Path,
        host: Host | None = None,
        name: str | None = None,
        user_data: str | None = None,
        memory_mb: int = MEMORY_MB,
        wait: bool = True,
    ) -> Guest:
        """Launch a guest and, unless told otherwise, wait until its domain runs.

        Args:
            options: further ones of ``eschedule launch``.
        """
        arguments: list[str | Path] = ["launch", self.query(host, memory_mb=memory_mb), "-o", "json", *options]
        if name is not None:
            arguments += ["--name", name]
        if user_data is not None:
            arguments += ["--user-data", "-"]
        if wait:
            arguments.append("--wait")
        launched = json.loads(self.eschedule(*arguments, stdin=(user_data or "").encode()).stdout)
        where = next(host for host in self.hosts if host.provider == launched["provider"])
        return Guest(launched["uuid"], launched["name"], where, launched["addresses"][0])

    def launch_idle(self, *options: str | Path, **how: Any) -> Guest:
        """As `launch`, but the guest only halts. Its console stays empty."""
        return self.launch("--image", self.idle_image, *options, **how)

    def show(self, ref: str) -> dict[str, Any]:
        """Return ``eschedule show -o json``."""
        shown: dict[str, Any] = json.loads(self.eschedule("show", ref, "-o", "json").stdout)
        return shown

    def wait_state(self, ref: str, *states: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until the instance is in one of the states (as people see them); return it."""

        def look() -> dict[str, Any] | None:
            shown = self.show(ref)
            return shown if shown["state"] in states else None

        return wait_for(look, timeout_s=timeout_s, what=f"{ref} is {' or '.join(states)}")

    def wait_booted(self, guest: Guest) -> str:
        """Wait until the guest says on its console that it has booted; return its console."""
        return guest.host.wait_console(guest.uuid, "guest: booted\n")

    def destroy(self, *refs: str) -> None:
        """Destroy and wait until nothing is left."""
        result = self.eschedule("destroy", *refs)
        assert result.stdout == ""

    def instances(self) -> list[str]:
        """Return the uuids of all instances, of any namespace and state."""
        return [key.rsplit("/", 1)[1] for key in self.store.keys("/instances/")[0]]

    def agree(self, *, timeout_s: float = 30.0, **exceptions: Any) -> None:
        """Fail with all differences unless everything agrees within the time: see `agreement.differences`."""
        agreement.agree(self, timeout_s=timeout_s, **exceptions)

    def logs(self) -> Iterator[tuple[str, str]]:
        """Yield the end of every log that may tell why a test has failed."""
        for path in sorted(self.directory.glob("*/*.log")):
            yield str(path.relative_to(self.directory)), path.read_text(errors="replace")[-6000:]


def _build_idle(directory: Path) -> Path:
    """Make a disk whose boot sector halts, for ever."""
    directory.mkdir()
    raw, image = directory / "idle", directory / "idle.qcow2"
    raw.write_bytes(b"\xfa\xf4\xeb\xfc".ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))  # cli; hlt; jmp
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    return image


def _start_placement(directory: Path, address: str) -> PlacementProcess:
    """Start placement on a copy of the tables that the first one of this run has made: that takes seconds."""
    template = directory.parents[1] / "placement-template"
    if template.exists():
        shutil.copytree(template, directory)
        return start_placement(directory, host=address)
    process = start_placement(directory, host=address)
    new = template.with_name(f"{template.name}.{directory.parent.name}")
    new.mkdir()
    for name in ("placement.sqlite", "tables-made-by"):  # nobody knows of it yet, and nobody writes
        shutil.copy2(directory / name, new)
    with contextlib.suppress(OSError):  # another worker was first
        new.rename(template)
    return process


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold off other workers: what they choose, or remove, they would choose or remove at the same time."""
    handle = os.open(Path(__file__).parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _environment(failpoint: str | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ECOMPUTE_")}
    return env if failpoint is None else {**env, "ECOMPUTE_FAILPOINT": failpoint}


_STARTED = re.compile(rb"(.*/)?(etcd|qemu-system-.*|libvirtd|virtlogd|python[\d.]*|dnsmasq)")


@_alone()
def remove_leftovers() -> None:
    """Remove what killed runs have left: processes on their directories, then their namespaces.

    A run is known by its process id in its prefix, and left alone while a process has that id.
    """
    prefixes = {match[0] for name in namespaces() if (match := re.match(r"ecs(\d+)c\d+", name)) and _is_dead(match[1])}
    for prefix in prefixes:
        mark = f"/{prefix}/".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not entry.name.isdecimal():
                    continue
                command = (entry / "cmdline").read_bytes()
                if mark in command and _STARTED.fullmatch(command.split(b"\0")[0]):
                    os.kill(int(entry.name), signal.SIGKILL)
        for netns in [name for name in namespaces() if re.fullmatch(rf"{prefix}h\d+", name)]:
            listed = subprocess.run(["ip", "netns", "pids", netns], capture_output=True, text=True, check=True)
            for pid in listed.stdout.split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            remove_networks(netns)
        Underlay(prefix, free_network()).remove()


def _is_dead(pid: str) -> bool:
    return not Path(f"/proc/{pid}").exists()
