"""An image from a directory of this host, where the operator allows that.

The file is copied: what an image is named for is its content, which must not change under the
guests that stand on it. Where the file system can, the copy shares the original's blocks.
Any thread may call it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ecompute.cluster.errors import Cancelled, InvalidImage, Refused, StorageError, Unavailable
from ecompute.storage import partial
from ecompute.storage.fetch.api import Fetched, Validator, shown
from ecompute.storage.fetch.limits import CHUNK_BYTES, Limits, Sink

_FICLONE = 0x40049409
"""``ioctl(2)`` FICLONE, linux/fs.h."""


def path_of(url: str) -> str | None:
    """Return the path that ``url`` names (an absolute path, or ``file:///path``), or None."""
    if url.startswith("/"):
        return url
    if not url.lower().startswith("file:"):
        return None
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidImage(f"{shown(url)} is not a URL", hint="write file:///path") from error
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise InvalidImage(f"{shown(url)} does not name a file of this host", hint="write file:///path")
    return unquote(parts.path)


def fetch(
    path: str,
    into: Path,
    *,
    known: Validator | None,
    cancelled: Callable[[], bool],
    allowed: Sequence[Path],
    max_bytes: int,
    limits: Limits,
) -> Fetched:
    """As `ImageSource.fetch`, of a file on this host."""
    source = _open(path, allowed)
    try:
        before = os.fstat(source)
        validator = _validator(before)
        if known == validator:
            return Fetched(None, "", 0, validator, not_modified=True)
        return _copy(source, path, into, validator, before.st_size, cancelled, max_bytes, limits)
    finally:
        os.close(source)


def _open(path: str, allowed: Sequence[Path]) -> int:
    if "\x00" in path:
        raise InvalidImage(f"the path {path} holds a NUL", hint="check the image's path")
    real = os.path.realpath(path)
    # The same answer for what exists and what does not: outside, nothing is told.
    if not _is_below(real, allowed):
        raise Refused(
            f"images may not be taken from {path}",
            hint="the operator may allow it with image.allow_paths in compute.yaml",
        )
    try:
        if not stat.S_ISREG(os.lstat(real).st_mode):
            raise InvalidImage(f"{path} is not a regular file", hint="name an image file")
        source = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidImage(f"there is no image {path} on this host", hint="check the path") from error
    except OSError as error:
        raise InvalidImage(f"the image {path} cannot be read: {error.strerror}", hint="check the path") from error
    try:
        # A directory on the way may have become a symlink since: look at what was opened.
        opened = Path(f"/proc/self/fd/{source}").readlink()
        if not stat.S_ISREG(os.fstat(source).st_mode) or not _is_below(str(opened), allowed):
            raise Refused(f"images may not be taken from {path}: it moved while it was opened")
    except BaseException:
        os.close(source)
        raise
    return source


def _is_below(real: str, allowed: Sequence[Path]) -> bool:
    return any(Path(real).is_relative_to(os.path.realpath(directory)) for directory in allowed)


def _copy(
    source: int,
    name: str,
    into: Path,
    validator: Validator,
    size_bytes: int,
    cancelled: Callable[[], bool],
    max_bytes: int,
    limits: Limits,
) -> Fetched:
    path = partial.create(into, "image")
    try:
        sink = Sink(path, max_bytes=max_bytes, kept_free_bytes=limits.kept_free_bytes, name=name)
        try:
            sink.expect(size_bytes)
            is_clone = _clone(source, sink.descriptor)
            reader = sink.descriptor if is_clone else source
            offset = 0
            while chunk := os.pread(reader, CHUNK_BYTES, offset):
                if cancelled():
                    raise Cancelled(f"the copy of {name} was given up")
                offset += len(chunk)
                (sink.hash_only if is_clone else sink.write)(chunk)
            sha256 = sink.finish()
        finally:
            sink.close()
        if _validator(os.fstat(source)) != validator:
            raise Unavailable(f"the image {name} changed while it was copied", hint="try again when it is complete")
        return Fetched(path, sha256, sink.size_bytes, validator)
    except OSError as error:
        partial.discard(path)
        raise StorageError(f"cannot copy {name} to {into}: {error.strerror}", hint="look at that disk") from error
    except BaseException:
        partial.discard(path)
        raise


def _clone(source: int, target: int) -> bool:
    """Share the blocks of ``source``; return whether the file system could."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return True
    return False


def _validator(found: os.stat_result) -> Validator:
    return Validator(f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}")
