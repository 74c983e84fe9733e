"""Thousands of launches by many schedulers, while instances are destroyed and hosts drained and killed.

Capacity holds, and nothing leaks. ``ECOMPUTE_BURST_LAUNCHES=4000`` is the whole of it; the number that is run
by default fits a small machine. Hosts have room for a part of the instances: they come and go.
"""

from __future__ import annotations

import faulthandler
import os
import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
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
from ecompute.cluster.errors import CompareFailed, PlacementUnavailable
from ecompute.cluster.store import Put, Store, absent, unchanged
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.fleet import Fleet, FleetHost, FleetSettings
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances

LAUNCHES = int(os.environ.get("ECOMPUTE_BURST_LAUNCHES", "240"))
HOSTS = int(os.environ.get("ECOMPUTE_BURST_HOSTS", "50"))
SCHEDULERS = 8
SHAPES = [(1, 64, 1), (1, 512, 2), (2, 256, 4), (2, 1024, 1), (4, 128, 8)]
"""VCPU, MEMORY_MB, DISK_GB"""
AT_ONCE = min(LAUNCHES, 8 * HOSTS)
"""How many instances there would be at a time, had the hosts room for them."""
ROOM = 0.8
"""What the hosts have of that: some launches find none."""
KEPT = 0.4
"""How many of them are left alone; with more, one after the other is destroyed."""
TROUBLE_PERIOD_S = 1.5
IN_TROUBLE = HOSTS // 4
"""How many hosts are drained or dead at a time; the one that was so for longest is put right for the next."""
LOOK_PERIOD_S = 2.0
DESTROY_PERIOD_S = 0.02
SETTLE_S = 300.0
SAY_EVERY = 500


class Answers:
    """What the schedulers have said, and which of what they launched is still to be destroyed."""

    def __init__(self) -> None:
        self.said: Counter[str] = Counter()
        self.launched: set[str] = set()
        self.unexpected: list[dict[str, Any]] = []
        self._left: list[str] = []
        self._lock = threading.Lock()

    def add(self, answer: dict[str, Any]) -> None:
        with self._lock:
            self.said[answer.get("error", "launched")] += 1
            if "uuid" in answer:
                self.launched.add(answer["uuid"])
                self._left.append(answer["uuid"])
            elif answer["error"] != "NoRoom":
                self.unexpected.append(answer)
            if self.said.total() % SAY_EVERY == 0:
                print(f"{self.said.total()} answers: {dict(self.said)}", flush=True)

    def pop(self, rng: random.Random, kept: float) -> str | None:
        """Return one that is to be destroyed, if more than ``kept`` are left."""
        with self._lock:
            if len(self._left) <= kept:
                return None
            number = rng.randrange(len(self._left))
            self._left[number], self._left[-1] = self._left[-1], self._left[number]
            return self._left.pop()


