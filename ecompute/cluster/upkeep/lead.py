"""Who leads: the holder of a leased key. Every act of a leader compares the key's create revision.

A leader that was paused past its lease finds, when it writes, that the key is another's: its
transaction fails. Writes to placement cannot be compared so; there the consumer's generation
protects, and nothing is written that a second leader would not write as well.

One thread campaigns; `term` may be read by any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.documents import Lead, timestamp
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import Compare, Lease, Put, Store, absent, created_at

LEASE_TTL_S = 15


@dataclass(frozen=True)
class Term:
    """One uninterrupted lead."""

    key: str
    create_revision: int

    def holds(self) -> Compare:
        """The comparison that every write of this leader carries."""
        return created_at(self.key, self.create_revision)


class Election:
    """Takes the lead of ``role`` whenever it is free.

    Args:
        holder: who leads, for people who look at the key.
    """

    def __init__(self, store: Store, role: str, holder: str, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._key = keys.lead(role)
        self._holder = holder
        self._now = now
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._term: Term | None = None
        self._is_doubted = False

    def doubt(self) -> None:
        """The key has changed: the next `campaign` looks whether it is still the one that was put."""
        self._is_doubted = True

    @property
    def term(self) -> Term | None:
        """The term that is held now, by this process's own clock; ``None`` while another leads."""
        with self._lock:
            if self._lease is not None and not self._lease.is_held:
                self._lease = self._term = None
            return self._term

    def campaign(self) -> Term | None:
        """Take the lead if it is free; called again and again.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        term = self.term
        if term is not None and self._is_doubted:
            try:
                self._store.commit([term.holds()], [])
            except CompareFailed:
                # Somebody has deleted it: nothing passes any more that compares it, and its lease would never end.
                self.resign()
                term = None
            self._is_doubted = False
        if term is not None:
            return term
        if self._store.keys(self._key, limit=1)[0]:
            return None
        lease = self._store.lease(LEASE_TTL_S, on_lost=self._lost)
        try:
            revision = self._store.commit(
                [absent(self._key)],
                [Put(self._key, Lead(holder=self._holder, since=timestamp(self._now())), lease=lease.id)],
            )
        except CompareFailed:
            lease.revoke()
            return None
        except BaseException:
            lease.revoke()
            raise
        with self._lock:
            self._lease, self._term = lease, Term(self._key, revision)
            return self._term

    def resign(self) -> None:
        """Give the lead back at once, so that another need not wait for the lease to end."""
        with self._lock:
            lease, self._lease, self._term = self._lease, None, None
        if lease is not None:
            lease.revoke()

    def _lost(self) -> None:
        with self._lock:
            self._lease = self._term = None
