"""``kill -9`` at every step: of a build, of a removal, of the clean-up after a build that failed.

The steps are taken from `plan` itself: a new step is killed at without a line here. The daemon dies
before and after each, is started again, and everything must have come to the same end as without.
A point that is never reached is a failure: the test would show nothing.

The second host is never killed, and leads the upkeep.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloud import Cluster, Guest, Host, wait_for
from images import ImageServer

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Instance, Interface, Power, Resources, Role, Spec, State
from ecompute.instances.plan import Found, Phase, Plan, Record, Step, after_failure, plan
from ecompute.network.mesh import tap_name

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


@pytest.mark.parametrize("failpoint", _points(BUILD.steps))
def test_a_build_that_was_killed_ends_with_one_guest(cluster: Cluster, failpoint: str) -> None:
    host = cluster.hosts[0]
    host.kill()
    guest = cluster.launch(host=host, wait=False)
    _die_at(host, failpoint)
    host.start()
    cluster.agree(timeout_s=60)
    _destroy(cluster, guest)


@pytest.mark.parametrize("failpoint", _points(REMOVAL.steps))
def test_a_removal_that_was_killed_leaves_nothing(cluster: Cluster, failpoint: str) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch(host=host)
    host.kill()
    cluster.eschedule("destroy", "--no-wait", guest.uuid)
    _die_at(host, failpoint)
    host.start()
    _wait_gone(cluster)


@pytest.mark.parametrize("failpoint", _points(FAILED_EARLY.steps))
def test_the_end_of_a_build_without_a_disk_is_the_same_when_killed(
    cluster: Cluster, images: ImageServer, tmp_path: Path, failpoint: str
) -> None:
    large = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "3G"], check=True)
    host = cluster.hosts[0]
    host.kill()
    guest = cluster.launch("--image", images.serving(large.read_bytes()), host=host, wait=False)
    _die_at(host, failpoint)
    host.start()
    _wait_failed(cluster, guest)
    cluster.agree(timeout_s=60)
    _destroy(cluster, guest)


@pytest.mark.parametrize("failpoint", _points(FAILED_LATE.steps))
def test_the_end_of_a_build_without_a_start_is_the_same_when_killed(cluster: Cluster, failpoint: str) -> None:
    host = cluster.hosts[0]
    host.kill()
    guest = cluster.launch(host=host, wait=False)
    tap = tap_name(_instance(cluster, guest).spec.interfaces[0].uuid)
    host.run("ip", "link", "add", tap, "type", "bridge")  # in the guest's way: its domain cannot start
    try:
        _die_at(host, failpoint)
        host.start()
        _wait_failed(cluster, guest)
    finally:
        host.run("ip", "link", "delete", tap)
    cluster.agree(timeout_s=60)
    _destroy(cluster, guest)


@pytest.mark.parametrize("failpoint", [point for point in _points(BUILD.steps) if point.endswith("before")])
def test_two_who_destroy_at_once_in_the_middle_of_a_build_end_it(cluster: Cluster, failpoint: str) -> None:
    host = cluster.hosts[0]
    host.kill()
    guest = cluster.launch(host=host, wait=False)
    host.start(failpoint=f"{failpoint}:stop")
    wait_for(lambda: _is_stopped(host), what=f"the daemon is in the middle of {failpoint}")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(cluster.eschedule, "destroy", "--no-wait", guest.uuid) for _ in range(2)]
        assert [one.result() for one in both] == [(0, "", "")] * 2
    assert _instance(cluster, guest).state is State.DELETING
    host.daemon.child.resume()
    _wait_gone(cluster)


def _die_at(host: Host, failpoint: str) -> None:
    host.start(failpoint=failpoint)
    host.wait_dead()
    assert host.daemon.child.exit_status == -signal.SIGKILL, f"it ended by itself and not at {failpoint}"


def _is_stopped(host: Host) -> bool:
    state = Path(f"/proc/{host.daemon.child.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state != "Z", host.daemon.child.log_tail()
    return state == "T"


def _instance(cluster: Cluster, guest: Guest) -> Instance:
    found = cluster.store.get(keys.instance(guest.uuid), Instance)
    assert found is not None
    return found.value


def _wait_failed(cluster: Cluster, guest: Guest) -> None:
    def has_failed() -> bool:
        instance = _instance(cluster, guest)
        return instance.state is State.ERROR and bool(instance.error)

    wait_for(has_failed, timeout_s=60, what="the build is reported as failed")


def _destroy(cluster: Cluster, guest: Guest) -> None:
    # Its host's lease may be run out, after the daemon has died: `destroy` would not wait.
    cluster.eschedule("destroy", "--no-wait", guest.uuid)
    _wait_gone(cluster)


def _wait_gone(cluster: Cluster) -> None:
    wait_for(lambda: not cluster.instances(), timeout_s=60, what="the guest is gone")
    cluster.agree(timeout_s=60)
