"""What one fetch may use: bytes, disk space, time. The judging is pure; the sink writes a file."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ecompute.cluster.errors import InvalidImage, StorageError

CHUNK_BYTES = 256 << 10
NETWORK_CHUNK_BYTES = 16 << 10
"""A read waits until so much came. Well below `Limits.stall_bytes`, or a slow server that is fast
enough would look stalled."""
_ZEROS = bytes(CHUNK_BYTES)
_SPACE_CHECK_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    connect_s: float = 10.0
    stall_s: float = 30.0
    """In any such time `stall_bytes` must come; before the first byte too."""
    stall_bytes: int = 30_000
    total_s: float = 3600.0
    """The whole fetch, however fast it is: one that trickles would keep its place for ever."""
    redirects: int = 5
    kept_free_bytes: int = 256 << 20
    """What an image leaves free on the disk."""


class Pace:
    """Whether a transfer stalls: pure, fed with a clock's readings in seconds."""

    def __init__(self, stall_s: float, stall_bytes: int, now: float) -> None:
        self._stall_s = stall_s
        self._stall_bytes = stall_bytes
        self._since = now
        self._bytes_then = 0

    def restart(self, now: float, total_bytes: int) -> None:
        """Begin a new window: another server is asked."""
        self._since, self._bytes_then = now, total_bytes

    def is_stalled(self, now: float, total_bytes: int) -> bool:
        """Return whether a window is over in which less than `stall_bytes` came."""
        if total_bytes - self._bytes_then >= self._stall_bytes:
            self._since, self._bytes_then = now, total_bytes
        return now - self._since > self._stall_s


class Sink:
    """Writes one image file, hashing on the way; long runs of zeros become holes. One thread."""

    def __init__(self, path: Path, *, max_bytes: int, kept_free_bytes: int, name: str) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._kept_free_bytes = kept_free_bytes
        self._name = name
        self._directory = path.parent
        self._space_checked_at = 0
        self._hash = hashlib.sha256()
        self._file = path.open("r+b", buffering=0)

    def expect(self, size_bytes: int) -> None:
        """Refuse a content of that size before a byte of it came.

        Raises:
            InvalidImage: it is larger than the limit.
            StorageError: the disk has no room for it.
        """
        if size_bytes > self._max_bytes:
            raise InvalidImage(
                f"{self._name} is larger than the {self._max_bytes / 2**30:g} GiB that this host takes",
                hint="raise image.max_gb in compute.yaml, or offer a smaller image (qcow2)",
            )
        free_bytes = shutil.disk_usage(self._directory).free - self._kept_free_bytes
        if size_bytes - self.size_bytes > free_bytes:
            raise StorageError(
                f"no room for {self._name} in {self._directory}: it needs {size_bytes - self.size_bytes} bytes, "
                f"{max(0, free_bytes)} can be used",
                hint="free disk space on this host, or take another host",
            )

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            InvalidImage, StorageError: as `expect`.
        """
        self.hash_only(data)
        if self.size_bytes - self._space_checked_at > _SPACE_CHECK_BYTES or self.size_bytes > self._max_bytes:
            self.expect(self.size_bytes)
            self._space_checked_at = self.size_bytes
        try:
            for start in range(0, len(data), CHUNK_BYTES):
                piece = memoryview(data)[start : start + CHUNK_BYTES]
                if piece == _ZEROS[: len(piece)]:
                    self._file.seek(len(piece), os.SEEK_CUR)
                    continue
                while piece:
                    piece = piece[self._file.write(piece) :]
        except OSError as error:
            raise StorageError(
                f"cannot write {self._name} to {self._directory}: {error.strerror}",
                hint="look at that disk of this host",
            ) from error

    def hash_only(self, data: bytes) -> None:
        """Count ``data``, which is in the file already."""
        self._hash.update(data)
        self.size_bytes += len(data)

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    def finish(self) -> str:
        """Give the file its length (it may end in a hole) and return the content's SHA-256."""
        self._file.truncate(self.size_bytes)
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()
