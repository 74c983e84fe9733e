"""Network namespaces with names: made, entered, removed, as ``ip netns`` does it.

A name is a file in `DIRECTORY` upon which the namespace is mounted; a file without that mount (of a process
that died in between) names nothing, and is made one. `DIRECTORY` is a shared mount, so that namespaces are seen
from every mount namespace of the machine; a process that has one of its own keeps its namespaces to itself, and
they end with it.

Nothing is forked, and no thread of a caller ever changes its namespace: what is to be done inside is done by a
thread that is there for nothing else. It opens its own sockets, and a program that it starts runs there.

Any thread may call this.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ecompute.cluster.errors import NetworkError
from ecompute.cluster.failpoint import reach

DIRECTORY = Path("/run/netns")
FAILPOINTS = ("netns.named", "netns.unmounted")

Identity = tuple[int, int]
"""Device and inode: the same for one namespace wherever it is seen, as in ``/proc/<pid>/ns/net``."""

T = TypeVar("T")

_OWN = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000
_MS_BIND = ctypes.c_ulong(0x1000)
_MS_BIND_ALL = ctypes.c_ulong(0x1000 | 0x4000)
_MS_SHARED_ALL = ctypes.c_ulong(0x100000 | 0x4000)
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    if not name or "/" in name or name in (".", ".."):
        raise NetworkError(f"{name!r} cannot name a network namespace")
    return DIRECTORY / name


def identity(name: str) -> Identity | None:
    """Return which namespace has this name, or None where none has."""
    return identity_at(path_of(name))


def identity_at(path: Path) -> Identity | None:
    """Return which namespace is at ``path``, or None where there is none."""
    try:
        there = path.stat()
    except OSError:
        return None
    return (there.st_dev, there.st_ino) if there.st_dev == _OWN.stat().st_dev else None


def taken() -> list[str]:
    """Return all names, those too that name nothing."""
    try:
        return sorted(path.name for path in DIRECTORY.iterdir())
    except FileNotFoundError:
        return []


def make(name: str) -> None:
    """Make an empty network namespace of that name, unless there is one.

    Raises:
        NetworkError: the kernel refused it.
    """
    path = path_of(name)
    if identity(name) is not None:
        return
    try:
        _make_directory()
        path.touch(mode=0o444)
        reach("netns.named")
        _in_thread(lambda: _make_here(path))
    except OSError as error:
        raise NetworkError(f"making the network namespace {name}: {error.strerror}") from error


def remove(name: str) -> None:
    """Take the name away; the namespace ends with the last process and socket in it. It may be gone.

    Raises:
        NetworkError: the kernel refused it.
    """
    path = path_of(name)
    try:
        while identity(name) is not None:
            _call("umount2", os.fsencode(path), _MNT_DETACH)
        reach("netns.unmounted")
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NetworkError(f"removing the network namespace {name}: {error.strerror}") from error


def in_namespace(name: str, function: Callable[[], T]) -> T:
    """Return what ``function`` returns, called by a thread in the namespace; what it raises is raised here.

    Sockets that it opens stay there, and so do programs that it starts; other threads are left where they are.

    Raises:
        NetworkError: there is no such namespace.
    """
    path = path_of(name)

    def inside() -> T:
        try:
            if identity_at(path) is None:
                raise FileNotFoundError(errno.ENOENT, "there is none")
            namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _call("setns", namespace, _CLONE_NEWNET)
            finally:
                os.close(namespace)
        except OSError as error:
            raise NetworkError(f"entering the network namespace {name}: {error.strerror}") from error
        return function()

    return _in_thread(inside)


def _in_thread(function: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001 - it is the caller's, and is raised there
            failure.append(error)

    thread = threading.Thread(target=run, name=f"{threading.current_thread().name}-netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        try:
            raise failure[0]
        finally:
            failure.clear()  # it refers to this frame, which refers to it
    return result[0]


def _make_directory() -> None:
    """Make `DIRECTORY` a mount of its own that is shared, unless it is."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = os.fsencode(DIRECTORY)
    try:
        _call("mount", b"", directory, b"none", _MS_SHARED_ALL, None)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is no mount yet
            raise
        _call("mount", directory, directory, b"none", _MS_BIND_ALL, None)
        _call("mount", b"", directory, b"none", _MS_SHARED_ALL, None)


def _make_here(path: Path) -> None:
    _call("unshare", _CLONE_NEWNET)
    _call("mount", os.fsencode(_OWN), os.fsencode(path), b"none", _MS_BIND, None)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
