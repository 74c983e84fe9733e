"""The host daemon: the one place where everything is wired together.

Start: take the state directory's lock; read the memory; reach libvirt and etcd, waiting for each
and saying so; look whether to hold; converge everything; register the host and open it for new
claims. Stop: finish the steps in hand, reserve the host's VCPU, leave the guests running. Killed at
any point and started again, it ends in the same place. A start that fails closes what it had opened.

Threads: `run` is the main one of a process with one daemon; `stop` may be called from any, and from a
signal's handler (who sets it up is the command). Each part owns the threads it starts; what they
share is the store, the watcher and the placement client, which are safe to share. At rest no thread
of a daemon wakes up, but the main one for signals: each is called when something has changed, or a timer is due.
"""

from __future__ import annotations

import fcntl
import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeVar

from ecompute import __version__
from ecompute.audit.auditor import HostAuditor
from ecompute.audit.look import Looker
from ecompute.cluster import keys
from ecompute.cluster.config import Config
from ecompute.cluster.documents import Admin, Incarnation, Node, Secrets, timestamp
from ecompute.cluster.errors import Conflict, NetworkError, Refused, Unavailable
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.placement import Placement
from ecompute.cluster.retries import Retries
from ecompute.cluster.store import Store
from ecompute.cluster.upkeep.leader import Leader
from ecompute.copies import Copies
from ecompute.heartbeat import Heartbeat
from ecompute.hold import Hold
from ecompute.hypervisor import features
from ecompute.instances.actuate import Actuator
from ecompute.instances.lanes import Stuck
from ecompute.instances.memory import Memory
from ecompute.instances.patience import Patience
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.instances.reporter import Reporter
from ecompute.keeper import HostKeeper
from ecompute.machine import Machine
from ecompute.network.bridges import NamedBridges
from ecompute.network.gateway_memory import GatewayMemory
from ecompute.network.gateway_reconcile import GatewayReconciler
from ecompute.network.links import Links
from ecompute.network.membership import Memberships
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.underlay import Address
from ecompute.operations import Operations
from ecompute.registrar import Registrar, identity
from ecompute.storage.images import ImageCache
from ecompute.storage.place import Place

EXIT_STUCK = 75
"""Too many lanes hang: start me anew (EX_TEMPFAIL)."""

UPKEEP_PERIOD_S = 600.0
STOP_TIMEOUT_S = 60.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 15.0
RETRY_S = 5.0
SIGNAL_PERIOD_S = 1.0
"""A signal that another thread took (a process that was stopped gives it to any) waits for the main one."""

T = TypeVar("T")
log = logging.getLogger(__name__)


class Services(Protocol):
    """The two services that a daemon speaks with. What is opened here, the daemon closes."""

    def store(self, on_rollback: Callable[[str], None]) -> Store: ...

    def upkeep_store(self, on_rollback: Callable[[str], None]) -> Store | None:
        """Return the way to etcd with the lead's own credentials, if there are any."""
        ...

    def placement(self) -> Placement: ...


