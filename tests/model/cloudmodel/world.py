"""All there is, what befalls it, and what must never be seen in it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum

from cloudmodel.etcd import Compare, Delete, Entry, Etcd, Put
from cloudmodel.placement import Allocation, Placement, RefusedError
from cloudmodel.rules import Rules, Violated
from ecompute.cluster import keys
from ecompute.cluster.documents import Gang, GangState, Interface, Power, Resources, Spec

Steps = Generator[str, None, None]

HOSTS = ("alpha", "beta")
CAPACITY = 2
RESTORE_TAKES_S = 60.0
"""How long etcd is away while it is set back; longer than any lease of a leader."""


class Fate(StrEnum):
    """What becomes of the one message, or of the one deed, of a step."""

    FINE = "fine"
    LOST = "lost"
    """Never written; the writer hears nothing."""
    UNANSWERED = "unanswered"
    """Written; the writer hears nothing."""
    LATE = "late"
    """To placement only: written some time later; the writer hears nothing."""
    FAILS = "fails"
    """The deed on the host goes wrong."""


class Unanswered(Exception):
    """Nobody knows whether it was written."""


@dataclass
class Process:
    """A tool, an auditor, or a daemon: killed, it is gone for good."""

    name: str
    is_paused: bool = False
    is_done: bool = False
    steps: Steps | None = None
    """None: a daemon, which has lanes."""
    at: str = ""


@dataclass
class Lease:
    """One process's lease, as it knows it itself: by its own clock, from its last renewal."""

    id: int
    ttl_s: float
    owner: Process
    renewed_s: float

    def is_held(self, now_s: float) -> bool:
        return now_s - self.renewed_s < self.ttl_s


