"""Gangs while placement fails: all of one is there, or nothing is left of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.documents import Gang, GangState, Instance
from ecompute.cluster.errors import CloudError
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.store import Store, present
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.gangs import GangUpkeep
from eschedule.cloud.connection import Cloud
from eschedule.scheduler.gang import GangLauncher

GANGS = 8
COUNT = 4


@pytest.mark.parametrize("seed", range(2))
def test_one_request_in_three_fails_and_no_gang_is_there_in_part(
    seed: int,
    settings: Any,
    cloud: Cloud,
    store: Store,
    proxy: Any,
    faults: Any,
    clock: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host(vcpus=8) for _ in range(3)]
    rng = random.Random(seed)
    kinds = [faults.RESET_UNSENT, faults.RESET_UNANSWERED, faults.UNAVAILABLE, faults.UNAVAILABLE_DONE]
    proxy.fault = lambda method, path: rng.choice(kinds) if rng.random() < 1 / 3 else None
    launched: set[str] = set()
    with Cloud(replace(settings, placement=PlacementSettings(endpoint=proxy.endpoint))) as failing:
        for n in range(GANGS):
            requests = [make_request(name=f"gang-{n}-{k}") for k in range(COUNT)]
            try:
                launched |= {one.uuid for one in GangLauncher(failing, rng=rng).launch_all(requests)}
            except CloudError:
                continue
    charge = Charge(store, cloud.placement, Events(store, LEAD), lambda: True, present(keys.INCARNATION), clock)
    gangs, audit = GangUpkeep(charge), Audit(store, cloud.placement, list, clock)
    for _ in range(4):
        for is_full in (False, True):
            gangs.run(is_full=is_full)
            audit.run(is_full=is_full)
        clock.now_s += GRACE_S + 1
    records = [item.value for item in store.list(keys.GANGS, Gang).items]
    assert {record.state for record in records} <= {GangState.COMMITTED}
    members = {uuid for record in records for uuid in record.members}
    assert launched <= members, "what its scheduler says is launched is there"
    assert {item.value.uuid for item in store.list(keys.INSTANCES, Instance).items} == members
    assert {consumer for host in hosts for consumer in host.claims()} == members
    assert not store.keys(keys.INTENTS)[0]
    assert sum(len(host.claims()) for host in hosts) <= 24


def test_a_gang_overtaken_at_every_try_of_its_claim_is_claimed_anew(
    settings: Any,
    proxy: Any,
    faults: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host(vcpus=4), make_host(vcpus=4)]
    claims: list[str] = []

    def note(step: str) -> None:
        if step.startswith("claiming room for"):
            claims.append(step)

    proxy.fault = lambda method, path: faults.OVERTAKEN if method == "POST" and len(claims) == 1 else None
    with Cloud(replace(settings, placement=PlacementSettings(endpoint=proxy.endpoint))) as failing:
        launched = GangLauncher(failing, on_step=note).launch_all([make_request() for _ in range(COUNT)])
    assert len(claims) == 2
    assert {consumer for host in hosts for consumer in host.claims()} == {one.uuid for one in launched}
