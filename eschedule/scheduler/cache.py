"""Placement's answers, kept for a few seconds: the question is what costs, not the claim.

An `Offer` is one answer with what this process has done to it since: what it claimed is counted as
used, and a host that refused is left out. So one answer serves many launches, and threads that share
it do not all take the same last slot. It knows nothing of what others do: placement decides every
claim anew, and a refusal drops the host. The worst that an old answer costs is a refused claim.

Threads: an `Offer` and an `OfferCache` may be used by several at once; nothing is read or written
outside of memory but by the function that asks, and no lock is held meanwhile but the question's own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping

from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import Candidate, Candidates

TTL_S = 5.0
KEPT = 256
"""Answers kept at most; those asked longest ago go first."""

Room = list[tuple[int, int, int]]
"""For each class of a candidate at each of its providers: capacity, what is used, what is asked for."""


class Offer:
    """One answer of placement, and what is known to have changed since.

    Args:
        read_s: when it was asked for, on the cache's clock.
    """

    def __init__(self, answer: Candidates, read_s: float = 0.0) -> None:
        self.answer = answer
        self.read_s = read_s
        self.hosts = by_host(answer)
        self._lock = threading.Lock()
        self._added: dict[tuple[str, str], int] = {}
        self._dropped: set[str] = set()

    def open(self) -> list[int]:
        """Return the indices of the candidates that still fit, by all that is known."""
        with self._lock:
            return [
                index
                for index, host in self.hosts.items()
                if host not in self._dropped and self._fits(self.answer.items[index])
            ]

    def room(self, index: int) -> Room:
        """Return what there is for a candidate, with what was added since."""
        candidate = self.answer.items[index]
        with self._lock:
            return [
                (capacity, used, amount)
                for provider, amounts in candidate.allocations.items()
                for name, amount in amounts.items()
                if (known := self._known(provider, name)) is not None
                for capacity, used in (known,)
            ]

    def use(self, provider: str, name: str) -> tuple[int, int] | None:
        """Return the capacity of a class at a provider, and what is used of it; None: it is not known."""
        with self._lock:
            return self._known(provider, name)

    def reserve(self, index: int) -> bool:
        """Count a candidate as used before it is claimed; return whether it still fitted."""
        candidate = self.answer.items[index]
        with self._lock:
            if self.hosts[index] in self._dropped or not self._fits(candidate):
                return False
            self._add(candidate.allocations, 1)
            return True

    def give_back(self, index: int) -> None:
        """Undo `reserve`: the claim was not taken, or was released."""
        with self._lock:
            self._add(self.answer.items[index].allocations, -1)

    def drop(self, host: str) -> None:
        """Leave out all candidates of a host: it has refused."""
        with self._lock:
            self._dropped.add(host)

    def _fits(self, candidate: Candidate) -> bool:
        return all(
            known[1] + amount <= known[0]
            for provider, amounts in candidate.allocations.items()
            for name, amount in amounts.items()
            if (known := self._known(provider, name)) is not None
        )

    def _known(self, provider: str, name: str) -> tuple[int, int] | None:
        summary = self.answer.summaries.get(provider)
        use = None if summary is None else summary.resources.get(name)
        return None if use is None else (use.capacity, use.used + self._added.get((provider, name), 0))

    def _add(self, allocations: Mapping[str, Mapping[str, int]], times: int) -> None:
        for provider, amounts in allocations.items():
            for name, amount in amounts.items():
                key = (provider, name)
                self._added[key] = self._added.get(key, 0) + times * amount


class OfferCache:
    """The answers to the latest questions.

    Args:
        ttl_s: how long an answer is used for new launches.
        clock: monotonic seconds.
    """

    def __init__(self, *, ttl_s: float = TTL_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._offers: OrderedDict[Hashable, Offer] = OrderedDict()
        self._asking: dict[Hashable, threading.Lock] = {}
        """The questions that are being asked."""

    def get(
        self, key: Hashable, ask: Callable[[], Candidates], *, newer_than: Offer | None = None
    ) -> tuple[Offer, bool]:
        """Return the answer to a question, and whether it was asked just now.

        Of several threads that want the same, one asks and the others take its answer.

        Args:
            key: the question.
            ask: asks it; what it raises is raised here.
            newer_than: an answer that has not served: another one is wanted, however young it is.
        """
        found = self._fresh(key, newer_than)
        if found is not None:
            return found, False
        with self._lock:
            asking = self._asking.setdefault(key, threading.Lock())
        with asking:
            found = self._fresh(key, newer_than)
            if found is not None:
                return found, False
            try:
                began_s = self._clock()
                offer = Offer(ask(), began_s)
                with self._lock:
                    self._offers[key] = offer
                    self._offers.move_to_end(key)
                    while len(self._offers) > KEPT:
                        self._offers.popitem(last=False)
                return offer, True
            finally:
                with self._lock:
                    # Those that wait for it still hold it; whoever comes now finds the answer, or asks anew.
                    self._asking.pop(key, None)

    def forget(self) -> None:
        with self._lock:
            self._offers.clear()

    def _fresh(self, key: Hashable, newer_than: Offer | None) -> Offer | None:
        with self._lock:
            offer = self._offers.get(key)
        if offer is None or offer is newer_than or self._clock() - offer.read_s >= self._ttl_s:
            return None
        return offer


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
