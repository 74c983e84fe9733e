"""Schedulers that are processes, and a placement on PostgreSQL, where claims really meet."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecompute.cluster import keys
from ecompute.cluster.config import Config, EtcdSettings, ImageSettings, PlacementSettings
from ecompute.cluster.documents import Alive, Incarnation, Name, Node, timestamp
from ecompute.cluster.placement import PRESENCE, Inventory, Placement
from ecompute.cluster.shards import aggregates_of
from ecompute.cluster.store import Put, Store
from ecompute.dev.etcd import EtcdProcess
from ecompute.dev.placement import PlacementProcess
from ecompute.dev.postgres import placement_on_postgres
from eschedule.cloud.connection import Cloud

START_TIMEOUT_S = 120


class Racer:
    """One scheduler, in a process of its own."""

    def __init__(self, config: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ECOMPUTE_")}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("racer.py")), str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, *requests: dict[str, Any]) -> None:
        """Tell it to launch them, one after the other; `answer` gives what came of each."""
        assert self._process.stdin is not None
        for request in requests:
            self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the scheduler ended with {self._process.wait(10)}"
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def postgres_placement() -> Iterator[PlacementProcess]:
    """A placement with several workers: not under pytest's directory, which PostgreSQL's account cannot reach."""
    directory = Path(tempfile.mkdtemp(prefix="ec-"))
    directory.chmod(0o711)
    try:
        with placement_on_postgres(directory, is_durable=False) as process:
            yield process
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def settings(etcd: EtcdProcess, postgres_placement: PlacementProcess) -> Config:
    return Config(
        etcd=EtcdSettings(endpoints=(etcd.endpoint,)),
        placement=PlacementSettings(endpoint=postgres_placement.endpoint),
        images=ImageSettings(default="http://images.example/small.qcow2"),
    )


@pytest.fixture
def config_file(settings: Config, tmp_path: Path) -> Path:
    host, _, port = settings.etcd.endpoints[0].rpartition(":")
    path = tmp_path / "compute.yaml"
    document = {
        "etcd": {"host": host, "port": int(port)},
        "placement": {"endpoint": settings.placement.endpoint},
        "default_network": str(settings.default_network),
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture
def make_racers(config_file: Path) -> Iterator[Callable[[int], list[Racer]]]:
    """Return a starter of schedulers; they are ready when it returns, and end with the test."""
    started: list[Racer] = []

    def make(count: int) -> list[Racer]:
        made = [Racer(config_file) for _ in range(count)]
        started.extend(made)
        for racer in made:
            assert racer.answer() == {"ready": racer.pid}
        return made

    yield make
    for racer in started:
        racer.close()


@pytest.fixture
def cloud(settings: Config, store: Store) -> Iterator[Cloud]:
    incarnation = Incarnation(id=str(uuid.uuid4()), made_by="a test", made_at=timestamp(0))
    store.commit([], [Put(keys.INCARNATION, incarnation)])
    with Cloud(settings) as opened:
        yield opened


@pytest.fixture
def trait() -> str:
    """What all hosts of this test have, and no provider of another test."""
    return f"CUSTOM_TEST_{uuid.uuid4().hex.upper()}"


@pytest.fixture
def make_host(cloud: Cloud, trait: str) -> Callable[..., str]:
    """Return a maker of hosts, which are registered and do nothing; it gives their provider's uuid."""
    placement: Placement = cloud.placement

    def make(*, vcpus: int) -> str:
        provider = str(uuid.uuid4())
        name = f"host-{provider[:8]}"
        placement.ensure_provider(provider, name)
        placement.set_traits(provider, {trait})
        placement.set_aggregates(provider, aggregates_of(provider))
        many = Inventory(total=1 << 20)
        placement.set_inventories(
            provider,
            {"VCPU": Inventory(total=vcpus), "MEMORY_MB": many, "DISK_GB": many, PRESENCE: Inventory(total=1)},
        )
        node = Node(
            provider=provider,
            name=name,
            underlay="192.0.2.7",
            underlay_mtu=1500,
            accelerator="tcg",
            hypervisor="none",
            version="0",
            reported_at=timestamp(0),
        )
        alive = Alive(provider=provider, name=name, since=timestamp(0))
        cloud.store.commit([], [Put(keys.node(provider), node), Put(keys.alive(provider), alive)])
        return provider

    return make


# --- what etcd went through ---

_END = "/zz-end-of-history"


@dataclass(frozen=True)
class Event:
    revision: int
    key: str
    value: bytes | None
    """None: the key was deleted."""


def _history(etcd: EtcdProcess, store: Store) -> Iterator[Event]:
    """Yield all events since the first revision, in order; nothing must have been compacted."""
    end = store.commit([], [Put(_END, Name(uuid="", name=""))])
    watch = subprocess.Popen(
        ["etcdctl", "--endpoints", etcd.endpoint, "watch", "--prefix", "/", "--rev", "1", "-w", "json"],
        stdout=subprocess.PIPE,
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin:/usr/local/bin"},
    )
    assert watch.stdout is not None
    try:
        for line in watch.stdout:
            answer = json.loads(line)
            assert not answer.get("CompactRevision"), "a part of it was compacted away"
            for event in answer.get("Events") or ():
                found = event["kv"]
                revision = int(found["mod_revision"])
                if revision >= end:
                    return
                is_delete = event.get("type") in (1, "DELETE")
                value = None if is_delete else base64.b64decode(found.get("value", ""))
                yield Event(revision, base64.b64decode(found["key"]).decode(), value)
        raise AssertionError("etcdctl ended before the history did")
    finally:
        watch.terminate()
        watch.wait(10)
        watch.stdout.close()


@pytest.fixture
def history() -> Callable[[EtcdProcess, Store], Iterator[Event]]:
    """``history(etcd, store)``: all events since the first revision, in order."""
    return _history
