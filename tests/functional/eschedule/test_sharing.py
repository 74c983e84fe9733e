"""A disk that a sharing provider serves: several providers stand in one allocation, and one of them is the host."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Instance, Resources, State
from ecompute.cluster.errors import NoRoom
from ecompute.cluster.placement import Inventory
from ecompute.cluster.store import Store
from ecompute.dev.placement import PlacementProcess
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

MakeStorage = Callable[[str, Any], str]


@pytest.fixture
def make_storage(cloud: Cloud, placement: PlacementProcess) -> Iterator[MakeStorage]:
    """Return a maker of providers of DISK_GB which share it with a host that has none of its own."""
    made: list[str] = []

    def make(beginning: str, host: Any) -> str:
        storage = beginning + str(uuid.uuid4())[len(beginning) :]
        made.append(storage)
        client = cloud.placement
        client.ensure_provider(storage, f"storage-{storage}")
        client.set_traits(storage, {"MISC_SHARES_VIA_AGGREGATE"})
        client.set_inventories(storage, {"DISK_GB": Inventory(total=100, max_unit=100)})
        own = client.inventories(host.provider).inventories
        client.set_inventories(host.provider, {name: own[name] for name in own if name != "DISK_GB"})
        aggregate = str(uuid.uuid4())
        for provider in (storage, host.provider):
            _join(placement, provider, aggregate)
        return storage

    yield make
    for storage in made:
        for consumer in cloud.placement.provider_allocations(storage):
            cloud.placement.release(consumer)
        cloud.placement.delete_provider(storage)


@pytest.mark.parametrize("beginning", ["00000000", "ffffffff"], ids=["before-the-host", "after-the-host"])
def test_only_the_first_provider_of_an_allocation_is_told(
    beginning: str,
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_storage: MakeStorage,
    make_request: Callable[..., LaunchRequest],
) -> None:
    """A known fault of the project's ancestor. The one to be told is the host, wherever it stands."""
    host = make_host()
    storage = make_storage(beginning, host)
    launched = Launcher(cloud).launch(make_request())
    assert launched.provider == host.provider
    assert cloud.placement.allocations(launched.uuid).allocations == {
        host.provider: {"VCPU": 1, "MEMORY_MB": 64},
        storage: {"DISK_GB": 1},
    }
    assigned = store.get(keys.assignment(host.provider, launched.uuid), Assignment)
    assert assigned is not None
    assert assigned.value.spec.resources == Resources(vcpus=1, memory_mb=64, disk_gb=1), "it gets all that was claimed"
    assert store.keys(keys.assignments(storage))[0] == []
    # And both are given back.
    instances = Instances(cloud)
    instances.destroy(instances.find(launched.uuid, "system"))
    host.report(launched.uuid, State.DELETED, is_gone=True)
    instances.finish(launched.uuid)
    assert store.get(keys.instance(launched.uuid), Instance) is None
    assert not cloud.placement.allocations(launched.uuid)


def test_what_is_shared_with_a_host_is_not_said_to_be_lacking(
    cloud: Cloud, make_host: Callable[..., Any], make_storage: MakeStorage, make_request: Callable[..., LaunchRequest]
) -> None:
    host = make_host(vcpus=8)
    make_storage("ffffffff", host)
    with pytest.raises(NoRoom) as refusal:
        Launcher(cloud).launch(make_request(host=host.name, vcpus=9))
    assert refusal.value.args[0] == f"{host.name} cannot take it: VCPU: at most 8 at once, 9 asked"


def _join(placement: PlacementProcess, provider: str, aggregate: str) -> None:
    """Put a provider into an aggregate, as operators do it (placement's API, microversion 1.39)."""
    connection = http.client.HTTPConnection(placement.host, placement.port, timeout=10)
    headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39", "Content-Type": "application/json"}
    path = f"/resource_providers/{provider}/aggregates"
    try:
        connection.request("GET", path, headers=headers)
        generation = json.loads(connection.getresponse().read())["resource_provider_generation"]
        document = {"aggregates": [aggregate], "resource_provider_generation": generation}
        connection.request("PUT", path, json.dumps(document), headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
    finally:
        connection.close()
