"""What tools and the lead ask of this host and wait for: the end of a console log, a presence, to register again.

A question is a leased key below ``/operations/<provider>/``; the answer is written in its place, in
the same lease, so that it goes with the tool that asked. Answers are at most 64 KiB. Reading a log
must never hold up a guest, so a thread of its own answers them, one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from uuid import UUID

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.asking import CONSOLE, NOTHING, PRESENCE, REGISTER
from ecompute.cluster.documents import Operation
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import Change, Put, Store, Versioned, Watcher, unchanged
from ecompute.cluster.timers import Serial

ANSWER_LIMIT_BYTES = 64 * 1024
PRESENCE_TIMEOUT_S = 10.0
CLOSE_S = 5.0

log = logging.getLogger(__name__)


class Operations:
    """Answers the questions to one host.

    Args:
        console_log: says where the console log of an instance lies.
        has_nothing: says, sooner or later, whether nothing of an instance is on this host.
        register: has the host look whether placement knows it, soon.
    """

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        provider: str,
        *,
        console_log: Callable[[str], Path],
        has_nothing: Callable[[str], Future[bool]],
        register: Callable[[], object],
    ) -> None:
        self._store = store
        self._console_log = console_log
        self._has_nothing = has_nothing
        self._register = register
        self._asked: Serial[Versioned[Operation]] = Serial("operations", self._settle)
        self._follow = watcher.follow(keys.operations(provider), Operation, self._changed)

    def close(self) -> None:
        self._follow.stop()
        self._asked.close(CLOSE_S)

    def _changed(self, change: Change[Operation]) -> None:
        if change.after is not None and change.after.value.answer is None and change.after.value.error is None:
            self._asked.put(change.after)

    def _settle(self, asked: Versioned[Operation]) -> None:
        try:
            answered = self._answer(asked.value)
            self._store.commit([unchanged(asked)], [Put(asked.key, answered, lease=asked.lease)])
        except CompareFailed:
            pass  # who asked has gone
        except Exception as error:  # noqa: BLE001 - one question must not end the answering of all
            log.warning("operation %s was not answered: %s", asked.key, error)

    def _answer(self, operation: Operation) -> Operation:
        if operation.kind == REGISTER:
            self._register()
            return structs.replace(operation, answer="looks")
        try:
            uuid = str(UUID(operation.instance_uuid))  # a path is made of it
        except ValueError:
            return structs.replace(operation, error="it names no instance")
        if operation.kind == CONSOLE:
            return self._console(operation, uuid)
        if operation.kind == PRESENCE:
            try:
                is_nothing = self._has_nothing(uuid).result(PRESENCE_TIMEOUT_S)
            except TimeoutError:
                return structs.replace(operation, error="the instance is being worked on")
            return structs.replace(operation, answer=NOTHING if is_nothing else "something")
        return structs.replace(operation, error=f"this host does not know the operation {operation.kind!r}")

    def _console(self, operation: Operation, uuid: str) -> Operation:
        limit = max(0, min(operation.limit_bytes, ANSWER_LIMIT_BYTES))
        try:
            return structs.replace(operation, answer=tail(self._console_log(uuid), limit))
        except FileNotFoundError:
            return structs.replace(operation, error="it has no console log on this host")
        except OSError as error:
            return structs.replace(operation, error=f"its console log cannot be read: {error.strerror}")


def tail(path: Path, limit_bytes: int) -> str:
    """Return the end of a file as text; what is not UTF-8 is replaced.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - limit_bytes))
        return file.read(limit_bytes).decode("utf-8", "replace")
