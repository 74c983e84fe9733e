"""How one host could serve a query: the same answer as placement's, from facts read once. Pure.

placement alone decides a claim. This is for what it does not say: why a host is not among its
candidates (`eschedule.scheduler.explain`), and how many more would fit (`capacity`). It follows
placement's rules for trees, sharing providers, groups, isolation and subtrees, and a test holds both
against each other on a real placement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from ecompute.cluster.placement import MAX_INT
from eschedule.scheduler.asked import Asked, Part

STEPS_LIMIT = 20_000
"""How many ways to serve one query on one host are looked at; flat hosts have one."""

Members = Mapping[str, frozenset[str]]
"""``{condition: the providers that are in one of its aggregates}``; conditions as in `Part.member_of`."""


class TooMany(Exception):
    """There are more ways to serve a query on one host than are looked at. Never leaves the scheduler."""


@dataclass(frozen=True)
class Stock:
    """What a provider has of one class. ``capacity`` is what may be claimed in all."""

    capacity: int
    used: int = 0
    min_unit: int = 1
    max_unit: int = MAX_INT
    step_size: int = 1

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def takes(self, amount: int) -> bool:
        return self.min_unit <= amount <= self.max_unit and amount % self.step_size == 0 and amount <= self.free


@dataclass(frozen=True)
class Provider:
    """One resource provider, of a host's tree or sharing with it."""

    uuid: str
    parent: str | None = None
    stocks: Mapping[str, Stock] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tree:
    """A host's providers, its root among them, and those that share with it by an aggregate."""

    root: str
    providers: tuple[Provider, ...]
    sharing: tuple[Provider, ...] = ()

    @property
    def root_traits(self) -> frozenset[str]:
        return next((p.traits for p in self.providers if p.uuid == self.root), frozenset())

    def own(self, uuid: str) -> bool:
        return any(p.uuid == uuid for p in self.providers)


Rows = Mapping[tuple[str, str], int]
"""``{(provider, class): amount}``"""


@dataclass(frozen=True)
class Way:
    """One way to serve a query, or a group of it, on one host."""

    rows: Rows
    providers: Mapping[str, frozenset[str]]
    """``{suffix: providers}``"""


def first_way(tree: Tree, query: Asked, members: Members) -> Way | None:
    """Return a way to serve ``query`` on ``tree``, or None.

    Raises:
        TooMany: none was found among the first `STEPS_LIMIT`.
    """
    return next(ways(tree, query, members), None)


def ways(tree: Tree, query: Asked, members: Members) -> Iterator[Way]:
    """Yield every way to serve ``query`` on ``tree``.

    Raises:
        TooMany: after `STEPS_LIMIT` tries.
    """
    if not query.root_required <= tree.root_traits or query.root_forbidden & tree.root_traits:
        return
    stocks = {(p.uuid, name): stock for p in (*tree.providers, *tree.sharing) for name, stock in p.stocks.items()}
    parts = [list(_limited(options(tree, part, members))) for part in query.parts]
    for steps, chosen in enumerate(product(*parts)):
        if steps >= STEPS_LIMIT:
            raise TooMany(f"{tree.root} has too many ways to serve it")
        rows = _sum(way.rows for way in chosen)
        providers = {suffix: used for way in chosen for suffix, used in way.providers.items()}
        if _fits(rows, stocks) and _is_allowed(tree, query, providers):
            yield Way(rows, providers)


def options(tree: Tree, part: Part, members: Members) -> Iterator[Way]:
    """Yield every way to serve one group alone."""
    if part.suffix:
        for provider in (*tree.providers, *tree.sharing):
            if is_served_by(tree, provider, part, members):
                rows = {(provider.uuid, name): amount for name, amount in part.resources.items()}
                yield Way(rows, {part.suffix: frozenset({provider.uuid})})
        return
    if part.in_tree is not None and not tree.own(part.in_tree):
        return
    by_class = [
        [(provider, name) for provider in servers(tree, part) if _may_serve(tree, provider, name, part, members)]
        for name in sorted(part.resources)
    ]
    for row in product(*by_class):
        traits = frozenset().union(*(provider.traits for provider, _ in row))
        if all(some & traits for some in part.required):
            rows = {(provider.uuid, name): part.resources[name] for provider, name in row}
            yield Way(rows, {"": frozenset(provider.uuid for provider, _ in row)})


