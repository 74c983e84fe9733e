"""What hangs holds up nobody else: guests whose QEMU does not answer, steps that do not return."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from cloud import Cluster, Guest
from host import Host, wait_for

from ecompute.daemon import EXIT_STUCK
from ecompute.instances.lanes import STUCK_LIMIT

GUESTS = 5
"""As many calls as one libvirt connection serves at a time."""

KILL_S = 60.0
"""libvirt waits for ten seconds before it kills a guest that does not end, and a machine may be slow."""


def test_five_hung_guests_hold_up_no_other_and_can_be_destroyed(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    with ThreadPoolExecutor(2) as pool:
        guests = list(pool.map(lambda _: cluster.launch_idle(host=host), range(GUESTS)))
    said = len(host.log)
    with _hung(host, guests):
        # Others are built and destroyed, while nothing is asked of the hung ones...
        _build_and_destroy_another(cluster, host)
        # ... after all of them were gone through again...
        host.restart()
        _build_and_destroy_another(cluster, host)
        # ... and while all of them are to be destroyed.
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            destroying = pool.submit(cluster.eschedule, "destroy", *(guest.uuid for guest in guests[1:]))
            _build_and_destroy_another(cluster, host)
            assert destroying.result() == (0, "", "")
            assert time.monotonic() - began < KILL_S
        assert cluster.instances() == [guests[0].uuid]
    cluster.agree()
    assert "is set aside" not in host.log[said:], "a lane was stuck"
    cluster.destroy(guests[0].uuid)
    cluster.agree()


def test_a_daemon_whose_lanes_hang_ends_to_be_started_anew(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=1)
    (host,) = cluster.hosts
    host.daemon.child.suspend()
    try:
        guests = [cluster.launch_idle(wait=False) for _ in range(STUCK_LIMIT)]
        for guest in guests:
            # Whoever opens it waits for a reader that never comes, as for a disk that does not answer.
            os.mkfifo(host.state / "memory" / "instances" / f"{guest.uuid}.json.new")
    finally:
        host.daemon.child.resume()
    wait_for(lambda: all(guest.uuid in host.log for guest in guests), what="all are being worked on")
    _build_and_destroy_another(cluster, host)
    host.wait_dead(timeout_s=120)
    assert host.daemon.child.exit_status == EXIT_STUCK
    assert host.log.count("is set aside: its step remember-building does not return") == STUCK_LIMIT
    assert f"{STUCK_LIMIT} lanes hang" in host.log
    # Its supervisor starts it; the disk answers again.
    host.start()
    cluster.agree(timeout_s=120)
    cluster.destroy(*(guest.uuid for guest in guests))
    cluster.agree()


@contextmanager
def _hung(host: Host, guests: list[Guest]) -> Iterator[None]:
    pids = [host.guest_pids()[guest.uuid][0] for guest in guests]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in set(pids) & {pid for each in host.guest_pids().values() for pid in each}:
            os.kill(pid, signal.SIGCONT)


def _build_and_destroy_another(cluster: Cluster, host: Host) -> None:
    other = cluster.launch_idle(host=host)
    assert host.domains()[other.uuid]
    cluster.destroy(other.uuid)
    assert other.uuid not in cluster.instances()
