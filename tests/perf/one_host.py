"""What one host costs: against qemu-img, virsh, etcdctl and a raw claim, on the embedded cloud."""

from __future__ import annotations

import base64
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil
import requests
from figures import Figure, figure, timed

from ecompute.cluster import config, keys
from ecompute.cluster.claims import Claims
from ecompute.cluster.documents import Name, Seen, State
from ecompute.cluster.placement import Inventory, Placement
from ecompute.cluster.store import Delete, Put, absent
from ecompute.dev.cloud import EmbeddedCloud
from ecompute.hypervisor import domain
from ecompute.hypervisor.domain import DomainPlan, TapPlan
from ecompute.instances.lanes import Lanes
from ecompute.network.names import bridge_name
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

ROUNDS = 9
SHAPE = "resources=VCPU:1,MEMORY_MB:96,DISK_GB:1"
TIMEOUT_S = 60.0
IDLE_S = 60.0
IDLE_GUESTS = 5


class OneHost:
    def __init__(self, directory: Path) -> None:
        self.embedded = EmbeddedCloud(directory / "cloud", say=lambda text: print(f"  {text}", file=sys.stderr))
        self.directory = directory

    def start(self) -> None:
        self.embedded.directory.mkdir(parents=True)
        own = {"accelerator": "tcg", "inventory": {"ratios": {"vcpus": 16.0}}}
        (self.embedded.directory / "own.yaml").write_text(json.dumps(own), encoding="utf-8")
        self.embedded.start()
        self.settings = config.load(self.embedded.config)
        self.cloud = Cloud(self.settings)
        self.launcher = Launcher(self.cloud)
        self.instances = Instances(self.cloud)

    def stop(self) -> None:
        for view in list(self.instances.all(None)):
            self.destroy(view.instance.value.uuid)
        self.cloud.close()
        self.embedded.stop()

    def launch(self) -> str:
        return self.launcher.launch(LaunchRequest(query=SHAPE, image=self.settings.images.default)).uuid

    def destroy(self, uuid: str) -> None:
        found = self.instances.find(uuid, "system")
        self.instances.destroy(found)
        self.instances.wait(found, until=frozenset(), timeout_s=TIMEOUT_S)

    # --- figures ---

    def running(self) -> list[Figure]:
        """Request to domain running, against qemu-img create, virsh define and virsh start of the same XML."""
        keep = self.launch()  # the network is up and the image is here, for both
        self.wait_created(keep)
        instance = self.instances.find(keep, "system").value
        ours: list[float] = []
        raw: list[float] = []
        store = self.cloud.store
        for _ in range(ROUNDS):
            created = threading.Event()
            watcher = store.watcher()

            def seen(change: object, created: threading.Event = created) -> None:
                after = getattr(change, "after", None)
                if after is not None and after.value.uuid != keep and after.value.state is State.CREATED:
                    created.set()

            follow = watcher.follow(keys.seen_by(instance.provider), Seen, seen)
            follow.wait_ready(TIMEOUT_S)
            began: list[float] = []
            launcher = Launcher(
                self.cloud,
                on_step=lambda step, began=began: began.append(time.monotonic()) if "telling" in step else None,
            )
            uuid = launcher.launch(LaunchRequest(query=SHAPE, image=self.settings.images.default)).uuid
            assert created.wait(TIMEOUT_S)
            ours.append((time.monotonic() - began[-1]) * 1000)
            watcher.close()
            self.destroy(uuid)
            raw.append(self.raw_start(bridge_name(instance.spec.interfaces[0].vni)))
        self.destroy(keep)
        made = figure("request to domain running", ours, raw, "ms", "+ 150 ms")
        difference = statistics.median(ours) - statistics.median(raw)
        print(f"  request to domain running: {difference:+.0f} ms over the raw way", file=sys.stderr)
        return [made]

    def raw_start(self, bridge: str) -> float:
        uuid = str(uuid4())
        directory = self.directory / uuid
        directory.mkdir()
        image = next((self.settings.state_dir / "images" / "images").iterdir())
        disk = directory / "disk.qcow2"
        plan = DomainPlan(
            uuid=uuid,
            name="raw",
            namespace="raw",
            provider=str(uuid4()),
            vcpus=1,
            memory_mb=96,
            accelerator="tcg",
            root_disk=disk,
            config_drive=None,
            interfaces=(TapPlan(tap="ecraw0", bridge=bridge, mac="02:00:00:00:00:01", mtu=None),),
            console_log=directory / "console.log",
        )
        xml = directory / "domain.xml"
        xml.write_text(domain.render(plan), encoding="utf-8")
        virsh = ["virsh", "-q", "-c", self.settings.libvirt_uri]
        took: list[float] = []
        with timed(took):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "qcow2", str(disk), "1G")
            run(*virsh, "define", str(xml))
            run(*virsh, "start", f"ec-{uuid}")
        run(*virsh, "destroy", f"ec-{uuid}")
        run(*virsh, "undefine", f"ec-{uuid}")
        return took[0]

    def wait_created(self, uuid: str) -> None:
        found = self.instances.find(uuid, "system")
        view = self.instances.wait(found, until=frozenset({State.CREATED, State.ERROR}), timeout_s=TIMEOUT_S)
        assert view is not None
        assert view.state is State.CREATED, view.error

    def watch(self) -> list[Figure]:
        """Etcd write to work begun in a lane, against ``etcdctl watch`` of the same prefix."""
        store = self.cloud.store
        prefix = f"/names/bench/{uuid4()}/"
        arrived: dict[str, float] = {}
        begun = threading.Condition()

        def work(work: object) -> None:
            with begun:
                arrived[getattr(work, "uuid", "")] = time.monotonic()
                begun.notify_all()

        lanes = Lanes(work, count=12)
        watcher = store.watcher()
        follow = watcher.follow(
            prefix, Name, lambda change: lanes.wake(keys.last(change.key)) if change.after is not None else None
        )
        follow.wait_ready(TIMEOUT_S)
        etcdctl = subprocess.Popen(
            ["etcdctl", "--endpoints", self.settings.etcd.endpoints[0], "watch", "--prefix", prefix],
            env={**os.environ, "ETCDCTL_API": "3"},
            stdout=subprocess.PIPE,
        )
        printed: dict[str, float] = {}

        def read() -> None:
            assert etcdctl.stdout is not None
            for line in etcdctl.stdout:
                if line.startswith(prefix.encode()):
                    with begun:
                        printed[keys.last(line.decode().strip())] = time.monotonic()
                        begun.notify_all()

        threading.Thread(target=read, daemon=True).start()
        ours: list[float] = []
        raw: list[float] = []
        for n in itertools.count():
            name = f"n{n}"
            began = time.monotonic()
            store.commit([absent(prefix + name)], [Put(prefix + name, Name(uuid=name, name=name))])
            with begun:
                is_whole = begun.wait_for(lambda name=name: name in arrived and name in printed, 1.0)
            if not is_whole:
                assert n < 20, "etcdctl does not watch"
                continue  # its watch was not there yet
            ours.append((arrived[name] - began) * 1000)
            raw.append((printed[name] - began) * 1000)
            store.commit([], [Delete(prefix + name)])
            if len(ours) >= 100:
                break
        etcdctl.terminate()
        etcdctl.wait(10)
        watcher.close()
        lanes.close(5)
        return [figure("etcd write to work begun", ours, raw, "ms", "≤ 2 x")]

    def claims(self) -> list[Figure]:
        """Intent and claim, one at a time, against a raw ``PUT /allocations``, on 10 hosts."""
        placement, store = Placement(self.settings.placement), self.cloud.store
        hosts = [str(uuid4()) for _ in range(10)]
        inventory = {"VCPU": Inventory(total=10_000), "MEMORY_MB": Inventory(total=10_000_000)}
        for number, host in enumerate(hosts):
            placement.ensure_provider(host, f"bench-{number}-{host[:8]}")
            placement.set_inventories(host, inventory)
        session = requests.Session()
        session.headers.update({"x-auth-token": "admin", "openstack-api-version": "placement 1.39"})
        claims = Claims(store, placement, writer="bench")
        ours: list[float] = []
        alone: list[float] = []
        raw: list[float] = []
        resources = {"VCPU": 1, "MEMORY_MB": 256}
        for n in range(60):
            host = hosts[n % len(hosts)]
            consumer = str(uuid4())
            with timed(ours):
                claim = claims.begin(consumer, namespace="system")
                claim.take({host: resources}, {"": [host]})
            claim.give_up()
            consumer = str(uuid4())
            with timed(alone):
                placement.claim(consumer, {host: resources}, {"": [host]}, project_id="p", user_id="u")
            placement.release(consumer)
            consumer = str(uuid4())
            body = {
                "allocations": {host: {"resources": resources}},
                "mappings": {"": [host]},
                "project_id": "p",
                "user_id": "u",
                "consumer_generation": None,
                "consumer_type": "ECOMPUTE_INSTANCE",
            }
            with timed(raw):
                answer = session.put(
                    f"{self.settings.placement.endpoint}/allocations/{consumer}", json=body, timeout=10
                )
            assert answer.status_code == 204, answer.text
            placement.release(consumer)
        for host in hosts:
            placement.delete_provider(host)
        return [
            figure("claim, one at a time", alone, raw, "ms", "≤ 1.67 x"),
            figure("intent and claim", ours, raw, "ms", "-"),
        ]

    def memory(self) -> list[Figure]:
        """Resident memory of the daemon, against a process with its libraries and channels and nothing else."""
        bare = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("bare.py")), str(self.embedded.config)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        assert bare.stdout is not None
        assert bare.stdout.readline() == b"ready\n"
        uuids = [self.launch() for _ in range(IDLE_GUESTS)]
        for uuid in uuids:
            self.wait_created(uuid)
        ours = psutil.Process(self.host_pid()).memory_info().rss / 2**20
        raw = psutil.Process(bare.pid).memory_info().rss / 2**20
        bare.communicate()
        for uuid in uuids:
            self.destroy(uuid)
        print(f"  memory: {ours - raw:+.1f} MiB over a process with the same libraries", file=sys.stderr)
        return [figure(f"resident memory, {IDLE_GUESTS} guests", [ours], [raw], "MiB", "+ 25 MiB")]

    def idle(self) -> list[Figure]:
        """CPU of the daemon at rest, in shares of a core, and how often it writes to etcd."""
        uuids = [self.launch() for _ in range(IDLE_GUESTS)]
        for uuid in uuids:
            self.wait_created(uuid)
        process = psutil.Process(self.host_pid())
        time.sleep(10)  # what a build leaves behind is over by then
        revision, used = self.cloud.store.status().revision, process.cpu_times()
        time.sleep(IDLE_S)
        after = process.cpu_times()
        share = (after.user + after.system - used.user - used.system) / IDLE_S * 100
        writes = (self.cloud.store.status().revision - revision) * 60 / IDLE_S
        for uuid in uuids:
            self.destroy(uuid)
        return [
            figure(f"CPU at rest, {IDLE_GUESTS} guests", [share], [100.0], "% of a core", "≤ 1 %"),
            figure("etcd writes a minute at rest", [writes], [0.0], "writes", "0"),
        ]

    def writes(self) -> list[Figure]:
        """What is written to etcd for a guest with a network: until it runs, and until it is finished; by key."""
        keep = self.launch()  # the network is there, and this host is a member
        self.wait_created(keep)
        counts: dict[str, tuple[list[float], Counter[str]]] = {}
        for number in range(ROUNDS):
            print(f"  writes: round {number + 1} of {ROUNDS}", file=sys.stderr)
            revision = self.rested()
            uuid = self.launch()
            self.wait_created(uuid)
            between = self.rested()
            self.destroy(uuid)
            for what, since, until in (
                ("launched, until it runs", revision, between),
                ("finished", between, self.rested()),
            ):
                transactions, written = counts.setdefault(what, ([], Counter()))
                transactions.append(float(until - since))
                written.update(self.written(since, until))
        self.destroy(keep)
        made = []
        for what, (transactions, written) in counts.items():
            listed = ", ".join(f"{key} {count / ROUNDS:g}" for key, count in sorted(written.items()))
            print(f"  a guest {what}, keys put and deleted: {listed}", file=sys.stderr)
            made.append(figure(f"a guest {what}: transactions in etcd", transactions, [1.0], "revisions", "-"))
            total = [sum(written.values()) / ROUNDS]
            made.append(figure(f"a guest {what}: keys put and deleted", total, [1.0], "keys", "-"))
        return made

    def rested(self) -> int:
        """Return etcd's revision once nothing has been written for a second."""
        revision, since = self.cloud.store.status().revision, time.monotonic()
        while time.monotonic() < since + 1:
            time.sleep(0.1)
            if (now := self.cloud.store.status().revision) != revision:
                revision, since = now, time.monotonic()
        return revision

    def written(self, since: int, until: int) -> Counter[str]:
        """Return how often keys were put and deleted between two revisions, by the first part of their names."""
        etcdctl = subprocess.Popen(
            [
                *("etcdctl", "--endpoints", self.settings.etcd.endpoints[0], "--write-out", "json"),
                *("watch", "--prefix", "/", "--rev", str(since + 1)),
            ],
            env={**os.environ, "ETCDCTL_API": "3"},
            stdout=subprocess.PIPE,
        )
        found: Counter[str] = Counter()
        try:
            assert etcdctl.stdout is not None
            store, mark = self.cloud.store, f"/names/bench/{uuid4()}"
            store.commit([absent(mark)], [Put(mark, Name(uuid=mark, name=mark))])  # then the watch is at its end
            for line in etcdctl.stdout:
                for event in json.loads(line)["Events"]:
                    kv = event["kv"]
                    key = base64.b64decode(kv["key"]).decode()
                    if key == mark:
                        store.commit([], [Delete(mark)])
                        return found
                    if kv["mod_revision"] <= until:
                        verb = "deleted" if event.get("type") == 1 else "put"
                        found[f"/{key.split('/')[1]} {verb}"] += 1
            raise AssertionError("etcdctl does not watch")
        finally:
            etcdctl.kill()
            etcdctl.wait()

    def host_pid(self) -> int:
        host = self.embedded.host
        assert host is not None
        return host.child.pid


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=TIMEOUT_S)


FIGURES: dict[str, Callable[[OneHost], list[Figure]]] = {
    "running": OneHost.running,
    "watch": OneHost.watch,
    "claims": OneHost.claims,
    "memory": OneHost.memory,
    "idle": OneHost.idle,
    "writes": OneHost.writes,
}
