"""A host opens itself when everything speaks for it: with the daemon's own code, on a fleet's machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED, closed
from ecompute.cluster.documents import Admin, AdminState, Instance, Node, State
from ecompute.cluster.saying import say
from ecompute.cluster.store import Put, unchanged
from ecompute.fleet import Fleet
from eschedule.cloud.connection import Cloud
from eschedule.cloud.hosts import Hosts
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

Eventually = Callable[..., None]


def wake(cloud: Cloud, provider: str) -> None:
    """Have the host look at everything now: whatever is said of it, it is said again."""
    found = cloud.store.get(keys.admin(provider), Admin)
    if found is None:
        say(cloud.store, provider, lambda admin: Admin(location="woken"))
    else:
        cloud.store.commit([unchanged(found)], [Put(found.key, found.value)])


def stands(cloud: Cloud, provider: str) -> tuple[bool, bool] | None:
    """Return whether the host is in no answer, and whether no claim passes; None: placement does not know it."""
    placement = cloud.placement
    if placement.provider(provider) is None:
        return None
    traits, inventories = placement.traits(provider), placement.inventories(provider).inventories
    return DISABLED in traits, closed(inventories) == inventories


@pytest.mark.parametrize("state", [AdminState.ACTIVE, AdminState.DRAINING])
def test_a_host_that_placement_has_forgotten_comes_back_hidden_until_its_claims_are_back(
    make_fleet: Callable[..., Fleet], cloud: Cloud, eventually: Eventually, state: AdminState
) -> None:
    (host,) = make_fleet(hosts=1).hosts
    eventually(lambda: host.is_open, timeout_s=30)
    uuid = (
        Launcher(cloud).launch(LaunchRequest(query="resources=VCPU:1,MEMORY_MB:64,DISK_GB:1", image="http://i/x")).uuid
    )
    instances = Instances(cloud)
    instance = instances.find(uuid, "system")
    instances.wait(instance, until=frozenset({State.CREATED}), timeout_s=30)
    if state is AdminState.DRAINING:
        Hosts(cloud).drain(Hosts(cloud).find(host.provider), state)
        eventually(lambda: not host.is_open, timeout_s=10)
    cloud.placement.release(uuid)
    cloud.placement.delete_provider(host.provider)
    wake(cloud, host.provider)
    eventually(lambda: stands(cloud, host.provider) == (True, False), timeout_s=20)
    node = cloud.store.get(keys.node(host.provider), Node)
    assert node is not None
    assert node.value.closed == "placement has lost the claims of 1 instance"
    found = cloud.store.get(keys.instance(uuid), Instance)
    assert found is not None
    cloud.placement.claim(uuid, found.value.claim, found.value.mappings, project_id="system", user_id="system")
    wake(cloud, host.provider)
    wanted = (False, False) if state is AdminState.ACTIVE else (True, True)
    eventually(lambda: stands(cloud, host.provider) == wanted, timeout_s=20)
    instances.destroy(instances.find(uuid, "system"))
    instances.wait(instances.find(uuid, "system"), until=frozenset(), timeout_s=30)


def test_a_host_follows_what_operators_say_at_once(
    make_fleet: Callable[..., Fleet], cloud: Cloud, eventually: Eventually
) -> None:
    (host,) = make_fleet(hosts=1).hosts
    eventually(lambda: host.is_open, timeout_s=30)
    say(cloud.store, host.provider, lambda admin: Admin(state=AdminState.MAINTENANCE, traits=("CUSTOM_SSD",), turn=1))
    eventually(lambda: stands(cloud, host.provider) == (True, True), timeout_s=10)
    eventually(lambda: "CUSTOM_SSD" in cloud.placement.traits(host.provider), timeout_s=10)
    say(cloud.store, host.provider, lambda admin: Admin(turn=2))
    eventually(lambda: stands(cloud, host.provider) == (False, False), timeout_s=10)
    assert "CUSTOM_SSD" not in cloud.placement.traits(host.provider)


def test_a_host_that_is_stopped_says_so_takes_nothing_and_opens_when_it_starts_again(
    make_fleet: Callable[..., Fleet], cloud: Cloud, eventually: Eventually
) -> None:
    (host,) = make_fleet(hosts=1).hosts
    eventually(lambda: host.is_open, timeout_s=30)
    host.stop()
    hosts = Hosts(cloud)
    view = hosts.view(hosts.find(host.name))
    assert (view.state, view.is_alive, view.why) == ("stopped", False, "its daemon was stopped")
    assert stands(cloud, host.provider) == (True, True)
    host.start()
    eventually(lambda: host.is_open, timeout_s=30)
    view = hosts.view(hosts.find(host.name))
    assert (view.state, view.standing, view.why) == ("up", "active", None)
    # Killed, it has said nothing.
    host.kill()
    assert hosts.view(hosts.find(host.name)).node.stopped is None