@dataclass
class Burst:
    """What goes on beside the launches, until `end`."""

    cloud: Cloud
    fleet: Fleet
    totals: dict[str, int]
    answers: Answers
    rng: random.Random
    done: Counter[str] = field(default_factory=Counter)
    overcommitted: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    _troubled: deque[FleetHost] = field(default_factory=deque)
    _ended: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        acts = ((self.trouble, TROUBLE_PERIOD_S), (self.look, LOOK_PERIOD_S), (self.destroy, DESTROY_PERIOD_S))
        for act, period_s in acts:
            thread = threading.Thread(target=self._repeat, args=(act, period_s))
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """Stop, and put all hosts right."""
        self._ended.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()
        while self._troubled:
            self.put_right(self._troubled.popleft())
        if self.failures:
            raise self.failures[0]

    def _repeat(self, act: Callable[[], None], period_s: float) -> None:
        try:
            while not self._ended.wait(period_s):
                act()
        except BaseException as error:
            self.failures.append(error)

    def trouble(self) -> None:
        """Drain a host or kill one."""
        if len(self._troubled) >= IN_TROUBLE:
            self.put_right(self._troubled.popleft())
        host = self.rng.choice([host for host in self.fleet.hosts if host not in self._troubled])
        self._troubled.append(host)
        act = self.rng.choice(["killed", AdminState.DRAINING, AdminState.MAINTENANCE])
        if isinstance(act, AdminState):
            self.say(host.provider, act)
        else:
            self.fleet.kill(host)
        self.done[act] += 1

    def put_right(self, host: FleetHost) -> None:
        host.start()
        self.say(host.provider, AdminState.ACTIVE)

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

    def destroy(self) -> None:
        """Destroy as many as are too many, whatever they and their hosts are doing."""
        instances = Instances(self.cloud)
        while (uuid := self.answers.pop(self.rng, KEPT * AT_ONCE)) is not None:
            found = self.cloud.store.get(keys.instance(uuid), Instance)
            if found is not None:  # else it failed
                instances.destroy(found)
                self.done["destroyed"] += 1

    def look(self) -> None:
        """See that placement has given out no more than there is."""
        try:
            hosts = self.cloud.placement.hosts(count=HOSTS)
        except PlacementUnavailable:
            self.done["looks without an answer"] += 1
            return
        for provider, summary in hosts.items():
            for name, total in self.totals.items():
                if name in summary.resources and summary.resources[name].used > total:
                    self.overcommitted.append(f"{provider}: {summary.resources[name].used} of {total} {name}")
        self.done["looks"] += 1


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """With the history of this test alone, and all of it."""
    with start_etcd(tmp_path / "etcd", is_durable=False, options=["--auto-compaction-retention", "0"]) as process:
        yield process


@pytest.fixture
def settings(settings: Config, own_etcd: EtcdProcess) -> Config:
    etcd = EtcdSettings(endpoints=(own_etcd.endpoint,))
    return replace(settings, etcd=etcd, default_network=IPv4Network("10.96.0.0/16"))  # a default one has 253 addresses


@pytest.fixture
def cloud(settings: Config) -> Iterator[Cloud]:
    with Cloud(settings, store_timeout_s=30) as opened:
        yield opened


@pytest.mark.timeout(600 + 3 * LAUNCHES)
def test_a_burst_exceeds_no_capacity_and_leaks_nothing_while_hosts_are_drained_and_killed(
    tmp_path: Path,
    own_etcd: EtcdProcess,
    settings: Config,
    cloud: Cloud,
    make_racers: Callable[[int], list[Any]],
    history: Callable[[EtcdProcess, Store], Iterator[Any]],
) -> None:
    faulthandler.cancel_dump_traceback_later()  # pytest's own, of 660 s: this has a limit of its own
    rng = random.Random(LAUNCHES)
    requests = [dict(zip(("VCPU", "MEMORY_MB", "DISK_GB"), rng.choice(SHAPES), strict=True)) for _ in range(LAUNCHES)]
    totals = {
        name: round(max(sum(amounts) / len(SHAPES) * AT_ONCE * ROOM / HOSTS, 2 * max(amounts)))
        for name, amounts in zip(("VCPU", "MEMORY_MB", "DISK_GB"), zip(*SHAPES, strict=True), strict=True)
    }
    fleet_settings = FleetSettings(
        config=settings,
        directory=tmp_path / "fleet",
        hosts=HOSTS,
        vcpus=totals["VCPU"],
        memory_mb=totals["MEMORY_MB"],
        disk_gb=totals["DISK_GB"],
    )
    answers = Answers()
    with Fleet(fleet_settings) as fleet:
        racers = make_racers(SCHEDULERS)
        burst = Burst(cloud, fleet, totals, answers, rng)
        began = time.monotonic()
        burst.begin()
        try:
            race(racers, requests, answers)
            took_s = time.monotonic() - began
        finally:
            burst.end()
        settle(cloud, fleet)
        settled_s = time.monotonic() - began - took_s
        burst.look()
        assert burst.done["looks"] > 0
        instances = {item.value.uuid: item.value for item in cloud.store.list(keys.INSTANCES, Instance).items}
        see_that_both_agree(cloud, fleet, instances)
    assert burst.overcommitted == []
    assert instances.keys() <= answers.launched
    assert answers.said["launched"] > 0
    events = see_what_etcd_went_through(history(own_etcd, cloud.store), totals)
    print(
        f"{LAUNCHES} launches by {SCHEDULERS} schedulers on {HOSTS} hosts in {took_s:.0f} s, settled {settled_s:.0f} s "
        f"later, {events} events of etcd: {dict(answers.said)} {dict(burst.done)}, {len(instances)} left",
    )
    # On an overloaded machine placement does not answer in time, and what was claimed then is for the audit to find;
    # or it answers so slowly that there is no time for another try.
    assert answers.said.keys() <= {"launched", "NoRoom", "PlacementUnavailable", "Outrun"}, answers.unexpected


