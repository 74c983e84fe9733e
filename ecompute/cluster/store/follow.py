"""What is known of one prefix of etcd, and who is told when it changes.

A `Followed` is one prefix as a watcher's stream has it: one list, one watch, one cache, however many
follow it. A `Follow` is one of those who do.

Invariants: changes are told in the order of etcd's history; a change told is already in the
snapshot; one that begins to follow is first told everything that is there, then to go through it.

Threads: what is "of the watcher's thread" is called there alone; the rest by any.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ecompute.cluster.documents import Unreadable, decode
from ecompute.cluster.store.cache import Cache, Change
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.transactions import Listing, Versioned, range_of

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reader(Protocol):
    """What the watcher needs of the store."""

    def list(self, prefix: str, kind: type[T]) -> Listing[T]: ...

    def status(self) -> object: ...


class Owner(Protocol):
    """The watcher through which somebody follows."""

    @property
    def is_closed(self) -> bool: ...

    @property
    def is_heard(self) -> bool: ...

    def stopped(self, follow: Follow[Any]) -> None: ...


class Follow(Generic[T]):
    """One who follows a prefix; made by `Watcher.follow`."""

    def __init__(self, owner: Owner, followed: Followed[T], listener: Callable[[Change[T]], None]) -> None:
        self.prefix = followed.prefix
        self._owner = owner
        self.followed = followed
        self._listener = listener
        self._ready = threading.Event()
        self._telling = threading.RLock()
        self.has_begun = False
        """Whether it was told what is there. Of the watcher's thread."""
        self._is_stopped = False

    @property
    def is_stopped(self) -> bool:
        return self._is_stopped or self._owner.is_closed

    def snapshot(self) -> dict[str, Versioned[T]]:
        """Return the documents under the prefix as they are known now; empty before the first list."""
        return self.followed.snapshot()

    @property
    def unreadable(self) -> dict[str, str]:
        """Keys under the prefix whose documents are not of the kind, and why."""
        return self.followed.unreadable()

    @property
    def is_current(self) -> bool:
        """Whether the snapshot follows etcd now, as far as can be known."""
        return self.followed.is_live and self._owner.is_heard

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the prefix was listed and is watched for the first time; return whether it is."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Follow it no more. The listener may be called once more by a change under way. Idempotent."""
        self._is_stopped = True
        self._owner.stopped(self)

    def wait_told(self, timeout_s: float) -> None:
        """Wait for a call of the listener that is under way, unless it is this thread's."""
        if self._telling.acquire(timeout=timeout_s):
            self._telling.release()

    # --- of the watcher's thread ---------------------------------------------------------------

    def tell(self, changes: list[Change[T]]) -> None:
        with self._telling:
            for change in changes:
                if self.is_stopped:
                    return
                try:
                    self._listener(change)
                except Exception:
                    log.exception("the listener of %s failed on %s", self.prefix, change.key or "a new list")

    def went_live(self) -> None:
        self._ready.set()


class Followed(Generic[T]):
    """One prefix, as it is known."""

    def __init__(self, prefix: str, kind: type[T]) -> None:
        self.prefix = prefix
        self.kind = kind
        self._lock = threading.Lock()
        self._cache: Cache[T] = Cache()
        self._follows: list[Follow[T]] = []
        self.is_live = False
        """Whether the present stream watches it. Of the watcher's thread."""
        self._is_listed = False
        self.list_at_s = 0.0
        """When it may be listed (again), on the monotonic clock. Of the watcher's thread."""

    def add(self, follow: Follow[T]) -> None:
        with self._lock:
            self._follows.append(follow)

    def snapshot(self) -> dict[str, Versioned[T]]:
        with self._lock:
            return dict(self._cache.items)

    def unreadable(self) -> dict[str, str]:
        with self._lock:
            return dict(self._cache.unreadable)

    def is_followed(self) -> bool:
        """Whether anybody follows it; those who have stopped are let go."""
        with self._lock:
            self._follows = [follow for follow in self._follows if not follow.is_stopped]
            return bool(self._follows)

    # --- of the watcher's thread ---------------------------------------------------------------

    def create_request(self) -> Any:
        start, end = range_of(self.prefix)
        request = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=self._cache.revision)
        return rpc.WatchRequest(create_request=request)

    def read(self, reader: Reader) -> None:
        """List the prefix and tell those who follow what is different."""
        listing = reader.list(self.prefix, self.kind)
        for key, reason in listing.unreadable:
            log.warning("%s is set aside: %s", key, reason)
        with self._lock:
            changes = self._cache.relist(listing)
            self._is_listed = True
        self._tell(changes)
        self.welcome()

    def welcome(self) -> None:
        """Tell those who are new what is there, once it is known."""
        with self._lock:
            new = [follow for follow in self._follows if not follow.has_begun] if self._is_listed else []
            if not new:
                return
            items = [Change(key, None, item) for key, item in self._cache.items.items()]
            items += [Change(key, None, None) for key in self._cache.unreadable if key not in self._cache.items]
        for follow in new:
            follow.has_begun = True
            follow.tell([*items, Change("", None, None, is_relist=True)])
            if self.is_live:
                follow.went_live()

    def went_live(self) -> None:
        self.is_live = True
        for follow in self._told():
            follow.went_live()

    def take_in(self, events: Any) -> int:
        """Take in the events of one answer and tell those who follow; return the newest revision."""
        changes: list[Change[T]] = []
        with self._lock:
            known = newest = self._cache.revision
            for event in events:
                # All events of one revision come in one answer, so those of `known` are all known.
                if event.kv.mod_revision > known:
                    changes.append(self._take_in_one(event))
                    newest = max(newest, event.kv.mod_revision)
            self._cache.revision = newest
        self._tell(changes)
        return newest

    def _take_in_one(self, event: Any) -> Change[T]:
        kv = event.kv
        key = str(kv.key.decode("utf-8", "backslashreplace"))
        if event.type == event.DELETE:
            return self._cache.delete(key)
        try:
            value = decode(kv.value, self.kind, key)
        except Unreadable as error:
            log.warning("%s is set aside: %s", key, error)
            return self._cache.put_unreadable(key, str(error))
        return self._cache.put(Versioned(key, value, kv.mod_revision, kv.create_revision, kv.lease))

    def _told(self) -> list[Follow[T]]:
        with self._lock:
            return [follow for follow in self._follows if follow.has_begun]

    def _tell(self, changes: list[Change[T]]) -> None:
        for follow in self._told():
            follow.tell(changes)
