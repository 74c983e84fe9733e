"""The images of this host: fetched once, inspected, kept under their content's hash.

::

    <directory>/images/<sha256>       the content, read-only, complete and inspected
    <directory>/index/<sha256 of URL> what that URL gave the last time, and how to ask again

Any number of callers may want the same URL: one fetch serves them (single flight), and ends early
only when none of them waits any more. Fetches run in threads of this module, at most `MAX_FETCHES`
side by side, never in a caller's: a slow server holds up who wants that image and nobody else.

Each `ensure` asks the source whether its content changed. If the source does not answer and the
content is here, that is used, with a warning (`Image.stale_because`). If it answers that there is no
such image, that is an error: it was withdrawn.

An index entry is written after its content and is worth nothing without it, so that a kill at any
point leaves a file more, never a wrong one. Every method may be called from any thread. A directory
belongs to one process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.documents import timestamp
from ecompute.cluster.errors import Cancelled, CloudError, StorageError, Unavailable
from ecompute.cluster.keys import image_digest
from ecompute.storage import partial
from ecompute.storage.fetch.api import ImageSource, Validator, shown
from ecompute.storage.fetch.local import path_of
from ecompute.storage.inspect import ImageInfo, inspect

MAX_FETCHES = 32
UNUSED_S = 3600.0
CLOSE_S = 5.0
IMAGE_MODE = 0o444

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Image:
    path: Path
    sha256: str
    format: Literal["qcow2", "raw"]
    virtual_size_bytes: int
    stale_because: str = ""
    """Why its source could not be asked whether it is still the newest; empty if it was asked."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An index file. The URL in it is for people: as it may be logged."""

    url: str
    sha256: str
    size_bytes: int
    etag: str | None
    last_modified: str | None
    fetched_at: str

    @property
    def validator(self) -> Validator:
        return Validator(self.etag, self.last_modified)


@dataclass(frozen=True)
class Held:
    """An image that is here; the URL as it may be shown."""

    url: str
    sha256: str
    size_bytes: int


@dataclass(eq=False)
class _Flight:
    url: str
    is_quick: bool = False
    """There is a copy to be asked about, or a file of this host: it does not queue behind downloads."""
    waiters: list[Future[Image]] = field(default_factory=list)
    abandoned: threading.Event = field(default_factory=threading.Event)
    sha256: str = ""
    """The content that it holds in its hands; not pruned meanwhile."""


