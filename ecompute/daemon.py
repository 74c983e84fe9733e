"""The host daemon: the one place where everything is wired together.

Start: take the state directory's lock; read the memory; reach libvirt and etcd, waiting for each
and saying so; look whether to hold; converge everything; register the host and open it for new
claims. Stop (SIGINT, SIGTERM): finish the steps in hand, reserve the host's VCPU, leave the guests
running. Killed at any point and started again, it ends in the same place.

Threads: this module's `Daemon.run` is the main one. Each part owns the threads it starts; what they
share is the store, the watcher and the placement client, which are safe to share.
"""

from __future__ import annotations

import fcntl
import logging
import math
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ecompute import __version__
from ecompute.cluster import keys
from ecompute.cluster.config import Config
from ecompute.cluster.documents import Incarnation, Node, Secrets, timestamp
from ecompute.cluster.errors import Conflict, Unavailable
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.cluster.upkeep.leader import Leader
from ecompute.heartbeat import Heartbeat
from ecompute.hold import Hold
from ecompute.hypervisor import accelerator, features
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.instances.actuate import Actuator
from ecompute.instances.lanes import Stuck
from ecompute.instances.memory import Memory
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.instances.reporter import Reporter
from ecompute.keeper import HostKeeper
from ecompute.network.filter import NftFilter
from ecompute.network.links import NetlinkLinks
from ecompute.network.membership import Memberships
from ecompute.network.reconcile import NetworkReconciler
from ecompute.operations import Operations
from ecompute.registrar import Registrar, identity
from ecompute.storage.fetch import Fetcher
from ecompute.storage.images import ImageCache
from ecompute.storage.place import Place

EXIT_STUCK = 75
"""Too many lanes hang: start me anew (EX_TEMPFAIL)."""

