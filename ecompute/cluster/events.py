"""What happened to an object, for the people who own it: a ring of 32 a writer and object.

An event is an operation of the transaction that makes the change, so there is no change without its
event and no event without its change. A writer numbers its events of an object; the number modulo
32 is the slot. Events go with their object.

Safe from several threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ecompute.cluster import keys
from ecompute.cluster.documents import Event, timestamp
from ecompute.cluster.errors import one_line
from ecompute.cluster.store import Put, Store

INSTANCE = "instance"
HOST = "host"

TOOL = "eschedule"
"""The writer's name of those who ask."""
LEAD = "lead"


class Events:
    """Makes event operations for one writer.

    Args:
        store: read once an object, for the number to go on from.
        writer: a host's provider uuid, `TOOL` or `LEAD`.
        now: seconds since 1970.
    """

    def __init__(self, store: Store, writer: str, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._writer = writer
        self._now = now
        self._next: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def record(self, kind: str, uuid: str, type_: str, message: str, *, seconds: float | None = None) -> Put:
        """Return the operation that writes one event of the object ``uuid``.

        Args:
            kind: the object's kind: `INSTANCE`.
            type_: short and stable, for programs.
            message: one line, for people; made one line here.
            seconds: how long it took.

        Raises:
            StoreUnavailable: the ring could not be read.
        """
        n = self._number(kind, uuid)
        event = self._event(n, type_, message, seconds)
        return Put(keys.event(kind, uuid, self._writer, n), event)

    def begin(self, kind: str, uuid: str, happened: Sequence[tuple[str, str]]) -> list[Put]:
        """Return the operations that write the first events of an object that is made by them.

        Reads nothing, and keeps nothing: the ring of what is not there yet is empty.

        Args:
            kind: the object's kind: `INSTANCE`.
            happened: each event's type and message, as for `record`.
        """
        return [
            Put(keys.event(kind, uuid, self._writer, n), self._event(n, type_, message, None))
            for n, (type_, message) in enumerate(happened)
        ]

    def _event(self, n: int, type_: str, message: str, seconds: float | None) -> Event:
        return Event(
            n=n,
            at=timestamp(self._now()),
            writer=self._writer,
            type=type_,
            message=one_line(message),
            seconds=None if seconds is None else round(seconds, 3),
        )

    def forget(self, kind: str, uuid: str) -> None:
        """Drop what is kept for an object that is gone."""
        with self._lock:
            self._next.pop((kind, uuid), None)

    def _number(self, kind: str, uuid: str) -> int:
        with self._lock:
            known = self._next.get((kind, uuid))
            if known is not None:
                self._next[kind, uuid] = known + 1
                return known
        ring = self._store.list(keys.event_ring(kind, uuid, self._writer), Event)
        with self._lock:
            n = max((item.value.n + 1 for item in ring.items), default=0)
            n = max(n, self._next.get((kind, uuid), 0))
            self._next[kind, uuid] = n + 1
            return n


def rings(kind: str, uuid: str, *providers: str) -> list[str]:
    """Return the prefixes under which the events of an object lie.

    Args:
        providers: the hosts that may have written some: an instance's own.
    """
    return [keys.event_ring(kind, uuid, writer) for writer in dict.fromkeys((TOOL, LEAD, *providers))]


def read(store: Store, kind: str, uuid: str, *providers: str) -> list[Event]:
    """Return all events of an object, oldest first; writers' clocks may differ.

    Args:
        providers: as for `rings`.
    """
    found = [item.value for ring in rings(kind, uuid, *providers) for item in store.list(ring, Event).items]
    return sorted(found, key=lambda event: (event.at, event.writer, event.n))