class ImageCache:
    def __init__(
        self,
        directory: Path,
        source: ImageSource,
        *,
        fresh_s: float = 0.0,
        max_fetches: int = MAX_FETCHES,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the cache, and remove what a killed run left unfinished in it.

        Args:
            directory: made if absent. QEMU reads the images in it, as another user.
            fresh_s: for so long after a source was asked about a URL it is not asked again.
            on_change: told, on any thread, that `held` has changed; must not block.

        Raises:
            StorageError: the directory cannot be used.
        """
        self._images = directory.absolute() / "images"
        self._index = directory.absolute() / "index"
        self._source = source
        self._fresh_s = fresh_s
        self._max_fetches = max_fetches
        self._monotonic = monotonic
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        self._queues: dict[bool, deque[_Flight]] = {False: deque(), True: deque()}
        self._threads: dict[bool, set[threading.Thread]] = {False: set(), True: set()}
        self._asked_at: dict[str, float] = {}
        self._used_at: dict[str, float] = {}
        self._opened_at = monotonic()
        self._is_closed = False
        try:
            self._images.mkdir(parents=True, exist_ok=True)
            self._images.chmod(0o711)
            self._index.mkdir(exist_ok=True)
            self._index.chmod(0o700)
            swept = partial.sweep(self._images) + partial.sweep(self._index)
        except OSError as error:
            raise StorageError(f"the image cache {directory} cannot be used: {error.strerror}") from error
        if swept:
            log.info("removed %d unfinished files from %s", len(swept), directory)

    def ensure(self, url: str) -> Future[Image]:
        """Return the image at ``url``, as it is now, when it is here.

        A caller that wants it no more calls ``cancel()`` on its future; a timeout of ``result()``
        alone gives nothing up.

        The future raises:
            InvalidImage, Refused, Unavailable, StorageError: as `ImageSource.fetch` and `inspect`.
            Cancelled: the cache was closed.
        """
        future: Future[Image] = Future()
        with self._lock:
            if self._is_closed:
                future.set_exception(Cancelled("the image cache is closed"))
                return future
            flight = self._flights.get(url)
            if flight is None:
                flight = _Flight(url, is_quick=path_of(url) is not None or self._index_of(url).exists())
                queue = self._queues[flight.is_quick]
                queue.append(flight)
                try:
                    self._staff(flight.is_quick)
                except RuntimeError as error:  # the machine gives no thread
                    if not self._threads[flight.is_quick]:
                        queue.remove(flight)
                        future.set_exception(StorageError(f"{shown(url)} cannot be fetched: {error}"))
                        return future
                self._flights[url] = flight
            flight.waiters.append(future)
        # Outside the lock: on a future that is done, the callback runs at once, in this thread.
        future.add_done_callback(lambda _: self._left(flight))
        return future

    def held(self) -> dict[str, Held]:
        """Return the images that are here, by `ecompute.cluster.keys.image_digest` of each URL.

        Raises:
            StorageError: the directory cannot be read.
        """
        try:
            entries = {path.name: self._entry(path) for path in self._index.iterdir() if not path.name.startswith(".")}
            present = {path.name for path in self._images.iterdir()}
        except OSError as error:
            raise StorageError(f"the image cache cannot be read: {error.strerror}") from error
        return {
            digest: Held(entry.url, entry.sha256, entry.size_bytes)
            for digest, entry in entries.items()
            if entry is not None and entry.sha256 in present
        }

    def prune(self, keep: Collection[str], *, unused_s: float = UNUSED_S) -> tuple[str, ...]:
        """Remove the images that nobody needs; return their hashes.

        An image stays that is in ``keep`` (the hashes upon which disks stand, see
        `ecompute.storage.disks.images_in_use`), that a fetch is about to return, or that was
        returned less than ``unused_s`` ago (a disk may just be made upon it).

        Raises:
            StorageError: the directory cannot be read or written.
        """
        removed = []
        try:
            for path in sorted(self._images.iterdir()):
                with self._lock:
                    age_s = self._monotonic() - self._used_at.get(path.name, self._opened_at)
                    is_held = any(flight.sha256 == path.name for flight in self._flights.values())
                    if path.name.startswith(".") or path.name in keep or is_held or age_s < unused_s:
                        continue
                    partial.remove(path)
                removed.append(path.name)
            for path in sorted(self._index.iterdir()):
                entry = self._entry(path)
                if not path.name.startswith(".") and entry is not None and entry.sha256 in removed:
                    partial.remove(path)
        except OSError as error:
            raise StorageError(f"the image cache cannot be pruned: {error.strerror}") from error
        if removed:
            self._on_change()
        return tuple(removed)

    def close(self) -> None:
        """Give up all fetches. Waits a little for them to end; what hangs is left to its thread."""
        with self._lock:
            self._is_closed = True
            queued = tuple(flight for queue in self._queues.values() for flight in queue)
            for queue in self._queues.values():
                queue.clear()
            flights = tuple(self._flights.values())
            threads = tuple(thread for pool in self._threads.values() for thread in pool)
        for flight in flights:
            flight.abandoned.set()
        for flight in queued:
            self._land(flight, None, Cancelled("the image cache was closed"))
        deadline = time.monotonic() + CLOSE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- flights ---------------------------------------------------------------------------------

    def _staff(self, is_quick: bool) -> None:
        """Start a thread for what is queued, if one more is allowed. The lock is held."""
        if len(self._threads[is_quick]) >= self._max_fetches:
            return
        thread = threading.Thread(target=self._work, args=[is_quick], name="image-fetch", daemon=True)
        thread.start()
        self._threads[is_quick].add(thread)

    def _work(self, is_quick: bool) -> None:
        while True:
            with self._lock:
                if not self._queues[is_quick]:
                    self._threads[is_quick].discard(threading.current_thread())
                    return
                flight = self._queues[is_quick].popleft()
            try:
                image = self._obtain(flight)
            except Exception as error:  # noqa: BLE001 - it is raised where the image is waited for
                self._land(flight, None, error)
            else:
                self._land(flight, image, None)

    def _land(self, flight: _Flight, image: Image | None, error: Exception | None) -> None:
        with self._lock:
            if self._flights.get(flight.url) is flight:
                del self._flights[flight.url]
            waiters = tuple(flight.waiters)
            if image is not None:
                self._used_at[image.sha256] = self._monotonic()
        for future in waiters:
            if not future.set_running_or_notify_cancel():
                continue
            if image is not None:
                future.set_result(image)
            else:
                future.set_exception(error)

    def _left(self, flight: _Flight) -> None:
        """A waiter is done. If it was the last, and it gave up, so does the flight."""
        with self._lock:
            if self._flights.get(flight.url) is not flight or not all(future.cancelled() for future in flight.waiters):
                return
            del self._flights[flight.url]  # who asks from now on begins anew
            flight.abandoned.set()
            if flight in self._queues[flight.is_quick]:
                self._queues[flight.is_quick].remove(flight)

    def _index_of(self, url: str) -> Path:
        return self._index / image_digest(url)

    # --- one flight, in its thread ---------------------------------------------------------------

    def _obtain(self, flight: _Flight) -> Image:
        url, index = flight.url, self._index_of(flight.url)
        entry = self._entry(index)
        cached = self._cached(flight, entry) if entry is not None else None
        with self._lock:
            asked_at = self._asked_at.get(index.name)
        if cached is not None and asked_at is not None and self._monotonic() - asked_at < self._fresh_s:
            return cached
        try:
            known = entry.validator if cached is not None and entry is not None else None
            fetched = self._source.fetch(url, self._images, known=known, cancelled=flight.abandoned.is_set)
        except Unavailable as error:
            if cached is None:
                raise
            log.warning("using the cached copy of %s: %s", shown(url), error)
            return replace(cached, stale_because=str(error))
        with self._lock:
            self._asked_at[index.name] = self._monotonic()
        if fetched.path is None:
            if cached is None:
                raise StorageError(f"{shown(url)}: 'not modified' was answered, and nothing is here", hint="try again")
            return cached
        try:
            info = self._inspected(fetched.path, shown(url))
            image = self._keep(flight, fetched.path, fetched.sha256, info)
            entry = _Entry(
                url=shown(url),
                sha256=fetched.sha256,
                size_bytes=fetched.size_bytes,
                etag=fetched.validator.etag,
                last_modified=fetched.validator.last_modified,
                fetched_at=timestamp(self._clock()),
            )
            self._write(index, entry)
        except OSError as error:
            raise StorageError(
                f"cannot keep {shown(url)} in {self._images}: {error.strerror}", hint="look at the disk of this host"
            ) from error
        finally:
            partial.discard(fetched.path)
        log.info("fetched %s: %s, %d bytes, sha256 %s", shown(url), info.format, info.size_bytes, image.sha256)
        self._on_change()
        return image

    def _keep(self, flight: _Flight, path: Path, sha256: str, info: ImageInfo) -> Image:
        """Give the content its name, unless another URL gave the same bytes."""
        self._hold(flight, sha256)
        target = self._images / sha256
        if target.is_file() and target.stat().st_size != info.size_bytes:
            log.warning("the cached image %s was damaged and is replaced", sha256)
            partial.publish(path, target, mode=IMAGE_MODE, is_replacing=True)
        elif not target.is_file():
            try:
                partial.publish(path, target, mode=IMAGE_MODE)
            except FileExistsError:
                log.debug("another URL gave %s at the same time", sha256)
        return Image(target, sha256, info.format, info.virtual_size_bytes)

    def _cached(self, flight: _Flight, entry: _Entry) -> Image | None:
        """Return the image of ``entry`` if it is here, whole, and still passes the inspection."""
        self._hold(flight, entry.sha256)
        path = self._images / entry.sha256
        try:
            info = self._inspected(path, entry.url)
        except (OSError, CloudError):
            return None
        if info.size_bytes != entry.size_bytes:
            return None
        return Image(path, entry.sha256, info.format, info.virtual_size_bytes)

    def _hold(self, flight: _Flight, sha256: str) -> None:
        with self._lock:
            flight.sha256 = sha256

    def _inspected(self, path: Path, name: str) -> ImageInfo:
        with path.open("rb", buffering=0) as file:
            return inspect(file, name)

    def _entry(self, path: Path) -> _Entry | None:
        try:
            return from_json(path.read_bytes(), _Entry)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None  # absent or damaged: the image is fetched anew

    def _write(self, path: Path, entry: _Entry) -> None:
        made = partial.create(path.parent, path.name)
        try:
            made.write_bytes(msgspec.json.encode(entry) + b"\n")
            partial.publish(made, path, mode=0o600, is_replacing=True)
        finally:
            partial.discard(made)
