"""Those who ask: schedulers and destroyers.

Each is a generator; what stands between two of its yields happens at once, and never more than one
message does. The order of the messages is the product's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from msgspec import structs

from cloudmodel.etcd import Compare, Delete, Entry, Put, unchanged
from cloudmodel.placement import RefusedError
from cloudmodel.upkeep import finish_one, release
from cloudmodel.world import HOSTS, Steps, Unanswered, World, spec
from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Assignment, Instance, Intent, Node, Role, State, UsedUuid
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.freshness import FRESH_S

WAITS = 6
ADDRESSES = tuple(f"10.0.0.{n}" for n in range(2, 12))


# --- eschedule: launch ---


def schedule(world: World, uuid: str, prefer: int) -> Steps:
    """``intent → claim → request``, on the preferred host first."""
    etcd = world.etcd
    incarnation = etcd.get(keys.INCARNATION)
    if incarnation is None:
        return
    yield "has read the incarnation"
    same_life = unchanged(keys.INCARNATION, incarnation)
    key = keys.intent(uuid)
    intent = Intent(consumer=uuid, kind="create", namespace="system", writer="s", made_at="")
    used = keys.used_uuid(uuid)
    is_chosen = world.is_chosen(uuid) and world.rules.chosen_uuids_are_kept
    try:
        world.commit(
            [
                Compare(key, mod_revision=0),
                Compare(keys.instance(uuid), mod_revision=0),
                same_life,
                *([Compare(used, mod_revision=0)] if is_chosen else []),
            ],
            [
                Put(key, intent),
                *([Put(used, UsedUuid(uuid=uuid, namespace="system", digest="", made_at=""))] if is_chosen else []),
            ],
        )
    except (CompareFailed, Unanswered):
        return
    entry = etcd.get(key)
    assert entry is not None
    mine = _Mine(entry)
    yield "intended"
    for provider in HOSTS[prefer:] + HOSTS[:prefer]:
        mine.taken_s = world.now_s
        claimed = yield from _claim(world, uuid, provider)
        if claimed is None:
            return  # nobody knows: the audit's
        if claimed is Claimed.NOT:
            mine.taken_s = None
            continue
        is_in_doubt = claimed is Claimed.FOUND and world.is_chosen(uuid) and world.rules.found_claim_is_in_doubt
        yield "claimed"
        has_told = yield from _request(world, uuid, provider, same_life, mine, is_in_doubt=is_in_doubt)
        if has_told is None or has_told:
            return
        yield "passes a host over"
        if world.is_chosen(uuid) and world.rules.lost_intent_releases_nothing:
            if etcd.get(key) != mine.entry:
                return
            yield "has seen its intent"
        yield from _give_back(world, uuid, mine)
        mine.taken_s = None
    yield from _give_up(world, uuid, mine)


@dataclass
class _Mine:
    """What a launch knows to be its own."""

    entry: Entry
    """Its intent, as it wrote it last."""
    taken_s: float | None = None
    """Since when it may hold a claim."""


class Claimed(Enum):
    NOT = auto()
    NEWLY = auto()
    FOUND = auto()
    """It holds just this already: an earlier try of ours was written, or it is the claim of a guest that runs."""


def _claim(world: World, uuid: str, provider: str) -> Steps:
    """Return how it went; None: nobody knows."""
    for _ in range(3):
        try:
            world.to_placement(lambda: world.placement.claim(uuid, provider))
        except RefusedError:
            yield "was refused"
            held = world.placement.allocations.get(uuid)
            if held is not None and held.provider == provider:
                return Claimed.FOUND
            is_others = held is not None and world.is_chosen(uuid) and world.rules.found_claim_is_in_doubt
            return None if is_others else Claimed.NOT
        except Unanswered:
            yield "claim unanswered"
        else:
            return Claimed.NEWLY
    return None


def _request(world: World, uuid: str, provider: str, same_life: Compare, mine: _Mine, *, is_in_doubt: bool) -> Steps:
    """Return whether the host was told; None: the claim is not this process's any more."""
    etcd = world.etcd
    # What was once written without an answer may be at work on its host, whatever etcd says later.
    passes_over: bool | None = None if is_in_doubt else False
    for _ in range(3):
        node = etcd.get(keys.node(provider))
        if node is None or not isinstance(node.value, Node) or node.value.hold is not None:
            return passes_over
        taken = {keys.last(lock) for lock in etcd.below(keys.addresses("net"))}
        address = next(a for a in ADDRESSES if a not in taken)
        yield "has read the host"
        try:
            _write_request(
                world, uuid, provider, address, [same_life, unchanged(keys.node(provider), node)], mine.entry
            )
        except CompareFailed:
            yield "request refused"
            found = etcd.get(keys.intent(uuid))
            is_void = found is None or found.mod_revision != mine.entry.mod_revision
            if not is_void:
                continue
            if world.rules.uuids_are_used_once:
                if not is_in_doubt:
                    yield from _give_up(world, uuid, mine)
                return None
            if found is not None or etcd.get(keys.instance(uuid)) is not None:
                return None
            try:
                world.commit([Compare(keys.intent(uuid), mod_revision=0)], [Put(keys.intent(uuid), mine.entry.value)])
            except (CompareFailed, Unanswered):
                return None
            again = etcd.get(keys.intent(uuid))
            assert again is not None
            mine.entry = again
            yield "intended again"
        except Unanswered:
            if world.rules.unanswered_request_is_settled:
                settled = yield from _settle(world, uuid, mine.entry)
                if not isinstance(settled, Entry):
                    return True if settled else None
                mine.entry = settled
                if world.rules.settled_request_keeps_its_host:
                    passes_over = None
                continue
            yield "request unanswered"
            return False
        else:
            return True
    return passes_over


