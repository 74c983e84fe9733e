"""A fleet: what one launch costs etcd, all daemons together, and a host that has no part in it.

Each size has an etcd, a placement and a fleet of its own, the fleet in a process of its own. Beside it stand two
hosts, each alone in a process and behind a relay that counts its bytes: *near* has a guest on the network on which
is launched, *far* has none. Both are drained: they take no part in any launch. Daemons in one process share watches,
so only these two say what etcd sends to one host.

A launch is counted until its host has reported that it runs. What all would have spent in that time at rest was
measured just before, and is taken off.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from figures import Figure, figure

from ecompute.cluster import keys
from ecompute.cluster.config import Config, EtcdSettings, ImageSettings, PlacementSettings
from ecompute.cluster.documents import AdminState, Instance, Seen, State
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.postgres import placement_on_postgres
from eschedule.cloud.connection import Cloud
from eschedule.cloud.hosts import Hosts
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

IMAGE = "http://images.example/small.qcow2"
SHAPE = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
LAUNCHES = 20
"""A round's."""
REST_S = 10.0
UP_TIMEOUT_S = 3600.0
DONE_TIMEOUT_S = 300.0
NOT_CONCERNED = "a host without a guest there"
TICKS = os.sysconf("SC_CLK_TCK")


class Relay:
    """Passes what clients and etcd send to each other, and counts it."""

    def __init__(self, port: int) -> None:
        self.moved = 0
        self._upstream = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ends, self._end = socket.socketpair()
        self._thread.start()

    def close(self) -> None:
        self._end.close()
        self._thread.join()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._ends, selectors.EVENT_READ)
        selector.register(self._listening, selectors.EVENT_READ)
        others: dict[socket.socket, socket.socket] = {}
        while True:
            for key, _ in selector.select():
                found: Any = key.fileobj
                if found is self._ends:
                    for one in (*others, self._listening, self._ends):
                        one.close()
                    return
                if found is self._listening:
                    pair = (self._listening.accept()[0], socket.create_connection(("127.0.0.1", self._upstream)))
                    for one, other in (pair, pair[::-1]):
                        others[one] = other
                        selector.register(one, selectors.EVENT_READ)
                elif found in others and not self._passed_on(found, others[found]):
                    for one in (others.pop(found), found):
                        others.pop(one, None)
                        selector.unregister(one)
                        one.close()

    def _passed_on(self, one: socket.socket, other: socket.socket) -> bool:
        try:
            data = one.recv(1 << 16)
            other.sendall(data)
        except OSError:
            return False
        self.moved += len(data)
        return bool(data)


