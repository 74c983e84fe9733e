"""The config drive: a small ISO 9660 image, which a guest finds by its label and mounts at boot.

The only home of pycdlib. Names are exact in Rock Ridge (Linux) and in Joliet (Windows); the plain
ISO 9660 names below them are upper case and for nobody in particular.

Invariants: a file under the drive's name is complete, and no one else on the host may read it (it may
hold user data). Equal files give an equal image, byte for byte: a drive written again after a crash is
the same drive. Any thread may call `write` and `remove`; two threads must not do so for one path.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from pathlib import Path, PurePosixPath
from typing import Protocol

import pycdlib
import pycdlib.dates
import pycdlib.headervd
import pycdlib.pycdlib
import pycdlib.pycdlibexception
import pycdlib.utils

from ecompute.cluster.errors import InvalidInput, StorageError
from ecompute.guest.metadata import LABEL

EPOCH_S = 1577836800.0
"""2020-01-01 UTC, the time of every file on a drive."""

JOLIET_NAME_LIMIT = 64
PARTIAL_SUFFIX = ".partial"
ONLY_OURS = 0o600


class Standstill:
    """The ``time`` that pycdlib sees: always `EPOCH_S`, always UTC.

    It writes the current time into descriptors and records and has no argument for it. Nothing else in
    the process uses pycdlib, so nothing else sees this.
    """

    gmtime = staticmethod(time.gmtime)
    localtime = staticmethod(time.gmtime)
    strftime = staticmethod(time.strftime)
    strptime = staticmethod(time.strptime)
    struct_time = time.struct_time

    @staticmethod
    def time() -> float:
        return EPOCH_S


for _module in (pycdlib.pycdlib, pycdlib.headervd, pycdlib.dates, pycdlib.utils):
    _module.time = Standstill  # type: ignore[attr-defined]


class WriteDrive(Protocol):
    """What `write` does."""

    def __call__(self, path: Path, files: dict[str, bytes], *, label: str = LABEL) -> None: ...


def write(path: Path, files: dict[str, bytes], *, label: str = LABEL) -> None:
    """Write a config drive with ``files`` (by path, with slashes) as ``path``; an existing one is replaced.

    Raises:
        InvalidInput: a name cannot be on the drive.
        StorageError: the file cannot be written; nothing is left of the attempt.
    """
    image = render(files, label=label)
    partial = partial_of(path)
    try:
        # The name is fixed, so that what a killed run left is written over and not collected.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, ONLY_OURS)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, ONLY_OURS)
            file.write(image)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageError(f"the config drive {path} cannot be written: {error.strerror or error}") from error


def remove(path: Path) -> None:
    """Remove the drive ``path`` and what a killed `write` may have left of it; nothing there is fine.

    Raises:
        StorageError: it is there and cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
        partial_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the config drive {path} cannot be removed: {error.strerror or error}") from error


def render(files: dict[str, bytes], *, label: str = LABEL) -> bytes:
    """Return the image of a drive with ``files``.

    Raises:
        InvalidInput: a name cannot be on the drive.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, joliet=3, rock_ridge="1.09")
    iso_paths: dict[PurePosixPath, str] = {PurePosixPath("/"): ""}

    def enter(path: PurePosixPath, iso_name: str) -> str:
        # pycdlib lets two entries have one name; readers then see either.
        iso_path = f"{iso_paths[path.parent]}/{iso_name}"
        if iso_path in iso_paths.values():
            raise InvalidInput(f"two names on a config drive are too alike; one of them is {str(path)!r}")
        iso_paths[path] = iso_path
        return iso_path

    def add_directory(directory: PurePosixPath) -> None:
        if directory not in iso_paths:
            add_directory(directory.parent)
            iso_path = enter(directory, plain(directory.name))
            iso.add_directory(iso_path, rr_name=directory.name, joliet_path=str(directory), file_mode=0o040555)

    try:
        for name in sorted(files):
            path = checked(name)
            add_directory(path.parent)
            iso_path = enter(path, plain_file(path.name))
            iso.add_fp(
                io.BytesIO(files[name]),
                len(files[name]),
                f"{iso_path};1" if "." in iso_path.rpartition("/")[2] else f"{iso_path}.;1",
                rr_name=path.name,
                joliet_path=str(path),
                file_mode=0o100444,
            )
        image = io.BytesIO()
        iso.write_fp(image)
    except pycdlib.pycdlibexception.PyCdlibException as error:
        raise InvalidInput(f"no config drive can be made of {', '.join(sorted(files))}: {error}") from error
    finally:
        iso.close()
    return image.getvalue()


def checked(name: str) -> PurePosixPath:
    """Return ``name`` as an absolute path on the drive."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or not part.isprintable() or len(part) > JOLIET_NAME_LIMIT for part in parts):
        raise InvalidInput(f"{name!r} cannot be the name of a file on a config drive")
    return PurePosixPath("/", *parts)


def plain(name: str) -> str:
    """Return ``name`` in the letters that ISO 9660 knows."""
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())


def plain_file(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{plain(stem)}.{plain(suffix)}" if stem else plain(name)


def partial_of(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL_SUFFIX)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
