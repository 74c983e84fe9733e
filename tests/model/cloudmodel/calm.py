"""No more faults: everything is revived and scheduled fairly. What is held after that is held for ever."""

from __future__ import annotations

from cloudmodel.etcd import Entry
from cloudmodel.rules import Violated
from cloudmodel.upkeep import upkeep
from cloudmodel.world import Fate, World
from ecompute.cluster import keys
from ecompute.cluster.documents import GangState, Instance, Role, State
from ecompute.instances.plan import Phase

ROUNDS = 7
TURNS = 24
LANE_STEPS = 30


def calm_down(world: World) -> None:
    """Let a fair schedule run for long enough, grace periods included."""
    while world.in_flight:
        world.deliver()
    for process in world.processes:
        process.is_paused = False
    if not any(process.name.startswith("upkeep") and not process.is_done for process in world.processes):
        world.spawn("upkeep of the end", lambda process: upkeep(world, process))
    for host in world.hosts.values():
        host.start()
        assert host.daemon is not None
        host.daemon.process.is_paused = False
    for _ in range(ROUNDS):
        let_a_round_pass(world, may_adopt=True)


def let_a_round_pass(
    world: World, *, turns: int = TURNS, pace: int = 4, has_lanes: bool = True, may_adopt: bool = False
) -> None:
    """Everybody who is not paused or killed gets ``turns`` turns; after a whole round a minute passes.

    Args:
        pace: how many steps a process takes in a turn.
        has_lanes: whether the lanes of the hosts work; without, they only answer questions.
    """
    daemons = [host.daemon for host in world.hosts.values() if host.daemon and not host.daemon.process.is_paused]
    for daemon in daemons:
        daemon.examine()
        if daemon.hold is not None and may_adopt:
            daemon.adopt()
        daemon.heartbeat()
    for turn in range(turns):
        for process in list(world.processes):
            if not process.is_done and not process.is_paused:
                world.run(process, pace)
        for daemon in daemons:
            for uuid in sorted({e.value.instance_uuid for e in _questions(world, daemon.host.provider)}):
                if has_lanes:
                    daemon.run(uuid, LANE_STEPS, Fate.FINE)
                daemon.answer(uuid, 3, Fate.FINE)
            if has_lanes and turn % 6 == 0:
                for uuid in sorted(daemon.host.known()):
                    daemon.run(uuid, LANE_STEPS, Fate.FINE)
        world.check()
    if turns == TURNS:
        world.advance(61)


def _questions(world: World, provider: str) -> list[Entry]:
    asked = world.etcd.below(keys.operations(provider)).values()
    return [entry for entry in asked if entry.value.answer is None]


def check_the_end(world: World) -> None:
    """Nothing is held for ever: what is still there is wanted by somebody, or reported to somebody."""
    etcd = world.etcd
    instances = {keys.last(key): entry.value for key, entry in etcd.below(keys.INSTANCES).items()}
    reported = {keys.last(key) for key, e in etcd.below(keys.SEEN).items() if not e.value.is_gone}
    used = {uuid for host in world.hosts.values() for uuid in host.domains.keys() | host.disks}
    remembered = {
        uuid
        for host in world.hosts.values()
        for uuid, record in host.records.items()
        if record.phase is not Phase.REMOVED
    }
    for key in etcd.below(keys.INTENTS):
        raise Violated("held for ever", f"{key}")
    for uuid, instance in instances.items():
        assignment = etcd.get(keys.assignment(instance.provider, uuid))
        seen = etcd.get(keys.seen(instance.provider, uuid))
        if instance.state is State.DELETING:
            raise Violated("never deleted", f"{uuid}: {assignment}, {seen}")
        if instance.state is State.ERROR and uuid in world.placement.allocations:
            raise Violated("held for ever", f"{uuid} is in error and keeps its claim")
        has_room = world.placement.used(instance.provider) < world.placement.capacity[instance.provider]
        if instance.state is State.INITIAL and uuid not in world.placement.allocations and has_room:
            raise Violated("never claimed again", f"{uuid} on {instance.provider}")
        if instance.state is State.INITIAL and assignment is not None and assignment.value.role is Role.RUN:
            state = None if seen is None else seen.value.state
            if state not in (State.CREATED, State.ERROR):
                raise Violated("never built", f"{uuid}: {seen}")
    _check_gangs(world, instances)
    told = {keys.last(key) for key in etcd.below(keys.HOSTS)}  # by the audit, where there is no instance
    for uuid, claim in world.placement.allocations.items():
        if uuid not in instances and uuid not in reported | told:
            raise Violated("held for ever", f"the claim of {uuid} on {claim.provider}")
    for uuid in used:
        if uuid not in instances and uuid not in reported:
            raise Violated("not reported", f"{uuid} is used and nobody is told")
    for key, entry in etcd.below(keys.HOSTS).items():
        if keys.last(key) not in instances and entry.value.role is Role.ABSENT:
            raise Violated("held for ever", f"{key} is absent, and nobody deletes it")
    for key in etcd.below(keys.SEEN):
        uuid = keys.last(key)
        if etcd.get(keys.assignment(keys.parts(key)[1], uuid)) is None and uuid not in used | remembered:
            raise Violated("held for ever", f"{key} reports nothing")
    for key, entry in etcd.below(keys.addresses("net")).items():
        uuid = entry.value.instance_uuid
        if uuid not in instances and uuid not in used | reported:
            raise Violated("address leaked", f"{key} of {uuid}")


def _check_gangs(world: World, instances: dict[str, Instance]) -> None:
    """All of a gang, or nothing of it; no record without members."""
    for gang in set(world.gang_of.values()):
        members = {uuid for uuid, name in world.gang_of.items() if name == gang}
        present = members & instances.keys()
        record = world.etcd.get(keys.gang(gang))
        if record is not None and record.value.state is GangState.WRITING:
            raise Violated("held for ever", f"{gang} is still being written")
        if record is not None and not present:
            raise Violated("held for ever", f"the record of {gang}, which has no members")
        if world.was_set_back:
            continue
        missing = members - present - world.ordered
        if gang in world.committed and missing:
            raise Violated("launched in part", f"{gang} lacks {missing}")
        if gang not in world.committed and present:
            raise Violated("launched in part", f"{gang} was not committed and has {present}")
