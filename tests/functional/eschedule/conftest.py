"""A cloud without daemons: real etcd, real placement, and hosts that are there in both and do as a test says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecompute.cluster import groups, keys
from ecompute.cluster.config import Config, EtcdSettings, ImageSettings, PlacementSettings
from ecompute.cluster.documents import (
    AddressLock,
    Admin,
    AdminState,
    Alive,
    Assignment,
    Incarnation,
    InventoryFacts,
    Node,
    Power,
    Seen,
    State,
    timestamp,
)
from ecompute.cluster.events import HOST, LEAD
from ecompute.cluster.placement import Inventory, Placement
from ecompute.cluster.placement.documents import PRESENCE
from ecompute.cluster.store import Delete, Put, Store
from ecompute.cluster.upkeep.audit import Audit
from ecompute.dev.etcd import EtcdProcess
from ecompute.dev.placement import PlacementProcess
from ecompute.operations import Operations
from eschedule.cloud.connection import Cloud
from eschedule.scheduler.request import LaunchRequest

IMAGE = "http://images.example/small.qcow2"


@dataclass
class FakeHost:
    """A host that is registered as a daemon would, and answers what the lead asks."""

    store: Store
    placement: Placement
    provider: str
    name: str
    trait: str
    guests: set[str] = field(default_factory=set)
    """What it says is there when it is asked."""
    is_silent: bool = False
    """Whether it answers nothing."""
    asked_to_register: int = 0
    inventory: dict[str, InventoryFacts] = field(default_factory=dict)

    def register(self, *, vcpus: int, memory_mb: int, disk_gb: int) -> None:
        self.placement.ensure_provider(self.provider, self.name)
        self.placement.set_traits(self.provider, {self.trait})
        offered = {
            name: Inventory(total=total, max_unit=total)
            for name, total in (("VCPU", vcpus), ("MEMORY_MB", memory_mb), ("DISK_GB", disk_gb))
        }
        self.placement.set_inventories(self.provider, offered | {PRESENCE: Inventory(total=1)})
        self.inventory = {
            name: InventoryFacts(total=item.total, max_unit=item.max_unit) for name, item in offered.items()
        }
        self.node()
        self.wake()

    def node(self, *, hold: str | None = None, stopped: str | None = None) -> None:
        node = Node(
            provider=self.provider,
            name=self.name,
            underlay="192.0.2.7",
            underlay_mtu=1500,
            accelerator="tcg",
            hypervisor="none",
            version="0",
            hold=hold,
            stopped=stopped,
            inventory=self.inventory,
            reported_at=timestamp(0),
        )
        self.store.commit([], [Put(keys.node(self.provider), node)])

    def wake(self) -> None:
        alive = Alive(provider=self.provider, name=self.name, since=timestamp(0))
        self.store.commit([], [Put(keys.alive(self.provider), alive)])

    def sleep(self) -> None:
        self.store.commit([], [Delete(keys.alive(self.provider))])

    def drain(self) -> None:
        self.store.commit([], [Put(keys.admin(self.provider), Admin(state=AdminState.DRAINING, reason="a test"))])

    def claims(self) -> dict[str, dict[str, int]]:
        return self.placement.provider_allocations(self.provider)

    def assigned(self, uuid_: str) -> Assignment:
        found = self.store.get(keys.assignment(self.provider, uuid_), Assignment)
        assert found is not None
        return found.value

    def report(self, uuid_: str, state: State, **values: Any) -> None:
        """Report what was asked for as reached, in ``state``."""
        assigned = self.assigned(uuid_)
        addresses = tuple(a for interface in assigned.spec.interfaces for a in interface.addresses)
        seen: dict[str, Any] = {
            "power": Power.ON if state is State.CREATED else Power.UNKNOWN,
            "addresses": addresses if state is State.CREATED else (),
        }
        seen |= values
        document = Seen(
            uuid=uuid_,
            generation=assigned.generation,
            epoch=assigned.epoch,
            state=state,
            reported_at=timestamp(0),
            **seen,
        )
        self.store.commit([], [Put(keys.seen(self.provider, uuid_), document)])

    def register_again(self) -> None:
        self.asked_to_register += 1

    def has_nothing(self, uuid_: str) -> Future[bool]:
        if self.is_silent:
            raise RuntimeError("a test has it silent")
        answer: Future[bool] = Future()
        answer.set_result(uuid_ not in self.guests)
        return answer


class Tool:
    """The console script, for real."""

    def __init__(self, config: Path) -> None:
        self.config = config

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "eschedule", *args]

    def env(self, **values: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ECOMPUTE_")}
        return inherited | {"ECOMPUTE_CONFIG": str(self.config)} | values

    def __call__(self, *args: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args), input=stdin, capture_output=True, timeout=120, env=self.env(**env), check=False
        )
        return subprocess.CompletedProcess(args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.env(**env)
        )


@pytest.fixture
def settings(etcd: EtcdProcess, placement: PlacementProcess) -> Config:
    return Config(
        etcd=EtcdSettings(endpoints=(etcd.endpoint,)),
        placement=PlacementSettings(endpoint=placement.endpoint),
        images=ImageSettings(default=IMAGE),
    )


@pytest.fixture
def tool(settings: Config, tmp_path: Path) -> Tool:
    host, _, port = settings.etcd.endpoints[0].rpartition(":")
    path = tmp_path / "compute.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "etcd": {"host": host, "port": int(port)},
                "placement": {"endpoint": settings.placement.endpoint},
                "image": {"default": IMAGE},
            }
        )
    )
    return Tool(path)


@pytest.fixture
def cloud(settings: Config, store: Store) -> Iterator[Cloud]:
    with Cloud(settings) as opened:
        yield opened


@pytest.fixture
def make_cloud(settings: Config, store: Store) -> Iterator[Callable[[], Cloud]]:
    """Return a maker of further ways to the same cloud: another process would have its own."""
    made: list[Cloud] = []

    def make() -> Cloud:
        made.append(Cloud(settings))
        return made[-1]

    yield make
    for cloud in made:
        cloud.close()


@pytest.fixture
def trait() -> str:
    """What all hosts of this test have, and no provider of another test."""
    return f"CUSTOM_TEST_{uuid.uuid4().hex.upper()}"


@pytest.fixture
def make_host(store: Store, placement: PlacementProcess, trait: str) -> Iterator[Callable[..., FakeHost]]:
    """Return a maker of hosts: ``make_host(vcpus=4)``. They go with the test, and all their claims."""
    made: list[FakeHost] = []
    answering: list[Operations] = []
    incarnation = Incarnation(id=str(uuid.uuid4()), made_by="a test", made_at=timestamp(0))
    store.commit([], [Put(keys.INCARNATION, incarnation)])
    watcher = store.watcher()
    with Placement(PlacementSettings(endpoint=placement.endpoint)) as client:

        def make(*, vcpus: int = 8, memory_mb: int = 65536, disk_gb: int = 1000) -> FakeHost:
            provider = str(uuid.uuid4())
            host = FakeHost(store, client, provider, f"host-{provider[:8]}", trait)
            made.append(host)
            host.register(vcpus=vcpus, memory_mb=memory_mb, disk_gb=disk_gb)
            answering.append(
                Operations(
                    store,
                    watcher,
                    provider,
                    console_log=lambda instance: Path("/nonexistent") / instance,
                    has_nothing=host.has_nothing,
                    register=host.register_again,
                )
            )
            return host

        yield make
        for operations in answering:
            operations.close()
        watcher.close()
        for host in made:
            for consumer in host.claims():
                client.release(consumer)
            client.delete_provider(groups.provider_of_host(host.provider))
            client.delete_provider(host.provider)


@pytest.fixture
def make_request(trait: str) -> Callable[..., LaunchRequest]:
    """Return a maker of requests that only hosts of this test can serve."""

    def make(*, vcpus: int = 1, **values: Any) -> LaunchRequest:
        query = f"resources=VCPU:{vcpus},MEMORY_MB:64,DISK_GB:1&required={trait}"
        return LaunchRequest(**{"query": query, "image": IMAGE} | values)

    return make


@pytest.fixture
def query(make_request: Callable[..., LaunchRequest]) -> str:
    return make_request().query


@pytest.fixture
def all_keys(store: Store) -> Callable[[], set[str]]:
    """Return all keys of etcd, without those of hosts, and without addresses that rest: those go by themselves."""

    def read() -> set[str]:
        found, _ = store.keys("/")
        locks = store.list(keys.NETWORKS, AddressLock).items
        resting = {lock.key for lock in locks if lock.value.is_resting}
        of_hosts = (keys.NODES, keys.ALIVE, keys.ADMIN, "/cluster/", f"{keys.EVENTS}{LEAD}/{HOST}/")
        return {key for key in found if not key.startswith(of_hosts) and key not in resting}

    return read


class Clock:
    """A clock that a test turns on."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def audit(store: Store, cloud: Cloud, clock: Clock) -> Audit:
    return Audit(store, cloud.placement, list, clock)
