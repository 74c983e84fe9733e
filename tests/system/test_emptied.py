"""Placement's database is emptied while guests run: all is rebuilt from what is, and no guest is touched."""

from __future__ import annotations

import shutil

from cloud import Cluster, wait_for
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin
from ecompute.cluster.store import Put

REBUILT_S = 240.0


def test_an_emptied_placement_is_rebuilt_and_no_guest_is_touched(cluster: Cluster) -> None:
    guests = [cluster.launch_idle(host=host) for host in cluster.hosts]
    claims = {guest.uuid: cluster.claims.allocations(guest.uuid).allocations for guest in guests}
    processes = [host.guest_pids() for host in cluster.hosts]
    assert all(claims.values())

    _empty(cluster)
    assert not any(cluster.claims.allocations(guest.uuid) for guest in guests)
    for host in cluster.hosts:
        _wake(cluster, host.provider)

    wait_for(
        lambda: {uuid: cluster.claims.allocations(uuid).allocations for uuid in claims} == claims,
        timeout_s=REBUILT_S,
        what="every guest has its claim again",
    )
    assert [host.guest_pids() for host in cluster.hosts] == processes, "no guest was touched"
    for host in cluster.hosts:
        _wake(cluster, host.provider)
    wait_for(
        lambda: len(cluster.claims.candidates(cluster.query() + "&required=!COMPUTE_STATUS_DISABLED", limit=10)) >= 2,
        timeout_s=REBUILT_S,
        what="the hosts are open again",
    )
    cluster.agree(timeout_s=60)
    cluster.destroy(*(guest.uuid for guest in guests))
    cluster.agree(timeout_s=60)


def _empty(cluster: Cluster) -> None:
    """Give placement the tables that it had before anything was in them."""
    directory = cluster.directory / "placement"
    cluster.placement.stop()
    shutil.copy2(cluster.directory.parent / "placement-template" / "placement.sqlite", directory / "placement.sqlite")
    for left in ("placement.sqlite-wal", "placement.sqlite-shm"):
        (directory / left).unlink(missing_ok=True)
    cluster.placement.start()


def _wake(cluster: Cluster, provider: str) -> None:
    """Have a host look at itself now, and not when its ten minutes are over."""
    found = cluster.store.get(keys.admin(provider), Admin)
    admin = Admin() if found is None else structs.replace(found.value)
    cluster.store.commit([], [Put(keys.admin(provider), admin)])
