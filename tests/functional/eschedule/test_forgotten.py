"""The lead asks hosts to register again that placement has forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store, present
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.forgotten import Watch, next_of
from eschedule.cloud.connection import Cloud


@pytest.fixture
def watch_on(cloud: Cloud, store: Store, clock: Any) -> Callable[[Placement], Watch]:
    def make(placement: Placement) -> Watch:
        return Watch(Charge(store, placement, cloud.events, lambda: True, present(keys.INCARNATION), clock))

    return make


def test_every_provider_has_its_turn() -> None:
    turns, last = [], ""
    for _ in range(5):
        last = next_of(["a", "b", "c"], last) or ""
        turns.append(last)
    assert turns == ["a", "b", "c", "a", "b"]
    assert next_of([], "a") is None
    assert next_of(["a"], "z") == "a", "the last one has gone meanwhile"


def test_a_cloud_in_order_costs_one_small_request_a_turn(
    watch_on: Callable[[Placement], Watch], proxy: Any, faulty: Placement, make_host: Callable[..., Any]
) -> None:
    hosts = [make_host() for _ in range(3)]
    watch = watch_on(faulty)
    for _ in hosts:
        assert watch.look() == ()
    assert sorted(proxy.seen) == sorted(("GET", f"/resource_providers/{host.provider}") for host in hosts)


def test_hosts_that_placement_has_forgotten_are_asked_to_register_and_others_are_not(
    watch_on: Callable[[Placement], Watch], cloud: Cloud, make_host: Callable[..., Any]
) -> None:
    forgotten, dead, known = make_host(), make_host(), make_host()
    for host in (forgotten, dead):
        cloud.placement.delete_provider(host.provider)
    dead.sleep()
    watch = watch_on(cloud.placement)
    asked = [watch.look() for _ in range(3)]
    assert (forgotten.provider,) in asked
    assert {provider for turn in asked for provider in turn} == {forgotten.provider}
    assert forgotten.asked_to_register >= 1
    assert known.asked_to_register == dead.asked_to_register == 0
    for host in (forgotten, dead):
        host.register(vcpus=1, memory_mb=1, disk_gb=1)