def race(racers: list[Any], requests: list[dict[str, int]], answers: Answers) -> None:
    """Have all schedulers launch at the same time."""

    def drive(racer: Any, mine: list[dict[str, int]]) -> None:
        for amounts in mine:
            racer.ask({"query": "resources=" + ",".join(f"{name}:{amount}" for name, amount in amounts.items())})
            answers.add(racer.answer())

    threads = [
        threading.Thread(target=drive, args=(racer, requests[number :: len(racers)]))
        for number, racer in enumerate(racers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.said.total() == len(requests)


def settle(cloud: Cloud, fleet: Fleet) -> None:
    """Wait until every instance is built, or gone if it was destroyed, and neither intent nor claim is left over."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        instances = [item.value for item in cloud.store.list(keys.INSTANCES, Instance).items]
        seen = {item.value.uuid: item.value for item in cloud.store.list(keys.SEEN, Seen).items}
        behind = [i.uuid for i in instances if states.life(i, seen.get(i.uuid)) is not State.CREATED]
        intents = cloud.store.keys(keys.INTENTS)[0]
        held = {consumer for host in fleet.hosts for consumer in cloud.placement.provider_allocations(host.provider)}
        leaked = held - {instance.uuid for instance in instances}
        if not behind and not intents and not leaked:
            return
        late = [(uuid, seen.get(uuid)) for uuid in behind][:5]
        assert time.monotonic() < deadline, f"not done: {late}; intents: {intents[:5]}; leaked: {sorted(leaked)[:5]}"
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
        if not item.value.is_resting
    }
    assert locks == wanted
    ports = [item.value.instance_uuid for network in networks for item in store.list(keys.ports(network), Port).items]
    assert sorted(ports) == sorted(instances)


def see_what_etcd_went_through(events: Iterator[Any], totals: dict[str, int]) -> int:
    """At no revision was a host asked for more than it has, or did an instance go from one state to a wrong one.

    A claim stands from before its request until its host has reported the instance gone: from that moment on
    it may be released, and taken by another, before the keys of the instance are deleted.
    """
    held: dict[str, dict[str, dict[str, int]]] = {}
    used: dict[str, Counter[str]] = defaultdict(Counter)
    wanted: dict[str, Instance] = {}
    reported: dict[str, Seen] = {}
    lives: dict[str, State] = {}
    gone: set[str] = set()
    count = 0
    for event in events:
        count += 1
        uuid = keys.last(event.key)
        where = f"revision {event.revision}: {event.key}"
        if event.key.startswith(keys.INSTANCES) and event.value is None:
            assert uuid in gone, f"{where} was deleted, and its host had not said gone"
            del wanted[uuid]
        elif event.key.startswith(keys.INSTANCES):
            wanted[uuid] = instance = decode(event.value, Instance)
            if uuid not in held:
                held[uuid] = instance.claim
                for provider, amounts in instance.claim.items():
                    used[provider].update(amounts)
                    for name, total in totals.items():
                        assert used[provider][name] <= total, f"{where} exceeds {name} of {provider}"
            assert held[uuid] == instance.claim, where
        elif event.key.startswith(keys.SEEN) and event.value is not None:
            reported[uuid] = seen = decode(event.value, Seen)
            if seen.is_gone and uuid not in gone:
                gone.add(uuid)
                for provider, amounts in held[uuid].items():
                    used[provider].subtract(amounts)
        else:
            continue
        if uuid in wanted:
            lives[uuid] = states.check(lives.get(uuid, State.INITIAL), states.life(wanted[uuid], reported.get(uuid)))
    assert count > 0
    return count
