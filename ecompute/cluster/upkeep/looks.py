"""Takes the auditor's looks: placement first, then etcd.

In this order a claim on its way is never seen without its intent or its instance.

The *short* look is for intents, which are few, and the claims they announced. The *full* one asks
placement for all hosts with one question, for the allocations of every provider that is in use, one
request each, and for the type of those consumers alone that have no instance. ``pace`` is called
before each of these, so that placement serves launches meanwhile; of what was read only names are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED
from ecompute.cluster.documents import Alive, Assignment, Instance, Intent, Node, Seen, State
from ecompute.cluster.errors import NotFound
from ecompute.cluster.placement.documents import OUR_CONSUMERS
from ecompute.cluster.store import Store
from ecompute.cluster.upkeep import owners
from ecompute.cluster.upkeep.decide import Held, HostLook, Look, Unlike, unlike
from ecompute.cluster.upkeep.misfits import Holder
from ecompute.cluster.upkeep.wires import take_misfits

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement


def take_short(store: Store, placement: Placement, clock: Callable[[], float]) -> Look:
    """Return a look at the intents and their claims.

    Raises:
        Unavailable: etcd or placement does not answer.
    """
    began_s = clock()
    announced = [uuid for key in store.keys(keys.INTENTS)[0] if keys.is_uuid(uuid := keys.last(key))]
    allocations = _allocations_of(placement, announced)
    intents = _intents(store)
    found = store.get_many([keys.instance(consumer) for consumer in allocations], Instance)
    instances = frozenset(item.value.uuid for item in found.items)
    return Look(
        began_s=began_s,
        ended_s=clock(),
        allocations=allocations,
        intents=intents,
        instances=instances,
        hosts=_hosts(store, _consumers_of(allocations, allocations.keys() - instances)),
    )


def take_full(
    store: Store, placement: Placement, clock: Callable[[], float], pace: Callable[[], object] = lambda: None
) -> Look:
    """Return a look at everything that goes with instances.

    Args:
        pace: called before each of many requests to placement.

    Raises:
        Unavailable: etcd or placement does not answer.
    """
    began_s = clock()
    trees = placement.trees(count=store.count(keys.NODES))
    known = {provider.uuid for provider in placement.providers()}
    below = {uuid for uuid, summary in trees.items() if not summary.is_host}
    held: dict[str, dict[str, dict[str, int]]] = {}
    for provider in sorted(known - below):  # what lies below a host is claimed together with the host
        summary = trees.get(provider)
        if summary is not None and not any(use.used for use in summary.resources.values()):
            continue
        pace()
        try:
            for consumer, amounts in placement.provider_allocations(provider).items():
                held.setdefault(consumer, {})[provider] = amounts
        except NotFound:
            continue  # removed meanwhile
    intents = _intents(store)
    instances: dict[str, State] = {}
    unlike_: dict[str, Unlike] = {}
    interfaces: dict[str, Holder] = {}
    for item in store.each(keys.INSTANCES, Instance):
        uuid, claim = item.value.uuid, item.value.claim
        instances[uuid] = item.value.state
        interfaces[uuid] = Holder.of(item)
        if claim and uuid in held and item.value.state is State.INITIAL:
            how = unlike({provider: row for provider, row in claim.items() if provider not in below}, held[uuid])
            if how is not None:
                unlike_[uuid] = how
    holders_of = {consumer: frozenset(rows) for consumer, rows in held.items()}
    del held
    allocations = _allocations_of(placement, sorted(holders_of.keys() - instances.keys()), pace)
    allocations |= {
        consumer: Held(providers, OUR_CONSUMERS)  # whose instance we know, it is one of ours
        for consumer, providers in holders_of.items()
        if consumer in instances
    }
    nodes = frozenset(keys.last(key) for key in store.keys(keys.NODES)[0])
    owned, hosts_of, vacant = owners.owned(store)
    nowhere = {o.instance_uuid for o in owned.values()} - instances.keys() - intents.keys()
    consumers_of = _consumers_of(allocations, allocations.keys() - instances.keys())
    for uuid in nowhere & hosts_of.keys():
        if keys.is_uuid(uuid) and keys.is_uuid(hosts_of[uuid]):
            consumers_of.setdefault(hosts_of[uuid], set()).add(uuid)
    hosts = _hosts(store, consumers_of)
    assigned = [parts for parts in map(keys.parts, store.keys(keys.HOSTS)[0]) if len(parts) == 3]
    told = {keys.last(key) for key in store.keys(keys.SEEN)[0]} | {uuid for _, _, uuid in assigned}
    # A host that cannot answer may still run what its keys are about: those are not looked at. Of what
    # names no host, it is enough that none has it or tells of it: who runs it has told so.
    mute = {
        uuid
        for uuid in nowhere
        if (not hosts.get(hosts_of[uuid], HostLook()).can_answer if uuid in hosts_of else uuid in told)
    }
    return Look(
        began_s=began_s,
        ended_s=clock(),
        allocations=allocations,
        intents=intents,
        instances=frozenset(instances),
        holders=frozenset(uuid for uuid, state in instances.items() if state is State.INITIAL),
        hosts=hosts,
        owned={key: owner for key, owner in owned.items() if owner.instance_uuid not in mute},
        vacant=vacant,
        hostless=frozenset(uuid for uuid, summary in trees.items() if summary.is_host) - nodes,
        unregistered=nodes - known,
        unwanted=frozenset((provider, uuid) for _, provider, uuid in assigned if uuid not in instances),
        overfull=frozenset(
            (provider, name)
            for provider, summary in trees.items()
            if summary.is_host and DISABLED not in summary.traits  # a closed host has all of it reserved
            for name, use in summary.resources.items()
            if use.used > use.capacity
        ),
        unlike=unlike_,
        ownerless=owners.ownerless(store),
        abandoned=owners.abandoned(store, nodes),
        misfits=take_misfits(store, interfaces),
    )


def _intents(store: Store) -> dict[str, int]:
    listing = store.list(keys.INTENTS, Intent)
    return {uuid: item.mod_revision for item in listing.items if keys.is_uuid(uuid := keys.last(item.key))}


def _allocations_of(
    placement: Placement, consumers: list[str], pace: Callable[[], object] = lambda: None
) -> dict[str, Held]:
    held = {}
    for consumer in consumers:
        pace()
        found = placement.allocations(consumer)
        if found.allocations:
            # Who serves VCPU is the host, and can be asked; what was claimed beside it (a quota, a
            # group, a shared disk) has nobody who could answer.
            hosts = frozenset(p for p, amounts in found.allocations.items() if "VCPU" in amounts)
            held[consumer] = Held(hosts or frozenset(found.allocations), found.consumer_type)
    return held


def _consumers_of(allocations: dict[str, Held], consumers: set[str]) -> dict[str, set[str]]:
    """Return {provider: those of ``consumers`` that hold something there}."""
    found: dict[str, set[str]] = {}
    for consumer in consumers & allocations.keys():
        if allocations[consumer].consumer_type.startswith(OUR_CONSUMERS):
            for provider in allocations[consumer].providers:
                found.setdefault(provider, set()).add(consumer)
    return found


def _hosts(store: Store, consumers_of: dict[str, set[str]]) -> dict[str, HostLook]:
    """Return what etcd says of hosts.

    Args:
        consumers_of: {provider: the consumers in question there}.
    """
    providers = sorted(consumers_of)
    pairs = [(provider, consumer) for provider in providers for consumer in sorted(consumers_of[provider])]
    alive = {item.value.provider for item in store.get_many([keys.alive(p) for p in providers], Alive).items}
    nodes = {item.value.provider: item.value for item in store.get_many([keys.node(p) for p in providers], Node).items}
    assigned = store.get_many([keys.assignment(p, c) for p, c in pairs], Assignment).items
    reported = store.get_many([keys.seen(p, c) for p, c in pairs], Seen).items
    guests = {(keys.parts(item.key)[1], item.value.uuid) for item in assigned}
    guests |= {(keys.parts(item.key)[1], item.value.uuid) for item in reported if not item.value.is_gone}
    return {
        provider: HostLook(
            is_alive=provider in alive,
            is_on_hold=provider not in nodes or nodes[provider].hold is not None,
            guests=frozenset(uuid for host, uuid in guests if host == provider),
        )
        for provider in providers
    }
