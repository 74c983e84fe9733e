"""Watching prefixes of etcd, so that a cache follows and whoever waits is woken.

A `Watcher` has one thread and one gRPC stream for all its prefixes; those who follow the same one
share its list, its watch and what is known (`ecompute.cluster.store.follow`). Each prefix is listed at a
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
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import grpc

from ecompute.cluster.errors import CloudError, StoreUnavailable
from ecompute.cluster.store.cache import Change
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.follow import Follow, Followed, Owner, Reader
from ecompute.cluster.store.history import History, Mark
from ecompute.cluster.store.members import Member, Members, is_token_refused

log = logging.getLogger(__name__)

T = TypeVar("T")

SILENCE_LIMIT_S = 10.0
"""A stream that has not answered for so long, though it was asked, is given up."""
BACKOFF_CAP_S = 10.0
_BACKOFF_START_S = 0.2
_AT_ONCE = 64
"""So many prefixes are begun between two looks at what has come."""

_PROGRESS_REQUEST: Any = rpc.WatchRequest.FromString(b"\x1a\x00")
"""An empty ``progress_request`` (field 3): newer than our messages, so it travels as unknown field."""

_random = random.SystemRandom()


class _StreamEnded(Exception):
    """The stream is of no more use; why, on one line."""


class _Stream:
    """One gRPC stream: requests go out through a queue, answers come in through the watcher's."""

    def __init__(self, number: int, member: Member, metadata: Any, mark: Mark, inbox: queue.SimpleQueue[Any]) -> None:
        self.number = number
        self.member = member
        self.mark = mark
        self.pending: deque[Followed[Any]] = deque()
        """Asked to be watched, in the order in which etcd will confirm them."""
        self.followed: dict[int, Followed[Any]] = {}
        """By the watch id, which holds within this stream only."""
        self.ids: dict[int, int] = {}
        """The other way round, by the identity of the prefix."""
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
        self._followed: dict[tuple[str, type], Followed[Any]] = {}
        self._touched: dict[int, Followed[Any]] = {}
        """What the thread is to look at: somebody began or stopped to follow it, or it is watched no more."""
        self._refused: list[Followed[Any]] = []
        """What may be listed again later. Of the thread."""
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
        return self.follow_for(self, prefix, kind, listener)

    def follow_for(self, owner: Owner, prefix: str, kind: type[T], listener: Callable[[Change[T]], None]) -> Follow[T]:
        """Do so for ``owner``, at whose end it ends."""
        with self._lock:
            followed = self._followed.setdefault((prefix, kind), Followed(prefix, kind))
            follow = Follow(owner, followed, listener)
            followed.add(follow)
            self._touched[id(followed)] = followed
            if self._thread is None and not self.is_closed:
                self._thread = threading.Thread(target=self._run, name="etcd-watcher", daemon=True)
                self._thread.start()
        self._inbox.put(None)
        return follow

    def stopped(self, follow: Follow[Any]) -> None:
        """Let go of what nobody follows any more."""
        self._touch([follow.followed])
        self._inbox.put(None)

    def close(self, *, timeout_s: float = 2.0) -> None:
        """End the thread and the stream. Idempotent; a call under way is waited for ``timeout_s``."""
        self._closed.set()
        self._inbox.put(None)
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
            for followed in self._present():
                followed.is_live = False

    def _open(self) -> _Stream:
        # A read first: it finds a member that answers, and whether the history is still the same.
        self._reader.status()
        mark = self._history.mark()
        member = self._members.current
        stream = _Stream(next(self._numbers), member, member.metadata(self._members.timeout_s), mark, self._inbox)
        self._heard_at_s, self._asked_at_s = time.monotonic(), None
        self._refused = []
        self._touch(self._present())
        return stream

    def _present(self) -> list[Followed[Any]]:
        with self._lock:
            return list(self._followed.values())

    def _set_up(self, stream: _Stream) -> float:
        """List and watch what is not watched yet, leave what was stopped; return how long to wait."""
        now = time.monotonic()
        with self._lock:
            self._touched |= {id(followed): followed for followed in self._refused if followed.list_at_s <= now}
            self._refused = [followed for followed in self._refused if followed.list_at_s > now]
            touched = [self._touched.pop(key) for key in list(itertools.islice(self._touched, _AT_ONCE))]
            is_more = bool(self._touched)
            for followed in touched:
                if not followed.is_followed() and self._followed.get((followed.prefix, followed.kind)) is followed:
                    del self._followed[followed.prefix, followed.kind]
        for number, followed in enumerate(touched):
            try:
                self._look_at(stream, followed)
            except BaseException:
                self._touch(touched[number:])
                raise
        if is_more:
            return 0.0  # events in between, while there is much to begin
        return min([self._ask_after_s, *(max(0.0, followed.list_at_s - now) for followed in self._refused)])

    def _touch(self, touched: Iterable[Followed[Any]]) -> None:
        with self._lock:
            self._touched |= {id(followed): followed for followed in touched}

    def _look_at(self, stream: _Stream, followed: Followed[Any]) -> None:
        """See that a prefix is watched as long as somebody follows it, and that all who do know what is there."""
        if not followed.is_followed():
            watch_id = stream.ids.pop(id(followed), None)
            if watch_id is not None:
                del stream.followed[watch_id]
                stream.send(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))
        elif id(followed) in stream.ids or followed in stream.pending:
            followed.welcome()
        else:
            self._begin(stream, followed)

    def _begin(self, stream: _Stream, followed: Followed[Any]) -> None:
        try:
            followed.read(self._reader)
        except StoreUnavailable:
            raise
        except CloudError as error:
            # This prefix cannot be read (no permission); the others can.
            log.error("%s cannot be followed: %s", followed.prefix, error)
            followed.list_at_s = time.monotonic() + BACKOFF_CAP_S * _random.uniform(0.5, 1)
            self._refused.append(followed)
            return
        stream.pending.append(followed)
        stream.send(followed.create_request())
        self._asked_at_s = self._asked_at_s or time.monotonic()

    def _take_in(self, stream: _Stream, answer: Any) -> None:
        if answer.created:
            followed = stream.pending.popleft()
            if answer.canceled:
                # The list was allowed a moment ago: it is the token that the stream was opened with.
                stream.member.forget_token()
                raise _StreamEnded(f"{followed.prefix} is not watched: {answer.cancel_reason or 'cancelled'}")
            stream.followed[answer.watch_id] = followed
            stream.ids[id(followed)] = answer.watch_id
            if not followed.is_followed():
                self._touch([followed])  # it was stopped meanwhile
            followed.went_live()
        elif answer.canceled:
            cancelled = stream.followed.pop(answer.watch_id, None)
            if cancelled is None:
                return  # it was stopped
            cancelled.is_live = False
            stream.ids.pop(id(cancelled), None)
            self._touch([cancelled])
            if not answer.compact_revision:
                raise _StreamEnded(f"{cancelled.prefix} was cancelled: {answer.cancel_reason or 'no reason given'}")
            log.info("%s is listed again: etcd compacted up to %d", cancelled.prefix, answer.compact_revision)
        elif (watched := stream.followed.get(answer.watch_id)) is not None:
            self._history.saw(stream.mark, watched.take_in(answer.events))

    def _check_silence(self, stream: _Stream) -> None:
        now = time.monotonic()
        if not stream.pending and not stream.followed:
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
