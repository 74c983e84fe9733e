"""Has those hosts register again that placement has forgotten: it was emptied, or set back.

A host looks at its provider every ten minutes, and a thousand hosts that looked every minute would be
seventeen requests a second for something that happens once in years. So the lead looks for all of them:
each turn asks placement for the provider of one host, another each time. Where that is gone, one request
lists all providers, and each host that is missing and answers is asked to look by itself (`asking.REGISTER`),
with a pause between two: it takes some ten requests to register. An emptied placement is noticed by the first
turn; a single provider that somebody deleted, at the latest by its host.

What is claimed again is in `reclaim`. A duty of the lead; if it dies on the way, the next one looks.
"""

from __future__ import annotations

import logging

from ecompute.cluster import keys
from ecompute.cluster.asking import REGISTER, ask
from ecompute.cluster.documents import Alive, Operation
from ecompute.cluster.upkeep.duties import Charge, Duty

PERIOD_S = 20.0
PAUSE_S = 0.25
"""Between two hosts: each then makes some ten requests to placement."""
ANSWER_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


def next_of(providers: list[str], last: str) -> str | None:
    """Return the one of ``providers``, which are sorted, that comes after ``last``; then the first again. Pure."""
    return next((provider for provider in providers if provider > last), providers[0] if providers else None)


class Watch:
    """One term's."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._last = ""

    def look(self) -> tuple[str, ...]:
        """Look whether placement knows the next host; return the hosts that were asked to register again.

        Raises:
            NotLeading: the term has ended.
            Unavailable: etcd or placement does not answer; the next turn goes on.
        """
        store, placement = self._charge.store, self._charge.placement
        registered = sorted(keys.last(key) for key in store.keys(keys.NODES)[0])
        chosen = next_of(registered, self._last)
        if chosen is None:
            return ()
        self._last = chosen
        if placement.provider(chosen) is not None:
            return ()
        known = {provider.uuid for provider in placement.providers()}
        missing = [provider for provider in registered if provider not in known]
        log.warning(
            "placement knows nothing of %d of %d hosts: those that answer are asked to register again",
            len(missing),
            len(registered),
        )
        asked = []
        for provider in missing:
            self._charge.pause(PAUSE_S)
            if store.get(keys.alive(provider), Alive) is None:
                continue  # it registers when it starts
            if ask(store, provider, Operation(kind=REGISTER), timeout_s=ANSWER_TIMEOUT_S) is not None:
                asked.append(provider)
        return tuple(asked)


FORGOTTEN = Duty("forgotten-hosts", PERIOD_S, lambda charge: Watch(charge).look)
