"""A private libvirtd and guests of one boot sector: they say ``up`` on their console and rest."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from ecompute.dev.libvirtd import LibvirtProcess, start_libvirtd
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.hypervisor.domain import DomainPlan, TapPlan

PROVIDER = "aa0c5a3e-6f0d-4a52-8a8e-0b4a3f0f2b22"

BOOT_SECTOR = (
    b"\xba\xf8\x03"  # mov dx, 0x3f8
    + b"".join(bytes([0xB0, character, 0xEE]) for character in b"up\r\n")  # mov al, …; out dx, al
    + b"\xf4\xeb\xfd"  # hlt, for ever
).ljust(510, b"\0") + b"\x55\xaa"

MakePlan = Callable[..., DomainPlan]


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What libvirt has found that QEMU can do, which takes it a second or two: once a run is enough."""
    directory = tmp_path_factory.mktemp("lv")
    process = start_libvirtd(directory)
    try:
        libvirt.open(process.uri).getDomainCapabilities(virttype="qemu")
    finally:
        process.stop()
    return directory / "cache" / "qemu"


@pytest.fixture
def libvirtd(tmp_path_factory: pytest.TempPathFactory, probed: Path) -> Iterator[LibvirtProcess]:
    directory = tmp_path_factory.mktemp("lv")
    shutil.copytree(probed, directory / "cache" / "qemu")
    process = start_libvirtd(directory)
    yield process
    process.stop()
    assert process.pids == {}


@pytest.fixture
def hypervisor(libvirtd: LibvirtProcess) -> Iterator[LibvirtHypervisor]:
    made = LibvirtHypervisor(libvirtd.uri, PROVIDER)
    yield made
    made.close()


@pytest.fixture
def make_plan(tmp_path: Path) -> MakePlan:
    """Plans of guests with disks that boot."""
    raw = tmp_path / "boot"
    raw.write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))

    def make(*, interfaces: tuple[TapPlan, ...] = ()) -> DomainPlan:
        directory = tmp_path / str(uuid.uuid4())
        directory.mkdir()
        disk, drive = directory / "disk.qcow2", directory / "config.iso"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], check=True)
        drive.write_bytes(b"\0" * (1 << 16))
        return DomainPlan(
            uuid=directory.name,
            name="guest",
            namespace="system",
            provider=PROVIDER,
            vcpus=1,
            memory_mb=32,
            accelerator="tcg",
            root_disk=disk,
            config_drive=drive,
            interfaces=interfaces,
            console_log=directory / "console.log",
        )

    return make
