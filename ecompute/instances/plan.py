"""What a host does next for one instance: decided from what is wanted, found and remembered.

`plan` is pure. The executor looks (libvirt, disk, network), reads the assignment and its own memory,
asks `plan`, and runs the steps in order. Every step is an *ensure*: done twice it is done once. A
daemon that is killed anywhere starts again, looks again and plans afresh; no step has a place to
resume from, and an event, the timer and the start run this same code.

What it holds to:

- **Memory before the deed.** ``REMEMBER_STARTING`` is on the disk before the domain is first started.
  From then on the disk is the guest's: if it is missing the guest is *lost*, an error, and never
  built anew, blank. Until then nothing has run, and building again from nothing is right.
- **A report goes before each change of the host, and compares.** ``REPORT_CREATING`` and
  ``REPORT_DELETING`` are the gate of a build and of a removal: the executor writes them in a
  transaction that compares the assignment as it was read, also where the report already says so.
  A lane that was paused while the order changed, or while etcd was set back, stops there.
- **A missing key never destroys a guest.** Without an assignment a guest is reported and left.
- **Removed is for ever.** An assignment that wants what this host has removed comes from an older
  etcd. The memory of a removed instance stays for longer than backups are kept, so that it is
  refused even where the setting back went unnoticed.
- **Gone is said only of what this host itself removed**, or never had. It is final for its epoch,
  because nothing is built after it; so `finish` may act on it whenever it reads it, however late.
  A lost guest is not gone: its disk may lie on a file system that is not mounted, and releasing its
  claim would make its assignment absent and its disk, once back, rubbish.
- **No build without a claim.** Set back, etcd may bring back an intent which the audit had deleted
  before it released the claim; the request of a paused scheduler then passes. So placement is asked
  before a build begins. (Once begun, the audit's question keeps the claim: see `has_nothing`.)
- **Nothing of a gang before all of it.** An assignment of a gang is inert until the gang's record says
  committed; where it says cancelled, the host refuses what it has never begun, and says *gone*. What it
  has begun it goes on with, whatever the record says later: only committed lets anything begin, so a
  record that says otherwise by then comes from an older etcd. A missing record decides nothing.
- **On hold only reports are written**, and none of them says gone. They are facts below the host's
  own prefix on which nothing but `finish` acts, and the operator's restore needs them: a guest that
  an older etcd does not know is found by its report alone. Memory, domains and disks stay as they are.
- **Off stays off.** A guest that went off while its host was up was shut down by somebody. One that
  was on when its host went down is started again (another ``boot_id``).
- **The report is the second memory.** Where the record is missing and etcd holds this host's report
  of the same epoch, the report counts as the record: a host whose memory was wiped does not build
  again what it has once built. So the record is written before the first report.

- **Interfaces follow the assignment**, also while the guest runs: what the domain lacks is attached and what
  it has beyond is detached, told by its taps. A generation is reported without an error only once that is so.

Moves (``incoming``, ``outgoing``, another epoch) are not planned yet: such an instance is left alone.
"""

from __future__ import annotations

from ecompute.cluster.documents import Assignment, ConfigDrive, GangState, Power, Role, Seen, State
from ecompute.instances.report import says_the_same
from ecompute.instances.terms import Found, Phase, Plan, Record, Step

__all__ = ["Found", "Phase", "Plan", "Record", "Step", "after_failure", "has_nothing", "plan"]

_REMOVAL = (Phase.UNDOING, Phase.REMOVING, Phase.REMOVED)
_REPORTED_PHASE = {
    State.INITIAL: Phase.BUILDING,
    State.CREATING: Phase.STARTING,  # it may have been started: nobody knows better
    State.CREATED: Phase.RUNNING,
    State.ERROR: Phase.RUNNING,
    State.DELETING: Phase.REMOVING,
    State.DELETED: Phase.REMOVED,
}


