"""Audits this host, every 15 minutes: what two looks agree on is repaired through its lane, told, and shown.

Shown is it in ``/audits/<provider>``, which is there as long as there is something to show, and is
written when that changes; ``eschedule audit`` reads it. What begins and ends is an event of the host.
While the host is on hold it looks and tells, and wakes nobody: what etcd says may be of another life.

Killed between the write and the waking, the next look wakes: it goes by what it finds, not by what it
had found. Killed before the write, the next daemon takes two looks anew.

Threads: one look at a time, on a worker of the timers.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from msgspec import structs

from ecompute.audit.compare import WOKEN, OwnLook, Suspect, believed, lasting, suspects
from ecompute.cluster import keys
from ecompute.cluster.documents import HostAudit, HostFinding, Unreadable, timestamp
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.events import HOST, Events
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.retries import Retries
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, absent, present, unchanged

PERIOD_S = 900.0
SUSPICIOUS_S = 90.0
"""From a look that suspects something to the next: what is wrong is told soon, and taken back soon."""
MAX_SHOWN = 100
"""A document is no place for the ten thousand guests of an emptied etcd; the rest is counted."""
NAMED = 3
"""How many of a kind an event names."""

log = logging.getLogger(__name__)


class HostAuditor:
    """The audit of one host, from `start` to `stop`.

    Args:
        look: takes a look.
        wake: has an instance's lane go through it.
        is_held: whether the host is on hold.
        clock: seconds, monotonic.
        now: seconds since 1970, for people.
    """

    def __init__(
        self,
        store: Store,
        provider: str,
        look: Callable[[], OwnLook],
        wake: Callable[[str], None],
        *,
        is_held: Callable[[], bool],
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._provider = provider
        self._look = look
        self._wake = wake
        self._is_held = is_held
        self._clock = clock
        self._now = now
        self._events = Events(store, provider, now)
        self._since: dict[Suspect, float] = {}
        self._periodic = Periodic("own-audit", self._turn, period_s=PERIOD_S, rng=rng)
        self._next = Retries("own-audit", lambda what: self._periodic.wake(), rng=rng)

    def start(self) -> None:
        self._periodic.start()

    def stop(self) -> None:
        self._next.close()
        self._periodic.stop()

    def _turn(self) -> None:
        self.audit()
        if self._since:
            self._next.later(self._provider, SUSPICIOUS_S)

    def audit(self) -> frozenset[Suspect]:
        """Take a look; repair and tell what it and the one before agree on, and return that.

        Raises:
            Unavailable, NetworkError: something could not be looked at, or not be written; the next look goes on.
        """
        began_s = self._clock()
        self._since = lasting(self._since, suspects(self._look()), began_s)
        shown, compare = self._shown()
        before = {} if shown is None else {(finding.what, finding.subject): finding for finding in shown.findings}
        # What is shown and suspected again was believed by this daemon, or by the one before it.
        found = believed(self._since, began_s) | {one for one in self._since if one.identity in before}
        after = HostAudit(
            findings=tuple(
                before.get(suspect.identity)
                or HostFinding(
                    what=suspect.what,
                    subject=suspect.subject,
                    since=timestamp(self._now() - (began_s - self._since[suspect])),
                    repair=suspect.repair,
                )
                for suspect in sorted(found)[:MAX_SHOWN]
            ),
            more=max(0, len(found) - MAX_SHOWN),
            reported_at=timestamp(self._now()),
        )
        if shown is None or structs.replace(shown, reported_at=after.reported_at) != after:
            self._show(after, before.keys(), compare)
        if not self._is_held():
            for uuid in {suspect.subject for suspect in found if suspect.what in WOKEN}:
                self._wake(uuid)
        return found

    def _shown(self) -> tuple[HostAudit | None, Compare]:
        """Return what is shown now, None if it cannot be read, and the comparison that it still is."""
        key = keys.audit(self._provider)
        try:
            found = self._store.get(key, HostAudit)
        except Unreadable as error:
            log.error("%s; it is written anew", error)
            return None, present(key)
        return (
            (HostAudit(findings=(), reported_at=""), absent(key)) if found is None else (found.value, unchanged(found))
        )

    def _show(self, audit: HostAudit, before: AbstractSet[tuple[str, str]], compare: Compare) -> None:
        """Write what is to be shown, with an event for what is new and one for what is over."""
        operations: list[Op] = [Put(compare.name, audit) if audit.findings else Delete(compare.name)]
        after = {(finding.what, finding.subject) for finding in audit.findings}
        for level, type_, changed in (
            (logging.WARNING, "audit.found", after - before),
            (logging.INFO, "audit.settled", before - after),
        ):
            if changed:
                text = in_words(changed)
                log.log(level, "%s: %s", type_, text)
                operations.append(self._events.record(HOST, self._provider, type_, text))
        try:
            self._store.commit([compare], operations)
        except CompareFailed:
            log.info("%s was written by another life of this host; the next look goes on", compare.name)


def in_words(findings: AbstractSet[tuple[str, str]]) -> str:
    """Return a line that counts findings, kinds and subjects, by kind, and names the first of each. Pure."""
    parts = []
    for what, count in sorted(Counter(what for what, _ in findings).items()):
        subjects = sorted(subject for kind, subject in findings if kind == what)
        named = ", ".join(subjects[:NAMED]) + (", …" if count > NAMED else "")
        parts.append(f"{what}: {count} ({named})" if count > 1 else f"{what}: {named}")
    return "; ".join(parts)
