"""How many more instances like one would fit. Pure.

On a host without nested or sharing providers the answer is exact. Where one query can be served in
several ways, the ways are used up one after the other, and the answer is a number that fits for
certain. What hosts share is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from eschedule.scheduler.asked import Asked
from eschedule.scheduler.explain import Host
from eschedule.scheduler.fit import Members, Provider, TooMany, Tree, first_way

Taken = dict[tuple[str, str], int]
"""``{(provider, class): amount}``"""


@dataclass(frozen=True)
class Fits:
    """How many more fit."""

    total: int
    """On all hosts together."""
    by_host: dict[str, int]
    """``{provider: how many, if all were put there}``"""
    best: Host | None
    """The host that takes the most; None: none takes any."""

    @property
    def on_best(self) -> int:
        return 0 if self.best is None else self.by_host[self.best.provider]

    @property
    def hosts_with_room(self) -> int:
        return sum(1 for n in self.by_host.values() if n)


def capacity(query: Asked, hosts: Iterable[Host], members: Members) -> Fits:
    """Return how many more instances that ask ``query`` would fit on ``hosts``.

    Args:
        members: for every one of `Asked.conditions`.
    """
    total = 0
    shared: Taken = {}
    by_host: dict[str, int] = {}
    best: Host | None = None
    for host in hosts:
        by_host[host.provider] = 0
        if host.tree is None or host.barred is not None:
            continue
        by_host[host.provider] = _fill(query, host.tree, members, {})
        # Only what is shared can be taken by another host.
        total += _fill(query, host.tree, members, shared) if host.tree.sharing else by_host[host.provider]
        if by_host[host.provider] > (by_host[best.provider] if best is not None else 0):
            best = host
    return Fits(total, by_host, best)


def _fill(query: Asked, tree: Tree, members: Members, taken: Taken) -> int:
    """Return how many fit on ``tree`` beside what is ``taken``; add to it what they take."""
    count = 0
    while True:
        left = _without(tree, taken)
        try:
            way = first_way(left, query, members)
        except TooMany:
            return count
        if way is None:
            return count
        stocks = {(p.uuid, name): stock for p in (*left.providers, *left.sharing) for name, stock in p.stocks.items()}
        times = min(stocks[key].free // amount for key, amount in way.rows.items())
        for key, amount in way.rows.items():
            taken[key] = taken.get(key, 0) + times * amount
        count += times


def _without(tree: Tree, taken: Taken) -> Tree:
    if not taken:
        return tree

    def less(provider: Provider) -> Provider:
        stocks = {
            name: replace(stock, used=stock.used + taken.get((provider.uuid, name), 0))
            for name, stock in provider.stocks.items()
        }
        return replace(provider, stocks=stocks)

    return replace(tree, providers=tuple(map(less, tree.providers)), sharing=tuple(map(less, tree.sharing)))
