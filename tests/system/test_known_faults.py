"""The ten known faults of the project's ancestor, each a test of its name, on the real thing.

Two of them are tested where they are seen best: ``only the first provider of an allocation is told`` in
tests/functional/eschedule/test_sharing.py, and ``the image cache is keyed by the URL's last part`` in
tests/unit/storage/test_images.py (`test_two_urls_with_the_same_last_part_are_two_images`).
"""

from __future__ import annotations

from collections.abc import Callable

from cloud import Cluster
from host import wait_for
from images import ImageServer

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Incarnation, Seen
from ecompute.cluster.store import Delete, Put


def test_requests_written_while_the_daemon_is_down_are_lost(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    destroyed = cluster.launch_idle(host=host)
    host.kill()
    launched = cluster.launch_idle(host=host, wait=False)
    cluster.eschedule("destroy", "--no-wait", destroyed.uuid)
    host.start()
    wait_for(lambda: cluster.instances() == [launched.uuid], what="both requests are carried out")
    cluster.agree(timeout_s=60)
    cluster.eschedule("destroy", "--no-wait", launched.uuid)
    wait_for(lambda: not cluster.instances(), what="it is gone")
    cluster.agree()


def test_any_delete_under_the_prefix_ends_the_daemon(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch_idle(host=host)
    pids = host.guest_pids()
    strange = [
        f"{keys.assignments(host.provider)}{name}" for name in ("x", "x/y", "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0001")
    ]
    for key in strange:
        cluster.store.commit([], [Put(key, Incarnation(id="nonsense", made_by="", made_at=""))])
        cluster.store.commit([], [Delete(key)])
    assigned = cluster.store.get(keys.assignment(host.provider, guest.uuid), Assignment)
    assert assigned is not None
    cluster.store.commit([], [Delete(assigned.key)])
    wait_for(lambda: _is_unassigned(cluster, guest.host.provider, guest.uuid), what="the host reports it")
    assert host.is_running
    assert host.guest_pids() == pids, "a missing key destroys no guest"
    cluster.store.commit([], [Put(assigned.key, assigned.value)])
    cluster.agree()
    other = cluster.launch_idle(host=host)
    cluster.destroy(guest.uuid, other.uuid)
    cluster.agree()


def test_an_instance_removed_with_virsh_can_never_be_freed(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    domain = guest.host.domain(guest.uuid)
    domain.destroy()
    domain.undefine()
    cluster.destroy(guest.uuid)
    assert not cluster.claims.allocations(guest.uuid)
    cluster.agree()


def test_a_failed_boot_leaks_its_allocation(cluster: Cluster, images: ImageServer) -> None:
    result = cluster.eschedule("launch", cluster.query(), "--image", images.missing(), "--wait", check=False)
    assert result.status == 1
    (uuid,) = cluster.instances()
    assert cluster.show(uuid)["state"] == "error"
    wait_for(lambda: not cluster.claims.allocations(uuid), what="its allocation is given back")
    cluster.agree()
    cluster.destroy(uuid)
    cluster.agree()


def test_no_address_after_100_s_kills_the_result_thread(cluster: Cluster, images: ImageServer) -> None:
    """Nobody waits for a guest to ask for an address: it is known before, also of one that never boots."""
    host = cluster.hosts[0]
    mute = cluster.launch("--image", images.serving(bytes(1 << 20)), host=host)
    assert cluster.eschedule(mute.uuid) == (0, f"{mute.address}\n", "")
    heard = cluster.launch(host=host)
    cluster.wait_booted(heard)
    assert host.console(mute.uuid).count("guest:") == 0
    cluster.agree()
    cluster.destroy(mute.uuid, heard.uuid)
    cluster.agree()


def test_orphaned_providers(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=1)
    (host,) = cluster.hosts
    (provider,) = cluster.claims.providers()
    host.restart()
    host.kill()
    host.start()
    assert [found.uuid for found in cluster.claims.providers()] == [provider.uuid], "it is found again"
    # Its identity lost, it makes no second one, and says how to be the first again.
    host.stop()
    identity = host.state / "provider-uuid"
    kept = identity.read_text()
    identity.unlink()
    host.start(wait=False)
    wait_for(lambda: f"set `uuid: {provider.uuid}` in compute.yaml" in host.log, what="it says what to do")
    assert [found.uuid for found in cluster.claims.providers()] == [provider.uuid]
    host.stop()
    identity.write_text(kept)
    host.start()
    assert [found.uuid for found in cluster.claims.providers()] == [provider.uuid]
    cluster.agree()


def test_destroy_during_a_build(cluster: Cluster, images: ImageServer) -> None:
    """At every step of it: tests/system/test_kills.py."""
    url = images.dripping()
    guest = cluster.launch("--image", url, wait=False)
    wait_for(lambda: images.requests(url), what="the image is being fetched")
    cluster.destroy(guest.uuid)
    assert not cluster.claims.allocations(guest.uuid)
    cluster.agree()


def test_one_download_blocks_every_build(cluster: Cluster, images: ImageServer) -> None:
    host = cluster.hosts[0]
    url = images.dripping()
    slow = cluster.launch("--image", url, host=host, wait=False)
    wait_for(lambda: images.requests(url), what="the image is being fetched")
    quick = cluster.launch_idle(host=host)
    cluster.destroy(quick.uuid)
    assert not images.is_deserted(url), "the download still goes on"
    cluster.destroy(slow.uuid)
    cluster.agree()


def _is_unassigned(cluster: Cluster, provider: str, uuid: str) -> bool:
    seen = cluster.store.get(keys.seen(provider, uuid), Seen)
    return seen is not None and not seen.value.is_assigned
