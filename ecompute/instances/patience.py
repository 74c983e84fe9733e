"""Patience with instances that stick: kept on the host's disk, over the restarts that they cause.

When too many lanes hang, the daemon ends to be started anew, and takes everything up again. If the
same instances stick again it would end again, and again, and the other guests of the host would never
be seen to. So each time an instance was among those that hung, it is left alone for longer after the
next start: not at all the first time, then a minute, doubled each time, at most an hour. One that went
through is forgotten.

A file that cannot be read is as good as none: the worst that follows is one more restart.

Threads: any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ecompute.cluster.decoding import from_json

FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0

log = logging.getLogger(__name__)


class _Stuck(msgspec.Struct, frozen=True):
    times: int


def pause_s(times: int) -> float:
    """Return how long an instance is left alone that has stuck ``times`` times in a row. Pure."""
    if times < 2:
        return 0.0
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 2, 30)))


class Patience:
    """What is kept in the file ``path``.

    Args:
        clock: seconds, monotonic; the pauses run from the making of this object.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._stuck = self._read()

    def left_s(self, uuid: str) -> float:
        """Return for how long an instance is still to be left alone; 0 for all others."""
        with self._lock:
            stuck = self._stuck.get(uuid)
            return 0.0 if stuck is None else max(0.0, self._began + pause_s(stuck.times) - self._clock())

    def stuck(self, uuids: Iterable[str]) -> None:
        """Remember that these hung when the daemon gave up."""
        with self._lock:
            for uuid in uuids:
                known = self._stuck.get(uuid)
                self._stuck[uuid] = _Stuck(1 if known is None else known.times + 1)
            self._write()

    def went_well(self, uuid: str) -> None:
        """Forget an instance that went through."""
        with self._lock:
            if self._stuck.pop(uuid, None) is not None:
                self._write()

    def _read(self) -> dict[str, _Stuck]:
        try:
            return from_json(self._path.read_bytes(), dict[str, _Stuck])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s cannot be read and is begun anew: %s", self._path, error)
            return {}

    def _write(self) -> None:
        try:
            if not self._stuck:
                self._path.unlink(missing_ok=True)
                return
            new = self._path.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(self._stuck))
            new.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)
