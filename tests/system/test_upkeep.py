"""What nobody holds any more is given back, and what is gone is finished, whoever dies on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
from cloud import Cluster
from host import Host, wait_for
from images import ImageServer

from ecompute.cluster import claims, keys
from ecompute.cluster.documents import Instance, Intent, Lead, State
from ecompute.cluster.store import Delete
from ecompute.cluster.upkeep import finish

LEAD = keys.lead("upkeep")
ENDING = [name for name in finish.FAILPOINTS if name != "finish.let_go"]
"""The points of an instance's end; that one is of an interface that leaves an instance that runs."""


@pytest.fixture
def lone(make_cluster: Callable[..., Cluster]) -> Iterator[tuple[Cluster, Host, ImageServer]]:
    """A cloud of one host, which therefore leads."""
    cluster = make_cluster(hosts=1)
    images = ImageServer(cluster.address, cluster.image)
    yield cluster, cluster.hosts[0], images
    images.close()


def test_a_leader_that_is_killed_anywhere_in_a_finish_leaves_the_rest_to_the_next(
    lone: tuple[Cluster, Host, ImageServer],
) -> None:
    cluster, host, images = lone
    for failpoint in ENDING:
        if failpoint == "finish.marked":
            host.kill()
            _let_lease_run_out(cluster)
            guest = cluster.launch("--image", images.missing(), wait=False)
        else:
            guest = cluster.launch_idle()
            host.stop()
            cluster.eschedule("destroy", "--no-wait", guest.uuid)
        host.die_at(failpoint)
        if failpoint != ENDING[-1]:
            _let_lease_run_out(cluster)  # the last time it does so by itself
        host.start()
        if failpoint == "finish.marked":
            _wait_state(cluster, guest.uuid, State.ERROR)
            cluster.agree(timeout_s=60)
            cluster.eschedule("destroy", "--no-wait", guest.uuid)
        wait_for(lambda: not cluster.instances(), timeout_s=60, what=f"it is finished after {failpoint}")
        cluster.agree(timeout_s=60)


@pytest.mark.parametrize("failpoint", [name for name in ENDING if name != "finish.marked"])
def test_a_tool_that_is_killed_in_a_finish_leaves_the_rest_to_the_lead(cluster: Cluster, failpoint: str) -> None:
    leader = _leader(cluster)
    other = next(host for host in cluster.hosts if host is not leader)
    guest = cluster.launch_idle(host=other)
    leader.daemon.child.suspend()  # or it would be the first
    try:
        result = cluster.eschedule("destroy", guest.uuid, failpoint=failpoint, check=False)
        assert result.status == -signal.SIGKILL, f"it was not killed at {failpoint}: {result}"
    finally:
        leader.daemon.child.resume()
    wait_for(lambda: not cluster.instances(), timeout_s=60, what="the lead finishes it")
    cluster.agree(timeout_s=60)


def test_a_tool_that_is_killed_where_it_marks_a_failed_build_leaves_the_rest_to_the_lead(
    cluster: Cluster, images: ImageServer
) -> None:
    leader = _leader(cluster)
    other = next(host for host in cluster.hosts if host is not leader)
    leader.daemon.child.suspend()
    try:
        arguments = ["launch", cluster.query(other), "--image", images.missing(), "--wait"]
        result = cluster.eschedule(*arguments, failpoint="finish.marked", check=False)
        assert result.status == -signal.SIGKILL, f"it was not killed: {result}"
        (uuid,) = cluster.instances()
        assert cluster.claims.allocations(uuid).allocations, "its claim is still there"
    finally:
        leader.daemon.child.resume()
    cluster.agree(timeout_s=60)
    cluster.destroy(uuid)
    cluster.agree()


def test_a_scheduler_that_is_killed_anywhere_leaves_nothing_held_after_the_grace_period(cluster: Cluster) -> None:
    for failpoint in claims.FAILPOINTS:
        asked = ("launch", cluster.query(), "--image", cluster.idle_image)
        result = cluster.eschedule(*asked, failpoint=failpoint, check=False)
        assert result.status == -signal.SIGKILL, f"it was not killed at {failpoint}: {result}"
    intents = cluster.store.list(keys.INTENTS, Intent).items
    assert len(intents) == 2, "one died behind its intent, one behind its claim"
    held = {uuid for host in cluster.hosts for uuid in cluster.claims.provider_allocations(host.provider)}
    assert len(held & {item.value.consumer for item in intents}) == 1
    for host in cluster.hosts:
        host.restart()  # a new lead looks at once
    (requested,) = cluster.instances()  # one died behind its request, which is carried out
    wait_for(lambda: not cluster.store.keys(keys.INTENTS)[0], timeout_s=240, what="the intents are given up")
    cluster.agree(timeout_s=60)
    cluster.destroy(requested)
    cluster.agree()


def test_a_build_that_has_begun_goes_on_while_placement_is_down(lone: tuple[Cluster, Host, ImageServer]) -> None:
    cluster, host, _ = lone
    host.kill()
    begun = cluster.launch_idle(wait=False)
    host.start(failpoint="overlay.before:stop")
    wait_for(lambda: host.is_suspended, what="the build has begun")
    cluster.placement.stop()
    try:
        host.daemon.child.resume()
        cluster.wait_state(begun.uuid, "created")
        assert host.domains() == {begun.uuid: True}
        cluster.eschedule("destroy", "--no-wait", begun.uuid)
        wait_for(lambda: not host.domains(), what="its host has removed it")
        assert cluster.instances() == [begun.uuid], "its claim cannot be given back: its keys stay"
        assert host.is_running
    finally:
        cluster.placement.start()
    wait_for(lambda: not cluster.instances(), timeout_s=60, what="the lead finishes it by itself")
    cluster.agree(timeout_s=60)


def test_a_build_that_has_not_begun_waits_for_placement_and_goes_on_by_itself(
    lone: tuple[Cluster, Host, ImageServer],
) -> None:
    cluster, host, _ = lone
    host.daemon.child.suspend()
    try:
        waiting = cluster.launch_idle(wait=False)
        cluster.placement.stop()
    finally:
        host.daemon.child.resume()
    try:
        wait_for(lambda: f"instance {waiting.uuid} waits: placement" in host.log, what="it says what it waits for")
        assert host.domains() == {}
    finally:
        cluster.placement.start()
    cluster.agree(timeout_s=60)
    cluster.destroy(waiting.uuid)
    cluster.agree()


def _leader(cluster: Cluster) -> Host:
    def find() -> Host | None:
        lead = cluster.store.get(LEAD, Lead)
        return next((host for host in cluster.hosts if lead is not None and host.provider in lead.value.holder), None)

    return wait_for(find, what="somebody leads")


def _let_lease_run_out(cluster: Cluster) -> None:
    """What fifteen seconds do to the lead of the dead."""
    cluster.store.commit([], [Delete(LEAD)])


def _wait_state(cluster: Cluster, uuid: str, state: State) -> None:
    def has_come() -> bool:
        found = cluster.store.get(keys.instance(uuid), Instance)
        return found is not None and found.value.state is state

    wait_for(has_come, timeout_s=60, what=f"{uuid} is {state}")
