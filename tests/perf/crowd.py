"""Many hosts that are registered and do nothing: what the scheduler's figures are measured on.

Each size has an etcd and a placement of its own, on PostgreSQL, so that sizes can be measured in turn
within one round.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import cloned
import requests
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.config import Config, EtcdSettings, ImageSettings, PlacementSettings
from ecompute.cluster.documents import Alive, Incarnation, Instance, Node, timestamp
from ecompute.cluster.placement import PRESENCE, Inventory
from ecompute.cluster.shards import aggregates_of
from ecompute.cluster.store import Put
from ecompute.dev.etcd import start_etcd
from ecompute.dev.postgres import placement_on_postgres
from ecompute.hypervisor import features
from ecompute.inventory import Measured
from ecompute.registrar import Registrar
from eschedule.cloud.connection import Cloud
from eschedule.cloud.quotas import Quotas
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

WRITERS = 4
MEASURED = Measured(vcpus=1024, memory_mb=1 << 21, disk_gb=1 << 16)
"""What every host has: room for all rounds, on ten hosts too."""
SHAPE = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
LIMITED = "limited"
"""A namespace with a quota."""
IMAGE = "http://images.example/small.qcow2"
TRAITS = features.traits(
    (
        *("abm", "aes", "avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "avx512vnni", "bmi1"),
        *("bmi2", "f16c", "fma", "md-clear", "mmx", "pcid", "pclmuldq", "pdpe1gb", "pni", "spec-ctrl", "ssbd", "sse"),
        *("sse2", "sse4.1", "sse4.2", "ssse3", "stibp", "vmx"),
    ),
    "kvm",
)
"""What a host with a server's processor says of it: answers of placement carry all of them for each host."""

_local = threading.local()


