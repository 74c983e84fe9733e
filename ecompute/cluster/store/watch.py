"""Watching prefixes of etcd, so that a cache follows and whoever waits is woken.

A `Watcher` has one thread and one gRPC stream for all its prefixes. Each prefix is listed at a
revision R and watched from there; what came at or before R is passed over. (Asking from R and not
R+1 keeps newer members answering progress requests: they leave them unanswered for a stream with a
watch that begins in the future.) Whenever the stream cannot be trusted (it ended, was cancelled,
fell silent, its member lost the leader, or the revision was compacted) the prefix is listed again,
and the listener is told of every difference and then to go through everything. Progress answers
prove that the stream lives and nothing else: members before 3.4.25 may send them ahead of events.

The watch wakes; it never carries the decision. Whoever is woken reads what it needs, and goes
through everything from time to time all the same.

Invariants: per prefix, changes come in the order of etcd's history; a change told is already in
`Follow.snapshot`; a listener is never called by two threads, nor after `Watcher.close` returned
(unless it is it that blocks).

Threads: all methods may be called from any, also from a listener; none waits for the network.
Listeners run on the watcher's thread: they must not block. What they raise is logged.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import grpc

from ecompute.cluster.documents import Unreadable, decode
from ecompute.cluster.errors import CloudError, StoreUnavailable
from ecompute.cluster.store.cache import Cache, Change
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.history import History, Mark
from ecompute.cluster.store.members import Member, Members, is_token_refused
from ecompute.cluster.store.transactions import Listing, Versioned, range_of

log = logging.getLogger(__name__)

T = TypeVar("T")

SILENCE_LIMIT_S = 10.0
"""A stream that has not answered for so long, though it was asked, is given up."""
BACKOFF_CAP_S = 10.0
_BACKOFF_START_S = 0.2

_PROGRESS_REQUEST: Any = rpc.WatchRequest.FromString(b"\x1a\x00")
"""An empty ``progress_request`` (field 3): newer than our messages, so it travels as unknown field."""

_random = random.SystemRandom()


class Reader(Protocol):
    """What the watcher needs of the store."""

    def list(self, prefix: str, kind: type[T]) -> Listing[T]: ...

    def status(self) -> object: ...


class Follow(Generic[T]):
    """One prefix that a `Watcher` follows; made by `Watcher.follow`."""

    def __init__(self, watcher: Watcher, prefix: str, kind: type[T], listener: Callable[[Change[T]], None]) -> None:
        self.prefix = prefix
        self._watcher = watcher
        self._kind = kind
        self._listener = listener
        self._lock = threading.Lock()
        self._cache: Cache[T] = Cache()
        self._ready = threading.Event()
        self.is_live = False
        """Whether the present stream watches it. Of the watcher's thread."""
        self.is_stopped = False
        self.list_at_s = 0.0
        """When it may be listed (again), on the monotonic clock. Of the watcher's thread."""

    def snapshot(self) -> dict[str, Versioned[T]]:
        """Return the documents under the prefix as they are known now; empty before the first list."""
        with self._lock:
            return dict(self._cache.items)

    @property
    def unreadable(self) -> dict[str, str]:
        """Keys under the prefix whose documents are not of the kind, and why."""
        with self._lock:
            return dict(self._cache.unreadable)

    @property
    def is_current(self) -> bool:
        """Whether the snapshot follows etcd now, as far as can be known."""
        return self.is_live and self._watcher.is_heard

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the prefix was listed and is watched for the first time; return whether it is."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Follow it no more. The listener may be called once more by a change under way. Idempotent."""
        self.is_stopped = True
        self._watcher.wake()

    # --- of the watcher's thread ---------------------------------------------------------------

    def create_request(self) -> Any:
        start, end = range_of(self.prefix)
        request = rpc.WatchCreateRequest(key=start, range_end=end, start_revision=self._cache.revision)
        return rpc.WatchRequest(create_request=request)

    def read(self, reader: Reader) -> None:
        """List the prefix and tell the listener what is different."""
        listing = reader.list(self.prefix, self._kind)
        for key, reason in listing.unreadable:
            log.warning("%s is set aside: %s", key, reason)
        with self._lock:
            changes = self._cache.relist(listing)
        self._tell(changes)

    def went_live(self) -> None:
        self.is_live = True
        self._ready.set()

    def take_in(self, events: Any) -> int:
        """Take in the events of one answer and tell the listener; return the newest revision."""
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
            value = decode(kv.value, self._kind, key)
        except Unreadable as error:
            log.warning("%s is set aside: %s", key, error)
            return self._cache.put_unreadable(key, str(error))
        return self._cache.put(Versioned(key, value, kv.mod_revision, kv.create_revision, kv.lease))

    def _tell(self, changes: list[Change[T]]) -> None:
        for change in changes:
            if self.is_stopped or self._watcher.is_closed:
                return
            try:
                self._listener(change)
            except Exception:
                log.exception("the listener of %s failed on %s", self.prefix, change.key or "a new list")


