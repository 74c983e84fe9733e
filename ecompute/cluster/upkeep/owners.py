"""What goes with what in etcd: keys of an instance beside its own, keys whose owner is another key, and a host's.

A look of the auditor reads them; whether they are left over is decided in `decide.leaks`. An owner and
what goes with it come and go in one transaction, so that two looks do not take the one for missing.

Of names, expiries, secrets and the reports for people only the keys are read. Of clients' keys, of
which there may be very many, a page is in memory at a time. Threads: any.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from itertools import islice

from ecompute.cluster import keys
from ecompute.cluster.documents import Document, IdempotencyKey, Member, Tagged, UsedUuid
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.store import Store, Versioned
from ecompute.cluster.upkeep.decide import Belonging, Owned

NAMED = {"network": keys.NETWORKS, "segment": keys.NETWORKS, "group": keys.GROUPS, "floating": keys.FLOATING}
"""What else than instances has names: where the keys are that they go with, which end as the names do."""
PAGE = 500


class _OfNetwork(Document, frozen=True, kw_only=True):
    """What those have in common that lie below a network: its ports, locks and members."""

    instance_uuid: str | None = None
    provider: str | None = None
    is_resting: bool = False


def owned(store: Store) -> tuple[dict[str, Owned], dict[str, str], dict[str, int]]:
    """Return the keys that go with instances, {instance: provider} where they tell its host, and members without ports.

    The last are the keys of hosts that are members of a network and have no port there, with their mod revisions.
    """
    found: dict[str, Owned] = {}
    hosts_of: dict[str, str] = {}
    vacant = _below_networks(store, found, hosts_of)
    for key, revision in store.revisions(keys.NAMES).items():
        if keys.parts(key)[2:3] == [INSTANCE]:
            found[key] = Owned(keys.last(key), revision)
    for prefix in (keys.EXPIRIES, keys.BOOTED):
        for key, revision in store.revisions(prefix).items():
            found[key] = Owned(keys.last(key), revision)
    for key, revision in store.revisions(keys.SECRETS).items():
        if len(split := keys.parts(key)) == 3:
            found[key] = Owned(split[2], revision)
            hosts_of.setdefault(split[2], split[1])
    for tagged in store.each(keys.TAGS, Tagged):
        found[tagged.key] = Owned(tagged.value.instance_uuid, tagged.mod_revision)
        hosts_of.setdefault(tagged.value.instance_uuid, tagged.value.provider)
    # Groups themselves lie there too, and cannot be read as members.
    for member in store.each(keys.GROUPS, Member):
        found[member.key] = Owned(member.value.instance_uuid, member.mod_revision)
        hosts_of.setdefault(member.value.instance_uuid, member.value.provider)
    return found, hosts_of, vacant


def _below_networks(store: Store, owned: dict[str, Owned], hosts_of: dict[str, str]) -> dict[str, int]:
    """Add what goes with instances; return members without a port. All of it is read at one revision."""
    with_ports: set[tuple[str, str]] = set()
    members: dict[tuple[str, str], Versioned[_OfNetwork]] = {}
    for item in store.each(keys.NETWORKS, _OfNetwork):
        _, network, *below = keys.parts(item.key)
        value = item.value
        if len(below) != 2 or not keys.is_uuid(network):
            continue
        if below[0] == "hosts" and value.provider is not None:
            members[network, value.provider] = item
        elif value.instance_uuid is not None and not value.is_resting:  # what rests goes by itself
            owned[item.key] = Owned(value.instance_uuid, item.mod_revision)
            if below[0] == "ports" and value.provider is not None:
                with_ports.add((network, value.provider))
                hosts_of[value.instance_uuid] = value.provider
    return {item.key: item.mod_revision for member, item in members.items() if member not in with_ports}


def ownerless(store: Store) -> dict[str, Belonging]:
    """Return the keys whose owner is not there: names of what else than instances has some, and clients' keys."""
    named: dict[str, Belonging] = {}
    for key, revision in store.revisions(keys.NAMES).items():
        parts = keys.parts(key)
        if len(parts) == 5 and parts[2] in NAMED:
            named[key] = Belonging(NAMED[parts[2]] + parts[4], revision)
    there = {key for prefix in NAMED.values() for key in store.keys(prefix)[0]} if named else set()
    found = {key: belonging for key, belonging in named.items() if belonging.owner not in there}
    for page in _pages(store.each(keys.IDEMPOTENCY, IdempotencyKey)):
        meant = {item.key: keys.used_uuid(item.value.uuid) for item in page if keys.is_uuid(item.value.uuid)}
        listing = store.get_many(sorted(set(meant.values())), UsedUuid)
        known = {item.key for item in listing.items} | {key for key, _ in listing.unreadable}
        found |= {
            item.key: Belonging(meant[item.key], item.mod_revision)
            for item in page
            if item.key in meant and meant[item.key] not in known
        }
    return found


def abandoned(store: Store, nodes: AbstractSet[str]) -> frozenset[str]:
    """Return the providers that have told something of themselves and are no host that etcd knows.

    Args:
        nodes: the providers of all hosts.
    """
    told = {keys.parts(key)[1] for prefix in (keys.COPIES, keys.AUDITS) for key in store.keys(prefix)[0]} - nodes
    alive = {keys.last(key) for key in store.keys(keys.ALIVE)[0]} if told else set()
    return frozenset(told - alive)


def _pages(items: Iterator[Versioned[IdempotencyKey]]) -> Iterator[list[Versioned[IdempotencyKey]]]:
    while page := list(islice(items, PAGE)):
        yield page
