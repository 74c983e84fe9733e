"""A daemon goes on when what it needs goes away and comes back, and ends as it should when it is asked to."""

from __future__ import annotations

import os
import signal

import pytest
from cloud import Cluster
from host import Host, wait_for

from ecompute.heartbeat import TTL_S


def test_a_daemon_whose_etcd_is_down_for_longer_than_its_lease_goes_on(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    host.stop()
    host.start()  # else its lease may still be one of a daemon that was killed
    guest, other = cluster.launch_idle(host=host), cluster.launch_idle(host=host)
    cluster.agree()
    pids, said = host.guest_pids(), len(host.log)
    cluster.etcd.stop()
    try:
        wait_for(lambda: " lost" in host.log[said:], timeout_s=2 * TTL_S, what="its lease has run out")
        host.domain(other.uuid).destroy()  # of which nobody can be told now
        wait_for(lambda: f"instance {other.uuid} waits: etcd" in host.log[said:], what="it says what it waits for")
        assert host.is_running
    finally:
        cluster.etcd.start()
    cluster.agree(off=[other.uuid], timeout_s=60)
    assert host.guest_pids() == {guest.uuid: pids[guest.uuid]}
    third = cluster.launch_idle(host=host)
    cluster.destroy(guest.uuid, other.uuid, third.uuid)
    cluster.agree()


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_a_daemon_finds_libvirt_again_and_looks_at_everything(cluster: Cluster, how: str) -> None:
    host = cluster.hosts[0]
    kept, ended = cluster.launch_idle(host=host), cluster.launch_idle(host=host)
    cluster.agree()
    pids = host.guest_pids()
    if how == "killed":
        host.libvirtd.kill()
    else:
        host.libvirtd.stop(keep_guests=True)
    try:
        os.kill(pids[ended.uuid][0], signal.SIGKILL)  # nobody tells of this one
        wanted = cluster.launch_idle(host=host, wait=False)
        wait_for(lambda: f"instance {wanted.uuid} waits: libvirt" in host.log, what="it says what it waits for")
        assert host.is_running
    finally:
        host.libvirtd.start()
        host.disconnect()  # our own connection does not know yet that it broke
    cluster.agree(crashed=[ended.uuid], timeout_s=60)
    assert host.guest_pids()[kept.uuid] == pids[kept.uuid]
    cluster.destroy(kept.uuid, ended.uuid, wanted.uuid)
    cluster.agree()


def test_a_daemon_that_is_told_to_end_finishes_its_step_closes_its_host_and_leaves_its_guests(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    kept = cluster.launch_idle(host=host)
    pids = host.guest_pids()
    host.kill()
    begun = cluster.launch_idle(host=host, wait=False)
    host.start(failpoint="define.before:stop")
    wait_for(lambda: host.is_suspended, what="it is in the middle of a step")
    assert begun.uuid not in host.domains()
    said = len(host.log)
    (libvirtd,) = host.libvirtd.pids["libvirtd"]
    os.kill(libvirtd, signal.SIGSTOP)  # or the step might be over before it is told to end
    try:
        os.kill(host.daemon.child.pid, signal.SIGTERM)
        host.daemon.child.resume()
        wait_for(lambda: "stopping: finishing the steps in hand" in host.log[said:], what="it has been told to end")
        assert host.is_running, "it does not wait for the step"
    finally:
        os.kill(libvirtd, signal.SIGCONT)
    assert host.daemon.child.wait(30), "it does not end"
    assert host.stop() == 0
    assert host.domains() == {kept.uuid: True, begun.uuid: False}, "the step in hand was not finished, or more was done"
    assert host.guest_pids() == pids
    assert _reserved(cluster, host) == _total(cluster, host), "more would be sent to it"
    assert cluster.eschedule("launch", cluster.query(host), check=False).status == 1
    assert sorted(cluster.instances()) == sorted([kept.uuid, begun.uuid])
    host.start()
    assert _reserved(cluster, host) == 0
    cluster.agree(timeout_s=60)
    assert host.guest_pids()[kept.uuid] == pids[kept.uuid]
    cluster.destroy(kept.uuid, begun.uuid)
    cluster.agree()


def test_a_guest_whose_disk_was_taken_away_is_lost_and_never_made_anew_and_is_well_once_it_is_back(
    cluster: Cluster,
) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch_idle(host=host)
    disk = host.files(guest.uuid) / "disk.qcow2"
    away = host.directory / "away.qcow2"
    host.domain(guest.uuid).destroy()
    cluster.agree(off=[guest.uuid])
    inode = disk.stat().st_ino
    disk.rename(away)
    host.restart()
    cluster.wait_state(guest.uuid, "error")
    assert "disk" in cluster.show(guest.uuid)["error"]
    host.domain(guest.uuid).undefine()
    host.restart()
    cluster.wait_state(guest.uuid, "error")
    assert not disk.exists(), "a blank disk was made in its place"
    assert cluster.claims.allocations(guest.uuid).allocations, "it may come back: its claim stays"
    away.rename(disk)
    host.restart()
    cluster.wait_state(guest.uuid, "created")
    assert disk.stat().st_ino == inode
    cluster.destroy(guest.uuid)
    cluster.agree()


def _reserved(cluster: Cluster, host: Host) -> int:
    return cluster.claims.inventories(host.provider).inventories["VCPU"].reserved


def _total(cluster: Cluster, host: Host) -> int:
    return cluster.claims.inventories(host.provider).inventories["VCPU"].total
