"""Thousands of launches by many schedulers, while hosts are drained and killed: capacity holds, and nothing leaks.

``ECOMPUTE_BURST_LAUNCHES=4000`` is the whole of it; the number that is run by default fits a small machine.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys, states
from ecompute.cluster.config import Config, EtcdSettings
from ecompute.cluster.documents import (
    AddressLock,
    Admin,
    AdminState,
    Assignment,
    Instance,
    Port,
    Seen,
    State,
    decode,
)
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import Put, Store, absent, unchanged
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.fleet import Fleet, FleetSettings
from eschedule.cloud.connection import Cloud

LAUNCHES = int(os.environ.get("ECOMPUTE_BURST_LAUNCHES", "240"))
HOSTS = int(os.environ.get("ECOMPUTE_BURST_HOSTS", "50"))
SCHEDULERS = 8
SHAPES = [(1, 64, 1), (1, 512, 2), (2, 256, 4), (2, 1024, 1), (4, 128, 8)]
"""VCPU, MEMORY_MB, DISK_GB"""
ROOM = 0.8
"""What the hosts have of what is asked for: the last launches find none."""
TROUBLE_PERIOD_S = 1.5
SETTLE_S = 300.0


@dataclass
class Burst:
    """What goes on beside the launches, until `end`."""

    cloud: Cloud
    fleet: Fleet
    totals: dict[str, int]
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    overcommitted: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        for act, period_s in ((self.trouble, TROUBLE_PERIOD_S), (self.look, 0.5)):
            thread = threading.Thread(target=self._repeat, args=(act, period_s))
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        if self.failures:
            raise self.failures[0]

    def _repeat(self, act: Callable[[], None], period_s: float) -> None:
        try:
            while not self._ended.wait(period_s):
                act()
        except BaseException as error:
            self.failures.append(error)

    def trouble(self) -> None:
        """Drain a host or kill one; put right one that was drained or killed before."""
        host = self.rng.choice(self.fleet.hosts)
        if not host.is_running:
            host.start()
            self.done["started"] += 1
        elif self.rng.random() < 0.4:
            self.fleet.kill(host)
            self.done["killed"] += 1
        else:
            wanted = self.rng.choice([AdminState.DRAINING, AdminState.MAINTENANCE, AdminState.ACTIVE])
            self.say(host.provider, wanted)
            self.done[wanted.value] += 1

    def say(self, provider: str, wanted: AdminState) -> None:
        """As an operator does."""
        store = self.cloud.store
        for _ in range(20):
            found = store.get(keys.admin(provider), Admin)
            new = Admin(state=wanted) if found is None else structs.replace(found.value, state=wanted)
            try:
                store.commit(
                    [absent(keys.admin(provider)) if found is None else unchanged(found)],
                    [Put(keys.admin(provider), new)],
                )
            except CompareFailed:
                continue
            return
        raise AssertionError(f"/admin/{provider} keeps changing")

    def look(self) -> None:
        """See that placement has given out no more than there is."""
        for provider, summary in self.cloud.placement.hosts(count=HOSTS).items():
            for name, total in self.totals.items():
                if name in summary.resources and summary.resources[name].used > total:
                    self.overcommitted.append(f"{provider}: {summary.resources[name].used} of {total} {name}")
        self.done["looks"] += 1


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """With the history of this test alone."""
    with start_etcd(tmp_path / "etcd", is_durable=False) as process:
        yield process


@pytest.fixture
def settings(settings: Config, own_etcd: EtcdProcess) -> Config:
    return replace(settings, etcd=EtcdSettings(endpoints=(own_etcd.endpoint,)))


@pytest.fixture
def cloud(settings: Config) -> Iterator[Cloud]:
    with Cloud(settings) as opened:
        yield opened


@pytest.mark.timeout(300 + 3 * LAUNCHES)
def test_a_burst_exceeds_no_capacity_and_leaks_nothing_while_hosts_are_drained_and_killed(
    tmp_path: Path,
    own_etcd: EtcdProcess,
    settings: Config,
    cloud: Cloud,
    make_racers: Callable[[int], list[Any]],
    history: Callable[[EtcdProcess, Store], Iterator[Any]],
) -> None:
    rng = random.Random(LAUNCHES)
    requests = [dict(zip(("VCPU", "MEMORY_MB", "DISK_GB"), rng.choice(SHAPES), strict=True)) for _ in range(LAUNCHES)]
    totals = {
        name: max(sum(request[name] for request in requests) * ROOM / HOSTS, 2 * max(shape))
        for name, shape in zip(("VCPU", "MEMORY_MB", "DISK_GB"), zip(*SHAPES, strict=True), strict=True)
    }
    totals = {name: round(total) for name, total in totals.items()}
    fleet_settings = FleetSettings(
        config=settings,
        directory=tmp_path / "fleet",
        hosts=HOSTS,
        vcpus=totals["VCPU"],
        memory_mb=totals["MEMORY_MB"],
        disk_gb=totals["DISK_GB"],
    )
    with Fleet(fleet_settings) as fleet:
        racers = make_racers(SCHEDULERS)
        burst = Burst(cloud, fleet, totals, rng)
        began = time.monotonic()
        burst.begin()
        try:
            answers = race(racers, requests)
        finally:
            burst.end()
        took_s = time.monotonic() - began
        for host in fleet.hosts:
            if not host.is_running:
                host.start()
            burst.say(host.provider, AdminState.ACTIVE)
        settle(cloud, fleet)
        burst.look()
        instances = {item.value.uuid: item.value for item in cloud.store.list(keys.INSTANCES, Instance).items}
        see_that_both_agree(cloud, fleet, instances)
    said = Counter(answer.get("error", "launched") for answer in answers)
    print(
        f"{LAUNCHES} launches by {SCHEDULERS} schedulers on {HOSTS} hosts in {took_s:.0f} s:",
        dict(said),
        dict(burst.done),
    )
    assert burst.overcommitted == []
    assert said["launched"] > 0
    assert {answer["uuid"] for answer in answers if "uuid" in answer} <= instances.keys()
    assert said.keys() <= {"launched", "NoRoom", "Conflict", "PlacementUnavailable"}, answers
    see_what_etcd_went_through(history(own_etcd, cloud.store), totals)


def race(racers: list[Any], requests: list[dict[str, int]]) -> list[dict[str, Any]]:
    """Have all schedulers launch at the same time; return what they said."""
    answers: list[dict[str, Any]] = []

    def drive(racer: Any, mine: list[dict[str, int]]) -> None:
        for amounts in mine:
            racer.ask({"query": "resources=" + ",".join(f"{name}:{amount}" for name, amount in amounts.items())})
            answers.append(racer.answer())

    threads = [
        threading.Thread(target=drive, args=(racer, requests[number :: len(racers)]))
        for number, racer in enumerate(racers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(requests)
    return answers


def settle(cloud: Cloud, fleet: Fleet) -> None:
    """Wait until every instance is built and no intent is left."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        instances = cloud.store.list(keys.INSTANCES, Instance).items
        seen = {item.value.uuid: item.value for item in cloud.store.list(keys.SEEN, Seen).items}
        behind = [
            i.value.uuid for i in instances if i.value.uuid not in seen or seen[i.value.uuid].state is not State.CREATED
        ]
        intents = cloud.store.keys(keys.INTENTS)[0]
        held = {consumer for host in fleet.hosts for consumer in cloud.placement.provider_allocations(host.provider)}
        leaked = held - {item.value.uuid for item in instances}
        if not behind and not intents and not leaked:
            return
        late = [(uuid, seen.get(uuid)) for uuid in behind][:5]
        assert time.monotonic() < deadline, f"not built: {late}; intents: {intents[:5]}; leaked: {sorted(leaked)[:5]}"
        time.sleep(1)


