"""Placement's answers for one launch, one after the other: each is asked only if the ones before did not serve.

First the hosts of one shard, then all of them; of both first the answer that is kept, then a new one.
That there is no room is said of a new answer about the whole cloud alone. A launcher stays with one
shard for as long as an answer is kept, and then takes another at random: one question serves many
launches, and in the long run all hosts are asked alike.

Safe from several threads.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from ecompute.cluster import keys
from ecompute.cluster.documents import Node
from ecompute.cluster.errors import InvalidInput, NotFound
from ecompute.cluster.placement import Candidates, CandidatesQuery
from ecompute.cluster.shards import level_for, shards
from eschedule.scheduler.cache import TTL_S, Offer, OfferCache
from eschedule.scheduler.facts import Facts
from eschedule.scheduler.question import in_shard, limit_of, names_a_host, on_host
from eschedule.scheduler.unknown import explained

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement
    from ecompute.cluster.store import Store


FEW = 4
"""Of so many hosts each is asked about alone."""
WIDE_LIMIT = 1000
"""Candidates, where some hosts alone will do, and nobody knows where in an answer they stand."""


class Offers:
    """Asks placement, through the cache.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        facts: Facts,
        cache: OfferCache,
        *,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._placement = placement
        self._facts = facts
        self._cache = cache
        self._rng = rng
        self._clock = clock
        self._lock = threading.Lock()
        self._shard = ""
        self._shard_until_s = 0.0

    def of(
        self,
        question: CandidatesQuery,
        host: str | None,
        *,
        only: AbstractSet[str] | None = None,
        is_wide: bool = False,
        limit: int | None = None,
    ) -> Iterator[Offer]:
        """Yield the answers to try.

        Args:
            question: with all that is always added to it.
            host: the name of the one host that may serve it, or its provider's uuid.
            only: the hosts that alone may serve it. The answer need not keep to them, but holds them.
            is_wide: whether some hosts will not do, and all that were drawn may be among those: the last
                answer is one of so many hosts that the others are found in it.
            limit: how many candidates to ask for, where those of one launch are too few.

        Raises:
            InvalidInput: placement cannot make sense of it.
            NotFound: there is no such host.
        """
        if host is not None:
            yield from self._of_host(question, self.host(host), is_said=True)
            return
        if only is not None and len(only) <= FEW:
            for provider in sorted(only):
                yield from self._of_host(question, provider)
            return
        if only is not None:
            yield Offer(self._ask(question, limit=WIDE_LIMIT))
            return
        shard = self._shard_now()
        narrowed = in_shard(question, shard) if shard else None
        if narrowed is not None:
            yield from self._twice(narrowed, limit, is_last=False)
            self._leave(shard)
        yield from self._twice(question, limit)
        if is_wide:
            yield Offer(self._ask(question, limit=WIDE_LIMIT))

    def _twice(self, question: CandidatesQuery, limit: int | None, *, is_last: bool = True) -> Iterator[Offer]:
        key = (question.text, limit)
        offer, is_new = self._cache.get(key, lambda: self._ask(question, limit))
        yield offer
        # Where a shard had nothing seconds ago, what is asked next is the whole cloud, with the shard in it.
        if not is_new and (is_last or offer.answer.items):
            yield self._cache.get(key, lambda: self._ask(question, limit), newer_than=offer)[0]

    def _of_host(self, question: CandidatesQuery, provider: str, *, is_said: bool = False) -> Iterator[Offer]:
        narrowed = None if names_a_host(question) and not is_said else on_host(question, provider)
        if narrowed is not None:
            offer = Offer(self._ask(narrowed))
            yield offer
            if offer.hosts:
                return
        # What others share with a host is not in its tree: it stands in an answer about all hosts.
        whole = self._ask(question, limit=WIDE_LIMIT)
        items = tuple(candidate for candidate in whole.items if "VCPU" in candidate.allocations.get(provider, {}))
        yield Offer(Candidates(items=items, summaries=whole.summaries))

    def _ask(self, question: CandidatesQuery, limit: int | None = None) -> Candidates:
        try:
            return self._placement.candidates(question, limit=limit or limit_of(question))
        except InvalidInput as error:
            raise explained(error, self._placement) from error

    # --- shards --------------------------------------------------------------------------------

    def _shard_now(self) -> str:
        """Return the aggregate to ask first; empty: the cloud is one."""
        now_s = self._clock()
        with self._lock:
            if now_s < self._shard_until_s:
                return self._shard
        level = level_for(self._facts.host_count())
        shard = self._rng.choice(shards(level)) if level else ""
        with self._lock:
            self._shard, self._shard_until_s = shard, now_s + TTL_S
        return shard

    def _leave(self, shard: str) -> None:
        """Take another one next time: this one has no room."""
        with self._lock:
            if self._shard == shard:
                self._shard_until_s = 0.0

    # --- hosts by name -------------------------------------------------------------------------

    def host(self, name: str) -> str:
        """Return the provider of the host called ``name``.

        Raises:
            NotFound: there is none.
        """
        if keys.is_uuid(name):
            provider: str | None = name
        else:
            found = self._placement.provider_by_name(name)
            provider = None if found is None else found.uuid
        if provider is None or self._store.get(keys.node(provider), Node) is None:
            raise NotFound(f"there is no host {name[:80]!r}", hint="see `eschedule hosts`")
        return provider
