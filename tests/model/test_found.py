"""What was found once, step by step: each of these ended in a violation."""

from __future__ import annotations

from cloudmodel.machine import GangDataLossMachine


def test_a_launch_that_slept_while_its_uuid_was_launched_again_gives_nothing_back() -> None:
    """Etcd is set back to before its intent, and placement to before any claim; then it claims what is lost."""
    machine = GangDataLossMachine()
    machine.begin(auditors=2, size=2, prefer=0, before=10, after=3, rounds=0)
    machine.launch(count=2, prefer=0, then="is paused")
    machine.launch(count=4, prefer=1, then="goes on")
    machine.launch(count=2, prefer=1, then="is paused")
    machine.set_etcd_back(is_other_cluster=True, writes=0)
    machine.let_a_round_pass(turns=2, pace=1, has_lanes=False)
    machine.adopt(host="beta")
    machine.repeat_a_launch(pick=4, prefer=0, count=1)
    machine.let_a_round_pass(turns=24, pace=4, has_lanes=True)
    machine.set_placement_back()
    machine.teardown()
