"""What the host decides for one instance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import structs

from ecompute.cluster.documents import (
    Assignment,
    ConfigDrive,
    GangState,
    Interface,
    Power,
    Resources,
    Role,
    Seen,
    Spec,
    State,
)
from ecompute.instances.plan import Found, Phase, Plan, Record, Step, after_failure, has_nothing, plan
from ecompute.instances.report import report

UUID = "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0001"
INTERFACE = Interface(uuid="i", network_uuid="n", vni=1, mac="52:54:00:00:00:01", addresses=("10.10.0.5/24",), mtu=1450)
SPEC = Spec(resources=Resources(vcpus=1, memory_mb=64, disk_gb=1), image="http://image/", interfaces=(INTERFACE,))
ALL_OFF = Found(domain=Power.OFF, has_disk=True, has_config_drive=True, has_network=True)
ALL_ON = Found(domain=Power.ON, has_disk=True, has_config_drive=True, has_network=True)
NOTHING = Found()

REMOVALS = {Step.STOP, Step.UNDEFINE, Step.LEAVE_NETWORK, Step.REMOVE_CONFIG_DRIVE, Step.REMOVE_DISK}
BUILDS = {Step.FETCH_IMAGE, Step.OVERLAY, Step.CONFIG_DRIVE, Step.JOIN_NETWORK, Step.DEFINE, Step.START}


def assignment(role: Role = Role.RUN, *, generation: int = 1, epoch: int = 1, gang: str | None = None) -> Assignment:
    return Assignment(
        uuid=UUID, namespace="system", name="web", role=role, generation=generation, epoch=epoch, spec=SPEC, gang=gang
    )


def record(phase: Phase, *, power: Power = Power.ON, boot_id: str = "boot", epoch: int = 1) -> Record:
    return Record(uuid=UUID, epoch=epoch, phase=phase, power=power, boot_id=boot_id)


def seen(state: State, *, power: Power = Power.ON, is_gone: bool = False, generation: int = 1) -> Seen:
    return Seen(
        uuid=UUID,
        generation=generation,
        epoch=1,
        state=state,
        power=power,
        addresses=() if is_gone else ("10.10.0.5/24",),
        is_gone=is_gone,
        reported_at="then",
    )


def decide(
    wanted: Assignment | None,
    found: Found = NOTHING,
    known: Record | None = None,
    *,
    hold: bool = False,
    reported: Seen | None = None,
    gang: GangState | None = None,
) -> Plan:
    return plan(wanted, found, known, hold=hold, boot_id="boot", reported=reported, gang=gang)


def test_a_new_instance_is_remembered_and_gated_before_anything_is_made() -> None:
    assert decide(assignment()).steps == (
        Step.REMEMBER_BUILDING,
        Step.REPORT_CREATING,
        Step.FETCH_IMAGE,
        Step.OVERLAY,
        Step.CONFIG_DRIVE,
        Step.JOIN_NETWORK,
        Step.DEFINE,
        Step.REMEMBER_STARTING,
        Step.START,
        Step.REMEMBER_RUNNING,
        Step.REPORT_CREATED,
    )


def test_a_guest_that_wants_no_drive_gets_none() -> None:
    wanted = structs.replace(assignment(), spec=structs.replace(SPEC, config_drive=ConfigDrive.NONE))
    steps = decide(wanted).steps
    assert Step.CONFIG_DRIVE not in steps and Step.JOIN_NETWORK in steps
    off = Found(domain=Power.OFF, has_disk=True, has_network=True)
    assert decide(wanted, off, record(Phase.STARTING, power=Power.UNKNOWN)).steps[0] is Step.START


def test_an_interrupted_build_goes_on_with_what_is_there() -> None:
    steps = decide(assignment(), Found(has_disk=True, has_config_drive=True), record(Phase.BUILDING)).steps
    assert steps[0] is Step.REPORT_CREATING
    assert Step.OVERLAY not in steps and Step.CONFIG_DRIVE not in steps
    assert Step.JOIN_NETWORK in steps


def test_a_start_that_was_interrupted_is_finished_on_the_same_disk() -> None:
    assert decide(assignment(), ALL_OFF, record(Phase.STARTING, power=Power.UNKNOWN)).steps == (
        Step.START,
        Step.REMEMBER_RUNNING,
        Step.REPORT_CREATED,
    )
    assert decide(assignment(), ALL_ON, record(Phase.STARTING, power=Power.UNKNOWN)).steps == (
        Step.REMEMBER_RUNNING,
        Step.REPORT_CREATED,
    )


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
@pytest.mark.parametrize("found", [NOTHING, Found(domain=Power.OFF, has_network=True), Found(domain=Power.ON)])
def test_what_was_started_and_has_no_disk_is_lost_and_never_built_anew(phase: Phase, found: Found) -> None:
    planned = decide(assignment(), found, record(phase))
    assert planned.steps == (Step.REPORT_LOST,)
    assert planned.error


def test_a_lost_guest_keeps_its_claim_because_its_disk_may_come_back() -> None:
    lost = report(
        Step.REPORT_LOST,
        uuid=UUID,
        assignment=assignment(),
        record=record(Phase.RUNNING),
        found=NOTHING,
        error="gone",
        reported_at="now",
    )
    assert lost.state is State.ERROR and not lost.is_gone
    assert decide(assignment(), ALL_ON, record(Phase.RUNNING), reported=lost).steps == (Step.REPORT_CREATED,)


def test_a_domain_undefined_by_hand_is_defined_and_started_again_on_its_disk() -> None:
    found = Found(has_disk=True, has_config_drive=True, has_network=True)
    assert decide(assignment(), found, record(Phase.RUNNING)).steps == (
        Step.DEFINE,
        Step.START,
        Step.REMEMBER_RUNNING,
        Step.REPORT_CREATED,
    )


def test_a_guest_that_shut_itself_down_stays_off() -> None:
    planned = decide(assignment(), ALL_OFF, record(Phase.RUNNING), reported=seen(State.CREATED))
    assert planned.steps == (Step.REMEMBER_RUNNING, Step.REPORT)


def test_a_guest_that_was_on_when_its_host_went_down_is_started_again() -> None:
    steps = decide(assignment(), ALL_OFF, record(Phase.RUNNING, boot_id="earlier"), reported=seen(State.CREATED)).steps
    assert Step.START in steps and not BUILDS & set(steps) - {Step.START}


def test_a_guest_that_was_off_when_its_host_went_down_stays_off() -> None:
    known = record(Phase.RUNNING, boot_id="earlier", power=Power.OFF)
    reported = seen(State.CREATED, power=Power.OFF)
    assert decide(assignment(), ALL_OFF, known, reported=reported).steps == ()


def test_a_guest_found_on_in_a_new_boot_is_remembered_so() -> None:
    known = record(Phase.RUNNING, boot_id="earlier")
    assert decide(assignment(), ALL_ON, known, reported=seen(State.CREATED)).steps == (Step.REMEMBER_RUNNING,)


def test_an_idle_instance_takes_no_steps() -> None:
    assert decide(assignment(), ALL_ON, record(Phase.RUNNING), reported=seen(State.CREATED)).steps == ()


ATTACHING = (Step.JOIN_NETWORK, Step.ATTACH)
DETACHING = (Step.DETACH,)


@pytest.mark.parametrize(
    ("found", "steps"),
    [
        ({"is_to_attach": True}, (*ATTACHING, Step.REPORT)),
        ({"is_to_attach": True, "has_network": False}, (*ATTACHING, Step.REPORT)),
        ({"is_to_detach": True}, (*DETACHING, Step.LEAVE_OTHERS, Step.REPORT)),
        ({"is_to_detach": True, "is_to_leave": True}, (*DETACHING, Step.LEAVE_OTHERS, Step.REPORT)),
        ({"is_to_leave": True}, (Step.LEAVE_OTHERS, Step.REPORT)),
        ({"is_to_tell": True}, (Step.TELL, Step.REPORT)),
        ({"is_to_tell": True, "is_to_attach": True}, (Step.TELL, *ATTACHING, Step.REPORT)),
        ({"is_to_attach": True, "is_to_detach": True}, (*ATTACHING, *DETACHING, Step.LEAVE_OTHERS, Step.REPORT)),
        (
            {"is_to_attach": True, "is_to_detach": True, "is_mac_taken": True},
            (*DETACHING, *ATTACHING, Step.LEAVE_OTHERS, Step.REPORT),
        ),
    ],
)
def test_the_interfaces_of_a_guest_that_is_on_follow_its_assignment(
    found: dict[str, bool], steps: tuple[Step, ...]
) -> None:
    planned = decide(
        assignment(generation=2), replace(ALL_ON, **found), record(Phase.RUNNING), reported=seen(State.CREATED)
    )
    assert planned.steps == steps


def test_a_guest_that_is_off_gets_its_interfaces_with_its_drive_and_definition_and_stays_off() -> None:
    known = record(Phase.RUNNING, power=Power.OFF)
    found = replace(ALL_OFF, is_to_attach=True, is_to_detach=True, is_to_leave=True)
    reported = seen(State.CREATED, power=Power.OFF)
    assert decide(assignment(generation=2), found, known, reported=reported).steps == (
        Step.CONFIG_DRIVE,
        Step.DEFINE,
        Step.LEAVE_OTHERS,
        Step.REPORT,
    )


def test_a_guest_that_is_started_again_is_started_with_its_interfaces_of_now() -> None:
    known = record(Phase.RUNNING, boot_id="earlier")
    found = replace(ALL_OFF, is_to_attach=True, is_to_leave=True)
    assert decide(assignment(generation=2), found, known, reported=seen(State.CREATED)).steps == (
        Step.CONFIG_DRIVE,
        Step.DEFINE,
        Step.START,
        Step.REMEMBER_RUNNING,
        Step.LEAVE_OTHERS,
        Step.REPORT_CREATED,
    )


def test_a_generation_whose_interfaces_are_not_reached_is_reported_with_an_error() -> None:
    said = report(
        Step.REPORT,
        uuid=UUID,
        assignment=assignment(generation=2),
        record=record(Phase.RUNNING),
        found=replace(ALL_ON, is_to_detach=True),
        error=None,
        reported_at="now",
    )
    assert (said.generation, said.state) == (2, State.CREATED)
    assert said.error == "its guest does not have the interfaces yet that it is to have"


def test_absent_takes_away_what_is_found_the_disk_last() -> None:
    assert decide(assignment(Role.ABSENT), ALL_ON, record(Phase.RUNNING)).steps == (
        Step.REPORT_DELETING,
        Step.REMEMBER_REMOVING,
        Step.STOP,
        Step.UNDEFINE,
        Step.LEAVE_NETWORK,
        Step.REMOVE_CONFIG_DRIVE,
        Step.REMOVE_DISK,
        Step.REMEMBER_REMOVED,
        Step.REPORT_DELETED,
    )


@pytest.mark.parametrize("known", [None, *(record(phase) for phase in Phase)])
def test_destroy_of_what_was_removed_by_hand_ends_clean(known: Record | None) -> None:
    assert decide(assignment(Role.ABSENT), NOTHING, known).steps[-1] is Step.REPORT_DELETED
    assert not set(decide(assignment(Role.ABSENT), NOTHING, known).steps) & (REMOVALS | BUILDS)


def test_a_removal_is_reported_once_for_each_thing_asked() -> None:
    gone = seen(State.DELETED, is_gone=True, generation=2)
    assert decide(assignment(Role.ABSENT, generation=2), NOTHING, record(Phase.REMOVED), reported=gone).steps == ()
    assert decide(assignment(Role.ABSENT, generation=3), NOTHING, record(Phase.REMOVED), reported=gone).steps == (
        Step.REPORT_DELETED,
    )


def test_what_was_removed_is_refused_when_an_older_etcd_wants_it() -> None:
    planned = decide(assignment(), NOTHING, record(Phase.REMOVED))
    assert planned.steps == (Step.REPORT_FAILED,)
    half = decide(assignment(), Found(has_disk=True), record(Phase.REMOVING))
    assert half.steps == (Step.REPORT_LOST,)


def test_a_failed_build_keeps_the_reason_it_reported() -> None:
    assert decide(assignment(), reported=seen(State.ERROR, is_gone=True), known=record(Phase.REMOVED)).steps == ()


def test_a_host_without_memory_believes_its_own_report() -> None:
    assert decide(assignment(), NOTHING, None, reported=seen(State.CREATED)).steps == (Step.REPORT_LOST,)
    assert decide(assignment(), NOTHING, None, reported=seen(State.CREATING)).steps == (Step.REPORT_LOST,)
    assert decide(assignment(), ALL_OFF, None, reported=seen(State.CREATED)).steps == (
        Step.REMEMBER_STARTING,
        Step.START,
        Step.REMEMBER_RUNNING,
        Step.REPORT_CREATED,
    )


def test_a_disk_that_nobody_remembers_is_taken_for_a_guests() -> None:
    planned = decide(assignment(), Found(has_disk=True))
    assert Step.OVERLAY not in planned.steps
    assert not REMOVALS & set(after_failure(planned, Found(has_disk=True), record(Phase.STARTING), "no").steps)


def test_a_missing_key_removes_nothing_and_is_reported_once() -> None:
    assert decide(None, ALL_ON, record(Phase.RUNNING)).steps == (Step.REPORT_UNASSIGNED,)
    said = report(
        Step.REPORT_UNASSIGNED,
        uuid=UUID,
        assignment=None,
        record=record(Phase.RUNNING),
        found=ALL_ON,
        error=None,
        reported_at="",
    )
    assert not said.is_assigned and not said.is_gone
    assert decide(None, ALL_ON, record(Phase.RUNNING), reported=said).steps == ()


def test_what_was_never_started_is_forgotten_with_its_key() -> None:
    assert decide(None, NOTHING, record(Phase.BUILDING), reported=seen(State.CREATING)).steps == (
        Step.CLEAR_REPORT,
        Step.FORGET,
    )


def test_a_stale_report_of_a_host_that_was_installed_anew_is_taken_back() -> None:
    assert decide(None, NOTHING, None, reported=seen(State.CREATED)).steps == (Step.CLEAR_REPORT,)


def test_a_removed_instance_is_remembered_after_its_keys_are_gone() -> None:
    assert decide(None, NOTHING, record(Phase.REMOVED)).steps == ()


def test_a_failed_build_is_undone_and_its_claim_comes_back() -> None:
    planned = decide(assignment())
    undone = after_failure(planned, Found(has_disk=True, has_network=True), record(Phase.BUILDING), "no image")
    assert undone.steps == (Step.LEAVE_NETWORK, Step.REMOVE_DISK, Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
    assert undone.error == "no image"


def test_the_undo_of_a_failed_start_is_remembered_before_it_begins() -> None:
    undone = after_failure(decide(assignment()), ALL_OFF, record(Phase.STARTING), "qemu says no")
    assert undone.steps[0] is Step.REMEMBER_UNDOING


@pytest.mark.parametrize("found", [ALL_OFF, Found(has_config_drive=True), NOTHING])
def test_an_interrupted_undo_is_ended_and_reported_with_its_reason(found: Found) -> None:
    interrupted = decide(assignment(), found, structs.replace(record(Phase.UNDOING), error="qemu says no"))
    assert interrupted.steps[-2:] == (Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
    assert (Step.UNDEFINE in interrupted.steps, Step.REMOVE_DISK in interrupted.steps) == (found is ALL_OFF,) * 2
    assert interrupted.error == "qemu says no"
    unreported = decide(assignment(), NOTHING, structs.replace(record(Phase.REMOVED), error="qemu says no"))
    assert (unreported.steps, unreported.error) == ((Step.REPORT_FAILED,), "qemu says no")


def test_a_guest_that_runs_in_the_middle_of_its_undoing_is_kept() -> None:
    steps = decide(assignment(), ALL_ON, record(Phase.UNDOING)).steps
    assert steps == (Step.REMEMBER_RUNNING, Step.REPORT_CREATED)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_what_may_once_have_run_is_never_undone(phase: Phase) -> None:
    known = record(phase, boot_id="earlier")
    planned = decide(assignment(), ALL_OFF, known)
    assert Step.START in planned.steps
    assert after_failure(planned, ALL_OFF, known, "qemu says no").steps in ((Step.REPORT,), (Step.REPORT_LOST,))


def test_a_build_that_failed_and_runs_all_the_same_is_kept() -> None:
    steps = after_failure(decide(assignment()), ALL_ON, record(Phase.STARTING), "timed out").steps
    assert steps == (Step.REMEMBER_RUNNING, Step.REPORT_CREATED)


def test_without_a_claim_nothing_is_built_and_what_was_begun_is_taken_away() -> None:
    planned = plan(
        assignment(), Found(has_disk=True), record(Phase.BUILDING), hold=False, boot_id="boot", has_claim=False
    )
    assert planned.steps == (Step.REMOVE_DISK, Step.REMEMBER_REMOVED, Step.REPORT_FAILED)


def test_a_guest_that_was_started_stays_when_its_claim_is_gone() -> None:
    reported = seen(State.CREATED)
    known = record(Phase.RUNNING)
    assert plan(assignment(), ALL_ON, known, hold=False, boot_id="boot", reported=reported, has_claim=False).steps == ()


POWERS = st.sampled_from(list(Power))
FOUND = st.builds(
    Found,
    domain=st.none() | POWERS,
    has_disk=st.booleans(),
    has_config_drive=st.booleans(),
    has_network=st.booleans(),
    is_to_attach=st.booleans(),
    is_to_detach=st.booleans(),
    is_to_leave=st.booleans(),
    is_mac_taken=st.booleans(),
    is_to_tell=st.booleans(),
)
RECORDS = st.none() | st.builds(
    record, st.sampled_from(list(Phase)), power=POWERS, boot_id=st.sampled_from(["boot", "earlier"])
)
REPORTS = st.none() | st.builds(seen, st.sampled_from(list(State)), power=POWERS, is_gone=st.booleans())


@given(FOUND, RECORDS, REPORTS)
def test_without_an_assignment_no_step_changes_the_host(
    found: Found, known: Record | None, reported: Seen | None
) -> None:
    assert not set(decide(None, found, known, reported=reported).steps) & (BUILDS | REMOVALS)


@given(st.none() | st.builds(assignment, st.sampled_from(list(Role))), FOUND, RECORDS, REPORTS)
def test_on_hold_only_reports_are_written_and_none_says_gone(
    wanted: Assignment | None, found: Found, known: Record | None, reported: Seen | None
) -> None:
    steps = set(decide(wanted, found, known, hold=True, reported=reported).steps)
    assert steps <= {Step.REPORT, Step.REPORT_UNASSIGNED}


@given(FOUND, RECORDS, REPORTS)
def test_a_disk_is_made_only_where_nothing_was_ever_started(
    found: Found, known: Record | None, reported: Seen | None
) -> None:
    steps = decide(assignment(), found, known, reported=reported).steps
    if Step.OVERLAY in steps:
        assert not found.has_disk
        if known is not None:
            assert known.phase is Phase.BUILDING
        else:
            assert reported is None or reported.state is State.INITIAL


@given(FOUND, RECORDS, REPORTS)
def test_only_an_absent_role_removes_what_may_have_run(
    found: Found, known: Record | None, reported: Seen | None
) -> None:
    assume(known is None or known.phase is not Phase.UNDOING)
    steps = decide(assignment(), found, known, reported=reported).steps
    assert not set(steps) & {Step.STOP, Step.UNDEFINE, Step.REMOVE_DISK}


@given(st.builds(assignment, st.sampled_from([Role.RUN, Role.ABSENT])), FOUND, RECORDS, REPORTS)
def test_gone_is_said_last_and_with_everything_taken_away(
    wanted: Assignment, found: Found, known: Record | None, reported: Seen | None
) -> None:
    steps = decide(wanted, found, known, reported=reported).steps
    for step in (Step.REPORT_DELETED, Step.REPORT_FAILED):
        if step in steps:
            assert steps[-1] is step
            assert found.domain is None or Step.UNDEFINE in steps
            assert not found.has_disk or Step.REMOVE_DISK in steps


@given(
    st.builds(Found, has_config_drive=st.booleans(), has_network=st.booleans()),
    st.none() | st.just(record(Phase.REMOVED)),
    st.sampled_from([State.DELETED, State.ERROR]),
)
def test_what_was_said_to_be_gone_stays_so(found: Found, known: Record | None, state: State) -> None:
    """Its network may be there again, for another guest that a daemon just started has not seen yet."""
    said = seen(state, is_gone=True, generation=2)
    planned = decide(assignment(Role.ABSENT, generation=2), found, known, reported=said)
    assert not any(step.is_report for step in planned.steps)
    assert after_failure(planned, found, record(Phase.REMOVED), "it has ports").steps == ()
    again = decide(assignment(Role.ABSENT, generation=3), found, known, reported=said)
    assert [step for step in again.steps if step.is_report] == [Step.REPORT_DELETED]


@given(st.none() | st.just(assignment()), FOUND, RECORDS, st.booleans())
def test_a_host_says_it_has_nothing_only_where_it_has_nothing(
    wanted: Assignment | None, found: Found, known: Record | None, hold: bool
) -> None:
    if has_nothing(wanted, found, known, hold=hold):
        assert found.is_nothing and wanted is None and not hold


# --- gangs ---

GANG = "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d00aa"
UNCOMMITTED = st.sampled_from([None, GangState.WRITING, GangState.CANCELLED])


@pytest.mark.parametrize("gang", [None, GangState.WRITING])
def test_an_assignment_of_a_gang_is_inert_until_it_is_committed(gang: GangState | None) -> None:
    assert decide(assignment(gang=GANG), gang=gang).steps == ()
    committed = decide(assignment(gang=GANG), gang=GangState.COMMITTED)
    assert committed.steps == decide(assignment()).steps


def test_a_member_of_a_cancelled_gang_is_refused_and_reported_gone() -> None:
    planned = decide(assignment(gang=GANG), gang=GangState.CANCELLED)
    assert planned.steps == (Step.REMEMBER_REMOVED, Step.REPORT_FAILED)
    assert planned.error is not None and "gang was cancelled" in planned.error
    left = decide(assignment(gang=GANG), Found(has_config_drive=True), gang=GangState.CANCELLED)
    assert left.steps == (Step.REMOVE_CONFIG_DRIVE, Step.REMEMBER_REMOVED, Step.REPORT_FAILED)


def test_an_absent_member_of_a_gang_is_removed_whatever_its_gang_says() -> None:
    for gang in (None, *GangState):
        steps = decide(assignment(Role.ABSENT, gang=GANG), gang=gang).steps
        assert steps == (Step.REMEMBER_REMOVED, Step.REPORT_DELETED)


@given(st.builds(Found, has_config_drive=st.booleans(), has_network=st.booleans()), UNCOMMITTED)
def test_nothing_of_a_gang_begins_before_it_is_committed(found: Found, gang: GangState | None) -> None:
    assert not set(decide(assignment(gang=GANG), found, gang=gang).steps) & BUILDS


@given(FOUND, RECORDS, REPORTS, UNCOMMITTED)
def test_what_has_begun_here_does_not_care_about_its_gang_any_more(
    found: Found, known: Record | None, reported: Seen | None, gang: GangState | None
) -> None:
    known = known or record(Phase.BUILDING)
    assert decide(assignment(gang=GANG), found, known, reported=reported, gang=gang) == decide(
        assignment(), found, known, reported=reported
    )
