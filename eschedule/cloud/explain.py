"""Reads what `eschedule.scheduler.explain` and `capacity` work on, with a handful of requests.

A `Survey` is all hosts, whatever is asked of them, and serves many queries. placement: one question for all
hosts (`Placement.trees`), one for the providers that share, and four for each of those, which are few.
etcd: the nodes, which tell units and steps, and what operators say of them. Never a request a host. A query
then costs one request for each condition on aggregates.

Nothing is written. What is read is not of one moment: an explanation may be overtaken, as any look may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED, bar_of
from ecompute.cluster.documents import Admin, Node
from ecompute.cluster.errors import InvalidInput, NotFound
from ecompute.cluster.placement import Inventory, Summary, candidates_query
from eschedule.cloud.connection import Cloud
from eschedule.scheduler.asked import Asked, asked
from eschedule.scheduler.capacity import Fits, capacity
from eschedule.scheduler.explain import Explanation, Host, explain
from eschedule.scheduler.fit import Members, Provider, Stock, Tree
from eschedule.scheduler.request import check_classes
from eschedule.scheduler.unknown import explained

SHARES = "MISC_SHARES_VIA_AGGREGATE"


@dataclass(frozen=True)
class Look:
    """The hosts as they were read for one query."""

    query: Asked
    hosts: tuple[Host, ...]
    members: Members

    def explain(
        self, *, excluded: frozenset[str] = frozenset(), only: frozenset[str] | None = None, group_name: str = ""
    ) -> Explanation:
        return explain(
            self.query, self.hosts, self.members, excluded=excluded, only=only, group_name=group_name or "its group"
        )

    def capacity(self) -> Fits:
        return capacity(self.query, self.hosts, self.members)


@dataclass(frozen=True)
class Survey:
    """All hosts as they were read."""

    nodes: tuple[Node, ...]
    hosts: tuple[Host, ...]
    classes: frozenset[str]
    """All that any of them has, and ``traits``."""
    traits: frozenset[str]


def survey(cloud: Cloud) -> Survey:
    """Read what is known of all hosts.

    Raises:
        Unavailable: etcd or placement does not answer.
    """
    nodes = {item.value.provider: item.value for item in cloud.store.list(keys.NODES, Node).items}
    admins = {keys.last(item.key): item.value for item in cloud.store.list(keys.ADMIN, Admin).items}
    found = cloud.placement.trees(count=len(nodes))
    sharing = _sharing(cloud)
    trees: dict[str, list[str]] = {}
    for uuid, summary in found.items():
        trees.setdefault(summary.root_provider_uuid or uuid, []).append(uuid)
    hosts = []
    for uuid in nodes.keys() | {uuid for uuid, summary in found.items() if summary.is_host}:
        node, admin = nodes.get(uuid), admins.get(uuid)
        own = [_provider(u, found[u], node if u == uuid else None) for u in sorted(trees.get(uuid, []))]
        hosts.append(
            Host(
                provider=uuid,
                name=uuid if node is None else node.name,
                tree=Tree(uuid, tuple(own), tuple(p for p, anchors in sharing if anchors & {o.uuid for o in own}))
                if uuid in found
                else None,
                barred=barred(node, admin, found[uuid].traits if uuid in found else frozenset()),
            )
        )
    return Survey(
        nodes=tuple(nodes.values()),
        hosts=tuple(sorted(hosts, key=lambda host: (host.name, host.provider))),
        classes=frozenset(name for summary in found.values() for name in summary.resources),
        traits=frozenset(name for summary in found.values() for name in summary.traits),
    )


def look(cloud: Cloud, text: str, known: Survey | None = None) -> Look:
    """Return what is needed to explain the query ``text``.

    Args:
        known: the hosts; None: they are read now.

    Raises:
        InvalidInput: it cannot be meant, or names a class or trait that placement does not know.
        Unavailable: etcd or placement does not answer.
    """
    query = candidates_query(text)
    check_classes(query)
    wanted = asked(query)
    known = survey(cloud) if known is None else known
    if not (wanted.classes <= known.classes and wanted.traits <= known.traits):
        # One that no host has costs placement little to answer, and it says so if it does not know it.
        try:
            cloud.placement.candidates(query, limit=1)
        except InvalidInput as error:
            raise explained(error, cloud.placement) from error
    members = {
        condition: frozenset(p.uuid for p in cloud.placement.providers(member_of=condition))
        for condition in wanted.conditions
    }
    return Look(wanted, known.hosts, members)


def barred(node: Node | None, admin: Admin | None, traits: frozenset[str]) -> str | None:
    """Return why a host takes nothing new, to stand behind its name; None: it does. Pure."""
    bar = bar_of(node, admin)
    if bar is not None:
        return bar.says
    return "takes nothing new: its daemon is starting, or has ended" if DISABLED in traits else None


def _provider(uuid: str, summary: Summary, node: Node | None) -> Provider:
    return Provider(
        uuid=uuid,
        parent=summary.parent_provider_uuid,
        stocks={
            name: _stock(use.capacity, use.used, node, name, is_closed=DISABLED in summary.traits)
            for name, use in summary.resources.items()
        },
        # What keeps it closed is told as its state.
        traits=summary.traits - {DISABLED},
    )


def _stock(capacity: int, used: int, node: Node | None, name: str, *, is_closed: bool) -> Stock:
    """Return what a provider has; of one that is closed, what it has when it is open."""
    facts = None if node is None else node.inventory.get(name)
    if facts is None:
        return Stock(capacity, used)
    return Stock(
        capacity=facts.capacity if is_closed else capacity,
        used=used,
        min_unit=facts.min_unit,
        max_unit=facts.max_unit,
        step_size=facts.step_size,
    )


def _sharing(cloud: Cloud) -> list[tuple[Provider, frozenset[str]]]:
    """Return every provider that shares, and the providers that it shares with."""
    placement = cloud.placement
    found = []
    for provider in placement.providers(required=SHARES):
        try:
            aggregates = placement.aggregates(provider.uuid)
            if not aggregates:
                continue  # with nobody
            stocks = _stocks(placement.inventories(provider.uuid).inventories, placement.usages(provider.uuid))
            traits = placement.traits(provider.uuid)
        except NotFound:
            continue  # removed meanwhile
        anchors = placement.providers(member_of="in:" + ",".join(sorted(aggregates)))
        shared = Provider(provider.uuid, provider.parent_provider_uuid, stocks, traits)
        found.append((shared, frozenset(anchor.uuid for anchor in anchors)))
    return found


def _stocks(inventories: Mapping[str, Inventory], usages: Mapping[str, int]) -> dict[str, Stock]:
    return {
        name: Stock(i.capacity, usages.get(name, 0), i.min_unit, i.max_unit, i.step_size)
        for name, i in inventories.items()
    }
