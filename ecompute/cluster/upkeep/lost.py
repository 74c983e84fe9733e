"""Hosts whose heartbeat lapses are marked lost, and closed; those that are back are unmarked.

A duty of the lead. ``/alive/<provider>`` goes 30 s after a daemon was last heard; after `LOST_AFTER_S`
without it, by the lead's own clock, ``lost_since`` is set in ``/admin/<provider>``, beside whatever
operators say there, so that a drained host that is lost comes back drained. Then the host is closed in
placement, as by an operator's drain: no answer names it, and a claim or a request from an older answer
fails. Guests, claims and addresses stay: that a host is silent does not say that it is off.

When it is heard again ``lost_since`` goes, and the host opens itself.

A host whose daemon was stopped in order has said so in ``/nodes``, and is not lost, however long it is
silent: it is closed in placement, where it could not do that itself, and nothing else.

`judge` is pure; `Watch` reads three ranges of keys a look, and the nodes of who is silent, and acts. If the
lead dies after the mark and before the host is closed, the next one closes it: it knows of no lost host
that it is closed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.closing import said
from ecompute.cluster.documents import Admin, Node, timestamp
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.saying import close
from ecompute.cluster.store import Put, Versioned, absent, present, unchanged
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone

LOST_AFTER_S = 60.0
"""Without a heartbeat, beyond the 30 s of its lease."""
PERIOD_S = 10.0
PAUSE_S = 0.1
"""Between two hosts: a rack that is gone is closed in seconds, and placement serves others meanwhile."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """``missing``: {provider: since when it has not been heard}; ``lost`` and ``back``: to be marked and unmarked.

    Back is who is heard, and who says that it is stopped.
    """

    missing: Mapping[str, float]
    lost: frozenset[str]
    back: frozenset[str]


def judge(
    *,
    registered: AbstractSet[str],
    alive: AbstractSet[str],
    stopped: AbstractSet[str] = frozenset(),
    marked: AbstractSet[str],
    missing: Mapping[str, float],
    now_s: float,
    lost_after_s: float = LOST_AFTER_S,
) -> Verdict:
    """Return which hosts are lost and which are back. Pure.

    Args:
        registered: the providers of all hosts.
        alive: of those that are heard.
        stopped: of those that say that their daemon is stopped.
        marked: of those that count as lost.
        missing: what the look before found; empty at first.
        now_s: of a monotonic clock.
    """
    silent = {provider: missing.get(provider, now_s) for provider in registered - alive - stopped}
    lost = {provider for provider, since in silent.items() if now_s - since >= lost_after_s}
    return Verdict(silent, frozenset(lost - marked), frozenset(marked & (alive | stopped)))


class Watch:
    """One term's watch over all hosts.

    Args:
        now: seconds since 1970, for people.
    """

    def __init__(
        self, charge: Charge, *, lost_after_s: float = LOST_AFTER_S, now: Callable[[], float] = time.time
    ) -> None:
        self._charge = charge
        self._lost_after_s = lost_after_s
        self._now = now
        self._missing: Mapping[str, float] = {}
        self._looked_s = charge.clock()
        self._closed: set[str] = set()
        self._each = EachAlone()

    def look(self) -> None:
        """Mark, unmark and close what is due.

        Raises:
            NotLeading: the term has ended.
            Unavailable: etcd or placement does not answer; the next look goes on.
        """
        store = self._charge.store
        admins = {keys.last(item.key): item for item in store.list(keys.ADMIN, Admin).items}
        registered = {keys.last(key) for key in store.keys(keys.NODES)[0]}
        alive = {keys.last(key) for key in store.keys(keys.ALIVE)[0]}
        silent = store.get_many([keys.node(provider) for provider in sorted(registered - alive)], Node).items
        stopped = {keys.last(item.key): item for item in silent if item.value.stopped is not None}
        if self._charge.clock() - self._looked_s > 3 * PERIOD_S:
            # Etcd was away, perhaps with all leases: how long a host was silent cannot be said.
            self._missing = {}
        self._looked_s = self._charge.clock()
        marked = {provider for provider, item in admins.items() if item.value.lost_since is not None}
        verdict = judge(
            registered=registered,
            alive=alive,
            stopped=stopped.keys(),
            marked=marked,
            missing=self._missing,
            now_s=self._charge.clock(),
            lost_after_s=self._lost_after_s,
        )
        self._missing = verdict.missing
        self._closed &= (marked - verdict.back) | stopped.keys()
        for provider in sorted(verdict.back):
            self._each(
                f"host {provider} is back and stays marked lost",
                self._unmark,
                provider,
                admins[provider],
                stopped.get(provider),
            )
        newly = {
            provider
            for provider in sorted(verdict.lost)
            if self._each(f"host {provider} could not be marked lost", self._mark, provider, admins.get(provider))
        }
        for provider in sorted(((marked & registered) - verdict.back | newly | stopped.keys()) - self._closed):
            self._charge.guard()
            what = f"host {provider}, which is {'stopped' if provider in stopped else 'lost'}, could not be closed"
            if self._each(what, close, store, self._charge.placement, provider) is not None:
                self._closed.add(provider)
            self._charge.pause(PAUSE_S)

    def _mark(self, provider: str, found: Versioned[Admin] | None) -> bool:
        key = keys.admin(provider)
        before = Admin() if found is None else found.value
        try:
            self._charge.store.commit(
                [
                    *self._charge.guard(),
                    absent(keys.alive(provider)),
                    absent(key) if found is None else unchanged(found),
                ],
                [Put(key, said(before, lost_since=timestamp(self._now())))],
            )
        except CompareFailed:
            return False  # it is back, or operators say something: the next look sees
        log.warning(
            "host %s is lost: no heartbeat for %.0f s", provider, self._charge.clock() - self._missing[provider]
        )
        return True

    def _unmark(self, provider: str, found: Versioned[Admin], stopped: Versioned[Node] | None) -> None:
        is_back = present(keys.alive(provider)) if stopped is None else unchanged(stopped)
        try:
            self._charge.store.commit(
                [*self._charge.guard(), is_back, unchanged(found)],
                [Put(found.key, said(found.value, lost_since=None))],
            )
        except CompareFailed:
            return
        log.info("host %s is %s", provider, "back" if stopped is None else "not lost: it was stopped")


LOST = Duty("lost-hosts", PERIOD_S, lambda charge: Watch(charge).look)
