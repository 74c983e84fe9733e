"""``eschedule explain`` and ``capacity``, on real services: who could, who not and why, read at once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import groups, keys
from ecompute.cluster.closing import closed, closed_traits
from ecompute.cluster.config import Config, PlacementSettings
from ecompute.cluster.documents import Admin, AdminState, Policy, Scope
from ecompute.cluster.errors import InvalidInput, NoRoom
from ecompute.cluster.placement import Inventory, Placement
from ecompute.cluster.store import Put, Store
from eschedule.cloud.connection import Cloud
from eschedule.cloud.explain import look
from eschedule.cloud.groups import Groups
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

SMALL = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"


def close(host: Any, placement: Placement, store: Store, state: AdminState, reason: str) -> None:
    """What the operator's tool does."""
    store.commit([], [Put(keys.admin(host.provider), Admin(state=state, reason=reason))])
    placement.change_traits(host.provider, closed_traits)
    placement.change_inventories(host.provider, closed)


def test_each_host_says_what_it_lacks(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., LaunchRequest],
    store: Store,
    tool: Any,
) -> None:
    full, drained, able = make_host(vcpus=1), make_host(vcpus=4), make_host(vcpus=4)
    Launcher(cloud).launch(make_request(query=f"{SMALL}&in_tree={full.provider}"))
    close(drained, cloud.placement, store, AdminState.DRAINING, "a new disk")
    found = {v.provider: v.lacks for v in look(cloud, SMALL).explain().verdicts}
    assert found[full.provider] == "VCPU: 1 of 1 used, 1 asked"
    assert found[drained.provider] == "it is draining: a new disk"
    assert found[able.provider] == ""
    offered = {candidate.host for candidate in cloud.placement.candidates(SMALL, limit=1000)}
    assert {provider for provider, lacks in found.items() if not lacks} == offered

    done = tool("explain", SMALL.replace("VCPU:1", "VCPU:5"), "-o", "json")
    assert done.returncode == 1
    rows = {row["uuid"]: row for row in json.loads(done.stdout)}
    assert rows[able.provider]["lacks"] == ["VCPU: at most 4 at once, 5 asked"]
    assert rows[drained.provider]["kinds"] == ["state", "unit"]
    table = tool("explain", SMALL)
    assert table.returncode == 0 and "could serve it now" in table.stderr


def test_tenants_are_told_no_hosts(make_host: Callable[..., Any], tool: Any) -> None:
    host = make_host(vcpus=2)
    done = tool("explain", "--no-hosts", SMALL.replace("VCPU:1", "VCPU:3"))
    assert done.returncode == 1
    assert "3 VCPU are not given at once" in done.stdout
    assert host.name not in done.stdout + done.stderr


def test_the_requests_do_not_grow_with_the_hosts(
    settings: Config, store: Store, make_host: Callable[..., Any], proxy: Any
) -> None:
    through = Cloud(Config(etcd=settings.etcd, placement=PlacementSettings(endpoint=proxy.endpoint)))
    query = f"{SMALL}&member_of={uuid.uuid4()}"
    try:
        make_host()
        look(through, query)
        asked = len(proxy.seen)
        for _ in range(4):
            make_host()
        proxy.seen.clear()
        look(through, query)
        assert len(proxy.seen) == asked <= 3
    finally:
        through.close()


def test_a_name_that_placement_does_not_know_is_an_error_and_one_that_no_host_has_is_not(
    cloud: Cloud, make_host: Callable[..., Any]
) -> None:
    make_host()
    with pytest.raises(InvalidInput, match="CUSTOM_NEVER_HEARD"):
        look(cloud, f"{SMALL}&required=CUSTOM_NEVER_HEARD")
    with pytest.raises(InvalidInput, match="CUSTOM_NO_CLASS"):
        look(cloud, f"{SMALL},CUSTOM_NO_CLASS:1")
    [*verdicts] = look(cloud, f"{SMALL}&required=HW_CPU_X86_SSE").explain().verdicts
    assert all("lacks trait HW_CPU_X86_SSE" in verdict.lacks for verdict in verdicts)


