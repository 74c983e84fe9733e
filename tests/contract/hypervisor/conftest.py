"""Two hypervisors that the same tests hold to the same protocol."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import libvirt
import pytest

from ecompute.dev.libvirtd import LibvirtProcess, start_libvirtd
from ecompute.hypervisor.api import Hypervisor
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.hypervisor.domain import DomainPlan
from ecompute.hypervisor.fake import FakeHypervisor

PROVIDER = "aa0c5a3e-6f0d-4a52-8a8e-0b4a3f0f2b22"
OTHER_PROVIDER = "bb0c5a3e-6f0d-4a52-8a8e-0b4a3f0f2b33"


class Host(Protocol):
    """A hypervisor, and what befalls it."""

    hypervisor: Hypervisor

    def add_foreign(self, uuid: str) -> None: ...

    def add_of_another(self, uuid: str) -> None: ...

    def remove_by_hand(self, uuid: str) -> None: ...

    def cling(self, uuid: str) -> None:
        """Let the guest not let go of an interface."""

    def go_down(self) -> None: ...

    def come_back(self) -> None: ...


class FakeHost:
    def __init__(self) -> None:
        self.hypervisor = FakeHypervisor(PROVIDER)

    def add_foreign(self, uuid: str) -> None:
        self.hypervisor.add_foreign(uuid, "somebody's")

    def add_of_another(self, uuid: str) -> None:
        self.hypervisor.add_foreign(uuid, f"ec-{uuid}", provider=OTHER_PROVIDER)

    def remove_by_hand(self, uuid: str) -> None:
        self.hypervisor.remove_by_hand(uuid)

    def cling(self, uuid: str) -> None:
        self.hypervisor.cling(uuid)

    def go_down(self) -> None:
        self.hypervisor.go_down()

    def come_back(self) -> None:
        self.hypervisor.come_back()


class LibvirtHost:
    def __init__(self, process: LibvirtProcess, directory: Path) -> None:
        self._process = process
        self._directory = directory
        self.hypervisor = LibvirtHypervisor(process.uri, PROVIDER)

    def _direct(self) -> libvirt.virConnect:
        return libvirt.open(self._process.uri)

    def add_foreign(self, uuid: str) -> None:
        self._direct().defineXML(
            f"<domain type='qemu'><name>foreign-{uuid}</name><uuid>{uuid}</uuid>"
            "<memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
        )

    def add_of_another(self, uuid: str) -> None:
        other = LibvirtHypervisor(self._process.uri, OTHER_PROVIDER)
        other.define(plan_for(self._directory, uuid=uuid, provider=OTHER_PROVIDER))
        other.close()

    def remove_by_hand(self, uuid: str) -> None:
        found = self._direct().lookupByUUIDString(uuid)
        if found.isActive():
            found.destroy()
        found.undefine()

    def cling(self, uuid: str) -> None:
        """Its disk is blank: there is no system in it that could let go."""

    def go_down(self) -> None:
        self._process.kill()

    def come_back(self) -> None:
        self._process.start()


def plan_for(directory: Path, *, uuid: str, provider: str = PROVIDER, name: str = "guest") -> DomainPlan:
    disk = directory / f"{uuid}.qcow2"
    if not disk.exists():
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    return DomainPlan(
        uuid=uuid,
        name=name,
        namespace="system",
        provider=provider,
        vcpus=1,
        memory_mb=32,
        accelerator="tcg",
        root_disk=disk,
        config_drive=None,
        interfaces=(),
        console_log=directory / f"{uuid}.log",
    )


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LibvirtProcess]:
    process = start_libvirtd(tmp_path_factory.mktemp("lv"))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    name = f"ecct{os.getpid() % 10**7}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True)


@pytest.fixture(params=["fake", "libvirt"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    made: Host
    made = FakeHost() if request.param == "fake" else LibvirtHost(request.getfixturevalue("libvirtd"), tmp_path)
    yield made
    for found in made.hypervisor.list().values():
        made.remove_by_hand(found.uuid)
    made.hypervisor.close()


@pytest.fixture
def hypervisor(host: Host) -> Hypervisor:
    return host.hypervisor


@pytest.fixture
def plan(tmp_path: Path) -> DomainPlan:
    return plan_for(tmp_path, uuid=str(uuid.uuid4()))


@pytest.fixture
def plans(tmp_path: Path) -> list[DomainPlan]:
    return [plan_for(tmp_path, uuid=str(uuid.uuid4())) for _ in range(4)]
