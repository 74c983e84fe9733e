"""Many hosts in one process: they take instances, build them, fail as told, die and come back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ecompute.cluster import keys
from ecompute.cluster.config import Config
from ecompute.cluster.documents import Alive, Node, State
from ecompute.cluster.errors import CloudError, Conflict, InvalidInput
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.fleet import Conduct, Fleet, FleetSettings
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

IMAGE = "http://images.example/small.qcow2"
QUERY = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"
ENDS = frozenset({State.CREATED, State.ERROR})
TIMEOUT_S = 60.0


def launch(cloud: Cloud, count: int, query: str = QUERY) -> list[str]:
    launcher = Launcher(cloud)
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: launcher.launch(LaunchRequest(query=query, image=IMAGE)).uuid, range(count)))


def states(cloud: Cloud, uuids: list[str]) -> list[State]:
    """Return how each ends up."""
    instances = Instances(cloud)

    def wait(uuid: str) -> State:
        view = instances.wait(instances.find(uuid, "system"), until=ENDS, timeout_s=TIMEOUT_S)
        assert view is not None
        return view.state

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(wait, uuids))


def destroy(cloud: Cloud, uuids: list[str]) -> None:
    instances = Instances(cloud)

    def end(uuid: str) -> None:
        found = instances.find(uuid, "system")
        instances.destroy(found)
        assert instances.wait(found, until=frozenset(), timeout_s=TIMEOUT_S) is None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(end, uuids))


def threads_of_hosts() -> int:
    """How many threads there are that belong to no pool of this process."""
    shared = ("etcd-", "timers", "MainThread", "pytest", "Thread-", "asyncio", "ThreadPool")
    return sum(not thread.name.startswith(shared) for thread in threading.enumerate())


def test_twenty_hosts_take_instances_build_them_and_remove_them(
    make_fleet: Callable[..., Fleet], cloud: Cloud, store: Store, config: Config, eventually: Callable[..., None]
) -> None:
    fleet = make_fleet(hosts=20, conduct=Conduct(seconds={"start": 0.05}))
    eventually(lambda: all(host.is_open for host in fleet.hosts), timeout_s=30)
    assert len(store.list(keys.NODES, Node).items) == 20
    assert len(store.list(keys.ALIVE, Alive).items) == 20
    uuids = launch(cloud, 40)
    assert states(cloud, uuids) == [State.CREATED] * 40
    on = {uuid for host in fleet.hosts for uuid, is_on in host.machine.guests().items() if is_on}
    assert on == set(uuids)
    assert sum(bool(host.machine.guests()) for host in fleet.hosts) > 5, "they are spread"
    destroy(cloud, uuids)
    assert not any(host.machine.guests() for host in fleet.hosts)
    assert not any(host.machine.links.ours() for host in fleet.hosts), "networks go with their last guest"
    with Placement(config.placement) as placement:
        assert not any(placement.provider_allocations(host.provider) for host in fleet.hosts)
    assert not any(path.is_dir() for host in fleet.hosts for path in (host.state_dir / "instances").iterdir())


def test_hosts_that_rest_have_no_threads(make_fleet: Callable[..., Fleet], eventually: Callable[..., None]) -> None:
    before = threads_of_hosts()
    fleet = make_fleet(hosts=10)
    eventually(lambda: all(host.is_open for host in fleet.hosts), timeout_s=30)
    eventually(lambda: threads_of_hosts() <= before + 3, timeout_s=60)


def test_a_share_of_the_builds_fails_as_it_was_told(make_fleet: Callable[..., Fleet], cloud: Cloud) -> None:
    fleet = make_fleet(hosts=2, conduct=Conduct(failure_rates={"start": 1.0}))
    uuids = launch(cloud, 3)
    assert states(cloud, uuids) == [State.ERROR] * 3
    fleet.conduct.failure_rates.clear()
    more = launch(cloud, 3)
    assert states(cloud, more) == [State.CREATED] * 3
    destroy(cloud, uuids + more)


def test_a_killed_host_tells_nothing_and_goes_on_when_it_is_started_again(
    make_fleet: Callable[..., Fleet], cloud: Cloud, store: Store, eventually: Callable[..., None]
) -> None:
    fleet = make_fleet(hosts=2)
    kept = launch(cloud, 2)
    assert states(cloud, kept) == [State.CREATED] * 2
    fleet.conduct.seconds["start"] = 600.0
    begun = launch(cloud, 2)
    domains = lambda: {uuid for host in fleet.hosts for uuid in host.machine.guests()}  # noqa: E731
    eventually(lambda: set(begun) <= domains(), timeout_s=30)
    for host in fleet.hosts:
        alive = store.get(keys.alive(host.provider), Alive)
        revision = store.status().revision
        fleet.kill(host)
        assert store.get(keys.alive(host.provider), Alive) == alive, "nobody revoked its lease"
        assert store.status().revision - revision < 5, "it goes on writing"
    assert {uuid for host in fleet.hosts for uuid, is_on in host.machine.guests().items() if is_on} == set(kept)
    fleet.conduct.seconds.clear()
    for host in fleet.hosts:
        host.start()
    assert states(cloud, begun) == [State.CREATED] * 2
    assert states(cloud, kept) == [State.CREATED] * 2
    destroy(cloud, kept + begun)


def test_a_stopped_fleet_takes_nothing_and_comes_back_with_its_hosts(
    config: Config, store: Store, cloud: Cloud, tmp_path: Path
) -> None:
    settings = FleetSettings(config=config, directory=tmp_path, hosts=3, prefix="comes-back", vcpus=4)
    said: list[str] = []
    with Fleet(settings, say=said.append) as fleet:
        providers = [host.provider for host in fleet.hosts]
    assert said[-1].startswith("3 hosts are up")
    assert store.list(keys.ALIVE, Alive).items == ()
    with pytest.raises(CloudError):
        launch(cloud, 1)
    with Fleet(settings) as again:
        assert [host.provider for host in again.hosts] == providers
        destroy(cloud, launch(cloud, 1))
    with Placement(config.placement) as placement:
        for provider in providers:
            placement.delete_provider(provider)


def test_two_fleets_of_one_directory_are_refused_and_nothing_is_left(
    make_fleet: Callable[..., Fleet], config: Config, tmp_path: Path
) -> None:
    first = make_fleet(hosts=1, prefix="one")
    with pytest.raises(Conflict, match="another ecompute runs"):
        Fleet(FleetSettings(config=config, directory=tmp_path / "fleet", hosts=1, prefix="one")).start()
    assert first.hosts[0].is_running


@pytest.mark.parametrize(
    "values", [{"hosts": 0}, {"hosts": 10**6}, {"hosts": 1, "vcpus": 0}, {"hosts": 1, "disk_gb": 2**31}]
)
def test_a_fleet_that_cannot_be_is_refused(config: Config, tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        Fleet(FleetSettings(config=config, directory=tmp_path, **values))
