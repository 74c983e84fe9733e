"""Why a host is not among placement's candidates: what each host lacks, and who lacks least. Pure.

A reason is only given where it alone keeps the host out, whatever else were granted. Where each part
of a query could be served and all of them together cannot, that is said, and no more is claimed.

Reasons name what other guests use of a host, so tenants see no hosts but counts: `for_tenant`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ecompute.cluster.given import physical_of
from eschedule.scheduler.asked import Asked, Part
from eschedule.scheduler.fit import (
    Members,
    Provider,
    Stock,
    TooMany,
    Tree,
    first_way,
    is_in_tree,
    is_member,
    servers,
)


class Kind(StrEnum):
    CAPACITY = "capacity"
    UNIT = "unit"
    """One provider gives less, or more, or in other steps, at once."""
    CLASS = "class"
    TRAIT = "trait"
    FORBIDDEN = "forbidden"
    AGGREGATE = "aggregate"
    TREE = "tree"
    GROUP = "group"
    """Anti-affinity, or affinity, with other instances."""
    STATE = "state"
    """Drained, in maintenance, lost, on hold, or not a host of this cloud."""
    TOGETHER = "together"


_DISTANCE = {
    Kind.CAPACITY: 0.0,  # and the share that is short
    Kind.UNIT: 1.0,
    Kind.TRAIT: 2.0,
    Kind.FORBIDDEN: 2.0,
    Kind.AGGREGATE: 2.0,
    Kind.TOGETHER: 2.0,
    Kind.GROUP: 3.0,
    Kind.STATE: 3.0,
    Kind.CLASS: 4.0,
    Kind.TREE: 8.0,
}


@dataclass(frozen=True)
class Reason:
    """One thing that keeps a host out."""

    kind: Kind
    text: str
    """With the sums: ``VCPU: 7 of 8 used, 2 asked``."""
    miss: str
    """To stand behind a host's name: ``lacks 1 VCPU``."""
    general: str
    """Without what belongs to this host alone: ``not enough VCPU is free``."""
    suffix: str = ""
    """The group of the query."""
    short: float = 0.0
    """For capacity: which share of what is asked is missing."""

    @property
    def distance(self) -> float:
        return _DISTANCE[self.kind] + self.short


@dataclass(frozen=True)
class Host:
    """One host, as it was read."""

    provider: str
    name: str
    tree: Tree | None
    """None: placement does not know it."""
    barred: str | None = None
    """Why it takes nothing new: ``is draining: a new disk``. Its stocks are what it has when it is open."""


@dataclass(frozen=True)
class Verdict:
    """What stands between a host and a query; nothing: it could serve it."""

    provider: str
    name: str
    reasons: tuple[Reason, ...]

    @property
    def is_able(self) -> bool:
        return not self.reasons

    @property
    def lacks(self) -> str:
        return "; ".join(reason.text for reason in self.reasons)


@dataclass(frozen=True)
class Count:
    """For people who may not see hosts: how many are kept out by a reason. A host may have several."""

    reason: str
    hosts: int


@dataclass(frozen=True)
class Explanation:
    verdicts: tuple[Verdict, ...]
    """In the order of the hosts."""

    @property
    def able(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if verdict.is_able)

    @property
    def nearest(self) -> Verdict | None:
        """The host that lacks least; None where one lacks nothing, or there is none."""
        if not self.verdicts or self.able:
            return None
        return min(self.verdicts, key=lambda v: (sum(r.distance for r in v.reasons), len(v.reasons), v.name))

    @property
    def nearest_miss(self) -> str:
        """One line: ``host-3 lacks 1 VCPU``."""
        nearest = self.nearest
        if nearest is not None:
            return f"{nearest.name} {_joined(reason.miss for reason in nearest.reasons)}"
        return "no host has registered" if not self.verdicts else f"{self.able[0].name} could serve it now"

    @property
    def nearest_miss_for_tenant(self) -> str:
        """The same, without a host's name, and without what is used there."""
        nearest = self.nearest
        if nearest is not None:
            return f"on the nearest host, {_joined(reason.general for reason in nearest.reasons)}"
        return "there is no host" if not self.verdicts else "a host could serve it now"

    def for_tenant(self) -> tuple[Count, ...]:
        """Return the reasons without hosts, the most frequent first."""
        counted: Counter[str] = Counter()
        for verdict in self.verdicts:
            counted.update({reason.general for reason in verdict.reasons})
        return tuple(
            Count(text, hosts) for text, hosts in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        )


