"""The root disks of guests: qcow2 overlays upon cached images.

A disk under its name is complete: it is made beside it, reaches the disk, and only then takes its
name; one that exists is never written over. qemu-img is told every format, and runs under limits
on memory, time and file size, which ``prlimit`` sets before it begins (a ``preexec_fn`` would run
Python in a fork of a process full of threads).

Any thread may call these functions; one disk is one thread's work. Cost: one short process.
"""

from __future__ import annotations

import contextlib
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ecompute.cluster.errors import InvalidImage, InvalidInput, StorageError
from ecompute.storage import inspect, partial
from ecompute.storage.images import Image

GIB = 1 << 30
DISK_MODE = 0o600
MAX_ADDRESS_SPACE_BYTES = 1 << 30
MAX_CPU_S = 30
MAX_FILE_BYTES = 1 << 30
"""An empty overlay is metadata only; even 64 TiB need less."""
TIMEOUT_S = 60.0
KILL_WAIT_S = 5.0
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The programs' whole environment, with the C locale: they inherit nothing."""


class CreateOverlay(Protocol):
    """What `create_overlay` does, whoever does it."""

    def __call__(self, image: Image, path: Path, *, disk_gb: int, resize: bool) -> None: ...


def create_overlay(
    image: Image, path: Path, *, disk_gb: int, resize: bool = True, timeout_s: float = TIMEOUT_S
) -> None:
    """Make the disk ``path`` upon ``image``.

    Args:
        disk_gb: what the instance claimed (DISK_GB, in GiB): the size of the disk, and in any case
            its limit.
        resize: False leaves the disk as large as the image.

    Raises:
        InvalidInput: ``disk_gb`` is no size.
        InvalidImage: the image is larger than ``disk_gb``, or qemu-img refuses it.
        StorageError: the disk exists already, or could not be made.
    """
    size_bytes = overlay_bytes(image, disk_gb=disk_gb, resize=resize)
    path = path.absolute()
    if path.exists():
        raise StorageError(f"the disk {path} exists already and is not written over")
    made: Path | None = None
    try:
        made = partial.create(path.parent, path.name)
        _qemu_img_create(image, made, size_bytes, timeout_s)
        partial.publish(made, path, mode=DISK_MODE)
    except FileExistsError as error:
        raise StorageError(f"the disk {path} exists already and is not written over") from error
    except OSError as error:
        raise StorageError(
            f"cannot make the disk {path}: {error.strerror}", hint="look at the disk space of this host"
        ) from error
    finally:
        if made is not None:
            partial.discard(made)


def overlay_bytes(image: Image, *, disk_gb: int, resize: bool) -> int:
    """Return how large the disk is that `create_overlay` makes. Pure.

    Raises:
        InvalidInput, InvalidImage: as there.
    """
    if not 0 < disk_gb * GIB <= inspect.MAX_VIRTUAL_BYTES:
        raise InvalidInput(f"a disk of {disk_gb} GB cannot be made", hint="ask for DISK_GB:1 or more, up to 65536")
    if image.virtual_size_bytes > disk_gb * GIB:
        raise InvalidImage(
            f"the image is a disk of {image.virtual_size_bytes / GIB:.4g} GiB "
            f"({image.virtual_size_bytes} bytes), the instance has DISK_GB:{disk_gb} ({disk_gb * GIB} bytes)",
            hint=f"ask for DISK_GB:{-(-image.virtual_size_bytes // GIB)} or more",
        )
    return disk_gb * GIB if resize else image.virtual_size_bytes


def remove(path: Path) -> bool:
    """Remove the disk ``path`` and what was left of making it; return whether it was there.

    Raises:
        StorageError: it could not be removed.
    """
    try:
        return partial.remove(path)
    except OSError as error:
        raise StorageError(f"cannot remove the disk {path}: {error.strerror}") from error


def is_complete(path: Path) -> bool:
    """Return whether ``path`` is a disk that `create_overlay` made to its end."""
    return image_of(path) is not None


def image_of(path: Path) -> Path | None:
    """Return the image upon which the disk ``path`` stands; None if it is no overlay, or not there."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        with path.open("rb", buffering=0) as file:
            name = inspect.backing_name(file)
    except (OSError, InvalidImage):
        return None
    return Path(name) if name else None


def images_in_use(paths: Iterable[Path]) -> set[str]:
    """Return the content hashes of the images upon which the disks ``paths`` stand: to be kept."""
    return {image.name for image in map(image_of, paths) if image is not None}


def sweep(directory: Path) -> tuple[Path, ...]:
    """Remove what killed runs left unfinished in ``directory``; return what that was."""
    return partial.sweep(directory)


def _qemu_img_create(image: Image, path: Path, size_bytes: int, timeout_s: float) -> None:
    limits = [
        "prlimit",
        f"--as={MAX_ADDRESS_SPACE_BYTES}",
        f"--cpu={MAX_CPU_S}",
        f"--fsize={MAX_FILE_BYTES}",
        "--core=0",
    ]
    # Absolute paths begin with a slash: QEMU takes them neither for options nor for protocols.
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.path.absolute()), "-F", image.format]
    try:
        process = subprocess.Popen(
            [*limits, *create, str(path), str(size_bytes)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": SEARCH_PATH, "LC_ALL": "C"},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise StorageError("prlimit was not found", hint="install the package util-linux") from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill(process)
        raise StorageError(f"qemu-img made no disk in {path.parent} within {timeout_s:g} s") from error
    except BaseException:
        _kill(process)
        raise
    if process.returncode == 0:
        return
    text = output.decode(errors="replace")
    if process.returncode == 127 or "failed to execute qemu-img" in text:
        raise StorageError("qemu-img was not found", hint="install the package qemu-utils")
    if not image.path.exists():
        raise StorageError(f"the image {image.sha256} left the cache while a disk was made upon it", hint="try again")
    if process.returncode < 0:
        raise StorageError(f"qemu-img was ended by signal {-process.returncode} (its limits: 1 GiB, 30 s)")
    raise StorageError(f"qemu-img made no disk: {text.strip() or f'exit status {process.returncode}'}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Not waited for without end: a process in uninterruptible sleep takes no signal."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=KILL_WAIT_S)
