"""Leases that keep themselves alive, and know when they no longer do.

One thread keeps all leases of a store alive, each every third of its time, those that are due
together over one stream. A lease is held only as
long as its owner can prove it by its own clock: the time counts from *before* the request that etcd
last answered, less a margin, on a clock that also runs while the machine sleeps. So `is_held` turns
false before etcd lets another have what the lease guards. Whoever acts for something that a lease
guards asks `is_held` first, and compares the create revision of the leased key when it writes:
between the question and the act the lease may end.

A lease once lost is never held again; its owner asks for a new one.

Threads: `Lease` may be used from any. `on_lost` is called once, on the keeper's thread, with no lock
held; it must not block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Any

import grpc

from ecompute.cluster.errors import InvalidInput, StoreUnavailable
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.members import Members, is_not_found

log = logging.getLogger(__name__)

MIN_TTL_S = 2
_MARGIN = 0.1
"""Of its time, by which our clock gives a lease up before etcd would; at most a second."""
_ATTEMPT_S = 2.0
"""Longest attempt, so that one hung call does not cost the leases that are due next."""
_TOGETHER_S = 0.5
"""Who is due within so short a time of the first is kept along with it."""
_AT_ONCE = 200


def clock_s() -> float:
    """Return seconds on a clock that is never set, and runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _State(Enum):
    KEPT = "kept"
    LOST = "lost"
    REVOKED = "revoked"


class Lease:
    """Made by `Store.lease`. ``id`` goes into `Put`."""

    def __init__(
        self, keeper: LeaseKeeper, lease_id: int, asked_at_s: float, ttl_s: int, on_lost: Callable[[], None]
    ) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self._keeper = keeper
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._state = _State.KEPT
        self._held_until_s = 0.0
        self.next_attempt_s = 0.0
        self.renewed(asked_at_s, ttl_s)

    @property
    def is_held(self) -> bool:
        """Whether it is certain that etcd has not let it end, by our own clock."""
        with self._lock:
            return self._state is _State.KEPT and clock_s() < self._held_until_s

    @property
    def is_over(self) -> bool:
        """Whether nobody keeps it alive any more."""
        with self._lock:
            return self._state is not _State.KEPT

    @property
    def held_until_s(self) -> float:
        """On the clock of `clock_s`."""
        with self._lock:
            return self._held_until_s

    def revoke(self) -> None:
        """End it, and with it every key that was put with it. Idempotent; ``on_lost`` is not called.

        Raises:
            StoreUnavailable: etcd does not answer; it ends by itself within its time.
        """
        with self._lock:
            if self._state is _State.REVOKED:
                return
            self._state = _State.REVOKED
        self._keeper.revoke(self)

    def abandon(self) -> None:
        """Keep it alive no more, and tell nobody: it ends by itself. Idempotent."""
        with self._lock:
            self._state = _State.REVOKED

    def renewed(self, asked_at_s: float, ttl_s: int) -> None:
        """Etcd answered a request that was sent at ``asked_at_s`` with ``ttl_s`` to live."""
        with self._lock:
            self._held_until_s = asked_at_s + ttl_s - min(1.0, ttl_s * _MARGIN)
            self.next_attempt_s = asked_at_s + ttl_s / 3

    def lost(self) -> None:
        """It is not kept any more: tell the owner, once."""
        with self._lock:
            if self._state is not _State.KEPT:
                return
            self._state = _State.LOST
        log.warning("lease %x is lost", self.id)
        try:
            self._on_lost()
        except Exception:
            log.exception("the callback for lost lease %x failed", self.id)


def grant_unkept(members: Members, ttl_s: int) -> int:
    """Return the id of a new lease that nobody keeps alive.

    Raises:
        StoreUnavailable: etcd does not answer.
    """
    return int(_grant(members, ttl_s).ID)


def _grant(members: Members, ttl_s: int) -> Any:
    # A grant whose answer was lost may be asked for again: the first one ends by itself, unused.
    return members.call(
        lambda member: member.client.leasestub.LeaseGrant, rpc.LeaseGrantRequest(TTL=ttl_s), may_repeat=True
    )


