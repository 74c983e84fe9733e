"""A fleet: hosts in one process, as many as one likes, each with a daemon of the product.

Real are: the daemon with its lanes, reconcilers, memory, reports and upkeep, etcd, placement. Fakes
are: the hypervisor, devices and packet filter, image fetch and the making of disks. They share one set
of channels to etcd, one stream for all watches, one session to placement, and the process's timers.

Hosts start `STARTERS` at a time, each after the one before it has registered, so that a thousand do
not storm the services. A host can be killed, as ``kill -9`` would, and started again: its machine and
its state directory stay.

Threads: any; starting, stopping and killing one host are one at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from ecompute.cluster.config import Config, ReservedSettings
from ecompute.cluster.errors import InvalidInput, StepFailed
from ecompute.daemon import Daemon
from ecompute.fleet.machine import Conduct, FleetMachine
from ecompute.fleet.services import FleetServices, HostServices
from ecompute.inventory import Measured

STARTERS = 8
STOPPERS = 16
OPEN_TIMEOUT_S = 120.0
SAY_PERIOD_S = 5.0
END_PERIOD_S = 1.0
"""How long the end of a fleet may go unnoticed by one who waits for a host."""
MAX_HOSTS = 10_000

Say = Callable[[str], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetSettings:
    """
    Args:
        config: where etcd and placement are; of the rest, what holds for every host (lanes, ratios).
        directory: the hosts' state directories lie in it, by their names.
        hosts: how many.
        prefix: what their names begin with; a number follows.
        vcpus, memory_mb, disk_gb: what each has to give.
    """

    config: Config
    directory: Path
    hosts: int
    prefix: str = "fleet"
    vcpus: int = 64
    memory_mb: int = 262_144
    disk_gb: int = 4096
    conduct: Conduct = field(default_factory=Conduct)

    def checked(self) -> Self:
        """Return it.

        Raises:
            InvalidInput: a number is none that it can be; says what would be right.
        """
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise InvalidInput(f"a fleet of {self.hosts} hosts cannot be", hint=f"ask for 1 to {MAX_HOSTS}")
        for name, amount in (("vcpus", self.vcpus), ("memory_mb", self.memory_mb), ("disk_gb", self.disk_gb)):
            if not 1 <= amount < 2**31:
                raise InvalidInput(f"{name} of {amount} cannot be", hint="placement counts from 1 to 2147483647")
        return self


class FleetHost:
    """One host of a fleet; made by `Fleet`.

    Args:
        is_ending: set when the fleet ends; a start under way is given up then.
    """

    def __init__(
        self, name: str, settings: FleetSettings, services: FleetServices, *, is_ending: threading.Event
    ) -> None:
        self.name = name
        self.machine = FleetMachine(
            name, Measured(settings.vcpus, settings.memory_mb, settings.disk_gb), settings.conduct
        )
        self.state_dir = settings.directory / name
        self._config = replace(
            settings.config,
            uuid=None,
            name=name,
            state_dir=self.state_dir,
            underlay=None,
            bridge=None,
            inventory=replace(settings.config.inventory, vcpus=None, memory_mb=None, disk_gb=None, reserved=_NOTHING),
        )
        self._whole = services
        self._is_ending = is_ending
        self._lock = threading.Lock()
        self._starting: Daemon | None = None
        """What waits for a service, maybe for long, while the lock is held."""
        self._daemon: Daemon | None = None
        self._services: HostServices | None = None
        self.provider = ""
        """Its provider's uuid, once it was started."""

    @property
    def is_running(self) -> bool:
        return self._daemon is not None

    @property
    def is_open(self) -> bool:
        """Whether it takes new instances."""
        daemon = self._daemon
        return daemon is not None and daemon.is_open

    def start(self, *, timeout_s: float = OPEN_TIMEOUT_S) -> None:
        """Start its daemon and wait until the host has said what it has to say, or the fleet ends.

        Raises:
            CloudError: it cannot be started; nothing of it runs.
            StepFailed: it has not registered in time; it goes on trying.
        """
        with self._lock:
            if self._daemon is not None:
                return
            services = HostServices(self._whole)
            self._starting = daemon = Daemon(self._config, self.machine.machine(), services)
            self.give_up_if_ending()  # it may have been set just before there was anything to stop
            try:
                if not daemon.start():
                    return
                self._daemon, self._services, self.provider = daemon, services, daemon.provider
            finally:
                self._starting = None
        deadline = time.monotonic() + timeout_s
        while not (daemon.wait_registered(END_PERIOD_S) or self._is_ending.is_set()):
            if time.monotonic() >= deadline:
                raise StepFailed(
                    f"{self.name} has not registered within {timeout_s:g} s", hint="look at its log with -v"
                )

    def give_up_if_ending(self) -> None:
        """Have a start that is under way return, if the fleet ends."""
        starting = self._starting
        if starting is not None and self._is_ending.is_set():
            starting.stop()

    def stop(self) -> None:
        """Finish the steps in hand, reserve the host, and end. Idempotent."""
        with self._lock:
            if self._daemon is not None:
                self._daemon.close()
                self._daemon = self._services = None

    def kill(self) -> None:
        """End its daemon as ``kill -9`` would: nothing is finished, nothing is told. Idempotent."""
        with self._lock:
            if self._daemon is None or self._services is None:
                return
            self._services.cut()
            self.machine.cut()
            self._daemon.close()  # whatever it still tries comes to nothing
            self._daemon = self._services = None


