"""What was found once, step by step: each of these ended in a violation."""

from __future__ import annotations

import random
from dataclasses import replace

from cloudmodel.machine import DataLossMachine, GangDataLossMachine
from cloudmodel.rules import Rules, Violated
from cloudmodel.world import HOSTS, Fate


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


WAYS = 100


def on_demand_over_a_set_back(seed: int, rules: Rules) -> None:
    """An audit on demand has deleted one intent, and stands before the second, when both are there again."""
    rng = random.Random(seed)

    class Machine(DataLossMachine):
        rules_held = rules

    machine = Machine()
    machine.begin(auditors=1, launched=[], rounds=0)
    world = machine.world
    for process in world.processes:
        world.kill(process)  # no lead: the tool alone
    if rng.random() < 0.5:
        world.uuids.append("u0")  # chosen by a client, or not
    machine._launch(0, 4)
    machine._launch(0, 4)
    launch, other = world.processes[-2:]
    launch.is_paused = other.is_paused = True
    uuid = world.uuids[-2]
    machine.etcd_backup = world.etcd.snapshot()
    machine._audit_on_demand(30)
    tool = world.processes[-1]
    about_to_delete = 0
    while about_to_delete < 2:
        about_to_delete += tool.at == "is about to delete an intent"
        if about_to_delete < 2:
            world.run(tool, 1)
        if tool.at == "waits for its second look":
            world.advance(5)
        for host in HOSTS:
            machine._wake(host).heartbeat()
    machine.set_etcd_back(is_other_cluster=False, writes=200)
    for _ in range(60):
        match rng.choice(["tool", "launch", "lane", "answer"]):
            case "tool":
                world.run(tool, 1)
            case "launch":
                world.run(launch, 1)
            case "lane":
                machine._wake("alpha").run(uuid, rng.choice([1, 5, 30]), Fate.FINE)
            case _:
                machine._wake("alpha").answer(uuid, 3, Fate.FINE)
        world.check()


def test_an_audit_on_demand_releases_nothing_whose_intent_is_back_since_it_looked() -> None:
    for seed in range(WAYS):
        on_demand_over_a_set_back(seed, Rules())


def test_without_asking_again_it_would() -> None:
    found = []
    for seed in range(WAYS):
        try:
            on_demand_over_a_set_back(seed, replace(Rules(), audit_asks_again_who_holds=False))
        except Violated as violated:
            found.append(str(violated))
    assert any("released in use" in one for one in found)