class LeaseKeeper:
    """Keeps the leases of one store alive, with one thread, started with the first lease."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._changed = threading.Condition()
        self._leases: list[Lease] = []
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def grant(self, ttl_s: int, on_lost: Callable[[], None]) -> Lease:
        if ttl_s < MIN_TTL_S:
            raise InvalidInput(f"a lease of {ttl_s} s cannot be kept alive: at least {MIN_TTL_S} s")
        asked_at_s = clock_s()
        answer = _grant(self._members, ttl_s)
        lease = Lease(self, answer.ID, asked_at_s, answer.TTL, on_lost)
        with self._changed:
            if self._is_closed:
                raise self._members.unavailable("it was closed")
            self._leases.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="etcd-leases", daemon=True)
                self._thread.start()
            self._changed.notify()
        return lease

    def revoke(self, lease: Lease) -> None:
        with self._changed:
            self._leases = [known for known in self._leases if known is not lease]
        try:
            self._members.call(
                lambda member: member.client.leasestub.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease.id), may_repeat=True
            )
        except InvalidInput as error:
            if not is_not_found(error.__cause__):
                raise

    def close(self) -> None:
        """Keep nothing alive any more; the leases end by themselves."""
        with self._changed:
            self._is_closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_ATTEMPT_S + 1)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._leases = [lease for lease in self._leases if not lease.is_over]
                if self._is_closed:
                    return
                now = clock_s()
                expired = [lease for lease in self._leases if lease.held_until_s <= now]
                next_s = min((lease.next_attempt_s for lease in self._leases), default=None)
                if not expired and (next_s is None or next_s > now):
                    self._changed.wait(None if next_s is None else max(0.01, next_s - now))
                    continue
                waiting = sorted(self._leases, key=lambda lease: lease.next_attempt_s)[:_AT_ONCE]
                due = [lease for lease in waiting if lease.next_attempt_s <= now + _TOGETHER_S]
                first_end_s = min(lease.held_until_s for lease in self._leases)
            for lease in expired:
                lease.lost()
            if not expired and due:
                # An attempt does not last beyond the end of the next lease to end: its owner is told in time.
                self._keep(due, min(_ATTEMPT_S, self._members.timeout_s, max(0.1, first_end_s - now)))

    def _keep(self, due: list[Lease], timeout_s: float) -> None:
        asked_at_s = clock_s()
        answers: dict[int, int] = {}
        try:
            self._members.call(
                lambda member: _keep_alive_of(member.client.leasestub, answers),
                [rpc.LeaseKeepAliveRequest(ID=lease.id) for lease in due],
                may_repeat=True,
                timeout_s=timeout_s,
            )
        except StoreUnavailable as error:
            log.info("%d leases were not kept alive: %s", len(due) - len(answers), error)
            # Often enough to make it in time, seldom enough not to press a cluster that is down.
            for lease in due:
                lease.next_attempt_s = clock_s() + max(0.2, min(2.0, lease.ttl_s / 20))
        except Exception:
            # Whatever it was, the other leases must be kept; these end when their time is up.
            log.exception("%d leases cannot be kept alive", len(due) - len(answers))
            for lease in due:
                lease.next_attempt_s = clock_s() + lease.ttl_s / 3
        for lease in due:
            ttl_s = answers.get(lease.id)
            if ttl_s is not None and ttl_s > 0:
                lease.renewed(asked_at_s, ttl_s)
            elif ttl_s is not None:
                lease.lost()


def _keep_alive_of(stub: Any, answers: dict[int, int]) -> Callable[..., None]:
    """Return etcd's keep-alive, which is a stream, as a call; ``answers`` has what came, by lease, in any case."""

    def keep_alive(requests: list[Any], *, timeout: float, metadata: Any) -> None:
        answers.clear()
        stream = stub.LeaseKeepAlive(iter(requests), timeout=timeout, metadata=metadata)
        try:
            for answer in stream:
                answers[answer.ID] = answer.TTL
                if len(answers) == len(requests):
                    return
        finally:
            stream.cancel()
        raise _NoAnswer

    return keep_alive


class _NoAnswer(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """The stream ended without an answer."""

    def code(self) -> Any:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the stream ended without an answer"
