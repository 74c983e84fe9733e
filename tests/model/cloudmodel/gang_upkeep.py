"""The lead's part in gangs: `gang_repairs`, one message at a time."""

from __future__ import annotations

from msgspec import structs

from cloudmodel.etcd import Compare, Delete, Put, unchanged
from cloudmodel.world import Steps, Unanswered, World
from ecompute.cluster import keys
from ecompute.cluster.documents import Gang, GangState, Role, State
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.upkeep.gang_plan import GangMember, GangRecord, GangsLook, gang_repairs


def look_at_gangs(world: World) -> Steps:
    began_s = world.now_s
    records = {
        keys.last(key): GangRecord(entry.value.state, entry.mod_revision, frozenset(entry.value.members))
        for key, entry in world.etcd.below(keys.GANGS).items()
    }
    yield "has read the gangs"
    instances = [entry.value for entry in world.etcd.below(keys.INSTANCES).values() if entry.value.gang is not None]
    yield "has read their instances"
    members = {}
    for instance in instances:
        seen = world.etcd.get(keys.seen(instance.provider, instance.uuid))
        is_gone = seen is not None and seen.value.is_gone and seen.value.epoch == instance.epoch
        members[instance.uuid] = GangMember(instance.gang, instance.state, is_gone)
    yield "has read their reports"
    return GangsLook(began_s, world.now_s, records, members)


def mind_gangs(world: World, before: GangsLook | None, now: GangsLook, guard: list[Compare]) -> Steps:
    etcd = world.etcd
    repairs = gang_repairs(before, now)
    for gang, revision in repairs.cancel.items():
        key = keys.gang(gang)
        entry = etcd.get(key)
        yield "is about to cancel a gang"
        if entry is None or entry.mod_revision != revision:
            continue
        cancelled = structs.replace(entry.value, state=GangState.CANCELLED)
        yield from _try(world, [unchanged(key, entry), *guard], [Put(key, cancelled)])
        if not world.rules.cancelled_gang_is_refused_by_its_hosts:
            for uuid in entry.value.members:
                yield from _destroy(world, uuid, guard)
    for gang, members in repairs.orphaned.items():
        yield "is about to give a gang a record"
        record = Gang(
            uuid=gang,
            namespace="system",
            members=tuple(sorted(members)),
            state=GangState.CANCELLED,
            writer="lead",
            made_at="",
        )
        yield from _try(world, [Compare(keys.gang(gang), mod_revision=0), *guard], [Put(keys.gang(gang), record)])
    for uuid in repairs.destroy:
        yield from _destroy(world, uuid, guard)
    for gang, revision in repairs.forget.items():
        yield "is about to forget a gang"
        yield from _try(world, [Compare(keys.gang(gang), mod_revision=revision), *guard], [Delete(keys.gang(gang))])


def _try(world: World, compares: list[Compare], operations: list[Put | Delete]) -> Steps:
    try:
        world.commit(compares, operations)
    except (CompareFailed, Unanswered):
        yield "could not"


def _destroy(world: World, uuid: str, guard: list[Compare]) -> Steps:
    instance = world.etcd.get(keys.instance(uuid))
    if instance is None or instance.value.state is State.DELETING:
        return
    yield "has read what to destroy"
    value = instance.value
    key = keys.assignment(value.provider, uuid)
    assignment = world.etcd.get(key)
    generation = value.generation + 1
    operations: list[Put | Delete] = [
        Put(keys.instance(uuid), structs.replace(value, state=State.DELETING, generation=generation))
    ]
    if assignment is not None:
        absent = structs.replace(assignment.value, role=Role.ABSENT, generation=generation)
        operations.append(Put(key, absent))
    yield "is about to destroy"
    compares = [unchanged(keys.instance(uuid), instance), unchanged(key, assignment), *guard]
    yield from _try(world, compares, operations)