@dataclass
class World:
    rules: Rules
    now_s: float = 0.0
    etcd: Etcd = field(default_factory=Etcd)
    fate: Fate = Fate.FINE
    processes: list[Process] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    in_flight: deque[Callable[[], None]] = field(default_factory=deque)
    uuids: list[str] = field(default_factory=list)

    # What an onlooker knows who sees everything; no process reads it.
    ordered: set[str] = field(default_factory=set)
    """Instances that a user has asked to destroy."""
    started: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    """Instances of which a host has said that nothing is left."""
    unbacked: set[str] = field(default_factory=set)
    """Instances whose claim was taken away by setting placement back, and that have not had one since."""
    by_hand: set[str] = field(default_factory=set)
    """Instances whose keys or guest somebody has laid hands on."""
    hidden: set[str] = field(default_factory=set)
    """Instances whose disk was once moved away by hand: rubbish meanwhile, it may come back."""
    was_set_back: bool = False
    """Whether etcd ever lost anything."""
    reborn: set[str] = field(default_factory=set)
    """Instances whose uuid a client launched with again after etcd had lost what it knew of it."""
    gang_of: dict[str, str] = field(default_factory=dict)
    """Instance to its gang."""
    committed: set[str] = field(default_factory=set)
    """Gangs whose commit was ever written."""

    def __post_init__(self) -> None:
        from cloudmodel.host import Host

        self.placement = Placement(dict.fromkeys(HOSTS, CAPACITY), self._released, self._claimed)
        self.hosts = {name: Host(self, name) for name in HOSTS}

    # --- messages ---

    def commit(self, compares: list[Compare], operations: list[Put | Delete]) -> int:
        fate, self.fate = self.fate, Fate.FINE
        if fate is Fate.LOST:
            raise Unanswered
        revision = self.etcd.commit(compares, operations)
        for operation in operations:
            value = operation.value if isinstance(operation, Put) else None
            if isinstance(value, Gang) and value.state is GangState.COMMITTED:
                self._committed(value)
        if fate is Fate.UNANSWERED:
            raise Unanswered
        return revision

    def to_placement(self, write: Callable[[], None]) -> None:
        fate, self.fate = self.fate, Fate.FINE
        if fate is Fate.LATE:
            self.in_flight.append(write)
        if fate in (Fate.LATE, Fate.LOST):
            raise Unanswered
        write()
        if fate is Fate.UNANSWERED:
            raise Unanswered

    def deliver(self) -> None:
        """Let the oldest late message arrive."""
        with contextlib.suppress(RefusedError):
            self.in_flight.popleft()()

    def is_chosen(self, uuid: str) -> bool:
        """Whether a client chose the uuid, and may launch with it again. Every other one is, but for a gang's."""
        return uuid in self.uuids and uuid not in self.gang_of and self.uuids.index(uuid) % 2 == 0

    # --- processes ---

    def spawn(self, name: str, steps: Callable[[Process], Steps]) -> Process:
        process = Process(name)
        process.steps = steps(process)
        self.processes.append(process)
        return process

    def run(self, process: Process, count: int, fate: Fate = Fate.FINE) -> None:
        """Let ``process`` take up to ``count`` steps; ``fate`` is of the last."""
        for left in reversed(range(count)):
            if process.is_done or process.steps is None:
                break
            self.fate = fate if left == 0 else Fate.FINE
            try:
                process.at = next(process.steps)
            except StopIteration:
                process.is_done = True
        self.fate = Fate.FINE

    def kill(self, process: Process) -> None:
        if process.steps is not None:
            process.steps.close()
        process.is_done = True

    def lease(self, owner: Process, ttl_s: float) -> Lease:
        lease = Lease(self.etcd.grant(self.now_s, ttl_s), ttl_s, owner, self.now_s)
        self.leases.append(lease)
        return lease

    def drop(self, lease: Lease) -> None:
        """Keep it alive no more."""
        self.leases = [other for other in self.leases if other is not lease]

    # --- time and disasters ---

    def advance(self, seconds: float) -> None:
        """Time passes; whoever is not paused keeps its lease."""
        while seconds > 0:
            tick_s = min(seconds, 5.0)
            seconds -= tick_s
            self.now_s += tick_s
            self.leases = [lease for lease in self.leases if not lease.owner.is_done and lease.is_held(self.now_s)]
            for lease in self.leases:
                if not lease.owner.is_paused and self.etcd.keep_alive(lease.id, self.now_s):
                    lease.renewed_s = self.now_s
            self.etcd.expire(self.now_s)

    def set_etcd_back(self, snapshot: Etcd, *, is_other_cluster: bool) -> None:
        # No message lives as long as a restore takes, and no lead's lease does.
        self.in_flight.clear()
        self.now_s += RESTORE_TAKES_S
        self.was_set_back = True
        self.etcd.restore(snapshot, self.now_s, is_other_cluster=is_other_cluster)

    def set_placement_back(self, allocations: dict[str, Allocation]) -> None:
        before = self.placement.allocations
        self.in_flight.clear()
        self.placement.allocations = dict(allocations)
        # Of a uuid that was launched with again, what comes back may be the claim of its former life, elsewhere.
        now = {uuid: held.provider for uuid, held in allocations.items()}
        self.unbacked |= {uuid for uuid, held in before.items() if now.get(uuid) != held.provider}
        # What is claimed after this is its own again; what it held before may be lost.
        self.unbacked |= {uuid for uuid in self.uuids if uuid not in allocations}

    # --- what must never be seen ---

    def _released(self, consumer: str, allocation: Allocation) -> None:
        host = self.hosts.get(allocation.provider)
        if host is not None and host.holds(consumer) and not self._is_excused(consumer):
            raise Violated("released in use", f"{consumer} is on {host.provider}: {host.look(consumer)}")

    def _claimed(self, consumer: str, provider: str) -> None:
        # A launch that slept may claim elsewhere for a uuid whose guest runs here: that backs no guest.
        if not any(host.holds(consumer) for host in self.hosts.values() if host.provider != provider):
            self.unbacked.discard(consumer)

    def _committed(self, gang: Gang) -> None:
        self.committed.add(gang.uuid)
        if self.was_set_back or self.unbacked:
            return
        for uuid in gang.members:
            is_there = self.etcd.get(keys.instance(uuid)) is not None and uuid in self.placement.allocations
            if not is_there and uuid not in self.ordered:
                raise Violated("committed in part", f"{uuid} of {gang.uuid}")

    def _is_excused(self, uuid: str) -> bool:
        is_rubbish = uuid in self.ordered or uuid not in self.started
        return uuid in self.unbacked or (uuid in self.hidden and is_rubbish)

    def check(self) -> None:
        """Look at everything at once."""
        for uuid in self.uuids:
            on = [host.provider for host in self.hosts.values() if host.domains.get(uuid) is Power.ON]
            if len(on) > 1:
                raise Violated("runs twice", f"{uuid} runs on {on}")
            for host in self.hosts.values():
                claim = self.placement.allocations.get(uuid)
                is_backed = claim is not None and claim.provider == host.provider
                if host.holds(uuid) and not is_backed and not self._is_excused(uuid):
                    raise Violated("used without a claim", f"{uuid} on {host.provider}: {host.look(uuid)}, {claim}")


def spec(uuid: str, address: str) -> Spec:
    interface = Interface(
        uuid=f"if-{uuid}", network_uuid="net", vni=1, mac="52:54:00:00:00:01", addresses=(address,), mtu=1450
    )
    return Spec(resources=Resources(vcpus=1, memory_mb=1, disk_gb=1), image="http://image/", interfaces=(interface,))


def value_of(entry: Entry | None) -> object:
    return None if entry is None else entry.value
