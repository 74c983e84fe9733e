"""``kill -9`` at every step: of a build, of a removal, of the clean-up after a build that failed.

The steps are taken from `plan` itself: a new step is killed at without a line here. The daemon dies
before and after each, is started again, and everything must have come to the same end as without.
A point that is never reached is a failure: the test would show nothing.

Two points are tried at once, one a host. Asked and waited is in this process, with what the tool calls:
to start the tool at each of some seventy points would take a minute.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloud import MEMORY_MB, Cluster
from host import Host, wait_for
from images import ImageServer

from ecompute.cluster.documents import Assignment, Instance, Interface, Power, Resources, Role, Spec, State
from ecompute.cluster.errors import NotFound
from ecompute.cluster.store import Versioned
from ecompute.instances.plan import Found, Phase, Plan, Record, Step, after_failure, plan
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

HOSTS = 2
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


def _at_each(points: list[str]) -> pytest.MarkDecorator:
    """Have a test run at all points, one of them for each host at a time."""
    shares = [points[n : n + HOSTS] for n in range(0, len(points), HOSTS)]
    return pytest.mark.parametrize("points", shares, ids=["+".join(share) for share in shares])


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
    """Asks for one guest, on one host."""

    def __init__(self, cluster: Cluster, host: Host, cloud: Cloud) -> None:
        self.cluster = cluster
        self.host = host
        self._cloud = cloud
        self._instances = Instances(cloud)
        self.uuid = ""

    def launch(self, image: str | None = None) -> None:
        query = self.cluster.query(self.host, memory_mb=MEMORY_MB)
        request = LaunchRequest(query=query, image=image or str(self.cluster.idle_image))
        self.uuid = Launcher(self._cloud).launch(request).uuid

    def launch_while_down(self, image: str | None = None) -> None:
        """The daemon finds the request when it starts."""
        self.host.kill()
        self.launch(image)

    def destroy(self) -> None:
        self._instances.destroy(self._instance)

    def wait_failed(self) -> str:
        """Wait until the build is reported as failed; return why."""
        view = self._instances.wait(self._instance, until=frozenset({State.ERROR, State.CREATED}), timeout_s=60)
        assert view is not None
        wait_for(lambda: self._instance.value.state is State.ERROR, what=f"{self.uuid} has failed")
        return self._instance.value.error or ""

    def wait_gone(self) -> None:
        with contextlib.suppress(NotFound):
            self._instances.wait(self._instance, until=frozenset(), timeout_s=60)

    @property
    def _instance(self) -> Versioned[Instance]:
        return self._instances.find(self.uuid, "system")


@pytest.fixture
def askers(cluster: Cluster) -> Iterator[list[Asker]]:
    with Cloud.from_file(cluster.config) as cloud:
        cloud.store, cloud.placement, cloud.events, cloud.claims  # noqa: B018 - made here, not by two threads at once
        yield [Asker(cluster, host, cloud) for host in cluster.hosts]


def _each(askers: list[Asker], points: list[str], deed: Callable[[Asker, str], None]) -> None:
    """Do it at all points, side by side."""
    with ThreadPoolExecutor(HOSTS) as pool:
        for done in [pool.submit(deed, *pair) for pair in zip(askers, points, strict=False)]:
            done.result()


def _end(cluster: Cluster, askers: list[Asker], points: list[str]) -> None:
    """Destroy what the test has launched; nothing must be left."""

    def destroy(asker: Asker, point: str) -> None:
        asker.destroy()
        asker.wait_gone()

    _each(askers, points, destroy)
    cluster.agree(timeout_s=60)
    assert not cluster.instances()


@_at_each(_points(BUILD.steps))
def test_a_build_that_was_killed_ends_with_one_guest(cluster: Cluster, askers: list[Asker], points: list[str]) -> None:
    def build(asker: Asker, point: str) -> None:
        asker.launch_while_down()
        asker.host.die_at(point)
        asker.host.start()

    _each(askers, points, build)
    cluster.agree(timeout_s=60)
    _end(cluster, askers, points)


@_at_each(_points(REMOVAL.steps))
def test_a_removal_that_was_killed_leaves_nothing(cluster: Cluster, askers: list[Asker], points: list[str]) -> None:
    def remove(asker: Asker, point: str) -> None:
        asker.host.kill()
        asker.destroy()
        asker.host.die_at(point)
        asker.host.start()
        asker.wait_gone()

    _each(askers, points, lambda asker, point: asker.launch())
    cluster.agree(timeout_s=60)
    _each(askers, points, remove)
    cluster.agree(timeout_s=60)
    assert not cluster.instances()


@_at_each(_points(FAILED_EARLY.steps))
def test_a_build_without_a_disk_fails_alike_when_killed(
    cluster: Cluster, askers: list[Asker], images: ImageServer, tmp_path: Path, points: list[str]
) -> None:
    large = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "3G"], check=True)

    def build(asker: Asker, point: str) -> None:
        asker.launch_while_down(images.serving(large.read_bytes()))
        asker.host.die_at(point)
        asker.host.start()
        assert "3 GiB" in asker.wait_failed(), "the reason was lost"

    _each(askers, points, build)
    cluster.agree(timeout_s=60)
    _end(cluster, askers, points)


@_at_each(_points(FAILED_LATE.steps)[1:])
def test_a_build_without_a_start_fails_alike_when_killed(
    cluster: Cluster, askers: list[Asker], points: list[str]
) -> None:
    def build(asker: Asker, point: str) -> None:
        asker.launch_while_down()
        _obstruct_start(asker)
        asker.host.die_at(point)
        asker.host.start()
        assert "console.log" in asker.wait_failed(), "the reason was lost"

    _each(askers, points, build)
    cluster.agree(timeout_s=60)
    _end(cluster, askers, points)


def test_a_start_that_failed_and_is_not_remembered_as_failed_is_tried_again(
    cluster: Cluster, askers: list[Asker]
) -> None:
    point, asker = _points(FAILED_LATE.steps)[0], askers[0]
    asker.launch_while_down()
    obstacle = _obstruct_start(asker)
    asker.host.die_at(point)
    asker.host.start(wait=False)  # it may have run: nobody knows any more
    cluster.wait_state(asker.uuid, "error")
    assert "console.log" in cluster.show(asker.uuid)["error"]
    obstacle.rmdir()
    asker.host.restart()
    cluster.agree(timeout_s=60)
    _end(cluster, [asker], [point])


@_at_each([point for point in _points(BUILD.steps) if point.endswith("before")])
def test_two_who_destroy_at_once_in_the_middle_of_a_build_end_it(
    cluster: Cluster, askers: list[Asker], points: list[str]
) -> None:
    def end(asker: Asker, point: str) -> None:
        asker.launch_while_down()
        asker.host.start(failpoint=f"{point}:stop")
        wait_for(lambda: asker.host.is_suspended, what=f"the daemon is in the middle of {point}")
        with ThreadPoolExecutor(2) as pool:
            for one in [pool.submit(asker.destroy) for _ in range(2)]:
                one.result()
        asker.host.daemon.child.resume()
        asker.wait_gone()

    _each(askers, points, end)
    cluster.agree(timeout_s=60)
    assert not cluster.instances()


def _obstruct_start(asker: Asker) -> Path:
    """Put a directory where the guest's console is to be written: its domain is made, and cannot start."""
    obstacle = asker.host.files(asker.uuid) / "console.log"
    obstacle.mkdir(parents=True)
    return obstacle
