"""How much of a host is given to guests: measured with psutil, said in placement's classes.

`measure` looks at the machine and is the only thing here that does; `inventory` and `shortfalls`
are pure. This is the only home of psutil. Any thread may call everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from ecompute.cluster.closing import DISK_GB, MEMORY_MB, VCPU
from ecompute.cluster.config import InventorySettings
from ecompute.cluster.errors import StepFailed
from ecompute.cluster.placement import Inventory

_KEYS = {VCPU: "vcpus", MEMORY_MB: "memory_mb", DISK_GB: "disk_gb"}


@dataclass(frozen=True)
class Measured:
    """What the machine has, whoever uses it now."""

    vcpus: int
    memory_mb: int
    disk_gb: int
    """The whole file system on which guests' disks lie."""


def measure(disk_directory: Path) -> Measured:
    """Return what this machine has.

    Args:
        disk_directory: where guests' disks lie, or will: of one that is not made yet, the file system
            of its nearest parent counts.

    Raises:
        StepFailed: it cannot be measured.
    """
    existing = disk_directory.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        vcpus = psutil.cpu_count(logical=True)
        memory_mb = psutil.virtual_memory().total >> 20
        disk_gb = psutil.disk_usage(str(existing)).total >> 30
    except OSError as error:
        raise StepFailed(f"{existing} cannot be measured: {error.strerror}") from error
    if not vcpus:
        raise StepFailed("the processors of this machine cannot be counted", hint="set inventory.vcpus in compute.yaml")
    return Measured(vcpus=vcpus, memory_mb=memory_mb, disk_gb=disk_gb)


def inventory(measured: Measured, settings: InventorySettings) -> dict[str, Inventory]:
    """Return what the host offers when it is open, by resource class.

    A share of the machine is never more than the machine, and what is reserved never more than the
    share. A class of which there is nothing is left out: placement has no total of 0.
    """
    ratios = settings.ratios
    by_class = {VCPU: ratios.vcpus, MEMORY_MB: ratios.memory, DISK_GB: ratios.disk}
    wanted = {}
    for name, ratio in by_class.items():
        total = _total(name, measured, settings)
        if total < 1:
            continue
        reserved = min(getattr(settings.reserved, _KEYS[name]), total)
        # A ratio gives the same core to several guests; it makes no guest larger than the machine.
        wanted[name] = Inventory(total=total, reserved=reserved, max_unit=total, allocation_ratio=ratio)
    return wanted


def shortfalls(measured: Measured, settings: InventorySettings) -> list[str]:
    """Return, a sentence each, where the configuration asks for more than the machine has."""
    found = []
    for name, key in _KEYS.items():
        has, share = getattr(measured, key), getattr(settings, key)
        total, reserved = _total(name, measured, settings), getattr(settings.reserved, key)
        if share is not None and share > has:
            found.append(f"inventory.{key} is {share}, and the machine has {has}: {has} is what is offered")
        if total < 1:
            found.append(f"there is no {name} to offer")
        elif reserved >= total:
            found.append(f"inventory.reserved.{key} is {reserved} of {total}: nothing is left for guests")
    return found


def _total(name: str, measured: Measured, settings: InventorySettings) -> int:
    has: int = getattr(measured, _KEYS[name])
    share: int | None = getattr(settings, _KEYS[name])
    return has if share is None else min(share, has)