class Fleet:
    """All hosts of one process.

    Args:
        say: told of each step, in words.
    """

    def __init__(self, settings: FleetSettings, *, say: Say = lambda text: None) -> None:
        self._settings = settings.checked()
        self._say = say
        self._services = FleetServices(settings.config)
        self._is_stopping = threading.Event()
        digits = len(str(settings.hosts))
        self.hosts = [
            FleetHost(f"{settings.prefix}-{number:0{digits}}", settings, self._services, is_ending=self._is_stopping)
            for number in range(1, settings.hosts + 1)
        ]

    @property
    def conduct(self) -> Conduct:
        """How its machines behave; may be changed."""
        return self._settings.conduct

    def host(self, name_or_provider: str) -> FleetHost:
        """Return one host.

        Raises:
            KeyError: there is none.
        """
        for host in self.hosts:
            if name_or_provider in (host.name, host.provider):
                return host
        raise KeyError(name_or_provider)

    def start(self) -> Self:
        """Start all hosts; return once each has registered, or `end` was called.

        Raises:
            CloudError: of the first host that could not be started. What had been started is stopped.
        """
        self._settings.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        began = time.monotonic()
        try:
            with _progress(self._say, lambda: sum(host.is_running for host in self.hosts), len(self.hosts)):
                self._for_all(self._start, STARTERS)
        except BaseException:
            self.stop()
            raise
        if not self._is_stopping.is_set():
            self._say(f"{len(self.hosts)} hosts are up ({time.monotonic() - began:.0f} s)")
        return self

    def end(self) -> None:
        """Have `start` begin no further host, and give up those that it waits for; from any thread."""
        self._is_stopping.set()
        for host in self.hosts:
            host.give_up_if_ending()

    def stop(self) -> None:
        """Reserve and end all hosts. Idempotent."""
        self._is_stopping.set()
        try:
            self._for_all(FleetHost.stop, STOPPERS)
        finally:
            self._services.close()

    def _start(self, host: FleetHost) -> None:
        if self._is_stopping.is_set():
            return
        try:
            host.start()
        except BaseException:
            self.end()  # all are stopped for it: the others need not wait
            raise

    def kill(self, host: FleetHost) -> None:
        """End one host's daemon as ``kill -9`` would."""
        host.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _for_all(self, do: Callable[[FleetHost], object], at_once: int) -> None:
        """Do it to all hosts; the first error is raised when all are through."""
        with ThreadPoolExecutor(at_once, thread_name_prefix="fleet") as pool:
            done = [pool.submit(do, host) for host in self.hosts]
            failures = [failure for one in done if (failure := one.exception()) is not None]
        for failure in failures[1:]:
            log.warning("%s", failure)
        if failures:
            raise failures[0]


_NOTHING = ReservedSettings(vcpus=0, memory_mb=0, disk_gb=0)


@contextmanager
def _progress(say: Say, count: Callable[[], int], of: int) -> Iterator[None]:
    """Say every few seconds how far it has come."""
    has_ended = threading.Event()
    began = time.monotonic()

    def tell() -> None:
        while not has_ended.wait(SAY_PERIOD_S):
            say(f"{count()} of {of} hosts ({time.monotonic() - began:.0f} s)")

    thread = threading.Thread(target=tell, name="fleet-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