class Daemons:
    """``ecompute fleet`` in a process of its own."""

    def __init__(self, directory: Path, said: Mapping[str, Any], prefix: str, hosts: int) -> None:
        directory.mkdir(parents=True)
        config = directory / "compute.yaml"
        config.write_text(json.dumps(said), encoding="utf-8")
        argv = [sys.executable, "-m", "ecompute", "--config", str(config), "fleet", "--hosts", str(hosts)]
        argv += [
            "--prefix",
            prefix,
            "--directory",
            str(directory / "state"),
            "--vcpus",
            "1024",
            "--memory-mb",
            "1048576",
        ]
        self._log = (directory / "log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(argv, stdout=self._log, stderr=subprocess.STDOUT)
        self._path = directory / "log"
        self._prefix = prefix

    def wait_up(self) -> None:
        deadline = time.monotonic() + UP_TIMEOUT_S
        while "hosts are up" not in self._path.read_text(encoding="utf-8"):
            assert self._process.poll() is None, self._path.read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() < deadline, f"{self._prefix} is not up after {UP_TIMEOUT_S:g} s"
            time.sleep(0.2)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(DONE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Crew:
    """One size."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        self._directory = directory
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            self._begin(opening)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _begin(self, opening: contextlib.ExitStack) -> None:
        began = time.monotonic()
        self._directory.mkdir()
        self._directory.chmod(0o755)
        self.etcd: EtcdProcess = opening.enter_context(start_etcd(self._directory / "etcd"))
        placement = opening.enter_context(placement_on_postgres(self._directory))
        network = IPv4Network("10.10.0.0/16")

        def said(port: int) -> dict[str, Any]:
            return {
                "etcd": {"host": "127.0.0.1", "port": port},
                "placement": {"endpoint": placement.endpoint},
                "default_network": str(network),
            }

        settings = Config(
            etcd=EtcdSettings(endpoints=(self.etcd.endpoint,)),
            placement=PlacementSettings(endpoint=placement.endpoint),
            images=ImageSettings(default=IMAGE),
            default_network=network,
        )
        self.cloud = opening.enter_context(Cloud(settings))
        self.fleet = Daemons(self._directory / "fleet", said(self.etcd.port), "fleet", self.count)
        opening.callback(self.fleet.close)
        self.fleet.wait_up()
        self.relays: dict[str, Relay] = {}
        self.alone: dict[str, Daemons] = {}
        for name in ("near", "far"):  # after the fleet, which has the lead
            self.relays[name] = relay = Relay(self.etcd.port)
            opening.callback(relay.close)
            self.alone[name] = one = Daemons(self._directory / name, said(relay.port), name, 1)
            opening.callback(one.close)
            one.wait_up()
        self.launcher = Launcher(self.cloud)
        self._built(self.launcher.launch(LaunchRequest(query=SHAPE, image=IMAGE, host="near-1")).uuid)
        hosts = Hosts(self.cloud)
        for name in self.alone:
            hosts.drain(hosts.find(f"{name}-1"), AdminState.DRAINING)
        print(f"  {self.count} hosts with daemons are up after {time.monotonic() - began:.0f} s", file=sys.stderr)

    def spent(self) -> dict[str, float]:
        """Return what was used so far: CPU in ms, traffic in bytes."""
        text = requests.get(f"http://{self.etcd.endpoint}/metrics", timeout=30).text
        values = {
            line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line and not line.startswith("#")
        }
        return {
            "etcd, CPU": values["process_cpu_seconds_total"] * 1000,
            "etcd, traffic": sum(values[f"etcd_network_client_grpc_{way}_bytes_total"] for way in ("sent", "received")),
            "all daemons, CPU": self.fleet.cpu_s() * 1000,
            **{f"another host of the network, {k}": v for k, v in self._of("near").items()},
            **{f"{NOT_CONCERNED}, {k}": v for k, v in self._of("far").items()},
        }

    def _of(self, name: str) -> dict[str, float]:
        return {"CPU": self.alone[name].cpu_s() * 1000, "traffic": float(self.relays[name].moved)}

    def round(self) -> dict[str, float]:
        """Return what one launch costs each of them, beyond what they use at rest."""
        at_rest, rest_s = self._while(lambda: time.sleep(REST_S))
        uuids: list[str] = []

        def launch() -> None:
            for _ in range(LAUNCHES):
                uuids.append(self.launcher.launch(LaunchRequest(query=SHAPE, image=IMAGE)).uuid)
            self._built(*uuids)
            time.sleep(3)  # hosts pause up to two seconds between two looks at a network's members

        used, took_s = self._while(launch)
        self._gone(uuids)
        return {what: (used[what] - at_rest[what] * took_s / rest_s) / LAUNCHES for what in used}

    def _while(self, act: Callable[[], None]) -> tuple[dict[str, float], float]:
        before, began = self.spent(), time.monotonic()
        act()
        after = self.spent()
        return {what: after[what] - before[what] for what in before}, time.monotonic() - began

    def _built(self, *uuids: str) -> None:
        def are_built() -> bool:
            seen = {keys.last(item.key): item.value.state for item in self.cloud.store.list(keys.SEEN, Seen).items}
            return all(seen.get(uuid) is State.CREATED for uuid in uuids)

        _wait(are_built, "they are not built")

    def _gone(self, uuids: list[str]) -> None:
        instances = Instances(self.cloud)
        for found in instances.several(uuids):
            instances.destroy(found)
        wanted = [keys.instance(uuid) for uuid in uuids]
        _wait(lambda: not self.cloud.store.get_many(wanted, Instance).items, "they are not gone")


def _wait(until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DONE_TIMEOUT_S
    while not until():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


class Crews:
    """Of each size one, and what was measured on them."""

    def __init__(self, directory: Path, sizes: list[int], rounds: int) -> None:
        self.rounds = rounds
        self.sizes = sizes
        self.crews = {size: Crew(directory / f"crew-{size}", size) for size in sizes}
        self.curves: dict[str, dict[int, float]] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            for crew in self.crews.values():
                opening.enter_context(crew)
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def others(self) -> list[Figure]:
        """What one launch costs etcd and the other hosts, with few hosts and with many."""
        found: dict[int, list[dict[str, float]]] = {size: [] for size in self.sizes}
        for number in range(self.rounds):
            print(f"  others: round {number + 1} of {self.rounds}", file=sys.stderr)
            for size, crew in self.crews.items():
                found[size].append(crew.round())
        few, many = self.sizes[0], self.sizes[-1]
        made = []
        for what in found[many][0]:
            by_size = {size: [one[what] for one in rounds] for size, rounds in found.items()}
            unit = "ms" if what.endswith("CPU") else "bytes"
            if unit == "ms":
                self.curves[f"{what} of a launch"] = {s: statistics.median(values) for s, values in by_size.items()}
            budget = "~ 0" if what.startswith(NOT_CONCERNED) else "constant"
            made.append(
                figure(f"a launch, {what}, {many:,} hosts / {few:,}", by_size[many], by_size[few], unit, budget)
            )
        return made


FIGURES: dict[str, Callable[[Crews], list[Figure]]] = {"others": Crews.others}
