"""An `ImageSource` in memory, for tests and for trying things out. It answers as `Fetcher` does.

Any thread may call it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ecompute.cluster.errors import Cancelled, CloudError, InvalidImage, StorageError
from ecompute.storage import partial
from ecompute.storage.fetch.api import Fetched, Validator, never, shown

GATE_PERIOD_S = 0.01


@dataclass(frozen=True)
class Request:
    url: str
    known: Validator | None


class FakeFetcher:
    """Attributes:
    requests: what was asked for, in order.
    gate: cleared, every fetch waits before its answer until it is set, or cancelled.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()
        self._contents: dict[str, tuple[bytes, Validator]] = {}
        self._errors: dict[str, CloudError] = {}

    def serve(self, url: str, content: bytes, *, validator: Validator | None = None) -> None:
        """Answer ``url`` with ``content`` from now on; its validator is made from it by default."""
        made = validator if validator is not None else Validator(f'"{hashlib.sha256(content).hexdigest()[:16]}"')
        with self._lock:
            self._contents[url] = (content, made)
            self._errors.pop(url, None)

    def fail(self, url: str, error: CloudError) -> None:
        """Answer ``url`` with ``error`` from now on, until it is served again."""
        with self._lock:
            self._errors[url] = error

    def fetch(
        self,
        url: str,
        into: Path,
        *,
        known: Validator | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Fetched:
        """As `ImageSource.fetch`."""
        with self._lock:
            self.requests.append(Request(url, known))
        while not self.gate.wait(GATE_PERIOD_S) and not cancelled():
            pass
        if cancelled():
            raise Cancelled(f"the fetch of {shown(url)} was given up")
        with self._lock:
            error, answer = self._errors.get(url), self._contents.get(url)
        if error is not None:
            raise error
        if answer is None:
            raise InvalidImage(f"{shown(url)}: the server answers 404 Not Found", hint="check the URL")
        content, validator = answer
        if known is not None and known.is_usable and known == validator:
            return Fetched(None, "", 0, validator, not_modified=True)
        path = partial.create(into, "image")
        try:
            path.write_bytes(content)
        except OSError as failure:
            partial.discard(path)
            raise StorageError(f"cannot write {shown(url)} to {into}: {failure.strerror}") from failure
        return Fetched(path, hashlib.sha256(content).hexdigest(), len(content), validator)