def _settle(world: World, uuid: str, mine: Entry) -> Steps:
    """As `ecompute.cluster.claims.Claim.settle` does: return whether it was written, or the intent as it is now."""
    key = keys.intent(uuid)
    yield "settles"
    try:
        world.commit([unchanged(key, mine)], [Put(key, mine.value)])
    except CompareFailed:
        yield "looks for its instance"
        return world.etcd.get(keys.instance(uuid)) is not None
    except Unanswered:
        return None
    return world.etcd.get(key)


def _write_request(world: World, uuid: str, provider: str, address: str, compares: list[Compare], mine: Entry) -> None:
    wanted = spec(uuid, f"{address}/24")
    instance = Instance(
        uuid=uuid,
        namespace="system",
        name=uuid,
        state=State.INITIAL,
        provider=provider,
        spec=wanted,
        created_at="",
    )
    assignment = Assignment(uuid=uuid, namespace="system", name=uuid, role=Role.RUN, generation=1, epoch=1, spec=wanted)
    lock = keys.address("net", address)
    if world.rules.request_compares_the_intent:
        compares = [*compares, unchanged(keys.intent(uuid), mine)]
    world.commit(
        [*compares, Compare(keys.instance(uuid), mod_revision=0), Compare(lock, mod_revision=0)],
        [
            Delete(keys.intent(uuid)),
            Put(keys.instance(uuid), instance),
            Put(keys.assignment(provider, uuid), assignment),
            Put(lock, AddressLock(interface_uuid=f"if-{uuid}", instance_uuid=uuid)),
        ],
    )


def _give_up(world: World, uuid: str, mine: _Mine) -> Steps:
    """As `ecompute.cluster.claims.Claim.give_up` does."""
    yield "gives up"
    is_old = mine.taken_s is not None and world.now_s - mine.taken_s >= FRESH_S
    if is_old and world.is_chosen(uuid) and world.rules.releases_follow_fresh_readings:
        return
    try:
        world.commit([unchanged(keys.intent(uuid), mine.entry)], [Delete(keys.intent(uuid))])
    except Unanswered:
        return
    except CompareFailed:
        if world.is_chosen(uuid) and world.rules.lost_intent_releases_nothing:
            return  # the audit has taken it, or etcd was set back and somebody else launches with the uuid
        yield "has lost its intent"
        if world.etcd.get(keys.instance(uuid)) is not None:
            return
    yield "gave up its intent"
    yield from _give_back(world, uuid, mine)


def _give_back(world: World, uuid: str, mine: _Mine) -> Steps:
    """Nobody else claims for a uuid that this launch made up; for one that a client chose, somebody may by now."""
    if not world.is_chosen(uuid):
        yield from release(world, uuid)
    elif mine.taken_s is not None:
        yield from release(world, uuid, since_s=mine.taken_s)


# --- eschedule: destroy ---


def destroy(world: World, uuid: str) -> Steps:
    """Mark the instance deleting and its assignment absent; wait; finish."""
    etcd = world.etcd
    for _ in range(3):
        entry = etcd.get(keys.instance(uuid))
        if entry is None:
            return
        value = entry.value
        if value.state is State.DELETING:
            break
        key = keys.assignment(value.provider, uuid)
        assignment = etcd.get(key)
        yield "has read what to destroy"
        generation = value.generation + 1
        compares = [unchanged(keys.instance(uuid), entry)]
        operations: list[Put | Delete] = [
            Put(keys.instance(uuid), structs.replace(value, state=State.DELETING, generation=generation))
        ]
        if assignment is not None:
            compares.append(unchanged(key, assignment))
            absent = structs.replace(assignment.value, role=Role.ABSENT, generation=generation)
            operations.append(Put(key, absent))
        world.ordered.add(uuid)
        try:
            world.commit(compares, operations)
        except CompareFailed:
            continue
        except Unanswered:
            yield "destroy unanswered"
            continue
        break
    for _ in range(WAITS):
        yield "waits for gone"
        yield from finish_one(world, uuid)
