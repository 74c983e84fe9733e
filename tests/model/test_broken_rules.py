"""Each rule of the protocol is needed: broken, an invariant notices.

The machine is the one of `test_cloud`, with one rule broken, and where two rules protect the same
thing, both. So that few examples find it, it begins in the middle of the scene and has fewer ways
to go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from cloudmodel.calm import let_a_round_pass
from cloudmodel.etcd import Delete
from cloudmodel.machine import GANG_STEPS, DataLossMachine
from cloudmodel.rules import Rules, Violated
from cloudmodel.world import HOSTS, Fate
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ecompute.cluster import keys

PROFILE = settings(
    max_examples=4000,  # the first that finds it ends the search
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
HELD = Rules()


@dataclass(frozen=True)
class Broken:
    what: str
    rules: Rules
    scene: Callable[[DataLossMachine], None]
    goes_on_by: tuple[str, ...]
    is_seen_as: tuple[str, ...]

    def machine(self) -> type[DataLossMachine]:
        others = {
            name: None
            for name in dir(DataLossMachine)
            if hasattr(getattr(DataLossMachine, name), "hypothesis_stateful_rule") and name not in self.goes_on_by
        }
        scene = {"rules_held": self.rules, "set_the_scene": self.scene}
        return type("BrokenMachine", (DataLossMachine,), {**others, **scene})


# --- scenes ---


def make_up(machine: DataLossMachine) -> None:
    """Have the next uuid be one that its launch makes up; of a chosen one, other rules protect the claim as well."""
    assert not machine.world.uuids
    machine.world.uuids.append("u0")  # every other one is chosen, and nobody launches this


def running(machine: DataLossMachine) -> None:
    machine._launch(0, 30)
    let_a_round_pass(machine.world)


def running_since_the_backup(machine: DataLossMachine) -> None:
    machine.etcd_backup = machine.world.etcd.snapshot()
    running(machine)


def destroyed_since_the_backup(machine: DataLossMachine) -> None:
    requested(machine)
    machine.etcd_backup = machine.world.etcd.snapshot()
    let_a_round_pass(machine.world)
    machine._destroy(machine.world.uuids[-1], 2)
    for _ in range(2):
        let_a_round_pass(machine.world)


def requested(machine: DataLossMachine) -> None:
    machine._launch(0, 30)


def claimed_and_asleep(machine: DataLossMachine) -> None:
    """A scheduler that has claimed sleeps; etcd is backed up; the audit has looked once."""
    machine._launch(0, 4)
    machine.world.processes[-1].is_paused = True
    machine.etcd_backup = machine.world.etcd.snapshot()
    let_a_round_pass(machine.world, has_lanes=False)


def about_to_be_released(machine: DataLossMachine) -> None:
    """And an auditor has deleted the intent, has its answer, and is about to release the claim."""
    claimed_and_asleep(machine)
    for _ in range(300):
        if any(process.at == "releases" for process in machine.world.processes):
            return
        let_a_round_pass(machine.world, turns=1, pace=1, has_lanes=False)
        machine.world.advance(2)


def about_to_be_released_on_demand(machine: DataLossMachine) -> None:
    """The same, by an auditor that does not lead."""
    machine._launch(0, 4)
    for process in machine.world.processes:
        process.is_paused = True
    machine.etcd_backup = machine.world.etcd.snapshot()
    machine._audit_on_demand(30)
    for _ in range(300):
        if machine.world.processes[-1].at == "releases":
            return
        let_a_round_pass(machine.world, turns=1, pace=1, has_lanes=False)
        machine.world.advance(2)


def released_since_the_backup(machine: DataLossMachine) -> None:
    claimed_and_asleep(machine)
    for _ in range(4):
        let_a_round_pass(machine.world, has_lanes=False)


def about_to_request(machine: DataLossMachine) -> None:
    make_up(machine)
    machine._launch(0, 4)


def requested_before_the_setting_back(machine: DataLossMachine) -> None:
    """A request was written and not answered; its guest runs; etcd is set back to before it, and the host holds."""
    make_up(machine)
    machine._launch(0, 4)
    machine.etcd_backup = machine.world.etcd.snapshot()
    process = machine.world.processes[-1]
    machine.world.run(process, 1, Fate.UNANSWERED)
    process.is_paused = True
    machine._wake("alpha").run(machine.world.uuids[-1], 30, Fate.FINE)
    machine.world.set_etcd_back(machine.etcd_backup, is_other_cluster=False)
    machine._wake("alpha").heartbeat()


def forgotten_and_not_noticed(machine: DataLossMachine) -> None:
    """A guest runs whose uuid a client chose; etcd is set back to before it, and its host has not looked yet."""
    running_since_the_backup(machine)
    assert machine.etcd_backup is not None
    machine.world.set_etcd_back(machine.etcd_backup, is_other_cluster=False)


def claimed_since_the_setting_back(machine: DataLossMachine) -> None:
    """A scheduler whose uuid a client chose slept while etcd was set back to before its intent, and then claimed."""
    machine.etcd_backup = machine.world.etcd.snapshot()
    machine._launch(0, 2)
    machine.world.set_etcd_back(machine.etcd_backup, is_other_cluster=False)
    machine.world.etcd.revision += 20
    machine.world.run(machine.world.processes[-1], 1)


def claimed_and_dead(machine: DataLossMachine) -> None:
    machine._launch(0, 4)
    machine.world.kill(machine.world.processes[-1])


def running_before_placement_is_emptied(machine: DataLossMachine) -> None:
    running(machine)
    machine.placement_backup = {}


def about_to_be_claimed_again(machine: DataLossMachine) -> None:
    """Placement was emptied, and an auditor has seen so twice."""
    running(machine)
    machine.world.set_placement_back({})
    for _ in range(300):
        if any(process.at == "is about to claim again" for process in machine.world.processes):
            return
        let_a_round_pass(machine.world, turns=1, pace=1)
        machine.world.advance(5)


def half_way_through_a_plan(machine: DataLossMachine) -> None:
    """A lane has read its assignment and asked placement, and has done nothing yet; the keys are lost."""
    machine._launch(0, 30)
    uuid = machine.world.uuids[-1]
    machine._wake("alpha").run(uuid, 4, Fate.FINE)
    machine.world.was_set_back = True
    machine.world.etcd.commit([], [Delete(keys.instance(uuid)), Delete(keys.assignment("alpha", uuid))])


def gang_in_part(machine: DataLossMachine) -> None:
    machine._launch_gang(0, 3, GANG_STEPS - 2)


def gang_before_its_commit(machine: DataLossMachine) -> None:
    """Its scheduler sleeps."""
    machine._launch_gang(0, 3, GANG_STEPS)
    machine.world.processes[-1].is_paused = True
    machine.etcd_backup = machine.world.etcd.snapshot()


def gang_running_since_the_backup(machine: DataLossMachine) -> None:
    gang_before_its_commit(machine)
    machine.world.run(machine.world.processes[-1], 3)
    let_a_round_pass(machine.world)


def gang_committed_before_the_setting_back(machine: DataLossMachine) -> None:
    """Its commit went unanswered; its guests run; etcd is set back to before it, and the hosts hold."""
    gang_before_its_commit(machine)
    process = machine.world.processes[-1]
    machine.world.run(process, 1, Fate.UNANSWERED)
    for host in HOSTS:
        for uuid in machine.world.uuids:
            machine._wake(host).run(uuid, 30, Fate.FINE)
    machine.world.set_etcd_back(machine.etcd_backup, is_other_cluster=False)
    for host in HOSTS:
        machine._wake(host).heartbeat()


ROUND, STEP, LANE = "let_a_round_pass", "step_process", "step_lane"
HANG, WORK = "let_lanes_hang", "let_hosts_work"

BROKEN = [
    Broken(
        "the audit releases a claim before it deletes the intent",
        replace(HELD, audit_deletes_the_intent_first=False, host_checks_the_claim=False),
        claimed_and_asleep,
        (ROUND, STEP, WORK),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "the audit takes etcd's word that nobody holds a claim",
        replace(HELD, audit_asks_the_host=False),
        running_since_the_backup,
        (HANG, "set_etcd_back", STEP),
        ("released in use",),
    ),
    Broken(
        "a host answers while a lane works on the instance",
        replace(HELD, audit_asks_in_the_lane=False, report_compares_the_assignment=False),
        half_way_through_a_plan,
        (HANG, LANE, WORK),
        ("used without a claim", "released in use"),
    ),
    Broken(
        "a lead releases a claim without looking at its lease, or at its clock",
        replace(HELD, lead_checks_its_lease=False, releases_follow_fresh_readings=False),
        about_to_be_released,
        (STEP, WORK, "set_etcd_back"),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "nobody claims again for an instance whose claim is gone",
        replace(HELD, audit_claims_again=False),
        running_before_placement_is_emptied,
        ("set_placement_back", ROUND),
        ("never claimed again",),
    ),
    Broken(
        "who claims again takes etcd's word that it was in vain",
        replace(HELD, reclaim_never_releases=False),
        about_to_be_claimed_again,
        (STEP, "lose_keys"),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "who leads does not look whether its key is there",
        replace(HELD, lead_looks_for_its_key=False),
        claimed_and_dead,
        ("lose_keys", ROUND),
        ("held for ever",),
    ),
    Broken(
        "finish does not wait for gone",
        replace(HELD, finish_waits_for_gone=False),
        running,
        ("destroy", ROUND, STEP),
        ("released in use",),
    ),
    Broken(
        "a host builds without asking for the claim",
        replace(HELD, host_checks_the_claim=False),
        released_since_the_backup,
        ("set_etcd_back", ROUND, STEP),
        ("used without a claim",),
    ),
    Broken(
        "a start is remembered after it",
        replace(HELD, host_remembers_before_the_start=False),
        requested,
        (LANE, "stop_daemon", "lay_hands_on_a_guest"),
        ("rebuilt blank",),
    ),
    Broken(
        "a host forgets what it has removed",
        replace(HELD, host_remembers_what_it_removed=False, host_checks_the_claim=False),
        destroyed_since_the_backup,
        ("set_etcd_back", WORK, HANG),
        ("rebuilt blank", "runs after gone", "used without a claim"),
    ),
    Broken(
        "a missing key means absent",
        replace(HELD, host_leaves_what_nobody_asks_for=False),
        running,
        ("lose_keys", ROUND, LANE),
        ("destroyed unasked",),
    ),
    Broken(
        "whatever fails to start is undone",
        replace(HELD, host_keeps_what_may_have_run=False),
        running,
        (LANE, "stop_daemon", ROUND),
        ("destroyed unasked",),
    ),
    Broken(
        "a lost guest is reported gone",
        replace(HELD, lost_is_not_gone=False),
        running,
        ("move_a_disk_away_or_back", ROUND),
        ("released in use", "used without a claim", "destroyed unasked"),
    ),
    Broken(
        "a request does not compare its intent",
        replace(HELD, request_compares_the_intent=False, host_checks_the_claim=False),
        claimed_and_asleep,
        (ROUND, STEP),
        ("used without a claim", "released in use"),
    ),
    Broken(
        "an unanswered request is taken for one that failed",
        replace(HELD, unanswered_request_is_settled=False),
        about_to_request,
        (STEP, WORK, "lose_an_answer"),
        ("released in use", "used without a claim", "runs twice"),
    ),
    Broken(
        "another host is tried after an unanswered request",
        replace(HELD, settled_request_keeps_its_host=False),
        requested_before_the_setting_back,
        (STEP, HANG),
        ("released in use", "used without a claim", "runs twice"),
    ),
    Broken(
        "a uuid whose intent was taken is used again",
        replace(HELD, uuids_are_used_once=False),
        about_to_be_released,
        (STEP, WORK),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "nobody remembers which uuids clients have chosen",
        replace(HELD, chosen_uuids_are_kept=False),
        about_to_be_released,
        ("repeat_a_launch", STEP, WORK),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "a claim that is found under a chosen uuid is taken for one's own",
        replace(HELD, found_claim_is_in_doubt=False),
        forgotten_and_not_noticed,
        ("repeat_a_launch", "stop_daemon", STEP),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "who has lost the intent for a chosen uuid gives its claim back",
        replace(HELD, lost_intent_releases_nothing=False),
        claimed_since_the_setting_back,
        ("repeat_a_launch", STEP, WORK),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "a claim is released on what was read long ago",
        replace(HELD, releases_follow_fresh_readings=False),
        about_to_be_released_on_demand,
        (STEP, WORK, "set_etcd_back"),
        ("released in use", "used without a claim"),
    ),
    Broken(
        "a host begins a member before its gang is committed",
        replace(HELD, gang_waits_for_its_commit=False),
        gang_in_part,
        (WORK, STEP),
        ("begun before the commit",),
    ),
    Broken(
        "a gang is committed without a look at its record",
        replace(HELD, gang_writes_compare_its_record=False),
        gang_before_its_commit,
        (ROUND, STEP),
        ("committed in part",),
    ),
    Broken(
        "a gang whose commit went unanswered is taken back",
        replace(HELD, gang_in_doubt_is_left_alone=False),
        gang_committed_before_the_setting_back,
        (STEP,),
        ("released in use",),
    ),
    Broken(
        "the lead orders the members of a gang away",
        replace(HELD, cancelled_gang_is_refused_by_its_hosts=False),
        gang_running_since_the_backup,
        ("set_etcd_back", ROUND),
        ("destroyed unasked",),
    ),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.what)
def test_an_invariant_notices_that(broken: Broken) -> None:
    with pytest.raises(Violated) as caught:
        run_state_machine_as_test(broken.machine(), settings=PROFILE)
    assert caught.value.name in broken.is_seen_as, caught.value


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.what)
def test_nothing_is_noticed_in_the_same_scene_unless(broken: Broken) -> None:
    held = replace(broken, rules=HELD)
    run_state_machine_as_test(held.machine(), settings=settings(PROFILE, max_examples=40))
