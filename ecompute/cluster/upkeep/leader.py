"""What the lead does: finishes instances as their hosts report them, and all of `DUTIES`.

Every daemon campaigns whose user in etcd may lead; one leads. While it does, it watches all reports:
one that allows a finish is acted upon at once, `FINISHERS` of them at a time. A sweep goes through
everything when the lead is taken and every ten minutes, with the same code. The duties have threads of
their own while it leads, and none otherwise. Each transaction compares the term.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Instance, Lead, Role, Seen, State
from ecompute.cluster.errors import CloudError, NotPermitted, Unavailable
from ecompute.cluster.events import Events
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.placement import Placement
from ecompute.cluster.retries import Retries
from ecompute.cluster.store import Change, Compare, Store, Watcher
from ecompute.cluster.upkeep.audit import AUDIT, FULL_AUDIT
from ecompute.cluster.upkeep.duties import Charge, Duty, EachAlone, NotLeading, Turn
from ecompute.cluster.upkeep.expiry import EXPIRY
from ecompute.cluster.upkeep.finish import Finisher
from ecompute.cluster.upkeep.forgotten import FORGOTTEN
from ecompute.cluster.upkeep.gangs import GANGS
from ecompute.cluster.upkeep.groups import GROUPS
from ecompute.cluster.upkeep.lead import Election, Term
from ecompute.cluster.upkeep.lost import LOST
from ecompute.cluster.upkeep.quotas import QUOTAS
from ecompute.cluster.upkeep.reclaim import CLAIMS
from ecompute.cluster.upkeep.spent import SPENT

ROLE = "upkeep"
CAMPAIGN_PERIOD_S = 60.0
"""How often it is looked whether the lead is free, beside being told so by the watch of its key."""
NOT_PERMITTED_PERIOD_S = 600.0
"""How often it is tried again by one whose user may not lead: a role can change."""
RETRY_S = 5.0
SWEEP_PERIOD_S = 600.0
STOP_TIMEOUT_S = 10.0
FINISHERS = 4
"""How many instances are finished at a time: many are destroyed at once, and placement has others to serve."""

DUTIES: tuple[Duty, ...] = (
    AUDIT,
    FULL_AUDIT,
    CLAIMS,
    GANGS,
    LOST,
    FORGOTTEN,
    QUOTAS,
    GROUPS,
    EXPIRY,
    SPENT,
)
"""Beside the finishing of instances: one line each."""


log = logging.getLogger(__name__)


class Leader:
    """One process's part in the upkeep, from `start` to `stop`.

    Args:
        holder: who this is, for people who look at ``/lead/upkeep``.
        is_held: whether this host is on hold: it does not trust what etcd says, and does not lead.
        duties: what to do while it leads, besides finishing.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        events: Events,
        *,
        holder: str,
        is_held: Callable[[], bool] = lambda: False,
        duties: Sequence[Duty] = DUTIES,
        rng: random.Random | None = None,
    ) -> None:
        rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._store = store
        self._placement = placement
        self._events = events
        self._is_held = is_held
        self._duties = duties
        self._election = Election(store, ROLE, holder)
        self._finisher = Finisher(store, placement, events, self._guard)
        self._lock = threading.Lock()
        self._each = EachAlone()
        self._marked: set[tuple[str, str]] = set()
        self._watcher: Watcher | None = None
        self._led: Term | None = None
        self._duty: Turn | None = None
        self._next_sweep = 0.0
        self._next_campaign = 0.0
        self._is_permitted = True
        self._periodic = Periodic("upkeep", self._turn, period_s=CAMPAIGN_PERIOD_S, rng=rng)
        self._retries = Retries("upkeep-retries", lambda role: self._periodic.wake())

    def start(self) -> None:
        self._follower = self._store.watcher()
        self._follower.follow(keys.lead(ROLE), Lead, self._lead_changed)
        self._periodic.start()

    def stop(self) -> None:
        """Give the lead back."""
        self._retries.close()
        self._periodic.stop()
        self._follower.close()
        self._forget_term(STOP_TIMEOUT_S)
        try:
            self._election.resign()
        except CloudError as error:
            log.info("the lead ends with its lease: %s", error)

    def _lead_changed(self, change: Change[Lead]) -> None:
        if change.is_relist or change.after is None:
            self._election.doubt()
            self._periodic.wake()

    def _guard(self) -> list[Compare]:
        term = self._election.term
        if term is None or term != self._led:
            raise NotLeading("this process does not lead any more")
        return [term.holds()]

    def _turn(self) -> None:
        if self._is_held():
            self._forget_term()
            self._election.resign()
            return
        term = self._campaign()
        if term != self._led:
            self._forget_term()
            if term is not None:
                self._begin(term)
        if term is None:
            return
        try:
            self._lead(time.monotonic())
        except NotLeading:
            self._forget_term()
        except Unavailable:
            self._retries.later(ROLE, RETRY_S)
            raise

    def _campaign(self) -> Term | None:
        """Take the lead if it is free, and this process's user may: with authentication on, a host's may not."""
        if time.monotonic() < self._next_campaign:
            return None
        try:
            return self._election.campaign()
        except NotPermitted as error:
            self._next_campaign = time.monotonic() + NOT_PERMITTED_PERIOD_S
            if self._is_permitted:
                log.info("this daemon leaves the lead to others; `upkeep` in compute.yaml would let it: %s", error)
            self._is_permitted = False
            return None

    def _begin(self, term: Term) -> None:
        log.info("leading the upkeep since revision %d", term.create_revision)
        self._next_sweep = time.monotonic()
        self._led = term
        self._watcher = self._store.watcher()
        self._watcher.follow(keys.SEEN, Seen, self._seen)
        charge = Charge(
            store=self._store,
            placement=self._placement,
            events=self._events,
            is_leading=lambda: self._election.term == term,
            holds=term.holds(),
        )
        self._duty = Turn(self._duties, charge)
        self._duty.start()

    def _forget_term(self, timeout_s: float = 0.0) -> None:
        self._led = None
        if self._duty is not None:
            self._duty.end(timeout_s)
            self._duty = None
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        with self._lock:
            self._marked.clear()

    def _seen(self, change: Change[Seen]) -> None:
        if change.is_relist or change.after is None:
            return
        after = change.after.value
        if not after.is_gone and (change.before is None or _reached(change.before.value) == _reached(after)):
            return
        with self._lock:
            self._marked.add((keys.parts(change.key)[1], keys.last(change.key)))
        self._periodic.wake()

    def _lead(self, now: float) -> None:
        swept: set[tuple[str, str]] = set()
        if now >= self._next_sweep:
            swept = self._sweep()
            self._next_sweep = now + SWEEP_PERIOD_S
        with self._lock:
            # Last: a sweep that fails leaves what was reported for the next turn.
            marked, self._marked = self._marked | swept, set()
        left = set(marked)
        try:
            # Each waits for a dozen answers of etcd and placement, one after the other.
            with ThreadPoolExecutor(FINISHERS, thread_name_prefix="finish") as pool:
                finishing = {pool.submit(self._finish, provider, uuid): (provider, uuid) for provider, uuid in marked}
                try:
                    for future in as_completed(finishing):
                        future.result()
                        left.discard(finishing[future])
                finally:
                    pool.shutdown(cancel_futures=True)
        except (Unavailable, NotLeading):
            with self._lock:
                self._marked |= left
            raise

    def _finish(self, provider: str, uuid: str) -> None:
        self._each(f"instance {uuid} could not be finished", self._finisher.finish, uuid, provider)

    def _sweep(self) -> set[tuple[str, str]]:
        """Return everything that a finish could be due for."""
        ending = {
            (item.value.provider, item.value.uuid)
            for item in self._store.list(keys.INSTANCES, Instance).items
            if item.value.state is not State.INITIAL or item.value.leaving
        }
        gone = {
            (keys.parts(item.key)[1], item.value.uuid)
            for item in self._store.list(keys.SEEN, Seen).items
            if item.value.is_gone
        }
        ordered = {
            (keys.parts(item.key)[1], item.value.uuid)
            for item in self._store.list(keys.HOSTS, Assignment).items
            if item.value.role is Role.ABSENT
        }
        return ending | gone | ordered


def _reached(seen: Seen) -> tuple[int, int, bool]:
    """Return what of a report of a guest that is there may let go of an interface."""
    return seen.epoch, seen.generation, seen.error is None