class Crowd:
    """``count`` hosts, and the ways to ask of them that are compared."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        self._directory = directory
        self._open = contextlib.ExitStack()
        self.providers: list[str] = []

    def __enter__(self) -> Self:
        began = time.monotonic()
        self._directory.mkdir()
        self._directory.chmod(0o755)
        self.etcd = self._open.enter_context(start_etcd(self._directory / "etcd"))
        self.placement = self._open.enter_context(placement_on_postgres(self._directory))
        self.settings = Config(
            etcd=EtcdSettings(endpoints=(self.etcd.endpoint,)),
            placement=PlacementSettings(endpoint=self.placement.endpoint),
            images=ImageSettings(default=IMAGE),
            default_network=IPv4Network("10.10.0.0/16"),
        )
        self.config_file = self._directory / "compute.yaml"
        host, _, port = self.etcd.endpoint.rpartition(":")
        said = {
            "etcd": {"host": host, "port": int(port)},
            "placement": {"endpoint": self.placement.endpoint},
            "default_network": str(self.settings.default_network),
        }
        self.config_file.write_text(json.dumps(said), encoding="utf-8")
        self.cloud = self._open.enter_context(Cloud(self.settings))
        self._register()
        self.launcher = Launcher(self.cloud)
        self.launcher.launch(LaunchRequest(query=SHAPE, image=IMAGE))  # the network is made, and all is loaded
        Quotas(self.cloud).set(LIMITED, {"VCPU": 1_000_000, "INSTANCES": 1_000_000})
        self.launch_limited()
        print(f"  {self.count} hosts are registered after {time.monotonic() - began:.0f} s", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _register(self) -> None:
        """As the daemons do it, one; the rest by `cloned`, and looked at as placement shows them."""
        store, placement = self.cloud.store, self.cloud.placement
        store.commit([], [Put(keys.INCARNATION, Incarnation(id=str(uuid4()), made_by="bench", made_at=timestamp(0)))])
        self.providers = [str(uuid4()) for _ in range(self.count)]
        pattern, *others = self.providers
        Registrar(placement, self.settings, pattern, "host-0000").register(MEASURED, TRAITS)
        placement.set_aggregates(pattern, aggregates_of(pattern))
        placement.change_inventories(pattern, lambda found: {**found, PRESENCE: Inventory(total=1)})
        self.database = cloned.connect(self._directory / "pg")
        self._open.callback(self.database.close)
        named = [(uuid, f"host-{number:04}") for number, uuid in enumerate(others, 1)]
        cloned.clone(self.database, pattern, named, aggregates_of)
        for one in others[:1]:
            assert placement.traits(one) == placement.traits(pattern)
            assert placement.inventories(one).inventories == placement.inventories(pattern).inventories
            assert placement.aggregates(one) == aggregates_of(one)
        puts = [put for number in range(self.count) for put in self._node(number)]
        for start in range(0, len(puts), 100):
            store.commit([], puts[start : start + 100])

    def _node(self, number: int) -> tuple[Put, Put]:
        provider, name = self.providers[number], f"host-{number:04}"
        node = Node(
            provider=provider,
            name=name,
            underlay=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
            underlay_mtu=1500,
            accelerator="tcg",
            hypervisor="none",
            version="0",
            reported_at=timestamp(0),
        )
        alive = Alive(provider=provider, name=name, since=timestamp(0))
        return Put(keys.node(provider), node), Put(keys.alive(provider), alive)

    # --- the ways ---

    def launch(self, number: int = 0) -> None:
        """One launch of a scheduler that lives long."""
        self.launcher.launch(LaunchRequest(query=SHAPE, image=IMAGE))

    def launch_limited(self, number: int = 0) -> None:
        """As `launch`, in a namespace that has a quota: one more row, which every claim there writes."""
        self.launcher.launch(LaunchRequest(query=SHAPE, image=IMAGE, namespace=LIMITED))

    def launch_cold(self, number: int = 0) -> None:
        """One launch of a scheduler that lives for it: new connections, nothing remembered."""
        with Cloud(self.settings) as cloud:
            Launcher(cloud).launch(LaunchRequest(query=SHAPE, image=IMAGE))

    def launch_command(self, number: int = 0) -> None:
        """One launch by the tool, a new process."""
        argv = [
            sys.executable,
            "-m",
            "eschedule",
            "--config",
            str(self.config_file),
            "launch",
            SHAPE,
            IMAGE,
            "-o",
            "name",
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    def claim_raw(self, number: int) -> None:
        """One ``PUT /allocations``, on a host that is known to have room."""
        assert self._put(self.providers[hash((number, time.monotonic_ns())) % self.count])

    def loop_of_etcd_compute(self, number: int = 0) -> None:
        """All candidates, the first that takes the claim, one key in etcd: the first etcd-compute's way."""
        answer = self._session().get(f"{self.settings.placement.endpoint}/allocation_candidates?{SHAPE}", timeout=60)
        for request in answer.json()["allocation_requests"]:
            (host,) = request["allocations"]
            if self._put(host):
                node = Node(
                    provider=host,
                    name="",
                    underlay="",
                    underlay_mtu=0,
                    accelerator="",
                    hypervisor="",
                    version="",
                    reported_at="",
                )
                self.cloud.store.commit([], [Put(f"/hosts/{host}/{uuid4()}", node)])
                return
        raise AssertionError("no host took it")

    def at_once(self, way: object, count: int, *, writers: int = WRITERS) -> float:
        """Return how many a second were done of ``count`` calls of ``way``, ``writers`` at a time."""
        assert callable(way)
        began = time.monotonic()
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(way, range(count)))
        return count / (time.monotonic() - began)

    def post_raw(self, count: int) -> None:
        """One ``POST /allocations`` for ``count`` consumers, spread over hosts."""
        document = {str(uuid4()): self._claim(self.providers[n % self.count]) for n in range(count)}
        answer = self._session().post(f"{self.settings.placement.endpoint}/allocations", json=document, timeout=60)
        assert answer.status_code == 204, answer.text

    def _put(self, host: str) -> bool:
        for _ in range(100):
            answer = self._session().put(
                f"{self.settings.placement.endpoint}/allocations/{uuid4()}", json=self._claim(host), timeout=60
            )
            if "placement.concurrent_update" not in answer.text:
                return answer.status_code == 204
        raise AssertionError("overtaken a hundred times")

    @staticmethod
    def _claim(host: str) -> dict[str, object]:
        return {
            "allocations": {host: {"resources": RESOURCES}},
            "mappings": {"": [host]},
            "project_id": "bench",
            "user_id": "bench",
            "consumer_generation": None,
            "consumer_type": "ECOMPUTE_INSTANCE",
        }

    def _session(self) -> requests.Session:
        sessions: dict[int, requests.Session] = _local.__dict__.setdefault("sessions", {})
        if id(self) not in sessions:
            sessions[id(self)] = session = requests.Session()
            session.trust_env = False
            session.headers.update({"x-auth-token": "admin", "openstack-api-version": "placement 1.39"})
        return sessions[id(self)]

    # --- what it costs the services ---

    def requests_of(self, act: Callable[[], object]) -> int:
        """Return how many requests to placement ``act`` makes with this crowd's `cloud`."""
        count = 0

        def see(*_: object, **__: object) -> None:
            nonlocal count
            count += 1

        hooks = self.cloud.placement._transport._session.hooks["response"]
        hooks.append(see)
        try:
            act()
        finally:
            hooks.remove(see)
        return count

    def etcd_spent(self) -> tuple[float, float]:
        """Return how much CPU etcd has used, in s, and how many bytes its clients have sent and got."""
        text = requests.get(f"http://{self.etcd.endpoint}/metrics", timeout=10).text
        values = {
            line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line and not line.startswith("#")
        }
        moved = sum(values[f"etcd_network_client_grpc_{way}_bytes_total"] for way in ("sent", "received"))
        return values["process_cpu_seconds_total"], moved

    def fill(self, count: int) -> None:
        """Have ``count`` instances more, spread over all hosts: in etcd and in placement, as launched."""
        store = self.cloud.store
        pattern = store.list(keys.INSTANCES, Instance, limit=1).items[0].value
        given = self.cloud.placement.provider_allocations(pattern.provider)[pattern.uuid]
        claims = [(str(uuid4()), self.providers[n % self.count]) for n in range(count)]
        cloned.hold(self.database, claims, given, pattern.namespace)
        puts: list[Put] = []
        for uuid, provider in claims:
            instance = structs.replace(
                pattern, uuid=uuid, provider=provider, claim={provider: given}, mappings={"": [provider]}
            )
            puts += [
                Put(keys.instance(uuid), instance),
                Put(keys.assignment(provider, uuid), assignment_of(instance)),
            ]
        for start in range(0, len(puts), 100):
            store.commit([], puts[start : start + 100])
