"""What hypothesis may do to the world: every rule is one process's step, or one misfortune."""

from __future__ import annotations

import sys
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudmodel.asking import destroy, schedule
from cloudmodel.calm import LANE_STEPS, TURNS, calm_down, check_the_end, let_a_round_pass
from cloudmodel.etcd import Delete, Etcd
from cloudmodel.gangs import schedule_gang
from cloudmodel.host import Daemon
from cloudmodel.placement import Allocation
from cloudmodel.rules import Rules, Violated
from cloudmodel.upkeep import LEAD, audit_once, upkeep
from cloudmodel.world import HOSTS, Fate, Process, World
from ecompute.cluster import keys
from ecompute.cluster.documents import Power

INSTANCES = 5
GANG_STEPS = 11
"""As many as a gang of three takes up to its commit."""
COUNTS = st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, 8, 13, 30])
ETCD_FATES = [Fate.FINE] * 6 + [Fate.LOST, Fate.UNANSWERED]
FATES = st.sampled_from([*ETCD_FATES, Fate.LATE])
LANE_FATES = st.sampled_from([*ETCD_FATES, Fate.FAILS, Fate.FAILS])
HOST = st.sampled_from(HOSTS)
PICK = st.integers(0, 11)


class CloudMachine(RuleBasedStateMachine):
    """The cloud under every rule and every misfortune but those of its data."""

    rules_held: ClassVar[Rules] = Rules()

    @initialize(auditors=st.integers(1, 2), launched=st.lists(st.integers(0, 1), max_size=3), rounds=st.integers(0, 1))
    def begin(self, auditors: int, launched: list[int], rounds: int) -> None:
        self.world = World(self.rules_held)
        self.etcd_backup: Etcd | None = None
        self.placement_backup: dict[str, Allocation] | None = None
        for host in HOSTS:
            self._wake(host)
        if type(self).set_the_scene is not CloudMachine.set_the_scene:
            auditors, launched, rounds = 1, [], 0
        for n in range(auditors):
            self.world.spawn(f"upkeep {n}", lambda process: upkeep(self.world, process))
        for prefer in launched:
            self._launch(prefer, 30)
        for _ in range(rounds):
            let_a_round_pass(self.world)
        self.set_the_scene()

    def set_the_scene(self) -> None:
        """What a machine that looks for one thing begins with, instead."""

    # --- picking ---

    def _wake(self, name: str) -> Daemon:
        """Return the daemon of a host; one that was killed or paused comes back."""
        host = self.world.hosts[name]
        if host.daemon is None:
            host.start()
            assert host.daemon is not None
            host.daemon.examine()
            host.daemon.heartbeat()
        assert host.daemon is not None
        host.daemon.process.is_paused = False
        return host.daemon

    def _process(self, pick: int) -> Process | None:
        living = [process for process in self.world.processes if not process.is_done]
        return living[pick % len(living)] if living else None

    def _uuid(self, pick: int) -> str:
        return self.world.uuids[pick % len(self.world.uuids)]

    # --- asking ---

    def _launch(self, prefer: int, count: int) -> None:
        uuid = f"u{len(self.world.uuids)}"
        self.world.uuids.append(uuid)
        process = self.world.spawn(f"launch of {uuid}", lambda process: schedule(self.world, uuid, prefer))
        self.world.run(process, count)

    @precondition(lambda self: len(self.world.uuids) < INSTANCES)
    @rule(
        prefer=st.integers(0, 1),
        count=st.sampled_from([1, 2, 3, 4, 5, 30]),
        then=st.sampled_from(["goes on", "is paused", "is killed"]),
    )
    def launch(self, prefer: int, count: int, then: str) -> None:
        self._launch(prefer, count)
        process = self.world.processes[-1]
        process.is_paused = then == "is paused"
        if then == "is killed":
            self.world.kill(process)

    def _launch_gang(self, prefer: int, size: int, count: int) -> None:
        world = self.world
        gang = f"g{len(world.uuids)}"
        uuids = tuple(f"u{len(world.uuids) + n}" for n in range(size))
        world.uuids += uuids
        world.gang_of |= dict.fromkeys(uuids, gang)
        process = world.spawn(f"launch of {gang}", lambda process: schedule_gang(world, gang, uuids, prefer))
        world.run(process, count)

    @precondition(lambda self: len(self.world.uuids) < INSTANCES)
    @rule(
        prefer=st.integers(0, 1),
        size=st.integers(2, 3),
        count=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 30]),
        then=st.sampled_from(["goes on", "is paused", "is killed"]),
    )
    def launch_gang(self, prefer: int, size: int, count: int, then: str) -> None:
        self._launch_gang(prefer, size, count)
        process = self.world.processes[-1]
        process.is_paused = then == "is paused"
        if then == "is killed":
            self.world.kill(process)

    @precondition(lambda self: self.world.uuids)
    @rule(pick=PICK, prefer=st.integers(0, 1), count=COUNTS)
    def repeat_a_launch(self, pick: int, prefer: int, count: int) -> None:
        """A client that chose the uuid launches with it again, whatever became of it."""
        uuid = self._uuid(pick)
        if self.world.is_chosen(uuid):
            if self.world.was_set_back:
                self.world.reborn.add(uuid)
            process = self.world.spawn(f"launch of {uuid} again", lambda process: schedule(self.world, uuid, prefer))
            self.world.run(process, count)

    @precondition(lambda self: self.world.uuids)
    @rule(pick=PICK, count=COUNTS)
    def destroy(self, pick: int, count: int) -> None:
        self._destroy(self._uuid(pick), count)

    def _destroy(self, uuid: str, count: int) -> None:
        process = self.world.spawn(f"destroy of {uuid}", lambda process: destroy(self.world, uuid))
        self.world.run(process, count)

    @precondition(lambda self: self.world.uuids)
    @rule(count=COUNTS)
    def audit_on_demand(self, count: int) -> None:
        self._audit_on_demand(count)

    def _audit_on_demand(self, count: int) -> None:
        process = self.world.spawn("audit on demand", lambda process: audit_once(self.world, process))
        self.world.run(process, count)

    # --- steps ---

    @rule(pick=PICK, count=COUNTS, fate=FATES)
    def step_process(self, pick: int, count: int, fate: Fate) -> None:
        process = self._process(pick)
        if process is not None:
            process.is_paused = False
            self.world.run(process, count, fate)

    @precondition(lambda self: self.world.uuids)
    @rule(host=HOST, pick=PICK, count=COUNTS, fate=LANE_FATES)
    def step_lane(self, host: str, pick: int, count: int, fate: Fate) -> None:
        self._wake(host).run(self._uuid(pick), count, fate)

    @precondition(lambda self: self.world.uuids)
    @rule(host=HOST, pick=PICK, count=COUNTS, fate=LANE_FATES)
    def answer(self, host: str, pick: int, count: int, fate: Fate) -> None:
        self._wake(host).answer(self._uuid(pick), count, fate)

    @rule(turns=st.sampled_from([1, 2, 4, TURNS, TURNS]), pace=st.sampled_from([1, 4]), has_lanes=st.booleans())
    def let_a_round_pass(self, turns: int, pace: int, has_lanes: bool) -> None:
        let_a_round_pass(self.world, turns=turns, pace=pace, has_lanes=has_lanes)

    @rule()
    def let_lanes_hang(self) -> None:
        """A whole round in which the daemons live and their lanes do nothing but answer."""
        let_a_round_pass(self.world, has_lanes=False)

    @rule()
    def let_hosts_work(self) -> None:
        """The lanes do all there is to do; nobody else does anything."""
        for host in self.world.hosts.values():
            if host.daemon is not None and not host.daemon.process.is_paused:
                for uuid in sorted(host.known()):
                    host.daemon.run(uuid, LANE_STEPS, Fate.FINE)

    @rule(pick=PICK)
    def lose_an_answer(self, pick: int) -> None:
        process = self._process(pick)
        if process is not None:
            self.world.run(process, 1, Fate.UNANSWERED)

    @rule(seconds=st.sampled_from([5, 20, 61]))
    def let_time_pass(self, seconds: int) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def deliver(self) -> None:
        self.world.deliver()

    # --- misfortunes ---

    @rule(pick=PICK, is_killed=st.booleans(), seconds=st.sampled_from([0, 20, 61]))
    def stop_process(self, pick: int, is_killed: bool, seconds: int) -> None:
        process = self._process(pick)
        if process is not None:
            process.is_paused = True
            if is_killed:
                self.world.kill(process)
            self.world.advance(seconds)

    @rule(host=HOST, what=st.sampled_from(["pause", "kill", "kill and start", "reboot", "look at etcd"]))
    def stop_daemon(self, host: str, what: str) -> None:
        on = self.world.hosts[host]
        if what == "reboot":
            on.reboot()
        elif what.startswith("kill"):
            on.kill()
        elif what == "pause" and on.daemon is not None:
            on.daemon.process.is_paused = True
        if what in ("kill and start", "look at etcd"):
            daemon = self._wake(host)
            daemon.examine()
            daemon.heartbeat()

    @precondition(lambda self: any(host.domains for host in self.world.hosts.values()))
    @rule(host=HOST, pick=PICK, what=st.sampled_from(["shuts down", "is undefined", "is removed"]))
    def lay_hands_on_a_guest(self, host: str, pick: int, what: str) -> None:
        """It goes off by itself; ``virsh destroy`` and ``virsh undefine``; and its files as well."""
        uuid, on = self._uuid(pick), self.world.hosts[host]
        if uuid not in on.domains:
            return
        on.domains[uuid] = Power.OFF
        if what != "shuts down":
            del on.domains[uuid]
        if what == "is removed":
            on.disks.discard(uuid)
            on.drives.discard(uuid)
            on.networks.discard(uuid)

    @invariant()
    def nothing_forbidden_is_seen(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        # Called with an error on its way too, which is then to be reported as it is.
        if hasattr(self, "world") and sys.exc_info()[0] is None:
            calm_down(self.world)
            check_the_end(self.world)


class DataLossMachine(CloudMachine):
    """And the data of etcd, placement and hosts can be lost, or set back."""

    @rule(is_etcd=st.sampled_from([True, True, False]))
    def back_up(self, is_etcd: bool) -> None:
        if is_etcd:
            self.etcd_backup = self.world.etcd.snapshot()
        else:
            self.placement_backup = dict(self.world.placement.allocations)

    @precondition(lambda self: self.etcd_backup is not None)
    @rule(is_other_cluster=st.sampled_from([False, False, False, True]), writes=st.sampled_from([0, 0, 20, 200]))
    def set_etcd_back(self, is_other_cluster: bool, writes: int) -> None:
        """``writes`` by others before any of ours looks: the revision may have grown past what it was."""
        assert self.etcd_backup is not None
        self.world.set_etcd_back(self.etcd_backup, is_other_cluster=is_other_cluster)
        self.world.etcd.revision += writes

    @precondition(lambda self: self.placement_backup is not None)
    @rule()
    def set_placement_back(self) -> None:
        assert self.placement_backup is not None
        self.world.set_placement_back(self.placement_backup)

    @precondition(lambda self: self.world.uuids)
    @rule(
        pick=PICK,
        what=st.sampled_from(["new", "all", "instance", "assignment", "assignment", "seen", "intent", "gang", "lead"]),
    )
    def lose_keys(self, pick: int, what: str) -> None:
        etcd, uuid = self.world.etcd, self._uuid(pick)
        self.world.was_set_back = True
        if what == "new":
            self.world.set_etcd_back(Etcd(), is_other_cluster=False)
            return
        names = {
            "all": list(etcd.data),
            "instance": [keys.instance(uuid)],
            "intent": [keys.intent(uuid)],
            "lead": [LEAD],
            "gang": [keys.gang(self.world.gang_of[uuid])] if uuid in self.world.gang_of else [],
            "assignment": [keys.assignment(host, uuid) for host in HOSTS],
            "seen": [keys.seen(host, uuid) for host in HOSTS],
        }[what]
        etcd.commit([], [Delete(name) for name in names])

    @precondition(lambda self: any(h.daemon is not None and h.daemon.hold for h in self.world.hosts.values()))
    @rule(host=HOST)
    def adopt(self, host: str) -> None:
        """An operator lets a host go on with the data that there is."""
        daemon = self._wake(host)
        if daemon.hold is not None:
            daemon.adopt()
            daemon.heartbeat()

    @precondition(lambda self: any(host.disks or host.disks_aside for host in self.world.hosts.values()))
    @rule(host=HOST, pick=PICK)
    def move_a_disk_away_or_back(self, host: str, pick: int) -> None:
        uuid, on = self._uuid(pick), self.world.hosts[host]
        if uuid in on.disks:
            self.world.hidden.add(uuid)
            on.disks.discard(uuid)
            on.disks_aside.add(uuid)
        elif uuid in on.disks_aside:
            on.disks_aside.discard(uuid)
            on.disks.add(uuid)

    @precondition(lambda self: len(self.world.uuids) > 2)
    @rule(host=HOST, is_meant=st.sampled_from([False, False, True]))
    def wipe(self, host: str, is_meant: bool) -> None:
        """Now and then: the host is installed anew; its domains are gone as well."""
        if is_meant:
            self.world.hosts[host].wipe()
            self.world.hosts[host].domains.clear()


class GangDataLossMachine(DataLossMachine):
    """And it begins with a gang, of which etcd and placement were backed up at some step of its launch."""

    @initialize(
        auditors=st.integers(1, 2),
        size=st.integers(2, 3),
        prefer=st.integers(0, 1),
        before=st.integers(1, GANG_STEPS),
        after=st.sampled_from([0, 1, 2, 3, 5, 30]),
        rounds=st.integers(0, 1),
    )
    def begin(self, auditors: int, size: int, prefer: int, before: int, after: int, rounds: int) -> None:
        super().begin(auditors=auditors, launched=[], rounds=0)
        self._launch_gang(prefer, size, before)
        self.etcd_backup = self.world.etcd.snapshot()
        self.placement_backup = dict(self.world.placement.allocations)
        self.world.run(self.world.processes[-1], after)
        for _ in range(rounds):
            let_a_round_pass(self.world)


__all__ = ["CloudMachine", "DataLossMachine", "GangDataLossMachine", "Violated"]
