"""Those who keep etcd and placement honest: finishers, and auditors under a lead.

Steps are as in `cloudmodel.asking`.
"""

from __future__ import annotations

from dataclasses import replace

from msgspec import structs

from cloudmodel.etcd import Compare, Delete, Entry, Put, unchanged
from cloudmodel.gang_upkeep import look_at_gangs, mind_gangs
from cloudmodel.host import NOTHING
from cloudmodel.placement import RefusedError
from cloudmodel.world import HOSTS, Lease, Process, Steps, Unanswered, World
from ecompute.cluster import keys
from ecompute.cluster.documents import (
    Assignment,
    Instance,
    Lead,
    Operation,
    Role,
    Seen,
    State,
)
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.freshness import FRESH_S
from ecompute.cluster.upkeep.decide import (
    GRACE_S,
    Act,
    FinishPlan,
    Held,
    HostLook,
    Leaks,
    Look,
    Owned,
    Question,
    finish,
    keep,
    leaks,
    releases,
)
from ecompute.cluster.upkeep.gang_plan import GangsLook

LEAD_TTL_S = 15.0
ANSWER_TTL_S = 25.0
POLLS = 6
LEAD = keys.lead("upkeep")


def release(world: World, uuid: str, lease: Lease | None = None, *, since_s: float | None = None) -> Steps:
    """Give a claim back: read its generation, write nothing with it. Two messages, so two steps.

    Args:
        since_s: when that was read which is the reason; None: a reason that no loss of data can end.
    """
    for _ in range(3):
        held = world.placement.allocations.get(uuid)
        if held is None:
            return
        yield "releases"
        if lease is not None and not lease.is_held(world.now_s):
            return
        is_old = since_s is not None and world.now_s - since_s >= FRESH_S
        if is_old and world.rules.releases_follow_fresh_readings:
            return
        try:
            world.to_placement(lambda generation=held.generation: world.placement.release(uuid, generation))
        except RefusedError:
            yield "release refused"
        except Unanswered:
            yield "release unanswered"
        else:
            return


def finish_one(
    world: World,
    uuid: str,
    provider: str | None = None,
    guard: list[Compare] | None = None,
    lease: Lease | None = None,
) -> Steps:
    """As `ecompute.cluster.upkeep.finish.Finisher.finish` does."""
    etcd, guard = world.etcd, guard or []
    for _ in range(3):
        since_s = world.now_s
        instance = etcd.get(keys.instance(uuid))
        host = instance.value.provider if instance is not None else provider
        if host is None:
            return
        key = keys.assignment(host, uuid)
        yield "has read the instance"
        assignment = etcd.get(key)
        yield "has read the assignment"
        seen = etcd.get(keys.seen(host, uuid))
        planned = _finish(world, instance, assignment, seen)
        compares = [unchanged(keys.instance(uuid), instance), unchanged(key, assignment), *guard]
        try:
            if planned.act is Act.ORDER_REMOVAL and instance is not None:
                yield "orders the removal"
                world.commit(compares, [Put(key, _ordered(instance.value))])
            elif planned.act is Act.MARK_FAILED and instance is not None and assignment is not None:
                yield "marks it failed"
                generation = instance.value.generation + 1
                failed = structs.replace(instance.value, state=State.ERROR, error=planned.error, generation=generation)
                absent = structs.replace(assignment.value, role=Role.ABSENT, generation=generation)
                world.commit(compares, [Put(keys.instance(uuid), failed), Put(key, absent)])
                continue
            elif planned.act in (Act.RELEASE, Act.RELEASE_AND_DELETE):
                yield "is about to release"
                yield from release(world, uuid, lease, since_s=since_s)
                if planned.act is Act.RELEASE_AND_DELETE:
                    yield "released"
                    if uuid in world.placement.allocations:
                        return
                    world.commit(compares, _deletes(world, uuid, host, instance, assignment))
        except CompareFailed:
            yield "lost against another"
            continue
        except Unanswered:
            return
        return


