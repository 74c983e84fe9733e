"""Many schedulers after what is left: one has it, and the others are told that there is no room."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance
from ecompute.cluster.store import DeletePrefix
from eschedule.cloud.connection import Cloud

SCHEDULERS = 16
ROUNDS = int(os.environ.get("ECOMPUTE_LAST_SLOT_ROUNDS", "50"))


@pytest.mark.timeout(1500)
def test_of_sixteen_schedulers_after_one_last_slot_exactly_one_has_it_each_time(
    cloud: Cloud, trait: str, make_host: Callable[..., str], make_racers: Callable[[int], list[Any]]
) -> None:
    racers = make_racers(SCHEDULERS)
    request = {"query": f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&required={trait}"}
    host = make_host(vcpus=1)
    began = time.monotonic()
    said: Counter[str] = Counter()
    for number in range(ROUNDS):
        for racer in racers:
            racer.ask(request)
        answers = [racer.answer() for racer in racers]
        winners = [answer["uuid"] for answer in answers if "uuid" in answer]
        said.update(answer["error"] for answer in answers if "error" in answer)
        assert len(winners) == 1, f"round {number}: {answers}"
        assert {answer["error"] for answer in answers if "error" in answer} == {"NoRoom"}, f"round {number}: {answers}"
        assert set(cloud.placement.provider_allocations(host)) == set(winners)
        assert [item.value.uuid for item in cloud.store.list(keys.INSTANCES, Instance).items] == winners
        assert [keys.last(key) for key in cloud.store.keys(keys.assignments(host))[0]] == winners
        assert cloud.store.keys(keys.INTENTS)[0] == []
        cloud.placement.release(winners[0])
        cloud.store.commit(
            [], [DeletePrefix(prefix) for prefix in (keys.INSTANCES, keys.HOSTS, keys.NAMES, keys.EVENTS)]
        )
    print(f"{ROUNDS} rounds of {SCHEDULERS} schedulers: {dict(said)} in {time.monotonic() - began:.0f} s")