def test_a_shared_disk_and_an_aggregate_are_seen(cloud: Cloud, make_host: Callable[..., Any]) -> None:
    host, other = make_host(disk_gb=1), make_host(disk_gb=1)
    placement, aggregate, share = cloud.placement, str(uuid.uuid4()), str(uuid.uuid4())
    placement.ensure_provider(share, f"share-{share}")
    try:
        placement.set_inventories(share, {"DISK_GB": Inventory(total=100)})
        placement.set_traits(share, {"MISC_SHARES_VIA_AGGREGATE"})
        for provider in (share, host.provider):
            placement.set_aggregates(provider, {aggregate})
        big = SMALL.replace("DISK_GB:1", "DISK_GB:50")
        found = {v.provider: v.lacks for v in look(cloud, big).explain().verdicts}
        assert found[host.provider] == ""
        assert found[other.provider] == "DISK_GB: at most 1 at once, 50 asked"
        inside = {v.provider: v.lacks for v in look(cloud, f"{SMALL}&member_of={aggregate}").explain().verdicts}
        assert (inside[host.provider], inside[other.provider]) == ("", f"is not in aggregate {aggregate}")
    finally:
        placement.delete_provider(share)


def test_the_nearest_miss_is_one_line(cloud: Cloud, make_host: Callable[..., Any]) -> None:
    host = make_host(vcpus=4)
    Launcher(cloud).launch(LaunchRequest(query=f"{SMALL}&in_tree={host.provider}", image="http://image/"))
    assert look(cloud, SMALL.replace("VCPU:1", "VCPU:4")).explain().nearest_miss == f"{host.name} lacks 1 VCPU"
    with pytest.raises(NoRoom, match=rf"{host.name} lacks 1 VCPU; see `eschedule explain 'resources=VCPU:4,"):
        Launcher(cloud).launch(LaunchRequest(query=SMALL.replace("VCPU:1", "VCPU:4"), image="http://image/"))


def test_launches_refused_one_after_the_other_read_all_hosts_once(
    settings: Config,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., LaunchRequest],
    proxy: Any,
) -> None:
    full, other = make_host(vcpus=1), make_host(vcpus=1)
    too_big = make_request(vcpus=2)
    with Cloud(Config(etcd=settings.etcd, placement=PlacementSettings(endpoint=proxy.endpoint))) as through:
        launcher = Launcher(through)
        for host in (full, other):
            launcher.launch(make_request(host=host.name))
        for _ in range(3):
            with pytest.raises(NoRoom, match="gives at most 1 VCPU at once"):
                launcher.launch(too_big)
        proxy.seen.clear()
        with pytest.raises(NoRoom, match="lacks 1 VCPU"):
            launcher.launch(make_request())
        assert [path.split("?")[0] for _, path in proxy.seen] == ["/allocation_candidates"], "is there room by now?"


def test_a_refusal_says_what_is_lacking_now_where_what_is_known_of_the_hosts_is_old(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., LaunchRequest]
) -> None:
    host = make_host(vcpus=2)
    launcher = Launcher(cloud)
    with pytest.raises(NoRoom, match="gives at most 2 VCPU at once"):
        launcher.launch(make_request(vcpus=3))
    Launcher(cloud).launch(make_request(vcpus=2))
    with pytest.raises(NoRoom, match="VCPU: 2 of 2 used, 1 asked"):
        launcher.launch(make_request(host=host.name))


def test_capacity_says_how_many_more_fit(cloud: Cloud, make_host: Callable[..., Any], tool: Any, store: Store) -> None:
    best, _, drained = make_host(vcpus=8), make_host(vcpus=5), make_host(vcpus=50)
    close(drained, cloud.placement, store, AdminState.MAINTENANCE, "")
    done = tool("capacity", "--like", SMALL.replace("VCPU:1", "VCPU:2"), "-o", "json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["fits"], row["best_host"], row["on_best"]) == (6, best.name, 4)
    assert (row["hosts_with_room"], row["hosts"]) == (2, 3)
    assert "FITS" in tool("capacity").stdout
    bad = tool("capacity", "--like", "resources=VCPU:0")
    assert bad.returncode == 2 and bad.stderr.startswith("error: VCPU is zero")


def test_a_group_keeps_a_host_out_and_says_so(cloud: Cloud, make_host: Callable[..., Any], tool: Any) -> None:
    taken, free = make_host(), make_host()
    Groups(cloud).create("system", "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    launched = Launcher(cloud).launch(
        LaunchRequest(query=f"{SMALL}&in_tree={taken.provider}", image="http://image/", group="apart")
    )
    done = tool("explain", SMALL, "--group", "apart", "-o", "json")
    rows = {row["uuid"]: row for row in json.loads(done.stdout)}
    assert rows[taken.provider]["lacks"] == ["group apart does not allow it there"]
    assert rows[free.provider]["able"]
    assert tool("explain", SMALL, "--group", "nobody").returncode == 1
    cloud.placement.release(launched.uuid)
    cloud.placement.delete_provider(groups.provider_of_host(taken.provider))