class _StreamEnded(Exception):
    """The stream is of no more use; why, on one line."""


class _Stream:
    """One gRPC stream: requests go out through a queue, answers come in through the watcher's."""

    def __init__(self, number: int, member: Member, metadata: Any, mark: Mark, inbox: queue.SimpleQueue[Any]) -> None:
        self.number = number
        self.member = member
        self.mark = mark
        self.pending: deque[Follow[Any]] = deque()
        """Asked to be watched, in the order in which etcd will confirm them."""
        self.follows: dict[int, Follow[Any]] = {}
        """By the watch id, which holds within this stream only."""
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # The only call without a deadline: it lasts as long as it is answered.
        self._call = member.watch_stub.Watch(iter(self._outbox.get, None), metadata=metadata)
        threading.Thread(target=self._receive, args=(inbox,), name=f"etcd-watch-{number}", daemon=True).start()

    def send(self, request: Any) -> None:
        self._outbox.put(request)

    def end(self) -> None:
        self._call.cancel()
        self._outbox.put(None)

    def _receive(self, inbox: queue.SimpleQueue[Any]) -> None:
        try:
            for answer in self._call:
                inbox.put((self.number, answer))
            inbox.put((self.number, _StreamEnded("etcd ended it")))
        except grpc.RpcError as error:
            inbox.put((self.number, error))


