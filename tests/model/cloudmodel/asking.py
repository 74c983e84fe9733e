"""Those who ask: schedulers and destroyers.

Each is a generator; what stands between two of its yields happens at once, and never more than one
message does. The order of the messages is the product's.
"""

from __future__ import annotations

from enum import Enum, auto

from msgspec import structs

from cloudmodel.etcd import Compare, Delete, Entry, Put, unchanged
from cloudmodel.placement import RefusedError
from cloudmodel.upkeep import finish_one, release
from cloudmodel.world import HOSTS, Steps, Unanswered, World, spec
from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Assignment, Instance, Intent, Node, Role, State, UsedUuid
from ecompute.cluster.errors import CompareFailed

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
    mine = etcd.get(key)
    assert mine is not None
    yield "intended"
    for provider in HOSTS[prefer:] + HOSTS[:prefer]:
        claimed = yield from _claim(world, uuid, provider)
        if claimed is None:
            return  # nobody knows: the audit's
        if claimed is Claimed.NOT:
            continue
        is_in_doubt = claimed is Claimed.FOUND and world.is_chosen(uuid) and world.rules.found_claim_is_in_doubt
        yield "claimed"
        has_told = yield from _request(world, uuid, provider, same_life, mine, is_in_doubt=is_in_doubt)
        if has_told is None or has_told:
            return
        yield "passes a host over"
        yield from release(world, uuid)
    yield from _give_up(world, uuid, mine)


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


def _request(world: World, uuid: str, provider: str, same_life: Compare, mine: Entry, *, is_in_doubt: bool) -> Steps:
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
            _write_request(world, uuid, provider, address, [same_life, unchanged(keys.node(provider), node)], mine)
        except CompareFailed:
            yield "request refused"
            found = etcd.get(keys.intent(uuid))
            is_void = found is None or found.mod_revision != mine.mod_revision
            if not is_void:
                continue
            if world.rules.uuids_are_used_once:
                # Its answer said that nothing was written, and nothing can be any more.
                if not is_in_doubt:
                    yield from release(world, uuid)
                return None
            if found is not None or etcd.get(keys.instance(uuid)) is not None:
                return None
            try:
                world.commit([Compare(keys.intent(uuid), mod_revision=0)], [Put(keys.intent(uuid), mine.value)])
            except (CompareFailed, Unanswered):
                return None
            again = etcd.get(keys.intent(uuid))
            assert again is not None
            mine = again
            yield "intended again"
        except Unanswered:
            if world.rules.unanswered_request_is_settled:
                settled = yield from _settle(world, uuid, mine)
                if not isinstance(settled, Entry):
                    return True if settled else None
                mine = settled
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


def _give_up(world: World, uuid: str, mine: Entry) -> Steps:
    yield "gives up"
    try:
        world.commit([unchanged(keys.intent(uuid), mine)], [Delete(keys.intent(uuid))])
    except Unanswered:
        return
    except CompareFailed:
        if world.etcd.get(keys.instance(uuid)) is not None:
            return
    yield "gave up its intent"
    yield from release(world, uuid)


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
