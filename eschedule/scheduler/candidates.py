"""The hosts behind placement's candidates, in the order in which they are tried. Pure.

placement knows who has room; etcd knows who is drained, on hold, or does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from eschedule.scheduler.cache import Offer
from eschedule.scheduler.facts import Target
from eschedule.scheduler.rank import Ranked, Wishes, free_share, rank, weigh


def ranked(
    offer: Offer,
    known: Mapping[str, Target],
    seed: int,
    *,
    wishes: Wishes = Wishes(),  # noqa: B008 - frozen
    excluded: AbstractSet[str] = frozenset(),
    only: AbstractSet[str] | None = None,
) -> list[Ranked]:
    """Return the candidates that still fit and whose host is ``known``, the best first.

    Args:
        known: the hosts that take new instances.
        excluded: hosts that it cannot be; ``only``: those that alone it can be.
    """
    return rank(
        [
            weigh(
                Ranked(
                    index=index,
                    provider=provider,
                    free_share=free_share(offer.room(index)),
                    is_alive=known[provider].is_alive,
                ),
                wishes,
            )
            for index in offer.open()
            if (provider := offer.hosts[index]) in known
            and provider not in excluded
            and (only is None or provider in only)
        ],
        seed,
    )