class OwnServices:
    """Ways to the services that nobody else uses."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def store(self, on_rollback: Callable[[str], None]) -> Store:
        return Store(self._config.etcd, on_rollback=on_rollback)

    def upkeep_store(self, on_rollback: Callable[[str], None]) -> Store | None:
        return None if self._config.upkeep is None else Store(self._config.upkeep, on_rollback=on_rollback)

    def placement(self) -> Placement:
        return Placement(self._config.placement)


class Daemon:
    """One host's daemon, from start to stop; not to be started twice.

    Args:
        config: what `ecompute.cluster.config` read.
        machine: the one it runs on; by default this process's own.
        services: ways to etcd and placement; by default its own.
    """

    def __init__(self, config: Config, machine: Machine | None = None, services: Services | None = None) -> None:
        self._config = config
        self._machine = machine if machine is not None else Machine.real(config)
        self._services = services if services is not None else OwnServices(config)
        self._rng = random.Random()  # noqa: S311 - spreads load, guards nothing
        self._stopping = threading.Event()
        self._exit_status = 0
        self._opened = ExitStack()
        self._host: HostKeeper | None = None
        self._has_registered = threading.Event()
        self.name = config.name or self._machine.name
        self.provider = ""
        """Its provider's uuid, known once it was started."""

    @property
    def is_open(self) -> bool:
        """Whether the host takes new instances."""
        return self._host is not None and self._host.is_open

    def wait_registered(self, timeout_s: float) -> bool:
        """Wait until the host has said of itself what there is to say, for the first time; return whether it has."""
        return self._has_registered.wait(timeout_s)

    def stop(self) -> None:
        """Ask `run` to end; from any thread, or a signal's handler."""
        self._stopping.set()

    def run(self) -> int:
        """Run until stopped; return the exit status.

        Raises:
            CloudError: the host cannot be one as it is configured; the text says what to do.
        """
        if self.start():
            while not self._stopping.wait(SIGNAL_PERIOD_S):
                pass
            log.info("stopping: finishing the steps in hand; guests go on running")
            self.close()
            log.info("stopped")
        return self._exit_status

    def start(self) -> bool:
        """Start, waiting for libvirt and etcd; return whether it was, or was stopped meanwhile.

        Raises:
            CloudError: as `run`; nothing stays open.
        """
        state = self._config.state_dir
        with ExitStack() as opened:
            state.mkdir(parents=True, exist_ok=True, mode=0o711)
            opened.enter_context(StateLock(state / "lock"))
            if not self._start(state, opened):
                return False
            self._opened = opened.pop_all()
            return True

    def close(self) -> None:
        """Finish the steps in hand, reserve the host's VCPU, and end every part. Idempotent."""
        self._stopping.set()
        self._opened.close()

    def _start(self, state: Path, opened: ExitStack) -> bool:
        config, machine = self._config, self._machine

        def at_end(end: Callable[[], object]) -> None:
            opened.callback(_tried, end)

        memory = Memory(state / "memory")
        patience = Patience(state / "memory" / "stuck.json")
        provider = self.provider = identity(config, state)
        links = machine.links
        underlay = links.underlay(config.underlay)
        store = self._services.store(lambda reason: hold.suspect(reason))
        at_end(store.close)
        upkeep_store = self._services.upkeep_store(lambda reason: hold.suspect(reason)) or store
        if upkeep_store is not store:
            at_end(upkeep_store.close)
        placement = self._services.placement()
        at_end(placement.close)
        retries = Retries("host-retries", lambda what: upkeep.wake())
        at_end(retries.close)
        hold = Hold(store, memory, host=self.name, on_change=lambda reason: upkeep.wake())
        upkeep = Periodic("host", lambda: self._keep(host, retries), period_s=UPKEEP_PERIOD_S, rng=self._rng)
        hypervisor = self._until_it_works(
            "libvirt", lambda: machine.hypervisor(provider, is_stopping=self._stopping.is_set)
        )
        if hypervisor is None:
            return False
        at_end(hypervisor.close)
        if self._until_it_works("etcd", lambda: (hold.examine(), True)) is None:
            return False
        trial = machine.trial()
        capabilities = hypervisor.capabilities()
        images = ImageCache(state / "images", machine.images, on_change=lambda: copies.wake())
        at_end(images.close)
        copies = Copies(store, provider, images.held, is_held=lambda: hold.reason is not None, rng=self._rng)
        watcher = store.watcher()
        at_end(watcher.close)
        networks = state / "memory" / "networks"
        gateways = machine.gateways(provider, state / "networks")
        memberships = Memberships(
            store,
            watcher,
            NetworkReconciler(links, machine.filter),
            GatewayReconciler(
                gateways,
                machine.egress(state / "memory" / "egress.json"),
                provider,
                GatewayMemory(networks),
                upstream=machine.upstream,
                control_plane=machine.control_plane,
                metadata=machine.metadata(state),
            ),
            provider,
            networks,
            is_held=lambda: hold.reason is not None,
            bridges=config.bridges,
            alarms=machine.alarms,
        )
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
            bridges=config.bridges,
            secrets=lambda uuid: _secrets(store, provider, uuid),
            create_overlay=machine.create_overlay,
            write_config_drive=machine.write_config_drive,
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
            spare_lanes=machine.spare_lanes,
            boot_id=machine.boot_id,
            hold_reason=lambda: hold.reason,
            witness=hold.witness,
            on_exhausted=lambda stuck: self._exhausted(stuck, patience),
            patience=patience,
            on_converged=lambda: self._converged(upkeep),
            release_thread=hypervisor.release_thread,
            has_claim=lambda uuid: provider in placement.allocations(uuid).allocations,
            rng=self._rng,
        )
        cpu_traits = features.traits(capabilities.features_for(trial.accelerator), trial.accelerator)
        bridges = NamedBridges(links, config.bridges)
        host = self._host = HostKeeper(
            store=store,
            registrar=Registrar(placement, config, provider, self.name),
            hold=hold,
            memory=memory,
            instances=instances,
            traits=lambda: cpu_traits | bridges.traits(),
            measure=machine.measure,
            node=lambda reason: Node(
                provider=provider,
                name=self.name,
                underlay=underlay.ip,
                underlay_mtu=_underlay_mtu(links, config, underlay),
                accelerator=trial.accelerator,
                hypervisor=f"libvirt {capabilities.libvirt_version}, QEMU {capabilities.qemu_version}",
                version=__version__,
                hold=reason,
                reported_at=timestamp(time.time()),
            ),
        )
        log.info(
            "host %s is provider %s: underlay %s, accelerator %s (%s), libvirt %s",
            self.name,
            provider,
            underlay.ip,
            trial.accelerator,
            trial.reason,
            capabilities.libvirt_version,
        )
        heartbeat = Heartbeat(store, provider, self.name, rng=self._rng)
        at_end(heartbeat.stop)
        operations = Operations(
            store,
            watcher,
            provider,
            console_log=lambda uuid: actuator.files(uuid).console_log,
            has_nothing=instances.has_nothing,
            register=upkeep.wake,
        )
        at_end(operations.close)
        looker = Looker(
            store=store,
            provider=provider,
            hypervisor=hypervisor,
            actuator=actuator,
            memory=memory,
            instances=instances,
            devices=lambda: links.devices() | gateways.devices(),
        )
        auditor = HostAuditor(
            store, provider, looker.look, instances.wake, is_held=lambda: hold.reason is not None, rng=self._rng
        )
        leader = Leader(
            upkeep_store,
            placement,
            Events(upkeep_store, LEAD),
            holder=f"{self.name} ({provider})",
            is_held=lambda: hold.reason is not None,
        )
        # From here on in the order of starting; ended from the last to the first: instances before all others,
        # so that nothing is begun while the rest ends, and the reservation when nobody opens the host any more.
        watcher.follow(keys.INCARNATION, Incarnation, lambda change: upkeep.wake())
        watcher.follow(keys.admin(provider), Admin, lambda change: upkeep.wake())
        at_end(host.close)
        memberships.start()
        at_end(memberships.close)
        heartbeat.start()
        upkeep.start()
        at_end(upkeep.stop)
        copies.start()
        at_end(copies.stop)
        leader.start()
        at_end(leader.stop)
        auditor.start()
        at_end(auditor.stop)
        instances.start()
        at_end(lambda: _close_instances(instances))
        return True

    def _keep(self, host: HostKeeper, retries: Retries) -> None:
        """Keep the host up to date; what did not go through is tried again soon."""
        try:
            host.keep()
            self._has_registered.set()
        finally:
            if not host.is_settled or host.wait_s:
                retries.later(self.provider, host.wait_s if host.is_settled else RETRY_S)

    def _converged(self, upkeep: Periodic) -> None:
        host = self._host
        if host is not None and not host.is_open and not host.is_held:
            upkeep.wake()

    def _exhausted(self, stuck: list[Stuck], patience: Patience) -> None:
        log.critical("%d lanes hang (%s); ending, to be started anew", len(stuck), ", ".join(s.uuid for s in stuck))
        patience.stuck(one.uuid for one in stuck)
        self._exit_status = EXIT_STUCK
        self.stop()

    def _until_it_works(self, what: str, attempt: Callable[[], T]) -> T | None:
        """Return what ``attempt`` returns, once it does; ``None`` if the daemon is stopped meanwhile."""
        pause = FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                return attempt()
            except (Unavailable, Refused) as error:  # what is refused may be granted meanwhile
                log.warning("waiting for %s: %s", what, error)
            self._stopping.wait(pause * self._rng.uniform(0.8, 1.2))
            pause = min(pause * 2, LAST_RETRY_S)
        return None


def _tried(end: Callable[[], object]) -> None:
    """One part that cannot end must not keep the others."""
    try:
        end()
    except Exception as error:  # noqa: BLE001 - whatever it is
        log.warning("while stopping: %s", error)


def _close_instances(instances: InstanceReconciler) -> None:
    if not instances.close(STOP_TIMEOUT_S):
        log.warning("some steps did not end within %d s; the next start takes them up", STOP_TIMEOUT_S)


def _underlay_mtu(links: Links, config: Config, underlay: Address) -> int:
    """Return the MTU that the underlay has now; that of the start, where it cannot be said."""
    try:
        return links.underlay(config.underlay).mtu
    except NetworkError as error:
        log.warning("the underlay is not as it was when this daemon started: %s", error)
        return underlay.mtu


def _secrets(store: Store, provider: str, uuid: str) -> Secrets | None:
    found = store.get(keys.secrets(provider, uuid), Secrets)
    return None if found is None else found.value


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
