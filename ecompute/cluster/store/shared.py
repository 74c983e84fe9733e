"""A part in another store: many users of etcd in one process, over one set of channels.

A `SharedStore` reads and writes over the channels of the store that it was made of; its leases are
kept by that store's thread, and its watchers follow over one stream. It knows the same history, and
is told of a rollback like the others.

Closed, it is as good as a process that was killed: its leases are kept no more (nor revoked), it
follows nothing, no call of it is sent, and who waits for an answer gets none.

Threads: as `Store` and `Watcher`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ecompute.cluster.errors import StoreUnavailable
from ecompute.cluster.store.cache import Change
from ecompute.cluster.store.client import Store
from ecompute.cluster.store.follow import Follow, Owner
from ecompute.cluster.store.lease import Lease
from ecompute.cluster.store.members import Member, Members, Rpc
from ecompute.cluster.store.watch import SILENCE_LIMIT_S, Watcher

T = TypeVar("T")


class _Door(Members):
    """The way to another store's members, which can be shut."""

    def __init__(self, members: Members) -> None:
        self._set_up(members._members, members.who, members.timeout_s)
        self._through = members
        self.is_shut = False

    @property
    def current(self) -> Member:
        return self._through.current

    def call(self, pick: Rpc, request: Any, *, may_repeat: bool, timeout_s: float | None = None) -> Any:
        if self.is_shut:
            raise self.unavailable("closed")
        answer = self._through.call(pick, request, may_repeat=may_repeat, timeout_s=timeout_s)
        if self.is_shut:
            raise self.unavailable("closed", may_be_written=not may_repeat)
        return answer

    def succeeded(self) -> None:
        self._through.succeeded()

    def failed(self, member: Member) -> None:
        self._through.failed(member)

    def unavailable(self, failure: object, *, may_be_written: bool = False) -> StoreUnavailable:
        if self.is_shut:
            return StoreUnavailable(
                f"the connection to etcd at {self.addresses} is closed", may_be_written=may_be_written
            )
        return self._through.unavailable(failure, may_be_written=may_be_written)

    def close(self) -> None:
        self.is_shut = True


class SharedWatcher(Watcher):
    """A part in another watcher's stream."""

    def __init__(self, whole: Watcher) -> None:
        self._whole = whole
        self._mine_lock = threading.Lock()
        self._mine: list[Follow[Any]] = []
        self._is_shut = False

    @property
    def is_closed(self) -> bool:
        return self._is_shut or self._whole.is_closed

    @property
    def is_heard(self) -> bool:
        return self._whole.is_heard

    def follow_for(self, owner: Owner, prefix: str, kind: type[T], listener: Callable[[Change[T]], None]) -> Follow[T]:
        follow = self._whole.follow_for(owner, prefix, kind, listener)
        with self._mine_lock:
            self._mine = [known for known in self._mine if not known.is_stopped]
            self._mine.append(follow)
        return follow

    def stopped(self, follow: Follow[Any]) -> None:
        self._whole.stopped(follow)

    def close(self, *, timeout_s: float = 2.0) -> None:
        """Follow nothing any more; a call under way is waited for ``timeout_s``."""
        self._is_shut = True
        with self._mine_lock:
            mine, self._mine = self._mine, []
        for follow in mine:
            follow.stop()
        for follow in mine:
            follow.wait_told(timeout_s)


class SharedStore(Store):
    """One user's part in ``whole``.

    Args:
        on_rollback: as of `Store`.
    """

    def __init__(self, whole: Store, *, on_rollback: Callable[[str], None] | None = None) -> None:
        self._whole = whole
        self._door = _Door(whole._members)
        self._set_up(self._door, whole._history, whole._leases, whole._on_rollbacks)
        self._on_rollback = on_rollback
        if on_rollback is not None:
            self._on_rollbacks.append(on_rollback)
        self._kept: list[Lease] = []

    def lease(self, ttl_s: int, *, on_lost: Callable[[], None]) -> Lease:
        if self._door.is_shut:
            raise self._door.unavailable("closed")
        lease = super().lease(ttl_s, on_lost=on_lost)
        with self._lock:
            self._kept = [kept for kept in self._kept if not kept.is_over]
            if not self._door.is_shut:
                self._kept.append(lease)
                return lease
        lease.abandon()
        raise self._door.unavailable("closed")

    def watcher(self, *, silence_limit_s: float = SILENCE_LIMIT_S) -> Watcher:
        """Return a new watcher, over the stream that all share."""
        watcher = SharedWatcher(self._whole.common_watcher())
        with self._lock:
            self._watchers = [known for known in self._watchers if not known.is_closed]
            self._watchers.append(watcher)
        return watcher

    def common_watcher(self) -> Watcher:
        return self.watcher()

    def close(self) -> None:
        """End what is this user's, and nothing else. Idempotent."""
        self._door.close()
        with self._lock:
            watchers, self._watchers = self._watchers, []
            kept, self._kept = self._kept, []
            on_rollback, self._on_rollback = self._on_rollback, None
        if on_rollback is not None and on_rollback in self._on_rollbacks:
            self._on_rollbacks.remove(on_rollback)
        for lease in kept:
            lease.abandon()
        for watcher in watchers:
            watcher.close()
