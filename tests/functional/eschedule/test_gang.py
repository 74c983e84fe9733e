"""A gang is launched as a whole, or not at all."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import (
    Assignment,
    Gang,
    GangState,
    Incarnation,
    Instance,
    Resources,
    Spec,
    State,
    timestamp,
)
from ecompute.cluster.errors import Conflict, InvalidInput, NoRoom
from ecompute.cluster.gangs import Gangs
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import MAX_OPERATIONS, Delete, Put, Store
from ecompute.cluster.upkeep.finish import Finisher
from eschedule.cloud.connection import Cloud
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.scheduler.gang import GangLauncher
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched


@pytest.fixture
def make_gang(make_request: Callable[..., Any]) -> Callable[..., list[Any]]:
    """Return a maker of requests: ``make_gang(3)`` is web-1 to web-3."""

    def make(count: int, **values: Any) -> list[Any]:
        return [make_request(name=f"web-{n}", **values) for n in range(1, count + 1)]

    return make


def gangs_of(store: Store) -> list[Gang]:
    return [item.value for item in store.list(keys.GANGS, Gang).items]


def check_whole(store: Store, launched: list[Launched]) -> None:
    """All of it is there, and committed."""
    (gang,) = gangs_of(store)
    assert gang.state is GangState.COMMITTED
    assert gang.members == tuple(one.uuid for one in launched)
    for one in launched:
        instance = store.get(keys.instance(one.uuid), Instance)
        assignment = store.get(keys.assignment(one.provider, one.uuid), Assignment)
        assert instance is not None and assignment is not None
        assert (instance.value.name, instance.value.gang) == (one.name, gang.uuid)
        assert assignment.value.gang == gang.uuid
    assert not store.keys(keys.INTENTS)[0]


def test_a_gang_is_claimed_requested_and_committed(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    hosts = [make_host(vcpus=2) for _ in range(3)]
    launched = GangLauncher(cloud).launch_all(make_gang(6))
    assert [one.name for one in launched] == [f"web-{n}" for n in range(1, 7)]
    check_whole(store, launched)
    assert [len(host.claims()) for host in hosts] == [2, 2, 2]
    assert len({address for one in launched for address in one.addresses}) == 6


def test_a_gang_of_fifty_is_one_claim(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    hosts = [make_host(vcpus=10) for _ in range(6)]
    launched = GangLauncher(cloud).launch_all(make_gang(50))
    check_whole(store, launched)
    assert sum(len(host.claims()) for host in hosts) == 50
    assert Counter(one.provider for one in launched).keys() == {host.provider for host in hosts}


def test_nothing_is_written_where_the_last_member_does_not_fit(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_gang: Callable[..., list[Any]],
    all_keys: Callable[[], set[str]],
) -> None:
    hosts = [make_host(vcpus=2) for _ in range(2)]
    with pytest.raises(NoRoom, match="5 instances do not fit together: there is room for 4 of them"):
        GangLauncher(cloud).launch_all(make_gang(5))
    assert all_keys() == set()
    assert [host.claims() for host in hosts] == [{}, {}]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_member_that_no_host_serves_is_told_of_with_what_the_nearest_host_lacks(
    place: int, cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    host = make_host(vcpus=4)
    requests = make_gang(3)
    (requests[place],) = make_gang(1, vcpus=5)
    with pytest.raises(NoRoom, match=f"no host can serve resources=VCPU:5.*: {host.name} .* VCPU"):
        GangLauncher(cloud).launch_all([replace(one, name=f"web-{n}") for n, one in enumerate(requests)])


def test_nothing_stays_where_placement_refuses_what_would_have_fitted(
    cloud: Cloud,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_gang: Callable[..., list[Any]],
    all_keys: Callable[[], set[str]],
) -> None:
    host = make_host(vcpus=4)
    launcher = GangLauncher(cloud)
    launcher.choices(make_gang(1)[0])  # what it knows of the room is old from now on
    other = GangLauncher(make_cloud()).launch_all(make_gang(2))
    before = all_keys()
    with pytest.raises(NoRoom, match="3 instances do not fit together: there is room for 2"):
        launcher.launch_all([replace(one, name=f"late-{n}") for n, one in enumerate(make_gang(3))])
    assert all_keys() == before
    assert host.claims().keys() == {one.uuid for one in other}


def test_sixteen_gangs_race_for_the_room_of_one(
    make_cloud: Callable[[], Cloud],
    store: Store,
    make_host: Callable[..., Any],
    make_gang: Callable[..., list[Any]],
) -> None:
    hosts = [make_host(vcpus=2) for _ in range(3)]
    clouds = [make_cloud() for _ in range(16)]
    for cloud in clouds:
        # One thread serves them all: sixteen of them wait for each other for long on a busy machine.
        cloud.placement = Placement(cloud.settings.placement, timeout_s=90)

    def launch(cloud: Cloud) -> list[Launched] | NoRoom:
        try:
            return GangLauncher(cloud).launch_all(make_gang(5))
        except NoRoom as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(launch, clouds))
    (launched,) = [outcome for outcome in outcomes if isinstance(outcome, list)]
    check_whole(store, launched)
    assert sum(len(host.claims()) for host in hosts) == 5


def test_members_may_differ_in_shape_host_image_and_tags(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    small, large = make_host(vcpus=2), make_host(vcpus=8)
    launched = GangLauncher(cloud).launch_all(
        [
            make_request(name="db", vcpus=8, tags=("db",)),
            make_request(name="web", host=small.name, image="http://images.example/other.qcow2"),
            make_request(name="job", expires="2h", user_data="#cloud-config"),
        ]
    )
    check_whole(store, launched)
    assert [one.provider for one in launched] == [large.provider, small.provider, small.provider]
    assert store.keys(keys.tagged("system", "db"))[0]
    assert store.keys(keys.EXPIRIES)[0]
    assert store.keys(keys.secrets(small.provider, launched[2].uuid))[0]


def test_a_gang_is_begun_anew_elsewhere_when_a_host_drains_before_the_commit(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    first, second = make_host(vcpus=4), make_host(vcpus=4)
    drained: list[str] = []

    def drain_at_the_end(step: str) -> None:
        if step == "letting the hosts begin" and not drained:
            drained.append(step)
            first.drain()

    refused: list[str] = []
    launcher = GangLauncher(cloud, on_step=drain_at_the_end, on_refused=refused.append)
    launched = launcher.launch_all(make_gang(4))
    assert {one.provider for one in launched} == {second.provider}
    check_whole(store, launched)
    assert first.claims() == {}
    assert any("takes nothing new any more" in reason for reason in refused)


def test_a_gang_whose_only_hosts_drain_is_taken_back_whole(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]], all_keys: Callable[[], set[str]]
) -> None:
    host = make_host(vcpus=4)

    def drain(step: str) -> None:
        if step.startswith("telling the hosts"):
            host.drain()

    with pytest.raises(NoRoom):
        GangLauncher(cloud, on_step=drain).launch_all(make_gang(4))
    assert host.claims() == {}
    assert {key for key in all_keys() if not key.startswith((keys.NETWORKS, keys.VNIS, keys.NAMES))} == set()
    assert not any(
        "/instance/" in key or "/ports/" in key or "/addresses/" in key or "/macs/" in key for key in all_keys()
    )


def test_an_incarnation_that_was_read_a_moment_ago_is_read_again(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    make_host(vcpus=4)
    launcher = GangLauncher(cloud)
    launcher.launch(make_gang(1)[0])
    found = store.get(keys.INCARNATION, Incarnation)
    assert found is not None
    store.commit([], [Put(found.key, found.value)])
    check_whole(store, launcher.launch_all(make_gang(3)))


def test_a_gang_whose_record_is_ended_while_it_is_begun_took_too_long(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    """The first intents are written with its record, and the others after it."""
    make_host(vcpus=100)

    def late() -> float:
        store.commit([], [Delete(key) for key in store.keys(keys.GANGS)[0]])
        return time.time()

    with pytest.raises(Conflict, match="took too long and was given up for dead; launch it again"):
        GangLauncher(cloud, now=late).launch_all(make_gang(100))


def test_a_gang_that_the_lead_has_ended_is_not_committed(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    make_host(vcpus=4)

    def end(step: str) -> None:
        if step == "letting the hosts begin":
            (key,) = store.keys(keys.GANGS)[0]
            store.commit([], [Delete(key)])

    with pytest.raises(Conflict, match="took too long"):
        GangLauncher(cloud, on_step=end).launch_all(make_gang(2))
    assert gangs_of(store) == []


def test_addresses_of_a_narrow_network_are_each_given_once(
    settings: Any, store: Store, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    import ipaddress

    make_host(vcpus=16)
    narrow = replace(settings, default_network=ipaddress.IPv4Network("10.9.0.0/28"))
    with Cloud(narrow) as cloud:
        launched = GangLauncher(cloud, rng=random.Random(1)).launch_all(make_gang(12))
        check_whole(store, launched)
        assert len({one.addresses for one in launched}) == 12
        with pytest.raises(Conflict):
            GangLauncher(cloud).launch_all([replace(one, name=None) for one in make_gang(4)])
    assert len(store.keys(keys.INSTANCES)[0]) == 12


@pytest.mark.parametrize("count", [0, 201, 10**6])
def test_a_gang_of_nobody_or_of_too_many_is_refused(
    cloud: Cloud, make_request: Callable[..., Any], all_keys: Callable[[], set[str]], count: int
) -> None:
    with pytest.raises(InvalidInput, match=f"a gang of {count} cannot be launched; 1 to 200"):
        GangLauncher(cloud).launch_all([make_request()] * count)
    assert all_keys() == set()


def test_a_gang_with_one_bad_member_names_it_and_claims_nothing(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]], all_keys: Callable[[], set[str]]
) -> None:
    make_host()
    good = make_gang(3)
    for bad, says in (
        (replace(good[2], image=""), "web-3: no image"),
        (replace(good[2], name="web-1"), "2 members of the gang are called web-1"),
        (replace(good[2], namespace="other"), "several namespaces"),
    ):
        with pytest.raises(InvalidInput, match=says):
            GangLauncher(cloud).launch_all([*good[:2], bad])
    assert all_keys() == set()


def test_the_record_stays_for_the_lead_while_its_last_member_is_there(
    cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    make_host()
    members = [str(uuid4()) for _ in range(MAX_OPERATIONS + 2)]
    claim = Gangs(store, cloud.placement, writer="a test").begin(str(uuid4()), members, namespace="system")
    last = Instance(
        uuid=members[-1],
        namespace="system",
        name="web",
        state=State.INITIAL,
        generation=1,
        epoch=1,
        provider=str(uuid4()),
        spec=Spec(resources=Resources(vcpus=1, memory_mb=64, disk_gb=1), image="http://image/"),
        created_at=timestamp(0),
        gang=claim.uuid,
    )
    store.commit([], [Put(keys.instance(last.uuid), last)])
    assert not claim.cancel(lambda instance: False), "it could not be withdrawn"
    assert [gang.state for gang in gangs_of(store)] == [GangState.CANCELLED]
    assert not store.keys(keys.INTENTS)[0]


class Restless(Store):
    """Somebody rewrites what is to be deleted, each time."""

    def commit(self, compares: Any, operations: Any) -> int:
        for operation in operations:
            if isinstance(operation, Delete) and operation.key.startswith(keys.INSTANCES):
                found = self.get(operation.key, Instance)
                assert found is not None
                super().commit([], [Put(found.key, found.value)])
        return super().commit(compares, operations)


def test_who_withdraws_a_member_is_told_that_it_keeps_changing(
    cloud: Cloud, store: Store, settings: Any, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    uuid = Launcher(cloud).launch(make_request()).uuid
    found = store.get(keys.instance(uuid), Instance)
    assert found is not None
    with Restless(settings.etcd) as restless:
        assert Finisher(restless, cloud.placement, cloud.events).withdraw(found) is False
    assert store.get(keys.instance(uuid), Instance) is not None
    assert Finisher(store, cloud.placement, cloud.events).withdraw(found) is True
    assert store.get(keys.instance(uuid), Instance) is None


def test_the_last_two_of_a_host_that_go_at_once_take_it_out_of_the_network(
    cloud: Cloud, store: Store, settings: Any, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    first, second = (store.get(keys.instance(Launcher(cloud).launch(make_request()).uuid), Instance) for _ in range(2))
    assert first is not None and second is not None

    class Overtaken(Store):
        """Somebody else withdraws the second just before the first is deleted, when all has been read."""

        is_overtaken = False

        def commit(self, compares: Any, operations: Any) -> int:
            if not self.is_overtaken and any(isinstance(one, Delete) and one.key == first.key for one in operations):
                self.is_overtaken = True
                assert Finisher(store, cloud.placement, cloud.events).withdraw(second)
            return super().commit(compares, operations)

    with Overtaken(settings.etcd) as overtaken:
        assert Finisher(overtaken, cloud.placement, cloud.events).withdraw(first)
        assert overtaken.is_overtaken
    network = first.value.spec.interfaces[0].network_uuid
    assert store.keys(keys.network_hosts(network))[0] == []


@pytest.mark.parametrize(
    ("cidr", "count", "asked"),
    [
        ("10.7.0.0/24", 30, lambda n: {"address": f"10.7.0.{20 + n}"}),
        ("10.7.0.0/24", 30, lambda n: {"mac": f"52:54:00:00:00:{20 + n:02x}"}),
        ("10.7.0.0/27", 29, lambda n: {}),
    ],
    ids=["addresses of their own", "MACs of their own", "all addresses there are"],
)
def test_a_gang_of_several_transactions_takes_no_address_twice(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    cidr: str,
    count: int,
    asked: Callable[[int], dict[str, str]],
) -> None:
    make_host(vcpus=30), make_host(vcpus=30)
    Networks.of(cloud).create("system", NetworkRequest(name="several", cidr=cidr))
    requests = [
        make_request(name=f"web-{n}", interfaces=(InterfaceRequest(network="several", **asked(n)),))
        for n in range(count)
    ]
    launched = GangLauncher(cloud).launch_all(requests)
    assert len({address for one in launched for address in one.addresses}) == count
