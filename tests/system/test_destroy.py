"""Destroying always ends, and ends clean: whatever somebody else has done to the guest meanwhile."""

from __future__ import annotations

from uuid import uuid4

from cloud import Cluster, wait_for
from images import ImageServer


def test_destroy_during_a_build_ends_both(cluster: Cluster, images: ImageServer) -> None:
    url = images.dripping()
    guest = cluster.launch("--image", url, wait=False)
    wait_for(lambda: images.requests(url), what="the image is being fetched")
    cluster.destroy(guest.uuid)
    wait_for(lambda: images.is_deserted(url), timeout_s=5, what="the fetch has ended, long before it stalls")
    cluster.agree()


def test_destroy_before_the_host_has_seen_it(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    host.daemon.child.suspend()
    try:
        guest = cluster.launch_idle(host=host, wait=False)
        assert cluster.eschedule("destroy", "--no-wait", guest.uuid) == (0, "", "")
    finally:
        host.daemon.child.resume()
    wait_for(lambda: guest.uuid not in cluster.instances(), what=f"{guest.uuid} is gone")
    assert guest.uuid not in host.log.replace(f"instance {guest.uuid}: it is not wanted", ""), "it was built"
    cluster.agree()


def test_destroy_twice_at_once(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    with (
        cluster.eschedule_running("destroy", guest.uuid) as first,
        cluster.eschedule_running("destroy", guest.uuid) as second,
    ):
        ends = [(*process.communicate(timeout=60), process.returncode) for process in (first, second)]
    # One that begins when the other has ended finds nothing; nothing else may be said.
    unknown = (f"FAILED to find allocations for {guest.uuid}\n", "", 1)
    assert ("", "", 0) in ends
    assert set(ends) <= {("", "", 0), unknown}
    cluster.agree()


def test_destroy_of_an_unknown_uuid_says_so(cluster: Cluster) -> None:
    uuid = str(uuid4())
    result = cluster.eschedule("destroy", uuid, check=False)
    assert result == (1, f"FAILED to find allocations for {uuid}\n", "")
    cluster.agree()


def test_destroy_on_a_host_that_does_not_answer_is_done_when_it_is_back(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    guest.host.stop()
    result = cluster.eschedule("destroy", guest.uuid)
    assert (result.status, result.stdout) == (0, "")
    assert guest.name in result.stderr
    assert "when it is back" in result.stderr
    cluster.agree()
    guest.host.start()
    wait_for(lambda: not cluster.instances(), what="the guest is gone")
    cluster.agree()


def test_destroy_of_a_domain_that_was_undefined_and_destroyed_by_hand(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    domain = guest.host.domain(guest.uuid)
    guest.host.kill()  # or it would bring the guest back
    domain.undefine()
    domain.destroy()
    guest.host.start()
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_destroy_of_a_domain_that_was_removed_by_hand_under_a_running_daemon(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    domain = guest.host.domain(guest.uuid)
    domain.undefine()
    domain.destroy()
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_guest_destroyed_by_hand_stays_off_and_can_be_destroyed(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    guest.host.domain(guest.uuid).destroy()
    cluster.agree(off=[guest.uuid])
    assert cluster.show(guest.uuid)["power"] == "off"
    guest.host.restart()
    cluster.agree(off=[guest.uuid])
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_guest_whose_domain_was_removed_by_hand_comes_back(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    domain = guest.host.domain(guest.uuid)
    domain.undefine()
    domain.destroy()
    cluster.agree()
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_guest_whose_files_were_removed_by_hand_is_lost_and_can_be_destroyed(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    domain = guest.host.domain(guest.uuid)
    guest.host.kill()
    domain.destroy()
    domain.undefine()
    for path in guest.host.files(guest.uuid).iterdir():
        path.unlink()
    guest.host.files(guest.uuid).rmdir()
    guest.host.start()
    cluster.wait_state(guest.uuid, "error")
    cluster.agree(lost=[guest.uuid])
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_destroy_that_waits_ends_when_its_host_stops_answering(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    guest.host.daemon.child.suspend()
    with cluster.eschedule_running("destroy", guest.uuid) as process:
        wait_for(lambda: cluster.show(guest.uuid)["state"] == "deleting", what="its host is told")
        guest.host.kill()  # its lease lives on for a while
        stdout, stderr = process.communicate(timeout=90)
    assert (process.returncode, stdout) == (0, "")
    assert stderr.startswith(f"{guest.name}: ")
    assert "when it is back" in stderr
    guest.host.start()
    wait_for(lambda: not cluster.instances(), what="the guest is gone")
    cluster.agree(timeout_s=60)


def test_destroy_while_the_disks_are_not_mounted_waits_for_them(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    host, disks = guest.host, guest.host.state / "instances"
    domain = host.domain(guest.uuid)
    host.stop()
    disks.rename(host.state / "unmounted")
    disks.mkdir(mode=0o711)
    domain.undefine()
    domain.destroy()
    cluster.eschedule("destroy", "--no-wait", guest.uuid)
    host.start(wait=False)
    wait_for(lambda: "is its file system not mounted?" in host.log, what="the host says what it misses")
    assert guest.uuid in cluster.instances(), "it was taken for gone"
    host.stop()
    disks.rmdir()
    (host.state / "unmounted").rename(disks)
    host.start()
    wait_for(lambda: not cluster.instances(), what="the guest is gone")
    cluster.agree()