def _finish(world: World, instance: Entry | None, assignment: Entry | None, seen: Entry | None) -> FinishPlan:
    report = None if seen is None else seen.value
    if not world.rules.finish_waits_for_gone and instance is not None and instance.value.state is State.DELETING:
        value = instance.value
        report = Seen(
            uuid=value.uuid,
            generation=value.generation,
            epoch=value.epoch,
            state=State.DELETED,
            is_gone=True,
            reported_at="",
        )
    return finish(
        None if instance is None else instance.value, None if assignment is None else assignment.value, report
    )


def _ordered(value: Instance) -> Assignment:
    return Assignment(
        uuid=value.uuid,
        namespace=value.namespace,
        name=value.name,
        role=Role.ABSENT,
        generation=value.generation,
        epoch=value.epoch,
        spec=value.spec,
    )


def _deletes(
    world: World, uuid: str, host: str, instance: Entry | None, assignment: Entry | None
) -> list[Put | Delete]:
    known = instance if instance is not None else assignment
    assert known is not None
    gone = [keys.instance(uuid), keys.assignment(host, uuid), keys.seen(host, uuid)]
    for interface in known.value.spec.interfaces:
        for address in interface.addresses:
            lock = world.etcd.get(keys.address("net", address.split("/")[0]))
            if lock is not None and lock.value.instance_uuid == uuid:
                gone.append(keys.address("net", address.split("/")[0]))
    return [Delete(key) for key in gone]


def upkeep(world: World, process: Process) -> Steps:
    """Campaign for the lead; while it is held, finish and audit."""
    etcd = world.etcd
    before: Look | None = None
    gangs: GangsLook | None = None
    while True:
        yield "campaigns"
        if etcd.get(LEAD) is not None:
            continue
        lease = world.lease(process, LEAD_TTL_S)
        try:
            term = world.commit(
                [Compare(LEAD, mod_revision=0)], [Put(LEAD, Lead(holder=process.name, since=""), lease.id)]
            )
        except (CompareFailed, Unanswered):
            # It may be written: kept alive, it would be the lead of nobody, for ever.
            world.drop(lease)
            continue
        guard = [Compare(LEAD, create_revision=term)] if world.rules.lead_checks_its_lease else []
        checked = lease if world.rules.lead_checks_its_lease else None
        while checked is None or checked.is_held(world.now_s):
            yield "leads"
            if world.rules.lead_looks_for_its_key and not _is_there(world, term):
                world.drop(lease)
                break
            for uuid, provider in _in_hand(world):
                yield from finish_one(world, uuid, provider, guard, checked)
            now = yield from _look(world)
            found = leaks(before, now)
            before = keep(before, now)
            yield from _repair(world, process, found, guard, checked)
            looked = yield from look_at_gangs(world)
            yield from mind_gangs(world, gangs, looked, guard)
            gangs = keep(gangs, looked)


def audit_once(world: World, process: Process) -> Steps:
    """As `eschedule audit --repair` does: two looks and their repair, without a lead's lease."""
    before = yield from _look(world)
    while world.now_s - before.ended_s < GRACE_S:
        yield "waits for its second look"
    now = yield from _look(world)
    yield from _repair(world, process, leaks(before, now), [], None)


def _is_there(world: World, term: int) -> bool:
    entry = world.etcd.get(LEAD)
    return entry is not None and entry.create_revision == term


def _in_hand(world: World) -> list[tuple[str, str]]:
    wanted = [(keys.last(key), entry.value.provider) for key, entry in world.etcd.below(keys.INSTANCES).items()]
    known = {uuid for uuid, _ in wanted}
    for key in world.etcd.below(keys.HOSTS):
        if keys.last(key) not in known:
            wanted.append((keys.last(key), keys.parts(key)[1]))
    return wanted


