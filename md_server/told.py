"""Reads what `ecompute` has written for the service, and finds out who asks.

A file is read again when it is another one than last time (it is replaced as a whole, so its inode tells), which
costs one look a request. Nothing of it is written into a log.

Any thread may call this.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Generic, TypeVar

from ecompute.cluster.documents import Document, Unreadable, decode
from ecompute.guest import told
from ecompute.guest.told import Callers, Guest

T = TypeVar("T", bound=Document)

KEPT = 512
"""Files of a kind that are kept in memory; one is at most a little more than its user data, 64 KiB."""


class Told:
    """
    Args:
        state: the state directory of `ecompute`.
    """

    def __init__(self, state: Path) -> None:
        self._directory = told.directory_of(state)
        self._instances = state / "instances"
        self._callers = _Files(Callers)
        self._guests = _Files(Guest)

    def callers(self, vni: int) -> Callers | None:
        """Return who is on a network of this host, if anybody."""
        return self._callers.read(told.callers_file(self._directory, vni))

    def guest(self, uuid: str) -> Guest | None:
        """Return what the instance may be told, if it is on this host."""
        return self._guests.read(told.guest_file(self._instances, uuid))


class _Files(Generic[T]):
    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[tuple[int, int, int], T]] = OrderedDict()

    def read(self, path: Path) -> T | None:
        try:
            stat = path.stat()
            mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            with self._lock:
                kept = self._kept.get(path)
                if kept is not None and kept[0] == mark:
                    self._kept.move_to_end(path)
                    return kept[1]
            document = decode(path.read_bytes(), self._kind, path.name)
        except (FileNotFoundError, Unreadable):
            with self._lock:
                self._kept.pop(path, None)
            return None
        with self._lock:
            self._kept[path] = (mark, document)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return document
