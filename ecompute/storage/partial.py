"""Files that are being written: under their name they are complete, or they are not there.

What is written lies in its target's directory as ``.<name>.<random>.part`` until `publish` gives it
its name, after its content has reached the disk. `publish` never writes over an existing file
unless told to: what lies there may be a guest's disk. This process remembers what it is writing, so
that `sweep` removes only what a killed run has left; a directory therefore belongs to one process.

Any thread may call these functions; one file is written by one thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from pathlib import Path

_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_lock = threading.Lock()
_being_written: set[Path] = set()


def create(directory: Path, name: str) -> Path:
    """Make an empty file (mode 0600) in ``directory`` that is to become ``name``, and return its path.

    It ends with `publish` or `discard`.
    """
    path = directory.absolute() / f".{name[:80]}.{secrets.token_hex(8)}.part"
    with _lock:
        _being_written.add(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except BaseException:
        _forget(path)
        raise
    return path


def publish(path: Path, target: Path, *, mode: int, is_replacing: bool = False) -> None:
    """Give the file at ``path`` the name ``target``, once its content is on the disk.

    Raises:
        FileExistsError: ``target`` exists and is not to be replaced; ``path`` is still there.
        OSError: the disk did not take it; ``path`` is still there.
    """
    path.chmod(mode)
    _flush(path, os.O_RDONLY)
    if is_replacing:
        path.replace(target)
    else:
        target.hardlink_to(path)
        path.unlink()
    _flush(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    _forget(path)


def discard(path: Path) -> None:
    """Remove what was being written at ``path``, if it is still there."""
    path.unlink(missing_ok=True)
    _forget(path)


def remove(path: Path) -> bool:
    """Remove the finished file at ``path`` for good; return whether it was there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    with contextlib.suppress(FileNotFoundError):
        _flush(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    return True


def sweep(directory: Path) -> tuple[Path, ...]:
    """Remove the unfinished files of killed runs from ``directory``; return their paths."""
    if not directory.is_dir():
        return ()
    swept = []
    for path in sorted(directory.absolute().iterdir()):
        with _lock:
            is_ours = path in _being_written
        if not is_ours and _NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
            swept.append(path)
    return tuple(swept)


def _forget(path: Path) -> None:
    with _lock:
        _being_written.discard(path)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
