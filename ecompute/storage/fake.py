"""An `ImageSource` in memory, and disks without a program to make them, for tests and for trying things out.

They answer as `Fetcher` and `disks.create_overlay` do, and refuse what those refuse. Any thread may call them.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ecompute.cluster.errors import Cancelled, CloudError, InvalidImage, StorageError
from ecompute.storage import disks, partial
from ecompute.storage.fetch.api import Fetched, Validator, never, shown
from ecompute.storage.images import Image
from ecompute.storage.inspect import MAGIC

GATE_PERIOD_S = 0.01
REQUESTS_KEPT = 10_000


@dataclass(frozen=True)
class Request:
    url: str
    known: Validator | None


class FakeFetcher:
    """
    Args:
        otherwise: what every URL gives that was told nothing of; by default it is not found.
        before: called before each answer; may take its time, or raise what the fetch is to raise.

    Attributes:
        requests: what was asked for last, in order.
        gate: cleared, every fetch waits before its answer until it is set, or cancelled.
    """

    def __init__(self, *, otherwise: bytes | None = None, before: Callable[[str], None] = lambda url: None) -> None:
        self._otherwise = None if otherwise is None else (otherwise, _validator_of(otherwise))
        self._before = before
        self.requests: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()
        self._contents: dict[str, tuple[bytes, Validator]] = {}
        self._errors: dict[str, CloudError] = {}

    def serve(self, url: str, content: bytes, *, validator: Validator | None = None) -> None:
        """Answer ``url`` with ``content`` from now on; its validator is made from it by default."""
        made = validator if validator is not None else _validator_of(content)
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
            if len(self.requests) > REQUESTS_KEPT:
                del self.requests[: REQUESTS_KEPT // 2]
        self._before(url)
        while not self.gate.wait(GATE_PERIOD_S) and not cancelled():
            pass
        if cancelled():
            raise Cancelled(f"the fetch of {shown(url)} was given up")
        with self._lock:
            error, answer = self._errors.get(url), self._contents.get(url, self._otherwise)
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


def create_overlay(image: Image, path: Path, *, disk_gb: int, resize: bool = True) -> None:
    """As `ecompute.storage.disks.create_overlay`; the disk is a header that names its image, and holds nothing."""
    size_bytes = disks.overlay_bytes(image, disk_gb=disk_gb, resize=resize)
    path = path.absolute()
    if path.exists():
        raise StorageError(f"the disk {path} exists already and is not written over")
    name = str(image.path.absolute()).encode(errors="surrogateescape")
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        MAGIC,
        3,
        _HEADER_BYTES,
        len(name),
        _CLUSTER_BITS,
        size_bytes,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        4,
        _HEADER_BYTES,
    )
    try:
        made = partial.create(path.parent, path.name)
        try:
            made.write_bytes(header + name)
            partial.publish(made, path, mode=disks.DISK_MODE)
        finally:
            partial.discard(made)
    except FileExistsError as error:
        raise StorageError(f"the disk {path} exists already and is not written over") from error
    except OSError as error:
        raise StorageError(f"cannot make the disk {path}: {error.strerror}") from error


def write_config_drive(path: Path, files: dict[str, bytes], *, label: str = "") -> None:
    """As `ecompute.guest.configdrive.write`; the drive is no ISO 9660, but the files one after the other."""
    made = path.with_name(f"{path.name}.partial")
    try:
        made.write_bytes(b"".join(f"--- {name}\n".encode() + content + b"\n" for name, content in files.items()))
        made.chmod(0o600)
        made.replace(path)
    except OSError as error:
        raise StorageError(f"the config drive {path} cannot be written: {error.strerror}") from error


_HEADER_BYTES = 104
_CLUSTER_BITS = 16


def _validator_of(content: bytes) -> Validator:
    return Validator(f'"{hashlib.sha256(content).hexdigest()[:16]}"')