def explain(
    query: Asked,
    hosts: Iterable[Host],
    members: Members,
    *,
    excluded: frozenset[str] = frozenset(),
    only: frozenset[str] | None = None,
    group_name: str = "its group",
) -> Explanation:
    """Return what each of ``hosts`` lacks for ``query``.

    Args:
        members: for every one of `Asked.conditions`.
        excluded: providers of hosts where an instance of the group cannot be.
        only: where alone it can be; None: anywhere else.
        group_name: for people.
    """
    verdicts = []
    for host in hosts:
        reasons = list(_of_state(host))
        if host.provider in excluded or (only is not None and host.provider not in only):
            reasons.append(
                Reason(
                    Kind.GROUP,
                    f"{group_name} does not allow it there",
                    f"is ruled out by {group_name}",
                    f"{group_name} does not allow it",
                )
            )
        if host.tree is not None:
            reasons += lacks(query, host.tree, members)
        verdicts.append(Verdict(host.provider, host.name, tuple(reasons)))
    return Explanation(tuple(verdicts))


def lacks(query: Asked, tree: Tree, members: Members) -> list[Reason]:
    """Return why ``tree`` cannot serve ``query``; nothing: it can."""
    reasons = [_misses_trait(trait, "") for trait in sorted(query.root_required - tree.root_traits)]
    reasons += [_has_forbidden(trait, "") for trait in sorted(query.root_forbidden & tree.root_traits)]
    for part in query.parts:
        reasons += _alone(part, tree, members) if part.suffix else _spread(part, tree, members)
    if reasons:
        return reasons
    try:
        if first_way(tree, query, members) is not None:
            return []
    except TooMany:
        text = "too many ways to serve it: whether one fits is not known"
        return [Reason(Kind.TOGETHER, text, "may or may not serve it", "it is not known whether it fits")]
    text = "each part of the query can be served, but not all of them together"
    return [Reason(Kind.TOGETHER, text, "cannot serve all parts together", "not all parts can be served together")]


def _of_state(host: Host) -> Iterable[Reason]:
    if host.tree is None:
        yield Reason(Kind.STATE, "placement does not know it", "is not in placement", "not in placement")
    if host.barred is not None:
        yield Reason(Kind.STATE, f"it {host.barred}", host.barred, "takes nothing new now")


def _spread(part: Part, tree: Tree, members: Members) -> list[Reason]:
    """What has no suffix: several providers of the tree may serve it."""
    if part.in_tree is not None and not tree.own(part.in_tree):
        return [_other_tree(part)]
    providers = servers(tree, part)
    having = {name: [p for p in providers if name in p.stocks] for name in part.resources}
    reasons = []
    for name, amount in sorted(part.resources.items()):
        stocks = [p.stocks[name] for p in having[name]]
        if not any(stock.takes(amount) for stock in stocks):
            reasons.append(_short(name, amount, stocks, ""))
    serving = [p for found in having.values() for p in found]
    if not all(having.values()):
        # Who would serve it is not known, so that nothing can be said of its traits and aggregates
        # but what the whole tree lacks.
        serving = list(providers)
    for wanted in part.required:
        if not any(wanted & p.traits for p in serving):
            reasons.append(_misses_any(wanted, ""))
    for trait in sorted(part.forbidden):
        if any(found and all(trait in p.traits for p in found) for found in having.values()):
            reasons.append(_has_forbidden(trait, ""))
    for condition in part.member_of:
        if any(
            found and not any(is_member(tree, p, condition, members, spans_tree=True) for p in found)
            for found in having.values()
        ):
            reasons.append(_not_member(condition, ""))
    for condition in part.not_member_of:
        if any(
            found and all(is_member(tree, p, condition, members, spans_tree=True) for p in found)
            for found in having.values()
        ):
            reasons.append(_bad_member(condition, ""))
    return reasons


def _alone(part: Part, tree: Tree, members: Members) -> list[Reason]:
    """What has a suffix: of the providers of the tree, what the one lacks that lacks least."""
    each = [_of_provider(part, tree, provider, members) for provider in (*tree.providers, *tree.sharing)]
    return min(each, key=lambda reasons: (sum(r.distance for r in reasons), len(reasons)), default=[_other_tree(part)])