def see_that_both_agree(cloud: Cloud, fleet: Fleet, instances: dict[str, Instance]) -> None:
    """What placement has given, what etcd wants and what the machines run is the same."""
    store = cloud.store
    for host in fleet.hosts:
        mine = {uuid: instance for uuid, instance in instances.items() if instance.provider == host.provider}
        assert cloud.placement.provider_allocations(host.provider) == {
            uuid: instance.claim[host.provider] for uuid, instance in mine.items()
        }
        assert {
            item.value.uuid for item in store.list(keys.assignments(host.provider), Assignment).items
        } == mine.keys()
        assert dict(host.machine.guests()) == dict.fromkeys(mine, True)
    wanted = {
        (interface.network_uuid, address.split("/")[0]): instance.uuid
        for instance in instances.values()
        for interface in instance.spec.interfaces
        for address in interface.addresses
    }
    networks = {network_uuid for network_uuid, _ in wanted}
    locks = {
        (network, keys.last(item.key)): item.value.instance_uuid
        for network in networks
        for item in store.list(keys.addresses(network), AddressLock).items
    }
    assert locks == wanted
    ports = [item.value.instance_uuid for network in networks for item in store.list(keys.ports(network), Port).items]
    assert sorted(ports) == sorted(instances)


def see_what_etcd_went_through(events: Iterator[Any], totals: dict[str, int]) -> None:
    """At no revision was a host asked for more than it has, or did anything go from one state to a wrong one."""
    held: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    used: dict[str, Counter[str]] = defaultdict(Counter)
    state: dict[str, State] = {}
    count = 0
    for event in events:
        count += 1
        uuid = keys.last(event.key)
        if event.key.startswith(keys.INSTANCES):
            for provider, amounts in held.pop(uuid, {}).items():
                used[provider].subtract(amounts)
            if event.value is not None:
                instance = decode(event.value, Instance)
                if instance.state is State.INITIAL:
                    held[uuid] = instance.claim
                    for provider, amounts in instance.claim.items():
                        used[provider].update(amounts)
                        for name, total in totals.items():
                            assert used[provider][name] <= total, f"revision {event.revision}: {provider} {name}"
        elif event.key.startswith(keys.SEEN) and event.value is not None:
            seen = decode(event.value, Seen)
            state[uuid] = states.check(state.get(uuid, State.INITIAL), seen.state)
    assert count > 0
