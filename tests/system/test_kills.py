"""``kill -9`` at every step: of a build, of a removal, of the clean-up after a build that failed.

The steps are taken from `plan` itself: a new step is killed at without a line here. The daemon dies
before and after each, is started again, and everything must have come to the same end as without.
A point that is never reached is a failure: the test would show nothing.

The second host is never killed, and leads the upkeep. Asked is in this process, by what the tool calls:
a start of the tool at each of some seventy points would cost a minute.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloud import MEMORY_MB, Cluster
from host import wait_for
from images import ImageServer

from ecompute.cluster.documents import Assignment, Instance, Interface, Power, Resources, Role, Spec, State
from ecompute.instances.plan import Found, Phase, Plan, Record, Step, after_failure, plan
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

UUID = "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0001"
INTERFACE = Interface(uuid="i", network_uuid="n", vni=1, mac="52:54:00:00:00:01", addresses=("10.10.0.5/24",), mtu=1450)
SPEC = Spec(resources=Resources(vcpus=1, memory_mb=96, disk_gb=1), image="/image", interfaces=(INTERFACE,))


def _planned(role: Role, found: Found, phase: Phase | None) -> Plan:
    wanted = Assignment(uuid=UUID, namespace="system", name="web", role=role, generation=1, epoch=1, spec=SPEC)
    return plan(wanted, found, _record(phase), hold=False, boot_id="boot")


def _record(phase: Phase | None) -> Record | None:
    return None if phase is None else Record(uuid=UUID, epoch=1, phase=phase, power=Power.ON, boot_id="boot")


def _everything(power: Power) -> Found:
    return Found(domain=power, has_disk=True, has_config_drive=True, has_network=True)


def _points(steps: Iterable[Step]) -> list[str]:
    return [f"{step}.{side}" for step in steps for side in ("before", "after")]


BUILD = _planned(Role.RUN, Found(), None)
REMOVAL = _planned(Role.ABSENT, _everything(Power.ON), Phase.RUNNING)
FAILED_EARLY = after_failure(BUILD, Found(), _record(Phase.BUILDING), "no disk")
FAILED_LATE = after_failure(BUILD, _everything(Power.OFF), _record(Phase.STARTING), "no start")


def test_the_plans_have_the_steps_that_are_killed_at() -> None:
    assert {Step.OVERLAY, Step.START, Step.REPORT_CREATED} <= set(BUILD.steps)
    assert {Step.STOP, Step.REMOVE_DISK, Step.REPORT_DELETED} <= set(REMOVAL.steps)
    assert Step.REPORT_FAILED in FAILED_EARLY.steps
    assert {Step.UNDEFINE, Step.REMOVE_DISK, Step.REPORT_FAILED} <= set(FAILED_LATE.steps)


class Asker:
    """Asks for one guest on the first host, in this process."""

    def __init__(self, cluster: Cluster, cloud: Cloud) -> None:
        self.cluster = cluster
        self.host = cluster.hosts[0]
        self._cloud = cloud
        self._instances = Instances(cloud)
        self.uuid = ""

    def launch(self, image: str | None = None) -> None:
        query = self.cluster.query(self.host, memory_mb=MEMORY_MB)
        request = LaunchRequest(query=query, image=image or str(self.cluster.image))
        self.uuid = Launcher(self._cloud).launch(request).uuid

    def destroy(self) -> None:
        self._instances.destroy(self._instances.find(self.uuid, "system"))

    @property
    def instance(self) -> Instance:
        return self._instances.find(self.uuid, "system").value

    def wait_failed(self) -> None:
        what = "the build is reported as failed"
        wait_for(lambda: self.instance.state is State.ERROR and self.instance.error, timeout_s=60, what=what)

    def wait_gone(self) -> None:
        wait_for(lambda: not self.cluster.instances(), timeout_s=60, what="the guest is gone")
        self.cluster.agree(timeout_s=60)


@pytest.fixture
def asker(cluster: Cluster) -> Iterator[Asker]:
    with Cloud.from_file(cluster.config) as cloud:
        yield Asker(cluster, cloud)


@pytest.mark.parametrize("failpoint", _points(BUILD.steps))
def test_a_build_that_was_killed_ends_with_one_guest(cluster: Cluster, asker: Asker, failpoint: str) -> None:
    asker.host.kill()
    asker.launch()
    asker.host.die_at(failpoint)
    asker.host.start()
    cluster.agree(timeout_s=60)
    asker.destroy()
    asker.wait_gone()


@pytest.mark.parametrize("failpoint", _points(REMOVAL.steps))
def test_a_removal_that_was_killed_leaves_nothing(cluster: Cluster, asker: Asker, failpoint: str) -> None:
    asker.launch()
    cluster.agree(timeout_s=60)
    asker.host.kill()
    asker.destroy()
    asker.host.die_at(failpoint)
    asker.host.start()
    asker.wait_gone()


@pytest.mark.parametrize("failpoint", _points(FAILED_EARLY.steps))
def test_a_build_without_a_disk_fails_alike_when_killed(
    cluster: Cluster, asker: Asker, images: ImageServer, tmp_path: Path, failpoint: str
) -> None:
    large = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "3G"], check=True)
    asker.host.kill()
    asker.launch(images.serving(large.read_bytes()))
    asker.host.die_at(failpoint)
    asker.host.start()
    asker.wait_failed()
    assert "3" in (asker.instance.error or ""), f"the reason is lost: {asker.instance.error}"
    cluster.agree(timeout_s=60)
    asker.destroy()
    asker.wait_gone()


@pytest.mark.parametrize("failpoint", _points(FAILED_LATE.steps)[1:])
def test_a_build_without_a_start_fails_alike_when_killed(cluster: Cluster, asker: Asker, failpoint: str) -> None:
    asker.host.kill()
    asker.launch()
    _obstruct_start(asker)
    asker.host.die_at(failpoint)
    asker.host.start()
    asker.wait_failed()
    assert "console.log" in (asker.instance.error or ""), f"the reason is lost: {asker.instance.error}"
    cluster.agree(timeout_s=60)
    asker.destroy()
    asker.wait_gone()


def test_a_start_that_failed_and_is_not_remembered_as_failed_is_tried_again(cluster: Cluster, asker: Asker) -> None:
    asker.host.kill()
    asker.launch()
    obstacle = _obstruct_start(asker)
    asker.host.die_at(_points(FAILED_LATE.steps)[0])
    asker.host.start()  # it may have run: nobody knows any more
    cluster.wait_state(asker.uuid, "error")
    assert "console.log" in cluster.show(asker.uuid)["error"]
    obstacle.rmdir()
    asker.host.restart()
    cluster.agree(timeout_s=60)
    asker.destroy()
    asker.wait_gone()


@pytest.mark.parametrize("failpoint", [point for point in _points(BUILD.steps) if point.endswith("before")])
def test_two_who_destroy_at_once_in_the_middle_of_a_build_end_it(asker: Asker, failpoint: str) -> None:
    asker.host.kill()
    asker.launch()
    asker.host.start(failpoint=f"{failpoint}:stop")
    wait_for(lambda: asker.host.is_suspended, what=f"the daemon is in the middle of {failpoint}")
    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(asker.destroy) for _ in range(2)]:
            one.result()
    assert asker.instance.state is State.DELETING
    asker.host.daemon.child.resume()
    asker.wait_gone()


def _obstruct_start(asker: Asker) -> Path:
    """Put a directory where the guest's console is to be written: its domain is made, and cannot start."""
    obstacle = asker.host.files(asker.uuid) / "console.log"
    obstacle.mkdir(parents=True)
    return obstacle
