"""What each report of a host says, made from the step, what was found and what is remembered. Pure.

A report speaks of one epoch and one generation of an assignment. Two facts in it are acted upon, by
`ecompute.cluster.upkeep`: ``is_gone`` and ``is_assigned``. All else is for people.
"""

from __future__ import annotations

from msgspec import structs

from ecompute.cluster.documents import Assignment, Power, Seen, State
from ecompute.instances.terms import Found, Phase, Record, Step

_STATE = {
    Step.REPORT_CREATING: State.CREATING,
    Step.REPORT_CREATED: State.CREATED,
    Step.REPORT_DELETING: State.DELETING,
    Step.REPORT_DELETED: State.DELETED,
    Step.REPORT_FAILED: State.ERROR,
    Step.REPORT_LOST: State.ERROR,
}
_STATE_OF_PHASE = {
    Phase.BUILDING: State.CREATING,
    Phase.STARTING: State.CREATING,
    Phase.RUNNING: State.CREATED,
    Phase.UNDOING: State.ERROR,
    Phase.REMOVING: State.DELETING,
    Phase.REMOVED: State.DELETING,
}
_GONE = (Step.REPORT_DELETED, Step.REPORT_FAILED)


def report(
    step: Step,
    *,
    uuid: str,
    assignment: Assignment | None,
    record: Record | None,
    found: Found,
    error: str | None,
    reported_at: str,
) -> Seen:
    """Return the report that ``step`` writes.

    Args:
        assignment: the one that the plan was made from; None: nobody asks for the guest.
        record: the host's memory as it is now.
        found: what is on the host now; of it the domain's power is reported, and, as an error, that its
            interfaces are not those of the assignment.
    """
    is_gone = step in _GONE
    if error is None and found.domain is not None and not found.has_interfaces and not is_gone:
        error = "its guest does not have the interfaces yet that it is to have"
    if assignment is None:
        addresses: tuple[str, ...] = ()
        epoch, generation = (record.epoch if record is not None else 0), 0
    else:
        addresses = tuple(a for interface in assignment.spec.interfaces for a in interface.addresses)
        epoch, generation = assignment.epoch, assignment.generation
    state = _STATE.get(step)
    if state is None:
        state = State.CREATED if record is None else _STATE_OF_PHASE[record.phase]
    return Seen(
        uuid=uuid,
        generation=generation,
        epoch=epoch,
        state=state,
        power=Power.OFF if found.domain is None else found.domain,
        addresses=() if is_gone else addresses,
        error=error,
        is_gone=is_gone,
        is_assigned=assignment is not None,
        reported_at=reported_at,
    )


def says_the_same(
    step: Step,
    assignment: Assignment | None,
    record: Record | None,
    found: Found,
    error: str | None,
    reported: Seen | None,
) -> bool:
    """Return whether ``reported`` already says what ``step`` would say; the time does not count."""
    if reported is None:
        return False
    fresh = report(
        step, uuid=reported.uuid, assignment=assignment, record=record, found=found, error=error, reported_at=""
    )
    return fresh == structs.replace(reported, reported_at="")