class Watcher:
    """Follows any number of prefixes; made by `Store.watcher`."""

    def __init__(self, reader: Reader, members: Members, history: History, *, silence_limit_s: float) -> None:
        self._reader = reader
        self._members = members
        self._history = history
        self._silence_limit_s = silence_limit_s
        self._ask_after_s = silence_limit_s / 3
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._follows: list[Follow[Any]] = []
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._numbers = itertools.count(1)
        self._heard_at_s = 0.0
        self._asked_at_s: float | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    @property
    def is_heard(self) -> bool:
        """Whether the stream has answered within the limit."""
        return time.monotonic() - self._heard_at_s < self._silence_limit_s

    def follow(self, prefix: str, kind: type[T], listener: Callable[[Change[T]], None]) -> Follow[T]:
        """Follow every key that begins with ``prefix``; returns at once.

        Args:
            kind: of the documents under it; `dict` where they are of several kinds.
            listener: told of each change, on the watcher's thread.
        """
        follow = Follow(self, prefix, kind, listener)
        with self._lock:
            self._follows.append(follow)
            if self._thread is None and not self.is_closed:
                self._thread = threading.Thread(target=self._run, name="etcd-watcher", daemon=True)
                self._thread.start()
        self.wake()
        return follow

    def wake(self) -> None:
        """Have the watcher's thread look at what is to be followed."""
        self._inbox.put(None)

    def close(self, *, timeout_s: float = 2.0) -> None:
        """End the thread and the stream. Idempotent; a call under way is waited for ``timeout_s``."""
        self._closed.set()
        self.wake()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self.is_closed:
            began_s = time.monotonic()
            reason: object = None
            try:
                self._watch()
                return
            except grpc.RpcError as error:
                reason = self._members.unavailable(error)
            except (CloudError, _StreamEnded) as error:
                reason = error
            except Exception:
                # Nothing may end this thread: whoever relies on the cache would never hear of it.
                log.exception("a watch of etcd failed")
            failures = 1 if time.monotonic() - began_s > BACKOFF_CAP_S else failures + 1
            if reason is not None and not self.is_closed:
                log.log(logging.WARNING if failures == 1 else logging.DEBUG, "a watch of etcd ended: %s", reason)
            cap_s = min(BACKOFF_CAP_S, _BACKOFF_START_S * 2.0 ** min(failures - 1, 16))
            self._closed.wait(cap_s * _random.uniform(0.5, 1))

    def _watch(self) -> None:
        """Open a stream and serve it until it ends; return when the watcher is closed."""
        stream = self._open()
        try:
            while not self.is_closed:
                wait_s = self._set_up(stream)
                try:
                    item = self._inbox.get(timeout=wait_s)
                except queue.Empty:
                    self._check_silence(stream)
                    continue
                if item is None or item[0] != stream.number:
                    continue
                if isinstance(item[1], Exception):
                    self._failed(stream, item[1])
                    raise item[1]
                self._heard_at_s, self._asked_at_s = time.monotonic(), None
                self._take_in(stream, item[1])
        finally:
            stream.end()
            for follow in self._present():
                follow.is_live = False

    def _open(self) -> _Stream:
        # A read first: it finds a member that answers, and whether the history is still the same.
        self._reader.status()
        mark = self._history.mark()
        member = self._members.current
        stream = _Stream(next(self._numbers), member, member.metadata(self._members.timeout_s), mark, self._inbox)
        self._heard_at_s, self._asked_at_s = time.monotonic(), None
        for follow in self._present():
            follow.list_at_s = 0.0
        return stream

    def _present(self) -> list[Follow[Any]]:
        with self._lock:
            return list(self._follows)

    def _set_up(self, stream: _Stream) -> float:
        """List and watch what is not watched yet, leave what was stopped; return how long to wait."""
        watched = {id(follow) for follow in (*stream.pending, *stream.follows.values())}
        now = time.monotonic()
        wait_s = self._ask_after_s
        for follow in self._present():
            if follow.is_stopped:
                with self._lock:
                    self._follows.remove(follow)
            elif id(follow) not in watched and follow.list_at_s <= now:
                self._begin(stream, follow)
            elif id(follow) not in watched:
                wait_s = min(wait_s, follow.list_at_s - now)
        for watch_id, follow in list(stream.follows.items()):
            if follow.is_stopped:
                del stream.follows[watch_id]
                stream.send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))
        return wait_s

    def _begin(self, stream: _Stream, follow: Follow[Any]) -> None:
        try:
            follow.read(self._reader)
        except StoreUnavailable:
            raise
        except CloudError as error:
            # This prefix cannot be read (no permission); the others can.
            log.error("%s cannot be followed: %s", follow.prefix, error)
            follow.list_at_s = time.monotonic() + BACKOFF_CAP_S * _random.uniform(0.5, 1)
            return
        stream.pending.append(follow)
        stream.send(follow.create_request())
        self._asked_at_s = self._asked_at_s or time.monotonic()

    def _take_in(self, stream: _Stream, answer: Any) -> None:
        if answer.created:
            follow = stream.pending.popleft()
            if answer.canceled:
                # The list was allowed a moment ago: it is the token that the stream was opened with.
                stream.member.forget_token()
                raise _StreamEnded(f"{follow.prefix} is not watched: {answer.cancel_reason or 'cancelled'}")
            stream.follows[answer.watch_id] = follow
            follow.went_live()
        elif answer.canceled:
            cancelled = stream.follows.pop(answer.watch_id, None)
            if cancelled is None:
                return  # it was stopped
            cancelled.is_live = False
            if not answer.compact_revision:
                raise _StreamEnded(f"{cancelled.prefix} was cancelled: {answer.cancel_reason or 'no reason given'}")
            log.info("%s is listed again: etcd compacted up to %d", cancelled.prefix, answer.compact_revision)
        elif (watched := stream.follows.get(answer.watch_id)) is not None:
            self._history.saw(stream.mark, watched.take_in(answer.events))

    def _check_silence(self, stream: _Stream) -> None:
        now = time.monotonic()
        if not stream.pending and not stream.follows:
            self._heard_at_s, self._asked_at_s = now, None  # nothing is watched, and etcd may then say nothing
            return
        if self._asked_at_s is not None and now - self._heard_at_s >= self._silence_limit_s:
            self._members.failed(stream.member)
            raise _StreamEnded(f"{stream.member.address} has been silent for {now - self._heard_at_s:.0f} s")
        if now - self._heard_at_s >= self._ask_after_s:
            self._asked_at_s = self._asked_at_s or now
            stream.send(_PROGRESS_REQUEST)

    def _failed(self, stream: _Stream, error: Exception) -> None:
        if isinstance(error, grpc.RpcError) and is_token_refused(error):
            stream.member.forget_token()
        else:
            self._members.failed(stream.member)
