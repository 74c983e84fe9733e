"""Placement's database is emptied while guests run: all of it is made again from what is, and no guest is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

from cloud import Cluster, wait_for

BACK_S = 180.0
"""The lead looks every twenty seconds, and claims again every thirty; the machine does other things besides."""


def test_all_of_an_emptied_placement_is_made_again_and_no_guest_is_touched(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster(hosts=2)
    first, second = cluster.hosts
    cluster.eschedule("host", "set", first.name, "--zone", "north", "--trait", "CUSTOM_SSD")
    cluster.eschedule("quota", "set", "system", "--vcpus", "20", "--instances", "10")
    cluster.eschedule("group", "create", "apart", "--policy", "anti-affinity")
    cluster.eschedule("host", "drain", second.name)
    alone = cluster.launch_idle(host=first)
    cluster.eschedule("host", "activate", second.name)
    wait_for(lambda: _standing(cluster, second.name) == "active", what="the second is open again")
    apart = [cluster.launch_idle("--group", "apart") for _ in cluster.hosts]
    cluster.eschedule("host", "drain", second.name, "--reason", "a fan is failing")
    guests = [alone, *apart]
    before = _picture(cluster)
    domains = [host.domains() for host in cluster.hosts]
    ids = [_ids(host) for host in cluster.hosts]
    assert all(before["allocations"][guest.uuid] for guest in guests)

    _empty(cluster)

    def unlike() -> dict[str, Any]:
        now = _picture(cluster)
        return {part: (before[part], now[part]) for part in before if now[part] != before[part]}

    try:
        wait_for(lambda: not unlike(), timeout_s=BACK_S, what="placement is as it was")
    except AssertionError as error:
        raise AssertionError(f"before, and now: {unlike()}") from error
    assert [host.domains() for host in cluster.hosts] == domains
    assert [_ids(host) for host in cluster.hosts] == ids, "no guest was started anew"
    wait_for(lambda: _standing(cluster, first.name) == "active", timeout_s=BACK_S, what="the first takes instances")
    assert _standing(cluster, second.name) == "draining"
    assert cluster.eschedule("audit", "--grace", "1").stdout.count("\n") <= 1, "nothing is wrong"
    for guest in guests:
        types = {event["type"] for event in json.loads(cluster.eschedule("events", guest.uuid, "-o", "json").stdout)}
        assert "claim.restored" in types
    more = cluster.launch_idle()
    assert more.host is first
    cluster.destroy(more.uuid, *(guest.uuid for guest in guests))
    assert not _picture(cluster)["allocations"]


def _empty(cluster: Cluster) -> None:
    """Give placement the tables that it had before anything was in them."""
    cluster.placement.stop()
    shutil.copy2(cluster.directory.parent / "placement-template" / "placement.sqlite", cluster.placement.directory)
    cluster.placement.start()
    assert cluster.claims.providers() == []


def _picture(cluster: Cluster) -> dict[str, Any]:
    """Return what placement knows, but for what it counts itself."""
    placement = cluster.claims
    providers = {provider.uuid: provider for provider in placement.providers()}
    consumers = {consumer for uuid in providers for consumer in placement.provider_allocations(uuid)}
    held = {consumer: placement.allocations(consumer) for consumer in sorted(consumers)}
    return {
        "providers": {uuid: (found.name, found.parent_provider_uuid) for uuid, found in providers.items()},
        "inventories": {uuid: placement.inventories(uuid).inventories for uuid in providers},
        "traits": {uuid: sorted(placement.traits(uuid)) for uuid in providers},
        "aggregates": {uuid: sorted(placement.aggregates(uuid)) for uuid in providers},
        "allocations": {uuid: found.allocations for uuid, found in held.items()},
        "whose": {uuid: (found.project_id, found.consumer_type) for uuid, found in held.items()},
    }


def _standing(cluster: Cluster, name: str) -> str:
    rows = json.loads(cluster.eschedule("host", "list", "-o", "json").stdout)
    return str(next(row["state"] for row in rows if row["name"] == name))


def _ids(host: Any) -> dict[str, int]:
    """Return libvirt's number of each domain: another one each time that it is started."""
    return {domain.UUIDString(): domain.ID() for domain in host.libvirt.listAllDomains()}
