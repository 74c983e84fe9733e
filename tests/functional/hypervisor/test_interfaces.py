"""Interfaces of a guest that runs, with libvirt, QEMU and a guest that heeds them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ecompute.cluster.documents import INTERFACE_MODELS, Assignment, Power, Resources, Role, Secrets, Spec
from ecompute.cluster.errors import HypervisorError
from ecompute.dev import guest_image
from ecompute.guest import configdrive, metadata
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.hypervisor.domain import DomainPlan, TapPlan

Eventually = Callable[..., None]
MakePlan = Callable[..., DomainPlan]

CACHE = Path(__file__).parents[3] / ".cache" / "guest-image"
BOOT_TIMEOUT_S = 240.0
WATCH = """#!/bin/sh
while :; do
    now=$(cat /sys/class/net/*/address | sort | tr '\\n' ' '; cat /sys/bus/pci/devices/*/device | grep -c 0x100e)
    [ "$now" = "$before" ] || echo has $now
    before=$now
    sleep 1
done
"""


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    name = f"ecft{os.getpid() % 10**7}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "delete", name], check=True)


def tap(number: int, bridge: str, model: str = "virtio") -> TapPlan:
    return TapPlan(f"ect{os.getpid() % 10**6}{number}", bridge, f"02:00:00:00:00:{number:02x}", 1450, model)


def small_guest(plan: DomainPlan, user_data: str) -> DomainPlan:
    """Return ``plan`` with the small image and a drive that has it run ``user_data``."""
    image = guest_image.build_cached(CACHE)
    plan.root_disk.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, plan.root_disk], check=True)
    spec = Spec(resources=Resources(vcpus=1, memory_mb=128, disk_gb=1), image="/x", has_user_data=True)
    asked = Assignment(uuid=plan.uuid, namespace="s", name="web", role=Role.RUN, generation=1, epoch=1, spec=spec)
    assert plan.config_drive is not None
    configdrive.write(plan.config_drive, metadata.documents(asked, Secrets(user_data=user_data)))
    return replace(plan, memory_mb=128)


def test_a_guest_sees_interfaces_come_and_lets_go_of_them(
    hypervisor: LibvirtHypervisor, make_plan: MakePlan, bridge: str, eventually: Eventually
) -> None:
    plan = small_guest(make_plan(interfaces=(tap(0, bridge),)), WATCH)

    def last_said() -> str:
        said = re.findall(r"^has (.*)$", plan.console_log.read_text(errors="replace"), re.MULTILINE)
        return said[-1] if said else ""

    own, lo = tap(0, bridge).mac, "00:00:00:00:00:00"
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    eventually(lambda: last_said() == f"{lo} {own} 0", timeout_s=BOOT_TIMEOUT_S)
    added = [tap(1, bridge), tap(2, bridge), tap(3, bridge, "e1000")]
    for one in added:
        hypervisor.attach(plan.uuid, one)
    # The small guest has no driver for the e1000; the device is there all the same.
    eventually(lambda: last_said() == f"{lo} {own} {added[0].mac} {added[1].mac} 1", timeout_s=60)
    for one in added:
        hypervisor.detach(plan.uuid, one.tap)
    eventually(lambda: last_said() == f"{lo} {own} 0", timeout_s=60)
    found = hypervisor.get(plan.uuid)
    assert found is not None and found.interfaces is not None
    assert {one.tap for one in found.interfaces} == {tap(0, bridge).tap}
    assert found.power is Power.ON


def test_as_many_interfaces_can_be_added_as_there_are_ports_and_one_more_is_an_error(
    hypervisor: LibvirtHypervisor, make_plan: MakePlan, bridge: str
) -> None:
    plan = make_plan(interfaces=(tap(0, bridge),))
    hypervisor.define(plan)
    hypervisor.start(plan.uuid)
    for number in range(1, 9):
        hypervisor.attach(plan.uuid, tap(number, bridge))
    with pytest.raises(HypervisorError, match="PCI") as caught:
        hypervisor.attach(plan.uuid, tap(9, bridge))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", sorted(INTERFACE_MODELS))
def test_every_model_works_or_is_said_to_be_none_of_this_qemu(
    hypervisor: LibvirtHypervisor, make_plan: MakePlan, bridge: str, model: str
) -> None:
    listed = subprocess.run(["qemu-system-x86_64", "-device", "help"], capture_output=True, text=True, check=True)
    is_known = f'"{"virtio-net-pci" if model == "virtio" else model}"' in listed.stdout
    cold, hot = make_plan(interfaces=(tap(0, bridge, model),)), make_plan()
    for plan in (cold, hot):
        hypervisor.define(plan)
    hypervisor.start(hot.uuid)
    for act in (lambda: hypervisor.start(cold.uuid), lambda: hypervisor.attach(hot.uuid, tap(1, bridge, model))):
        if is_known:
            act()
        else:
            with pytest.raises(HypervisorError, match=f"no interface model {model}; use another"):
                act()
    for plan in (cold, hot):
        found = hypervisor.get(plan.uuid)
        assert found is not None
        assert found.power is (Power.ON if is_known or plan is hot else Power.OFF)