def plan(
    assignment: Assignment | None,
    found: Found,
    record: Record | None,
    *,
    hold: bool,
    boot_id: str,
    reported: Seen | None = None,
    has_claim: bool = True,
    gang: GangState | None = None,
) -> Plan:
    """Return the steps that bring one instance nearer to what is wanted.

    Args:
        assignment: what etcd wants of this host, as read; None: no key.
        found: what is on the host, looked at after ``assignment`` was read.
        record: the host's own memory; None: none.
        hold: the data in etcd is not the data that was there before (see `design`: *hold*).
        boot_id: which boot of the host this is.
        reported: this host's report as it lies in etcd; None: none. Report steps that would change
            nothing are left out of the plan, save for the gates.
        has_claim: False: placement was asked and has no allocation of this instance here. Asked where
            the plan would begin a build (its steps have ``REPORT_CREATING``), and the plan made again.
        gang: what the record of the assignment's gang says; None: there is no record, or no gang. Read
            after the assignment. It matters only to what this host has no memory of.
    """
    known = record if record is not None else _recall(assignment, found, reported)
    if hold:
        return _held(assignment, found, known, reported)
    if assignment is None:
        return _unassigned(found, record, known, reported)
    if assignment.role not in (Role.RUN, Role.ABSENT):
        return Plan((), f"role {assignment.role} is not planned by this version; left alone")
    if known is not None and assignment.epoch < known.epoch:
        return Plan((), f"the assignment is of epoch {assignment.epoch}, this host is at {known.epoch}; left alone")
    if assignment.role is Role.ABSENT:
        return _remove(assignment, found, record, known, reported)
    if known is not None and assignment.epoch > known.epoch:
        return Plan((), f"a move to epoch {assignment.epoch} is not planned by this version; left alone")
    if known is None or known.phase in (Phase.BUILDING, Phase.UNDOING):
        if found.domain not in (None, Power.OFF):
            return Plan((Step.REMEMBER_RUNNING, Step.REPORT_CREATED), "it runs already")
        if known is None and assignment.gang is not None and gang is not GangState.COMMITTED:
            return _await(found, gang)
        if known is not None and known.phase is Phase.UNDOING:
            steps = (*_removal(found), Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
            return Plan(steps, "the undoing of its build is unfinished", known.error or "its build failed")
        if not has_claim:
            steps = (*_removal(found), Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
            return Plan(steps, "it is wanted, and nothing is claimed for it", "its claim is gone")
        return _build(assignment, found, record)
    if known.phase in _REMOVAL:
        return _refuse(assignment, found, known, reported)
    if not found.has_disk:
        error = "its disk is gone" if found.domain is not None else "its domain and its disk are gone"
        lost = Plan((Step.REPORT_LOST,), "it was started here and its disk is missing; never built anew", error)
        same = says_the_same(Step.REPORT_LOST, assignment, known, found, error, reported)
        return Plan((), lost.reason, error) if same else lost
    return _keep(assignment, found, record, known, reported, boot_id)


def _await(found: Found, gang: GangState | None) -> Plan:
    """Plan for one of a gang that is not committed, of which nothing has begun here."""
    if gang is not GangState.CANCELLED:
        return Plan((), "its gang is not committed: nothing is done for it yet")
    steps = (*_removal(found), Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
    return Plan(steps, "its gang was cancelled", "its gang was cancelled: it could not be launched as a whole")


def after_failure(planned: Plan, found: Found, record: Record | None, error: str) -> Plan:
    """Return what follows when a step of ``planned`` has failed (not: could not be tried, as when etcd is down).

    A first build is undone and reported as failed, so that its claim comes back. Whatever may once
    have run is never undone: it stays as it is, the error is reported, and the timer tries again.

    Args:
        planned: the plan whose step failed.
        found: looked at again, after the failure.
        record: as it is now.
        error: one line; it ends in the report.
    """
    if Step.REPORT_CREATING not in planned.steps:
        is_removed = record is not None and record.phase is Phase.REMOVED
        if is_removed and not any(step.is_report for step in planned.steps):
            return Plan((), "it was reported gone; what is left of it is taken away later", error)
        is_started = record is not None and record.phase is not Phase.STARTING
        return Plan((Step.REPORT if is_started else Step.REPORT_LOST,), "a step failed; it is tried again later", error)
    if found.domain not in (None, Power.OFF):
        return Plan((Step.REMEMBER_RUNNING, Step.REPORT_CREATED), "it runs all the same")
    steps = _removal(found)
    if record is not None and record.phase is Phase.STARTING:
        # Killed in the middle of this undo, the next daemon must not take the missing disk for a lost
        # one, nor what is left for a guest's.
        steps = (Step.REMEMBER_UNDOING, *steps)
    return Plan((*steps, Step.REMEMBER_REMOVED, Step.REPORT_FAILED), "its build failed and is undone", error)


def has_nothing(assignment: Assignment | None, found: Found, record: Record | None, *, hold: bool) -> bool:
    """Answer the audit's question whether an allocation on this host may be given back.

    Asked in the instance's own lane, so that no work on it is under way. Only a host can say this:
    etcd may have been set back to before the request, with the guest running here.
    """
    if hold or assignment is not None or not found.is_nothing:
        return False
    return record is None or record.phase is Phase.REMOVED


def _recall(assignment: Assignment | None, found: Found, reported: Seen | None) -> Record | None:
    """Return what a host without a record must take for granted, by its own report and by what it finds."""
    if reported is not None and (assignment is None or reported.epoch == assignment.epoch or not reported.is_assigned):
        phase = Phase.REMOVED if reported.is_gone else _REPORTED_PHASE[reported.state]
        epoch = reported.epoch if assignment is None else assignment.epoch
        return Record(uuid=reported.uuid, epoch=epoch, phase=phase, power=reported.power)
    if assignment is not None and found.has_guest:
        # The record is written before the disk is made: one without a record was made by a daemon
        # whose memory is lost, and may be a guest's.
        return Record(uuid=assignment.uuid, epoch=assignment.epoch, phase=Phase.STARTING)
    return None


def _held(assignment: Assignment | None, found: Found, known: Record | None, reported: Seen | None) -> Plan:
    reason = "on hold: nothing is built or removed"
    if assignment is None and found.has_guest:
        step = Step.REPORT_UNASSIGNED
    elif assignment is not None and found.domain is not None and known is not None and known.phase is Phase.RUNNING:
        step = Step.REPORT
    else:
        return Plan((), reason)
    return Plan(() if says_the_same(step, assignment, known, found, None, reported) else (step,), reason)


def _unassigned(found: Found, record: Record | None, known: Record | None, reported: Seen | None) -> Plan:
    if found.is_nothing and (record is None or record.phase in (Phase.BUILDING, *_REMOVAL)):
        steps: list[Step] = []
        if record is not None and record.phase in (Phase.UNDOING, Phase.REMOVING):
            steps.append(Step.REMEMBER_REMOVED)
        if reported is not None:
            steps.append(Step.CLEAR_REPORT)
        if record is not None and record.phase is Phase.BUILDING:
            steps.append(Step.FORGET)
        return Plan(tuple(steps), "nobody asks for it and nothing is here")
    if says_the_same(Step.REPORT_UNASSIGNED, None, known, found, None, reported):
        return Plan((), "nobody asks for it; left alone and reported")
    return Plan((Step.REPORT_UNASSIGNED,), "nobody asks for it; left alone")


def _build(assignment: Assignment, found: Found, record: Record | None) -> Plan:
    steps: list[Step] = [] if record is not None else [Step.REMEMBER_BUILDING]
    steps.append(Step.REPORT_CREATING)
    if not found.has_disk:
        steps += [Step.FETCH_IMAGE, Step.OVERLAY]
    steps += _made_ready(assignment, found)
    steps += [Step.DEFINE, Step.REMEMBER_STARTING, Step.START, Step.REMEMBER_RUNNING, Step.REPORT_CREATED]
    return Plan(tuple(steps), "it is wanted and has never run here")


def _keep(
    assignment: Assignment, found: Found, record: Record | None, known: Record, reported: Seen | None, boot_id: str
) -> Plan:
    """Plan for an instance that was started here and whose disk is there."""
    is_down = found.domain in (None, Power.OFF, Power.CRASHED)
    was_on = known.power in (Power.ON, Power.PAUSED)
    is_to_start = is_down and (
        known.phase is Phase.STARTING or (was_on and (found.domain is None or known.boot_id != boot_id))
    )
    if is_to_start:
        # A guest of which only the report remembers gets its record before it is started again.
        steps = [Step.REMEMBER_STARTING] if record is None else []
        steps += _made_ready(assignment, found)
        if found.domain is None:
            steps.append(Step.DEFINE)
        elif not found.has_interfaces:
            steps += _defined_anew(assignment)
        if found.is_to_tell:
            steps.append(Step.TELL)
        steps += [Step.START, Step.REMEMBER_RUNNING]
        steps += [*([Step.LEAVE_OTHERS] if found.is_to_leave else []), Step.REPORT_CREATED]
        is_again = known.phase is Phase.RUNNING
        return Plan(tuple(steps), "it was on, and is not" if is_again else "its start is unfinished")
    steps = []
    if found.domain is None:
        steps += [*_made_ready(assignment, found), Step.DEFINE]
    elif is_down and not found.has_interfaces:
        steps += _defined_anew(assignment)
    if found.is_to_tell:
        steps.append(Step.TELL)
    if not is_down:
        steps += _plugged(found)
    if found.is_to_leave or (found.is_to_detach and not is_down):
        steps.append(Step.LEAVE_OTHERS)
    has_moved_on = found.domain not in (None, Power.UNKNOWN) and (
        record is None
        or record.phase is Phase.STARTING
        or record.power is not found.domain
        or (not is_down and record.boot_id != boot_id)
    )
    if has_moved_on:
        steps.append(Step.REMEMBER_RUNNING)
    if reported is None or reported.state is not State.CREATED or not reported.is_assigned:
        steps.append(Step.REPORT_CREATED)
    elif not says_the_same(Step.REPORT, assignment, known, found, None, reported):
        steps.append(Step.REPORT)
    return Plan(tuple(steps), "it is as wanted" if not steps else "it is here; what is known of it is put right")


def _defined_anew(assignment: Assignment) -> list[Step]:
    """Give a guest that is off other interfaces: they are told on its drive, which nobody reads now."""
    return [*([] if assignment.spec.config_drive is ConfigDrive.NONE else [Step.CONFIG_DRIVE]), Step.DEFINE]


def _plugged(found: Found) -> list[Step]:
    """Give a guest that is on other interfaces: the network with its filter comes first, and goes last."""
    joins = [Step.JOIN_NETWORK] if found.is_to_attach or not found.has_network else []
    attaches = [*joins, *([Step.ATTACH] if found.is_to_attach else [])]
    detaches = [Step.DETACH] if found.is_to_detach else []
    # One that its guest does not let go of keeps no other waiting, unless the two had the same MAC.
    return [*detaches, *attaches] if found.is_mac_taken else [*attaches, *detaches]


def _refuse(assignment: Assignment, found: Found, known: Record, reported: Seen | None) -> Plan:
    """Plan for an assignment that wants what this host has removed, or begun to."""
    error = known.error or "it was removed from this host and is not built again"
    if found.has_guest:
        same = says_the_same(Step.REPORT_LOST, assignment, known, found, error, reported)
        reason = "its removal had begun; what is left of it is left alone"
        return Plan(() if same else (Step.REPORT_LOST,), reason, error)
    steps = list(_removal(found))
    if known.phase is not Phase.REMOVED or steps:
        steps.append(Step.REMEMBER_REMOVED)
    # An error that says gone stands: the reason of a failed build is worth more than this one.
    is_said = (
        reported is not None
        and reported.epoch == assignment.epoch
        and reported.is_gone
        and reported.state is State.ERROR
    )
    if not is_said:
        steps.append(Step.REPORT_FAILED)
    return Plan(tuple(steps), error, error)


def _remove(
    assignment: Assignment, found: Found, record: Record | None, known: Record | None, reported: Seen | None
) -> Plan:
    is_removed = known is not None and known.phase is Phase.REMOVED
    if found.is_nothing or (is_removed and not found.has_guest):
        # What is left may be another guest's doing, of which nobody has taken note yet: its network. It is taken
        # away where it is not, and what was said stands: gone is final.
        steps = list(_removal(found))
        if record is None or record.phase is not Phase.REMOVED:
            steps.append(Step.REMEMBER_REMOVED)
        is_said = (
            reported is not None
            and reported.is_gone
            and (reported.epoch, reported.generation) == (assignment.epoch, assignment.generation)
        )
        return Plan(tuple(steps) if is_said else (*steps, Step.REPORT_DELETED), "it is not wanted, and gone")
    steps = [Step.REPORT_DELETING]
    if record is None or record.phase is not Phase.REMOVING:
        steps.append(Step.REMEMBER_REMOVING)
    steps += [*_removal(found), Step.REMEMBER_REMOVED, Step.REPORT_DELETED]
    return Plan(tuple(steps), "it is not wanted")


def _made_ready(assignment: Assignment, found: Found) -> list[Step]:
    has_drive = found.has_config_drive or assignment.spec.config_drive is ConfigDrive.NONE
    return ([] if has_drive else [Step.CONFIG_DRIVE]) + ([] if found.has_network else [Step.JOIN_NETWORK])


def _removal(found: Found) -> tuple[Step, ...]:
    """Return the steps that take away what is found: the disk last, when nothing can write to it."""
    steps: list[Step] = []
    if found.domain is not None:
        steps += [Step.UNDEFINE] if found.domain is Power.OFF else [Step.STOP, Step.UNDEFINE]
    if found.has_network:
        steps.append(Step.LEAVE_NETWORK)
    if found.has_config_drive:
        steps.append(Step.REMOVE_CONFIG_DRIVE)
    if found.has_disk:
        steps.append(Step.REMOVE_DISK)
    return tuple(steps)
