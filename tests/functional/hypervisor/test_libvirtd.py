"""The private libvirtd: what lives, what ends, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import StepFailed
from ecompute.dev.libvirtd import LibvirtProcess, start_libvirtd
from ecompute.hypervisor.connection import LibvirtHypervisor, answers
from ecompute.hypervisor.domain import DomainPlan, TapPlan

PROVIDER = "aa0c5a3e-6f0d-4a52-8a8e-0b4a3f0f2b22"
Eventually = Callable[..., None]
MakePlan = Callable[..., DomainPlan]


def has_said_up(plan: DomainPlan) -> bool:
    return plan.console_log.exists() and b"up\r\n" in plan.console_log.read_bytes()


def test_two_on_one_machine_know_nothing_of_each_other(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan, tmp_path: Path
) -> None:
    second = start_libvirtd(tmp_path / "lv2")
    try:
        other = LibvirtHypervisor(second.uri, PROVIDER)
        hypervisor.define(make_plan())
        assert len(hypervisor.list()) == 1
        assert other.list() == {}
        assert not set(libvirtd.pids["libvirtd"]) & set(second.pids["libvirtd"])
        other.close()
    finally:
        second.stop()
    assert libvirtd.is_running
    assert answers(libvirtd.uri)


def test_nothing_of_the_machine_is_touched(
    libvirtd: LibvirtProcess, hypervisor: LibvirtHypervisor, make_plan: MakePlan
) -> None:
    hypervisor.define(make_plan())
    assert (libvirtd.directory / "etc" / "qemu").exists()
    assert not Path("/run/libvirt").samefile(libvirtd.directory / "run")
    assert str(libvirtd.directory) not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path("/etc/libvirt/qemu").glob("ec-*.xml"))


def test_it_stops_with_its_guests_unless_they_are_kept(
    tmp_path_factory: pytest.TempPathFactory, make_plan: MakePlan, eventually: Eventually
) -> None:
    directory = tmp_path_factory.mktemp("lv")
    first = start_libvirtd(directory)
    try:
        hypervisor = LibvirtHypervisor(first.uri, PROVIDER)
        plan = make_plan()
        hypervisor.define(plan)
        hypervisor.start(plan.uuid)
        eventually(lambda: has_said_up(plan), timeout_s=20)
        hypervisor.close()
        first.stop(keep_guests=True)
        first.stop(keep_guests=True)
        kept = first.pids
        assert "libvirtd" not in kept
        assert {"qemu-system-x86", "virtlogd"} <= set(kept)
        assert not answers(first.uri)

        again = start_libvirtd(directory)
        assert again.pids["qemu-system-x86"] == kept["qemu-system-x86"]
        assert again.pids["virtlogd"] == kept["virtlogd"]
        hypervisor = LibvirtHypervisor(again.uri, PROVIDER)
        assert hypervisor.list()[plan.uuid].power is Power.ON
        hypervisor.close()
    finally:
        first.stop()
    assert first.pids == {}
    first.stop()


def test_starting_it_twice_is_starting_it_once(libvirtd: LibvirtProcess) -> None:
    def lasting() -> dict[str, list[int]]:  # beside them are children with which libvirtd asks QEMU what it can do
        return {
            name: pids for name, pids in libvirtd.pids.items() if name in ("libvirtd", "virtlogd", "libvirt-reaper")
        }

    before = lasting()
    start_libvirtd(libvirtd.directory)
    assert lasting() == before


def test_stale_pid_files_name_nobody(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("libvirtd", "virtlogd"):
        (tmp_path / "run" / f"{name}.pid").write_text(f"{os.getpid()}\n")
    stale = LibvirtProcess(tmp_path, None)
    assert not stale.is_running
    stale.kill()
    stale.stop()  # and we are still here


def test_a_directory_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="shorter"):
        start_libvirtd(tmp_path / ("x" * 90))


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="namespace"):
        start_libvirtd(tmp_path / "lv", netns="no-such-namespace")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"ecd{os.getpid()}"
    ip("netns", "add", name)
    yield name
    ip("netns", "del", name)


@pytest.mark.skipif(shutil.which("ip") is None, reason="the ip program is not on this machine")
def test_in_a_network_namespace_taps_join_its_bridges_and_no_other(
    netns: str, tmp_path_factory: pytest.TempPathFactory, make_plan: MakePlan, eventually: Eventually
) -> None:
    ip("-n", netns, "link", "add", "ecbtest", "type", "bridge")
    ip("-n", netns, "link", "set", "ecbtest", "up")
    process = start_libvirtd(tmp_path_factory.mktemp("lv"), netns=netns)
    try:
        hypervisor = LibvirtHypervisor(process.uri, PROVIDER)
        plan = make_plan(interfaces=(TapPlan("ecttest", "ecbtest", "52:54:00:00:00:01", 1450),))
        hypervisor.define(plan)
        hypervisor.start(plan.uuid)
        eventually(lambda: has_said_up(plan), timeout_s=20)
        tap = ip("-n", netns, "-o", "link", "show", "dev", "ecttest")
        assert "master ecbtest" in tap
        assert "mtu 1450" in tap
        assert "ecttest" not in ip("-o", "link")
        process.restart()
        hypervisor.stop(plan.uuid)
        assert "ecttest" not in ip("-n", netns, "-o", "link")
        hypervisor.undefine(plan.uuid)
        hypervisor.close()
    finally:
        process.stop()
    assert process.pids == {}