UPKEEP_PERIOD_S = 600.0
STOP_TIMEOUT_S = 60.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 15.0
LOOK_PERIOD_S = 0.25
RETRY_S = 5.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class Daemon:
    """One host's daemon, from start to stop.

    Args:
        config: what `ecompute.cluster.config` read.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        self._stopping = threading.Event()
        self._exit_status = 0
        self._name = config.name or socket.gethostname()

    def stop(self) -> None:
        """Ask `run` to end; from any thread, or a signal's handler."""
        self._stopping.set()

    def run(self) -> int:
        """Run until stopped; return the exit status.

        Raises:
            CloudError: the host cannot be one as it is configured; the text says what to do.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop())
        state = self._config.state_dir
        state.mkdir(parents=True, exist_ok=True, mode=0o711)
        with StateLock(state / "lock"):
            return self._run(state)

    def _run(self, state: Path) -> int:
        config = self._config
        memory = Memory(state / "memory")
        provider = identity(config, state)
        links = NetlinkLinks()
        underlay = links.underlay(config.underlay)
        store = Store(config.etcd, on_rollback=lambda reason: hold.suspect(reason))
        placement = Placement(config.placement)
        changed = threading.Event()
        hold = Hold(store, memory, host=self._name, on_change=lambda reason: changed.set())
        hypervisor = self._until_it_works(
            "libvirt", lambda: LibvirtHypervisor(config.libvirt_uri, provider, is_stopping=self._stopping.is_set)
        )
        if hypervisor is None or self._until_it_works("etcd", lambda: (hold.examine(), True)) is None:
            return 0
        trial = accelerator.remembered(state / "accelerator.json", config.accelerator)
        capabilities = hypervisor.capabilities()
        watcher = store.watcher()
        memberships = Memberships(
            store,
            watcher,
            NetworkReconciler(links, NftFilter()),
            provider,
            state / "memory" / "networks",
            is_held=lambda: hold.reason is not None,
        )
        images = ImageCache(state / "images", Fetcher(config.images, refused=_control_plane(config)))
        actuator = Actuator(
            provider=provider,
            place=Place(state / "instances", provider, is_new=not memory.records()),
            hypervisor=hypervisor,
            images=images,
            memberships=memberships,
            links=links,
            accelerator=trial.accelerator,
            resize=config.resize,
            bridge=config.bridge,
            secrets=lambda uuid: _secrets(store, provider, uuid),
        )
        instances = InstanceReconciler(
            store=store,
            watcher=watcher,
            hypervisor=hypervisor,
            actuator=actuator,
            memberships=memberships,
            memory=memory,
            reporter=Reporter(store, provider),
            provider=provider,
            lanes=config.lanes,
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            hold_reason=lambda: hold.reason,
            witness=hold.witness,
            on_exhausted=self._exhausted,
            release_thread=hypervisor.release_thread,
            has_claim=lambda uuid: provider in placement.allocations(uuid).allocations,
            rng=self._rng,
        )
        registrar = Registrar(placement, config, provider, self._name)
        host = HostKeeper(
            store=store,
            registrar=registrar,
            hold=hold,
            instances=instances,
            traits=features.traits(capabilities.features_for(trial.accelerator), trial.accelerator),
            disk_directory=state,
            node=lambda reason: Node(
                provider=provider,
                name=self._name,
                underlay=underlay.ip,
                underlay_mtu=underlay.mtu,
                accelerator=trial.accelerator,
                hypervisor=f"libvirt {capabilities.libvirt_version}, QEMU {capabilities.qemu_version}",
                version=__version__,
                hold=reason,
                reported_at=timestamp(time.time()),
            ),
        )
        heartbeat = Heartbeat(store, provider, self._name, rng=self._rng)
        operations = Operations(
            store,
            watcher,
            provider,
            console_log=lambda uuid: actuator.files(uuid).console_log,
            has_nothing=instances.has_nothing,
        )
        leader = Leader(
            store,
            placement,
            Events(store, LEAD),
            holder=f"{self._name} ({provider})",
            is_held=lambda: hold.reason is not None,
        )
        watcher.follow(keys.INCARNATION, Incarnation, lambda change: changed.set())
        upkeep = Periodic("host", host.keep, period_s=UPKEEP_PERIOD_S, rng=self._rng)
        log.info(
            "host %s is provider %s: underlay %s, accelerator %s (%s), libvirt %s",
            self._name,
            provider,
            underlay.ip,
            trial.accelerator,
            trial.reason,
            capabilities.libvirt_version,
        )
        memberships.start()
        instances.start()
        heartbeat.start()
        upkeep.start()
        leader.start()
        self._attend(changed, host, instances, upkeep)
        log.info("stopping: finishing the steps in hand; guests go on running")
        if not instances.close(STOP_TIMEOUT_S):
            log.warning("some steps did not end within %d s; the next start takes them up", STOP_TIMEOUT_S)
        leader.stop()
        upkeep.stop()
        memberships.close()
        host.close()
        for end in (operations.close, heartbeat.stop, watcher.close, images.close, hypervisor.close, store.close):
            try:
                end()
            except Exception as error:  # noqa: BLE001 - one part that cannot stop must not keep the others
                log.warning("while stopping: %s", error)
        log.info("stopped")
        return self._exit_status

    def _attend(
        self, changed: threading.Event, host: HostKeeper, instances: InstanceReconciler, upkeep: Periodic
    ) -> None:
        """See to it, until stopped, that the host is kept up to date as soon as something has changed."""
        tried = -math.inf
        while not self._stopping.wait(LOOK_PERIOD_S):
            now = time.monotonic()
            is_due = not host.is_settled or (not host.is_open and not host.is_held and instances.has_converged())
            if changed.is_set() or (is_due and now - tried >= RETRY_S):
                changed.clear()
                tried = now
                upkeep.wake()

    def _exhausted(self, stuck: list[Stuck]) -> None:
        log.critical("%d lanes hang (%s); ending, to be started anew", len(stuck), ", ".join(s.uuid for s in stuck))
        self._exit_status = EXIT_STUCK
        self.stop()

    def _until_it_works(self, what: str, attempt: Callable[[], T]) -> T | None:
        """Return what ``attempt`` returns, once it does; ``None`` if the daemon is stopped meanwhile."""
        pause = FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                return attempt()
            except Unavailable as error:
                log.warning("waiting for %s: %s", what, error)
            self._stopping.wait(pause * self._rng.uniform(0.8, 1.2))
            pause = min(pause * 2, LAST_RETRY_S)
        return None


def _secrets(store: Store, provider: str, uuid: str) -> Secrets | None:
    found = store.get(keys.secrets(provider, uuid), Secrets)
    return None if found is None else found.value


def _control_plane(config: Config) -> list[str]:
    """Return ``host:port`` of etcd and placement: no image comes from there."""
    placement = urlsplit(config.placement.endpoint)
    port = placement.port or (443 if placement.scheme == "https" else 80)
    return [*config.etcd.endpoints, f"{placement.hostname}:{port}"]


class StateLock:
    """Holds the state directory: two daemons on one would each undo what the other does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Conflict(
                f"another ecompute runs on {self._path.parent}", hint="stop it, or give this one its own state_dir"
            ) from None

    def __exit__(self, *_: object) -> None:
        self._file.close()
