"""One host: what lies on it, what it remembers, and the daemon that runs on it.

The daemon is imitated step by step: a lane reads, looks, plans with the product's own `plan`, and
does one step of the plan at a time; killed, its lanes are gone and all else stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from msgspec import structs

from cloudmodel.etcd import Compare, Delete, Put, unchanged
from cloudmodel.rules import Violated
from cloudmodel.world import Fate, Lease, Process, Steps, Unanswered, value_of
from ecompute.cluster import keys
from ecompute.cluster.documents import (
    Alive,
    Assignment,
    Gang,
    GangState,
    Incarnation,
    Node,
    Operation,
    Power,
    Role,
    Seen,
)
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import ClusterStatus
from ecompute.hold import judge
from ecompute.instances.memory import Cluster
from ecompute.instances.plan import Found, Phase, Plan, Record, Step, after_failure, has_nothing, plan
from ecompute.instances.report import report

if TYPE_CHECKING:
    from cloudmodel.world import World

T = TypeVar("T")

NOTHING = "nothing"
ALIVE_TTL_S = 30.0

PHASES = {
    Step.REMEMBER_BUILDING: Phase.BUILDING,
    Step.REMEMBER_STARTING: Phase.STARTING,
    Step.REMEMBER_RUNNING: Phase.RUNNING,
    Step.REMEMBER_UNDOING: Phase.UNDOING,
    Step.REMEMBER_REMOVING: Phase.REMOVING,
    Step.REMEMBER_REMOVED: Phase.REMOVED,
}
GATES = (Step.REPORT_CREATING, Step.REPORT_DELETING)


class DeedFailed(Exception):
    """A step on the host went wrong."""


class Host:
    """The machine: everything here outlives the daemon."""

    def __init__(self, world: World, provider: str) -> None:
        self.world = world
        self.provider = provider
        self.domains: dict[str, Power] = {}
        self.disks: set[str] = set()
        self.disks_aside: set[str] = set()
        """Moved away by hand; they may come back."""
        self.drives: set[str] = set()
        self.networks: set[str] = set()
        self.records: dict[str, Record] = {}
        self.cluster: Cluster | None = None
        self.was_wiped = False
        self.boots = 1
        self.daemon: Daemon | None = None

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def look(self, uuid: str) -> Found:
        return Found(
            domain=self.domains.get(uuid),
            has_disk=uuid in self.disks,
            has_config_drive=uuid in self.drives,
            has_network=uuid in self.networks,
        )

    def holds(self, uuid: str) -> bool:
        """Whether a guest, or what is left of one, uses what was claimed for it."""
        return uuid in self.domains or uuid in self.disks or uuid in self.disks_aside

    def known(self) -> set[str]:
        """All that a scan would wake, or a watch."""
        prefixes = (keys.assignments(self.provider), keys.seen_by(self.provider))
        asked = {keys.last(key) for prefix in prefixes for key in self.world.etcd.below(prefix)}
        remembered = {uuid for uuid, record in self.records.items() if record.phase is not Phase.REMOVED}
        return asked | remembered | self.domains.keys() | self.disks | self.drives | self.networks

    def start(self) -> None:
        if self.daemon is None:
            self.daemon = Daemon(self)

    def kill(self) -> None:
        if self.daemon is not None:
            self.daemon.process.is_done = True
            for lane in self.daemon.lanes.values():
                lane.close()
            self.daemon = None

    def reboot(self) -> None:
        self.kill()
        self.boots += 1
        self.networks.clear()
        self.domains = dict.fromkeys(self.domains, Power.OFF)

    def wipe(self) -> None:
        """The state directory is lost, and with it the disks."""
        self.kill()
        self.was_wiped = True
        self.records.clear()
        self.cluster = None
        self.disks.clear()
        self.disks_aside.clear()
        self.drives.clear()
        self.networks.clear()


class Daemon:
    """One run of `ecompute` on a host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.rules = host.world.rules
        self.process = Process(f"ecompute on {host.provider}")
        self.lanes: dict[str, Steps] = {}
        self.alive: Lease | None = None
        self.hold: str | None = "etcd has not been looked at yet"
        self._highest = (0, 0)

    # --- etcd, and whether it is the one that was there before ---

    def _get(self, key: str, kind: type[T]) -> tuple[T | None, Compare]:
        entry = self.world.etcd.get(key)
        self._heard()
        value = value_of(entry)
        assert value is None or isinstance(value, kind)
        return value, unchanged(key, entry)

    def _commit(self, compares: list[Compare], operations: list[Put | Delete]) -> None:
        try:
            self.world.commit(compares, operations)
        finally:
            self._heard()

    def _heard(self) -> None:
        """Every answer tells etcd's revision; one that goes back means that etcd was set back."""
        cluster_id, revision = self.world.etcd.cluster_id, self.world.etcd.revision
        known_id, known_revision = self._highest
        if known_id and (cluster_id != known_id or revision < known_revision):
            self._suspect("etcd went back")
        self._highest = (cluster_id, revision)

    def _suspect(self, reason: str) -> None:
        self.hold = reason
        if self.host.cluster is not None:
            self.host.cluster = structs.replace(self.host.cluster, hold=reason)

    def examine(self) -> None:
        """As `ecompute.hold.Hold.examine` does."""
        etcd, host = self.world.etcd, self.host
        entry = etcd.get(keys.INCARNATION)
        if entry is None and host.cluster is None and not host.records:
            begun = Incarnation(id=f"life-{etcd.revision}-{host.provider}", made_by=host.provider, made_at="")
            self._commit([Compare(keys.INCARNATION, mod_revision=0)], [Put(keys.INCARNATION, begun)])
            entry = etcd.get(keys.INCARNATION)
        incarnation = None if entry is None else entry.value.id
        status = ClusterStatus(etcd.cluster_id, 0, etcd.revision, 0, "")
        self._heard()
        known = host.cluster
        reason = judge(known, incarnation, status)
        if reason is not None and known is not None and known.hold is None:
            self._suspect(reason)
        if reason is None and incarnation is not None:
            self._learn(incarnation, etcd.revision)
        self.hold = reason

    def _learn(self, incarnation: str, revision: int) -> None:
        known = self.host.cluster
        if known is None or revision > known.revision:
            self.host.cluster = Cluster(
                incarnation=incarnation, cluster_id=self.world.etcd.cluster_id, revision=revision
            )

    def adopt(self) -> None:
        """An operator has seen to it: the data that etcd has now is the right one."""
        etcd = self.world.etcd
        self.host.cluster = None
        entry = etcd.get(keys.INCARNATION)
        if entry is None:
            begun = Incarnation(id=f"life-{etcd.revision}-{self.host.provider}", made_by="operator", made_at="")
            etcd.commit([], [Put(keys.INCARNATION, begun)])
            entry = etcd.get(keys.INCARNATION)
        assert entry is not None
        self._highest = (0, 0)
        self._learn(entry.value.id, etcd.revision)
        self.hold = None

    def heartbeat(self) -> None:
        """Keep ``/alive`` and ``/nodes``: facts, written on hold too."""
        provider, now_s = self.host.provider, self.world.now_s
        if self.alive is None or not self.alive.is_held(now_s):
            self.alive = self.world.lease(self.process, ALIVE_TTL_S)
        entry = self.world.etcd.get(keys.alive(provider))
        if entry is None or entry.lease != self.alive.id:
            self._commit(
                [], [Put(keys.alive(provider), Alive(provider=provider, name=provider, since=""), self.alive.id)]
            )
        node, as_read = self._get(keys.node(provider), Node)
        hold = self.hold if self.rules.host_holds else None
        if node is None or node.hold != hold:
            fact = Node(
                provider=provider,
                name=provider,
                underlay="",
                underlay_mtu=1500,
                accelerator="kvm",
                hypervisor="",
                version="",
                hold=hold,
                reported_at="",
            )
            self._commit([as_read], [Put(keys.node(provider), fact)])

    # --- lanes ---

    def run(self, uuid: str, count: int, fate: Fate) -> None:
        """Let the lane of ``uuid`` take up to ``count`` steps; ``fate`` is of the last."""
        lane = self.lanes.setdefault(uuid, self._converge(uuid))
        self._run(uuid, lane, count, fate)

    def answer(self, uuid: str, count: int, fate: Fate) -> None:
        """Work on the questions about ``uuid``."""
        key = uuid if self.rules.audit_asks_in_the_lane else f"? {uuid}"
        lane = self.lanes.setdefault(key, self._answer(uuid))
        self._run(key, lane, count, fate)

    def _run(self, key: str, lane: Steps, count: int, fate: Fate) -> None:
        for left in reversed(range(count)):
            self.world.fate = fate if left == 0 else Fate.FINE
            try:
                next(lane)
            except (StopIteration, CompareFailed, Unanswered, DeedFailed):
                self.lanes.pop(key, None)
                break
        self.world.fate = Fate.FINE

    @property
    def _holds(self) -> bool:
        return self.hold is not None and self.rules.host_holds

    def _answer(self, uuid: str) -> Steps:
        provider = self.host.provider
        asked = [
            (key, entry)
            for key, entry in self.world.etcd.below(keys.operations(provider)).items()
            if entry.value.instance_uuid == uuid and entry.value.answer is None
        ]
        assignment, _ = self._get(keys.assignment(provider, uuid), Assignment)
        yield "read"
        is_nothing = has_nothing(assignment, self.host.look(uuid), self.host.records.get(uuid), hold=self._holds)
        yield "looked"
        for key, entry in asked:
            answered = structs.replace(entry.value, answer=NOTHING if is_nothing else "something")
            self._commit([unchanged(key, entry)], [Put(key, answered, entry.lease)])

    def _converge(self, uuid: str) -> Steps:
        host, provider = self.host, self.host.provider
        assignment, as_read = self._get(keys.assignment(provider, uuid), Assignment)
        yield "read assignment"
        reported, _ = self._get(keys.seen(provider, uuid), Seen)
        yield "read report"
        gang = None
        if assignment is not None and assignment.gang is not None and uuid not in host.records:
            record, _ = self._get(keys.gang(assignment.gang), Gang)
            gang = None if record is None else record.state
            if not self.rules.gang_waits_for_its_commit:
                gang = GangState.COMMITTED
            yield "read its gang"
        planned = self._plan(assignment, reported, uuid, gang, has_claim=True)
        if Step.REPORT_CREATING in planned.steps and self.rules.host_checks_the_claim:
            yield "planned"
            claim = self.world.placement.allocations.get(uuid)
            has_claim = claim is not None and claim.provider == provider
            planned = self._plan(assignment, reported, uuid, gang, has_claim=has_claim)
        if planned.steps and assignment is not None and host.cluster is not None:
            self._learn(host.cluster.incarnation, as_read.mod_revision or 0)
        try:
            yield from self._do_all(planned, uuid, assignment, as_read)
        except DeedFailed:
            yield "failed"
            follows = after_failure(planned, host.look(uuid), host.records.get(uuid), "it failed")
            yield from self._do_all(self._broken(follows, uuid, planned), uuid, assignment, as_read)

    def _plan(
        self,
        assignment: Assignment | None,
        reported: Seen | None,
        uuid: str,
        gang: GangState | None,
        *,
        has_claim: bool,
    ) -> Plan:
        wanted = assignment
        if assignment is None and not self.rules.host_leaves_what_nobody_asks_for and not self._holds:
            record = self.host.records.get(uuid)
            from cloudmodel.world import spec

            wanted = Assignment(
                uuid=uuid,
                namespace="system",
                name=uuid,
                role=Role.ABSENT,
                generation=1,
                epoch=1 if record is None else record.epoch,
                spec=spec(uuid, "10.0.0.1/24"),
            )
        return plan(
            wanted,
            self.host.look(uuid),
            self.host.records.get(uuid),
            hold=self._holds,
            boot_id=self.host.boot_id,
            reported=reported,
            has_claim=has_claim,
            gang=gang,
        )

    def _broken(self, follows: Plan, uuid: str, planned: Plan) -> Plan:
        """Return what follows a failure where the rules about it are broken."""
        steps = follows.steps
        if not self.rules.host_keeps_what_may_have_run and Step.START in planned.steps:
            steps = (Step.STOP, Step.UNDEFINE, Step.REMOVE_DISK, Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
        return Plan(steps, follows.reason, follows.error)

    def _do_all(self, planned: Plan, uuid: str, assignment: Assignment | None, as_read: Compare) -> Steps:
        steps = list(planned.steps)
        if not self.rules.host_remembers_before_the_start and Step.REMEMBER_STARTING in steps:
            steps.remove(Step.REMEMBER_STARTING)
        for step in steps:
            yield step.value
            if self._holds and step.changes_host:
                return
            if step.is_report or step is Step.CLEAR_REPORT:
                self._report(step, uuid, assignment, as_read, planned.error)
            elif step.is_memory:
                self._remember(step, uuid, assignment)
            elif step is Step.FORGET:
                self.host.records.pop(uuid, None)
            else:
                if self.world.fate is Fate.FAILS:
                    raise DeedFailed(step)
                self._do(step, uuid)

    def _report(
        self, step: Step, uuid: str, assignment: Assignment | None, as_read: Compare, error: str | None
    ) -> None:
        key = keys.seen(self.host.provider, uuid)
        if step is Step.CLEAR_REPORT:
            self._commit([as_read], [Delete(key)])
            return
        seen = report(
            step,
            uuid=uuid,
            assignment=assignment,
            record=self.host.records.get(uuid),
            found=self.host.look(uuid),
            error=error,
            reported_at="",
        )
        if step is Step.REPORT_LOST and not self.rules.lost_is_not_gone:
            seen = structs.replace(seen, is_gone=True)
        if seen.is_gone:
            self.world.gone.add(uuid)
        self._commit([as_read] if self.rules.report_compares_the_assignment else [], [Put(key, seen)])

    def _remember(self, step: Step, uuid: str, assignment: Assignment | None) -> None:
        before = self.host.records.get(uuid)
        epoch = assignment.epoch if assignment is not None else before.epoch if before is not None else 0
        power = before.power if before is not None else Power.UNKNOWN
        if step is Step.REMEMBER_RUNNING:
            power = self.host.domains.get(uuid, Power.OFF)
        self.host.records[uuid] = Record(
            uuid=uuid, epoch=epoch, phase=PHASES[step], boot_id=self.host.boot_id, power=power
        )
        if step is Step.REMEMBER_REMOVED and not self.rules.host_remembers_what_it_removed:
            del self.host.records[uuid]

    def _do(self, step: Step, uuid: str) -> None:
        host, world = self.host, self.world
        if step.changes_host and not step.value.startswith(("remove", "leave", "stop", "undefine")):
            gang = world.gang_of.get(uuid)
            if gang is not None and gang not in world.committed:
                raise Violated("begun before the commit", f"{step} of {uuid}, of {gang}")
        if step is Step.OVERLAY and uuid not in host.disks:
            # Then nobody knows, or the client asks for another one by the same name.
            is_excused = (host.was_wiped and world.was_set_back) or uuid in world.reborn
            if uuid in world.started and not is_excused:
                raise Violated("rebuilt blank", f"{uuid} on {host.provider}")
            host.disks.add(uuid)
        elif step is Step.CONFIG_DRIVE:
            host.drives.add(uuid)
        elif step is Step.JOIN_NETWORK:
            host.networks.add(uuid)
        elif step is Step.DEFINE:
            host.domains.setdefault(uuid, Power.OFF)
        elif step is Step.START:
            if uuid not in host.disks or uuid not in host.domains:
                raise DeedFailed(step)
            is_excused = (host.was_wiped and world.was_set_back) or uuid in world.reborn
            if uuid in world.gone and not is_excused:
                raise Violated("runs after gone", f"{uuid} on {host.provider}")
            host.domains[uuid] = Power.ON
            world.started.add(uuid)
        elif step in (Step.STOP, Step.UNDEFINE, Step.REMOVE_DISK):
            self._destroy(step, uuid)
        elif step is Step.LEAVE_NETWORK:
            host.networks.discard(uuid)
        elif step is Step.REMOVE_CONFIG_DRIVE:
            host.drives.discard(uuid)

    def _destroy(self, step: Step, uuid: str) -> None:
        host, world = self.host, self.world
        if uuid in world.started and uuid not in world.ordered:
            raise Violated("destroyed unasked", f"{step} of {uuid} on {host.provider}")
        if step is Step.STOP and uuid in host.domains:
            host.domains[uuid] = Power.OFF
        elif step is Step.UNDEFINE:
            host.domains.pop(uuid, None)
        elif step is Step.REMOVE_DISK:
            host.disks.discard(uuid)


__all__ = ["Daemon", "Host", "Operation"]
