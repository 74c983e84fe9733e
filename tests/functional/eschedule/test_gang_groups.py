"""Gangs with groups and quotas: decided in the same claim as everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Policy, Scope
from ecompute.cluster.errors import NoRoom, NotFound, QuotaExceeded
from ecompute.cluster.store import Store
from eschedule.cloud.connection import Cloud
from eschedule.cloud.groups import Groups
from eschedule.cloud.quotas import Quotas
from eschedule.scheduler.gang import GangLauncher


@pytest.fixture
def make_gang(make_request: Callable[..., Any]) -> Callable[..., list[Any]]:
    def make(count: int, **values: Any) -> list[Any]:
        return [make_request(name=f"web-{n}", **values) for n in range(1, count + 1)]

    return make


@pytest.fixture
def nothing_left(store: Store) -> Callable[[], None]:
    """Return what sees that nothing of an instance or gang is in etcd."""

    def check() -> None:
        for prefix in (keys.INSTANCES, keys.INTENTS, keys.GANGS, keys.HOSTS):
            assert not store.keys(prefix)[0]

    return check


def test_members_that_are_to_be_apart_are_each_on_a_host_of_its_own(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    hosts = [make_host(vcpus=8) for _ in range(3)]
    group = Groups(cloud).create("system", "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    launched = GangLauncher(cloud).launch_all(make_gang(3, group="apart"))
    assert sorted(one.provider for one in launched) == sorted(host.provider for host in hosts)
    assert len(Groups(cloud).members(group)) == 3


def test_more_members_than_hosts_cannot_be_apart_and_nothing_is_claimed(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]], nothing_left: Callable[[], None]
) -> None:
    hosts = [make_host(vcpus=8) for _ in range(3)]
    Groups(cloud).create("system", "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    with pytest.raises(NoRoom, match="4 instances do not fit together: there is room for 3 of them"):
        GangLauncher(cloud).launch_all(make_gang(4, group="apart"))
    nothing_left()
    assert [host.claims() for host in hosts] == [{}, {}, {}]


@pytest.mark.parametrize("hosts", [1, 2])
def test_the_refusal_says_what_the_group_has_to_do_with_it(
    hosts: int, cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    make_host(vcpus=8)
    Groups(cloud).create("system", "apart", Policy.ANTI_AFFINITY, Scope.HOST)
    GangLauncher(cloud).launch_all(make_gang(1, group="apart"))
    for _ in range(1, hosts):
        make_host(vcpus=8)
    with pytest.raises(NoRoom, match="group apart keeps its members apart, and has one in 1 host; see `eschedule"):
        GangLauncher(cloud).launch_all(make_gang(3, group="apart"))


def test_members_that_are_to_be_together_are_all_on_one_host(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]]
) -> None:
    for vcpus in (2, 4, 2):
        make_host(vcpus=vcpus)
    Groups(cloud).create("system", "together", Policy.AFFINITY, Scope.HOST)
    launched = GangLauncher(cloud).launch_all(make_gang(4, group="together"))
    assert len({one.provider for one in launched}) == 1


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["as-given", "backwards"])
def test_members_of_several_groups_are_each_placed_as_their_own_group_says(
    order: slice, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    here = make_host(vcpus=8)
    for name, policy in (("apart", Policy.ANTI_AFFINITY), ("together", Policy.AFFINITY)):
        Groups(cloud).create("system", name, policy, Scope.HOST)
        GangLauncher(cloud).launch(make_request(name=f"{name}-0", group=name))
    there = make_host(vcpus=8)
    requests = [make_request(name=f"{name}-1", group=name) for name in ("apart", "together")]
    launched = {one.name: one.provider for one in GangLauncher(cloud).launch_all(requests[order])}
    assert launched == {"apart-1": there.provider, "together-1": here.provider}


def test_a_gang_over_its_quota_is_refused_at_once_and_nothing_stays(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]], nothing_left: Callable[[], None]
) -> None:
    hosts = [make_host(vcpus=8) for _ in range(2)]
    Quotas(cloud).set("tenant", {"VCPU": 3})
    try:
        with pytest.raises(QuotaExceeded, match="4 VCPU asked, 0 of 3 used"):
            GangLauncher(cloud).launch_all(make_gang(4, namespace="tenant"))
        nothing_left()
        assert [host.claims() for host in hosts] == [{}, {}]
        assert len(GangLauncher(cloud).launch_all(make_gang(3, namespace="tenant"))) == 3
    finally:
        for host in hosts:
            for consumer in host.claims():
                cloud.placement.release(consumer)
        Quotas(cloud).set("tenant", {"VCPU": None})


def test_a_gang_of_a_group_that_is_not_there_claims_nothing(
    cloud: Cloud, make_host: Callable[..., Any], make_gang: Callable[..., list[Any]], nothing_left: Callable[[], None]
) -> None:
    make_host()
    with pytest.raises(NotFound):
        GangLauncher(cloud).launch_all(make_gang(2, group="nobody"))
    nothing_left()
