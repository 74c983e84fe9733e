"""Drives every instance of this host from what is found to what is wanted.

Wakes come from etcd (an assignment changed), from libvirt (a domain changed), from a fetched image,
from a retry that is due, and from the scan that goes through everything at start, after a gap and
every ten minutes. A wake names an instance and nothing more; its lane reads, looks, plans and acts,
the same way each time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, GangState, Power, Role, Seen, Unreadable
from ecompute.cluster.errors import (
    Cancelled,
    CloudError,
    CompareFailed,
    DeadlineExceeded,
    OnHold,
    Refused,
    StepFailed,
    Unavailable,
    one_line,
)
from ecompute.cluster.failpoint import reach
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.retries import Retries
from ecompute.cluster.store import Change, Store, Versioned, Watcher
from ecompute.hypervisor.api import Hypervisor
from ecompute.instances.actuate import DEADLINE_S, DEFAULT_DEADLINE_S, Actuator, ForeignDomain, ImagePendingError
from ecompute.instances.gangs import Gangs
from ecompute.instances.lanes import Lanes, Stuck, Work
from ecompute.instances.memory import Memory
from ecompute.instances.patience import Patience
from ecompute.instances.plan import after_failure, has_nothing, plan
from ecompute.instances.reporter import Reporter
from ecompute.instances.terms import Found, Phase, Plan, Record, Step
from ecompute.network.membership import Memberships

SCAN_PERIOD_S = 600.0
SOON_S = 0.2
RETRY_S = 5.0
FAILED_RETRY_S = 60.0

TIMED = (Step.REPORT_CREATED, Step.REPORT_DELETED, Step.REPORT_FAILED)

PHASE = {
    Step.REMEMBER_BUILDING: Phase.BUILDING,
    Step.REMEMBER_STARTING: Phase.STARTING,
    Step.REMEMBER_RUNNING: Phase.RUNNING,
    Step.REMEMBER_UNDOING: Phase.UNDOING,
    Step.REMEMBER_REMOVING: Phase.REMOVING,
    Step.REMEMBER_REMOVED: Phase.REMOVED,
}

log = logging.getLogger(__name__)


class InstanceReconciler:
    """All instances of one host.

    Args:
        provider: the host's provider uuid.
        hold_reason: why the host is on hold, or ``None``.
        witness: told of the revision that is about to be acted on.
        boot_id: which boot of the machine this is.
        has_claim: asks placement whether an instance has an allocation on this host.
        on_exhausted: told when so many lanes are stuck that the daemon had better start anew.
        patience: with instances that stuck before the last start.
        on_converged: told, on any thread, each time that `has_converged` may have come to be; must not block.
        spare_lanes: how many idle lanes keep their thread.
    """

    def __init__(
        self,
        *,
        store: Store,
        watcher: Watcher,
        hypervisor: Hypervisor,
        actuator: Actuator,
        memberships: Memberships,
        memory: Memory,
        reporter: Reporter,
        provider: str,
        lanes: int,
        boot_id: str,
        hold_reason: Callable[[], str | None],
        witness: Callable[[int], None],
        on_exhausted: Callable[[list[Stuck]], None],
        patience: Patience,
        on_converged: Callable[[], None] = lambda: None,
        spare_lanes: int = 1,
        release_thread: Callable[[], None],
        has_claim: Callable[[str], bool],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._watcher = watcher
        self._hypervisor = hypervisor
        self._actuator = actuator
        self._memberships = memberships
        self._memory = memory
        self._reporter = reporter
        self._provider = provider
        self._boot_id = boot_id
        self._hold_reason = hold_reason
        self._witness = witness
        self._has_claim = has_claim
        self._lanes = Lanes(
            self._work,
            count=lanes,
            spare=spare_lanes,
            on_stuck=self._stuck,
            on_exhausted=on_exhausted,
            on_idle=self._idle,
            release_thread=release_thread,
        )
        self._gangs = Gangs(store, watcher, self._lanes.wake)
        self._on_converged = on_converged
        self._patience = patience
        self._retries = Retries("instance-retries", self._lanes.wake)
        self._scanning = Periodic("instances", self._scan, period_s=SCAN_PERIOD_S, rng=rng)
        self._has_scanned = threading.Event()
        self._lock = threading.Lock()
        self._questions: dict[str, list[Future[bool]]] = {}
        self._unsettled: set[str] = set()

    def start(self) -> None:
        """Begin; returns at once. `has_converged` tells when everything was gone through."""
        self._follow = self._watcher.follow(keys.assignments(self._provider), Assignment, self._changed)
        self._hypervisor.on_change(self._domain_changed)
        self._scanning.start()

    def rescan(self) -> None:
        """Go through everything soon; `has_converged` tells when that is done."""
        self._has_scanned.clear()
        self._scanning.wake()

    def has_converged(self) -> bool:
        """Whether everything was gone through at least once, and nothing is at work, stuck or waiting."""
        with self._lock:
            is_settled = not self._unsettled
        return self._has_scanned.is_set() and is_settled and self._lanes.is_idle() and not self._lanes.stuck()

    def wake(self, uuid: str) -> None:
        """Have the lane of an instance go through it."""
        self._lanes.wake(uuid)

    def at_work(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the uuids that lanes are at work on, or about to be, and those that are stuck."""
        return self._lanes.at_work(), frozenset(stuck.uuid for stuck in self._lanes.stuck())

    def _idle(self) -> None:
        if self.has_converged():
            self._on_converged()

    def _is_settled(self, uuid: str, is_so: bool) -> None:
        """Note whether it was gone through. One that fails, or waits for its image, was: it keeps no host closed."""
        with self._lock:
            (self._unsettled.discard if is_so else self._unsettled.add)(uuid)

    def has_nothing(self, uuid: str) -> Future[bool]:
        """Answer, from the instance's own lane, whether nothing of it is here and nothing will be."""
        answer: Future[bool] = Future()
        with self._lock:
            self._questions.setdefault(uuid, []).append(answer)
        self._lanes.wake(uuid)
        return answer

    def close(self, timeout_s: float) -> bool:
        """End after the steps in hand; return whether they ended in time."""
        have_ended = self._lanes.close(timeout_s)  # first: nothing is begun while the rest ends
        self._retries.close()
        self._scanning.stop()
        return have_ended

    # --- wakes ---

    def _changed(self, change: Change[Assignment]) -> None:
        if change.is_relist:
            self._scanning.wake()
            return
        uuid = keys.last(change.key)
        if not keys.is_uuid(uuid):
            log.error("%s names no instance and is passed over", change.key)
            return
        before = None if change.before is None else change.before.value
        if change.after is None or (before is not None and _is_other_work(before, change.after.value)):
            self._lanes.cancel(uuid)
        self._lanes.wake(uuid)

    def _domain_changed(self, uuid: str) -> None:
        if uuid:
            self._lanes.wake(uuid)
        else:
            self._scanning.wake()

    def _scan(self) -> None:
        """Wake every instance that is wanted, found or remembered here."""
        domains = {uuid for uuid, domain in self._hypervisor.list().items() if domain.is_ours}
        wanted = self._store.list(keys.assignments(self._provider), Assignment)
        reported = {keys.last(key) for key in self._store.keys(keys.seen_by(self._provider))[0]}
        for key, reason in wanted.unreadable:
            log.error("assignment %s cannot be read and is left alone: %s", key, reason)
        unreadable = {keys.last(key) for key, _ in wanted.unreadable}
        for item in wanted.items:
            if item.value.role is Role.RUN and item.value.uuid in domains:
                self._actuator.adopt(item.value)
        remembered = {uuid for uuid, record in self._memory.records().items() if record.phase is not Phase.REMOVED}
        uuids = domains | {i.value.uuid for i in wanted.items} | reported | remembered | self._actuator.with_files()
        for uuid in sorted(filter(keys.is_uuid, uuids - unreadable)):
            self._lanes.wake(uuid)
        if not unreadable:
            self._memberships.sweep({vni for i in wanted.items for vni in (n.vni for n in i.value.spec.interfaces)})
        self._has_scanned.set()
        self._idle()  # there may have been nothing to do
        self._memory.prune(time.time())
        self._actuator.prune_images()

    def _stuck(self, stuck: Stuck) -> None:
        log.error("instance %s is set aside: its step %s does not return", stuck.uuid, stuck.step)

    # --- the work of a lane ---

    def _work(self, work: Work) -> None:
        left_s = self._patience.left_s(work.uuid)
        if left_s > 0:
            log.warning("instance %s stuck before the last start, and is left alone for %.0f s", work.uuid, left_s)
            self._is_settled(work.uuid, False)
            self._retries.later(work.uuid, left_s)
            return
        try:
            self._converge(work)
            self._patience.went_well(work.uuid)
            self._is_settled(work.uuid, True)
        except Cancelled:
            self._actuator.stop_fetching(work.uuid)
        except ImagePendingError as pending:
            self._is_settled(work.uuid, True)
            pending.future.add_done_callback(lambda future: self._lanes.wake(work.uuid))
        except DeadlineExceeded as error:
            log.warning("%s", error)
        except CompareFailed:
            self._retries.later(work.uuid, SOON_S)
        except Unavailable as error:
            log.warning("instance %s waits: %s", work.uuid, error)
            self._is_settled(work.uuid, False)
            self._retries.later(work.uuid, RETRY_S)
        except CloudError as error:
            log.error("instance %s: %s", work.uuid, error)
            self._is_settled(work.uuid, True)
            self._retries.later(work.uuid, FAILED_RETRY_S)
        except Exception:
            log.exception("instance %s: nobody foresaw this", work.uuid)
            self._is_settled(work.uuid, True)
            self._retries.later(work.uuid, FAILED_RETRY_S)

    def _converge(self, work: Work) -> None:
        uuid = work.uuid
        with work.step("read", DEFAULT_DEADLINE_S):
            assignment = self._store.get(keys.assignment(self._provider, uuid), Assignment)
            reported = self._reported(uuid)
        wanted = None if assignment is None else assignment.value
        if wanted is not None and wanted.uuid != uuid:
            raise Refused(f"assignment {uuid} is about {one_line(wanted.uuid, 50)}", hint="it is left alone; delete it")
        try:
            with work.step("look", DEFAULT_DEADLINE_S):
                found = self._actuator.look(uuid, wanted)
        except ForeignDomain:
            self._answer(uuid, False)
            if wanted is None:
                return  # libvirt tells of every domain; what becomes of this one is none of our business
            raise
        record = self._memory.record(uuid)
        with work.step("gang", DEFAULT_DEADLINE_S):
            gang = self._gang(uuid, wanted, record)
        make = partial(
            plan,
            wanted,
            found,
            record,
            hold=self._hold_reason() is not None,
            boot_id=self._boot_id,
            reported=reported,
            gang=gang,
        )
        planned = make()
        if Step.REPORT_CREATING in planned.steps:
            with work.step("claim", DEFAULT_DEADLINE_S):
                planned = make(has_claim=self._has_claim(uuid))
        if Step.FETCH_IMAGE not in planned.steps:
            self._actuator.stop_fetching(uuid)  # destroyed while no lane was at work: the image was on its way
        if not planned.steps:
            if wanted is None and found.is_nothing:
                self._reporter.forget(uuid)
            self._answer(uuid, has_nothing(wanted, found, record, hold=self._hold_reason() is not None))
            return
        self._answer(uuid, False)
        log.info("instance %s: %s: %s", uuid, planned.reason, ", ".join(planned.steps))
        if assignment is not None:
            self._witness(assignment.mod_revision)
        try:
            self._run(work, planned, assignment, found)
        except (Cancelled, DeadlineExceeded, CompareFailed, Unavailable, OnHold):
            raise
        except ImagePendingError:
            raise
        except Exception as error:
            known = error if isinstance(error, CloudError) else StepFailed(f"{type(error).__name__}: {error}")
            log.error("instance %s: %s", uuid, known, exc_info=None if known is error else error)
            self._clean_up(work, planned, assignment, str(known))

    def _gang(self, uuid: str, wanted: Assignment | None, record: Record | None) -> GangState | None:
        """Return what the gang's record says, for one that has not begun here; it wakes this lane from then on."""
        if wanted is None or wanted.gang is None or wanted.role is not Role.RUN or record is not None:
            self._gangs.leave(uuid)
            return None
        return self._gangs.state(wanted.gang, uuid)

    def _reported(self, uuid: str) -> Seen | None:
        """Return this host's report; one that cannot be read is none, and is written anew."""
        try:
            found = self._store.get(keys.seen(self._provider, uuid), Seen)
        except Unreadable as error:
            log.error("%s", error)
            return None
        return None if found is None else found.value

    def _answer(self, uuid: str, is_nothing: bool) -> None:
        with self._lock:
            questions = self._questions.pop(uuid, [])
        for question in questions:
            question.set_result(is_nothing)

    def _clean_up(self, work: Work, planned: Plan, assignment: Versioned[Assignment] | None, error: str) -> None:
        wanted = None if assignment is None else assignment.value
        with work.step("look", DEFAULT_DEADLINE_S):
            found = self._actuator.look(work.uuid, wanted)
        self._actuator.stop_fetching(work.uuid)
        self._run(work, after_failure(planned, found, self._memory.record(work.uuid), error), assignment, found)
        self._retries.later(work.uuid, FAILED_RETRY_S)

    def _run(self, work: Work, planned: Plan, assignment: Versioned[Assignment] | None, found: Found) -> None:
        began = time.monotonic()
        wanted = None if assignment is None else assignment.value
        for step in planned.steps:
            if step.changes_host and self._hold_reason() is not None:
                raise OnHold(f"{step} is not done: {self._hold_reason()}")
            with work.step(step, DEADLINE_S.get(step, DEFAULT_DEADLINE_S)):
                reach(f"{step}.before")
                if step.is_report:
                    self._reporter.write(
                        step,
                        work.uuid,
                        assignment,
                        record=self._memory.record(work.uuid),
                        found=self._actuator.look(work.uuid, wanted),
                        error=planned.error,
                        seconds=time.monotonic() - began if step in TIMED else None,
                    )
                elif step is Step.CLEAR_REPORT:
                    self._reporter.clear(work.uuid)
                elif step.is_memory:
                    self._memory.remember(self._record(step, work.uuid, wanted, planned.error))
                elif step is Step.FORGET:
                    self._memory.forget(work.uuid)
                else:
                    is_build = Step.REPORT_CREATING in planned.steps
                    self._actuator.do(step, work.uuid, wanted, is_build=is_build)
                    if step is Step.DETACH and not self._memberships.has_others(work.uuid, wanted):
                        # Its network may be one of which this daemon has taken no note: the scan sweeps it away.
                        self._scanning.wake()
                reach(f"{step}.after")

    def _record(self, step: Step, uuid: str, assignment: Assignment | None, error: str | None) -> Record:
        before = self._memory.record(uuid)
        epoch = assignment.epoch if assignment is not None else before.epoch if before is not None else 0
        power = before.power if before is not None else Power.UNKNOWN
        if step is Step.REMEMBER_RUNNING:
            power = self._actuator.look(uuid, assignment).domain or Power.OFF
        return Record(uuid=uuid, epoch=epoch, phase=PHASE[step], boot_id=self._boot_id, power=power, error=error)


def _is_other_work(before: Assignment, after: Assignment) -> bool:
    return (before.role, before.epoch) != (after.role, after.epoch)
