"""The hosts behind placement's candidates: which of them take an instance, and in what order.

placement knows who has room; etcd knows who is drained, on hold, or does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, AdminState, Alive, Node
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import Candidate, Candidates
from ecompute.cluster.store import Store, Versioned
from eschedule.scheduler.rank import Ranked, free_share, rank

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A host that takes instances, as it was read."""

    node: Versioned[Node]
    admin: Versioned[Admin] | None
    is_alive: bool

    @property
    def name(self) -> str:
        return self.node.value.name


def targets(store: Store, providers: Iterable[str]) -> dict[str, Target]:
    """Return those of ``providers`` that are hosts of this cloud and take new instances."""
    wanted = sorted(providers)
    nodes = store.get_many([keys.node(provider) for provider in wanted], Node).items
    admins = _by_last(store.get_many([keys.admin(provider) for provider in wanted], Admin).items)
    alive = _by_last(store.get_many([keys.alive(provider) for provider in wanted], Alive).items)
    return {
        node.value.provider: Target(node, admins.get(node.value.provider), node.value.provider in alive)
        for node in nodes
        if takes_new(node.value, admins.get(node.value.provider))
    }


def takes_new(node: Node, admin: Versioned[Admin] | None) -> bool:
    """Whether a host takes instances; whether it answers is another question. Pure."""
    return node.hold is None and (admin is None or admin.value.state is AdminState.ACTIVE)


def by_host(answer: Candidates) -> dict[int, str]:
    """Return {index of a candidate: its host}, without those that have not just one. Pure.

    Raises:
        InvalidInput: none of them has one host.
    """
    hosts: dict[int, str] = {}
    problem: InvalidInput | None = None
    for index, candidate in enumerate(answer.items):
        try:
            hosts[index] = candidate.host
        except InvalidInput as error:
            problem = error
    if problem is not None and not hosts:
        raise problem
    return hosts


def ranked(answer: Candidates, hosts: Mapping[int, str], known: Mapping[str, Target], seed: int) -> list[Ranked]:
    """Return the candidates whose host is ``known``, in the order in which they should be tried. Pure."""
    return rank(
        [
            Ranked(
                index=index,
                provider=provider,
                free_share=free_share(_room(answer, answer.items[index])),
                is_alive=known[provider].is_alive,
            )
            for index, provider in hosts.items()
            if provider in known
        ],
        seed,
    )


def _room(answer: Candidates, candidate: Candidate) -> list[tuple[float, int, int]]:
    room = []
    for provider, amounts in candidate.allocations.items():
        summary = answer.summaries.get(provider)
        for resource_class, amount in amounts.items():
            use = None if summary is None else summary.resources.get(resource_class)
            if use is not None:
                room.append((float(use.capacity), use.used, amount))
    return room


def _by_last(items: tuple[Versioned[T], ...]) -> dict[str, Versioned[T]]:
    return {keys.last(item.key): item for item in items}