def _of_provider(part: Part, tree: Tree, provider: Provider, members: Members) -> list[Reason]:
    suffix = part.suffix
    reasons = [] if is_in_tree(tree, provider, part) else [_other_tree(part)]
    for name, amount in sorted(part.resources.items()):
        stock = provider.stocks.get(name)
        if stock is None or not stock.takes(amount):
            reasons.append(_short(name, amount, [] if stock is None else [stock], suffix))
    reasons += [_misses_any(wanted, suffix) for wanted in part.required if not wanted & provider.traits]
    reasons += [_has_forbidden(trait, suffix) for trait in sorted(part.forbidden & provider.traits)]
    reasons += [
        _not_member(condition, suffix)
        for condition in part.member_of
        if not is_member(tree, provider, condition, members, spans_tree=False)
    ]
    reasons += [
        _bad_member(condition, suffix)
        for condition in part.not_member_of
        if is_member(tree, provider, condition, members, spans_tree=False)
    ]
    return reasons


def _short(name: str, amount: int, stocks: Sequence[Stock], suffix: str) -> Reason:
    """Return why none of ``stocks`` takes ``amount``: of the one that comes nearest."""
    if not stocks:
        text = f"has no {name}"
        return Reason(Kind.CLASS, _in(suffix, text), text, text, suffix)
    stock = max(stocks, key=lambda s: (_is_unit_right(s, amount), s.free))
    if not _is_unit_right(stock, amount):
        return _unit(name, amount, stock, suffix)
    text = f"{name}: {stock.used} of {stock.capacity} used, {amount} asked"
    missing = amount - stock.free
    return Reason(
        Kind.CAPACITY,
        _in(suffix, text),
        f"lacks {missing} {name}",
        f"not enough {name} is free",
        suffix,
        min(1.0, missing / amount),
    )


def _is_unit_right(stock: Stock, amount: int) -> bool:
    return stock.min_unit <= amount <= stock.max_unit and amount % stock.step_size == 0


def _unit(name: str, amount: int, stock: Stock, suffix: str) -> Reason:
    if amount > stock.max_unit:
        text, miss = f"at most {stock.max_unit} at once", f"gives at most {stock.max_unit} {name} at once"
    elif amount < stock.min_unit:
        text, miss = f"at least {stock.min_unit} at once", f"gives no fewer than {stock.min_unit} {name} at once"
    else:
        text, miss = f"in steps of {stock.step_size}", f"gives {name} in steps of {stock.step_size}"
    return Reason(
        Kind.UNIT,
        _in(suffix, f"{name}: {text}, {amount} asked"),
        miss,
        f"{amount} {name} are not given at once",
        suffix,
    )


def _misses_trait(trait: str, suffix: str) -> Reason:
    bridge = physical_of(trait)
    text = f"lacks trait {trait}" if bridge is None else f"lacks a bridge called {bridge} (trait {trait})"
    return Reason(Kind.TRAIT, _in(suffix, text), text, text, suffix)


def _misses_any(wanted: frozenset[str], suffix: str) -> Reason:
    if len(wanted) == 1:
        return _misses_trait(next(iter(wanted)), suffix)
    text = f"has none of the traits {', '.join(sorted(wanted))}"
    return Reason(Kind.TRAIT, _in(suffix, text), text, text, suffix)


def _has_forbidden(trait: str, suffix: str) -> Reason:
    text = f"has the forbidden trait {trait}"
    return Reason(Kind.FORBIDDEN, _in(suffix, text), text, text, suffix)


def _not_member(condition: str, suffix: str) -> Reason:
    text = f"is not in aggregate {condition}" if "," not in condition else f"is in none of the aggregates {condition}"
    text = text.replace(" in:", " ")
    return Reason(Kind.AGGREGATE, _in(suffix, text), text, text, suffix)


def _bad_member(condition: str, suffix: str) -> Reason:
    text = f"is in the forbidden aggregate {condition}".replace(" in:", " ")
    return Reason(Kind.AGGREGATE, _in(suffix, text), text, text, suffix)


def _other_tree(part: Part) -> Reason:
    text = f"is not in the tree of {part.in_tree}"
    return Reason(Kind.TREE, _in(part.suffix, text), text, "another host was asked for", part.suffix)


def _in(suffix: str, text: str) -> str:
    return f"group {suffix}: {text}" if suffix else text


def _joined(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