def _look(world: World) -> Steps:
    began_s = world.now_s
    allocations = {
        consumer: Held(frozenset({held.provider}), held.consumer_type)
        for consumer, held in world.placement.allocations.items()
    }
    yield "has read placement"
    etcd = world.etcd
    intents = {keys.last(key): entry.mod_revision for key, entry in etcd.below(keys.INTENTS).items()}
    yield "has read the intents"
    instances = {keys.last(key): entry.value.state for key, entry in etcd.below(keys.INSTANCES).items()}
    owned = {
        key: Owned(entry.value.instance_uuid, entry.mod_revision)
        for key, entry in etcd.below(keys.addresses("net")).items()
    }
    yield "has read the instances"
    hosts = {}
    for provider in HOSTS:
        node = etcd.get(keys.node(provider))
        guests = {keys.last(key) for key in etcd.below(keys.assignments(provider))}
        guests |= {keys.last(key) for key, e in etcd.below(keys.seen_by(provider)).items() if not e.value.is_gone}
        hosts[provider] = HostLook(
            is_alive=etcd.get(keys.alive(provider)) is not None,
            is_on_hold=node is None or node.value.hold is not None,
            guests=frozenset(guests),
        )
    yield "has read the hosts"
    return Look(
        began_s=began_s,
        ended_s=world.now_s,
        allocations=allocations,
        intents=intents,
        instances=frozenset(instances),
        holders=frozenset(uuid for uuid, state in instances.items() if state is State.INITIAL),
        hosts=hosts,
        owned=owned,
    )


def _repair(world: World, process: Process, found: Leaks, guard: list[Compare], lease: Lease | None) -> Steps:
    deleted: set[str] = set()
    if not world.rules.audit_deletes_the_intent_first:
        for consumer in releases(found, frozenset(found.intents), frozenset(found.questions)):
            yield from release(world, consumer, lease)
    for consumer, revision in found.intents.items():
        yield "is about to delete an intent"
        try:
            world.commit(
                [Compare(keys.intent(consumer), mod_revision=revision), *guard], [Delete(keys.intent(consumer))]
            )
        except (CompareFailed, Unanswered):
            continue
        deleted.add(consumer)
    for key, revision in found.orphans.items():
        yield "is about to delete an orphan"
        try:
            world.commit([Compare(key, mod_revision=revision), *guard], [Delete(key)])
        except (CompareFailed, Unanswered):
            continue
    for consumer in dict.fromkeys(question.consumer for question in found.questions):
        since_s = world.now_s
        if world.rules.audit_asks_again_who_holds:
            yield "is about to ask who holds it"
            if world.etcd.get(keys.intent(consumer)) is not None or world.etcd.get(keys.instance(consumer)) is not None:
                continue
        questions = tuple(question for question in found.questions if question.consumer == consumer)
        nothing_there: set[Question] = set()
        for question in questions:
            is_nothing = True
            if world.rules.audit_asks_the_host:
                is_nothing = yield from _ask(world, process, question)
            if is_nothing:
                nothing_there.add(question)
        if releases(replace(found, questions=questions), frozenset(deleted), frozenset(nothing_there)):
            yield "is about to release a leak"
            yield from release(world, consumer, lease, since_s=since_s)
    for uuid in found.unbacked if world.rules.audit_claims_again else ():
        yield from _reclaim(world, uuid, lease)


def _reclaim(world: World, uuid: str, lease: Lease | None) -> Steps:
    """As `ecompute.cluster.upkeep.reclaim.Reclaimer.reclaim` does."""
    instance = world.etcd.get(keys.instance(uuid))
    yield "has read whom to claim for again"
    if instance is None or instance.value.state is not State.INITIAL or uuid in world.placement.allocations:
        return
    yield "is about to claim again"
    if lease is not None and not lease.is_held(world.now_s):
        return
    provider = instance.value.provider
    try:
        world.to_placement(lambda: world.placement.claim(uuid, provider))
    except (RefusedError, Unanswered):
        return
    if not world.rules.reclaim_never_releases:
        yield "looks whether it was right"
        if world.etcd.get(keys.instance(uuid)) is None:
            yield from release(world, uuid)


def _ask(world: World, process: Process, question: Question) -> Steps:
    yield "is about to ask"
    lease = world.lease(process, ANSWER_TTL_S)
    key = keys.operation(question.provider, f"q{lease.id}")
    answer = None
    try:
        world.commit(
            [Compare(key, mod_revision=0)],
            [Put(key, Operation(kind="presence", instance_uuid=question.consumer), lease.id)],
        )
        for _ in range(POLLS):
            yield "waits for an answer"
            entry = world.etcd.get(key)
            answer = None if entry is None else entry.value.answer
            if entry is None or answer is not None or not lease.is_held(world.now_s):
                break
    except (CompareFailed, Unanswered):
        pass
    world.drop(lease)
    return answer == NOTHING