def servers(tree: Tree, part: Part) -> tuple[Provider, ...]:
    """Return the providers that could serve a part of ``part`` without a suffix."""
    # What is asked of one tree is not served from another.
    return tree.providers if part.in_tree is not None else (*tree.providers, *tree.sharing)


def is_member(tree: Tree, provider: Provider, condition: str, members: Members, *, spans_tree: bool) -> bool:
    """Whether a provider meets ``condition``; for what has no suffix, its root's aggregates count for it too."""
    found = members.get(condition, frozenset())
    return provider.uuid in found or (spans_tree and tree.root in found)


def is_served_by(tree: Tree, provider: Provider, part: Part, members: Members) -> bool:
    """Whether ``provider`` serves all of ``part``, a group with a suffix."""
    return (
        all((s := provider.stocks.get(name)) is not None and s.takes(n) for name, n in part.resources.items())
        and all(some & provider.traits for some in part.required)
        and not part.forbidden & provider.traits
        and all(is_member(tree, provider, c, members, spans_tree=False) for c in part.member_of)
        and not any(is_member(tree, provider, c, members, spans_tree=False) for c in part.not_member_of)
        and is_in_tree(tree, provider, part)
    )


def is_in_tree(tree: Tree, provider: Provider, part: Part) -> bool:
    """Whether ``provider`` is of the tree that ``part`` asks for, if it asks for any."""
    if part.in_tree is None:
        return True
    return tree.own(part.in_tree) if tree.own(provider.uuid) else provider.uuid == part.in_tree


def _may_serve(tree: Tree, provider: Provider, name: str, part: Part, members: Members) -> bool:
    stock = provider.stocks.get(name)
    return (
        stock is not None
        and stock.takes(part.resources[name])
        and not part.forbidden & provider.traits
        and all(is_member(tree, provider, c, members, spans_tree=True) for c in part.member_of)
        and not any(is_member(tree, provider, c, members, spans_tree=True) for c in part.not_member_of)
    )


def _limited(found: Iterator[Way]) -> Iterator[Way]:
    for steps, way in enumerate(found):
        if steps >= STEPS_LIMIT:
            raise TooMany("there are too many ways to serve it")
        yield way


def _sum(all_rows: Iterator[Rows]) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = {}
    for rows in all_rows:
        for key, amount in rows.items():
            total[key] = total.get(key, 0) + amount
    return total


def _fits(rows: Rows, stocks: Mapping[tuple[str, str], Stock]) -> bool:
    return all(amount <= min(stocks[key].free, stocks[key].max_unit) for key, amount in rows.items())


def _is_allowed(tree: Tree, query: Asked, providers: Mapping[str, frozenset[str]]) -> bool:
    if query.is_isolated:
        alone = [provider for suffix, used in providers.items() if suffix for provider in used]
        if len(alone) != len(set(alone)):
            return False
    parents = {p.uuid: p.parent for p in (*tree.providers, *tree.sharing)}
    for suffixes in query.same_subtree:
        used = frozenset().union(*(providers.get(suffix, frozenset()) for suffix in suffixes))
        if used and not frozenset.intersection(*(_line(uuid, parents) for uuid in used)) & used:
            return False
    return True


def _line(uuid: str, parents: Mapping[str, str | None]) -> frozenset[str]:
    """Return a provider and all above it."""
    line = set()
    at: str | None = uuid
    while at is not None and at not in line:
        line.add(at)
        at = parents.get(at)
    return frozenset(line)
