"""All instances of a host, on an etcd, with the rest of the machine in memory."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Resources, Role, Spec
from ecompute.cluster.errors import PlacementUnavailable, Refused
from ecompute.cluster.store import Put, Store
from ecompute.hypervisor.fake import FakeHypervisor
from ecompute.instances.actuate import Actuator
from ecompute.instances.memory import Memory
from ecompute.instances.patience import Patience
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.instances.reporter import Reporter
from ecompute.network.fake import FakeFilter, FakeLinks
from ecompute.network.membership import Memberships
from ecompute.network.reconcile import NetworkReconciler
from ecompute.storage import fake as storage
from ecompute.storage.images import ImageCache
from ecompute.storage.place import Place

PROVIDER = "00000000-0000-0000-0000-00000000000a"
WAIT_S = 20.0


class Host:
    """A host's instances; its placement gives ``answer`` to each question, and no image arrives."""

    def __init__(self, store: Store, directory: Path, opened: ExitStack) -> None:
        self.answer: BaseException | bool = PlacementUnavailable("placement is away")
        self.asked = 0
        watcher = store.watcher()
        opened.callback(watcher.close)
        links, hypervisor, memory = FakeLinks(), FakeHypervisor(PROVIDER), Memory(directory / "memory")
        opened.callback(hypervisor.close)
        self.source = storage.FakeFetcher(otherwise=b"an image".ljust(512, b"\0"))
        self.source.gate.clear()
        images = ImageCache(directory / "images", self.source)
        opened.callback(images.close)
        opened.callback(self.source.gate.set)
        networks = NetworkReconciler(links, FakeFilter())
        memberships = Memberships(
            store, watcher, networks, PROVIDER, directory / "memory" / "networks", is_held=lambda: False
        )
        self.instances = InstanceReconciler(
            store=store,
            watcher=watcher,
            hypervisor=hypervisor,
            actuator=Actuator(
                provider=PROVIDER,
                place=Place(directory / "instances", PROVIDER, is_new=True),
                hypervisor=hypervisor,
                images=images,
                memberships=memberships,
                links=links,
                accelerator="tcg",
                resize=True,
                bridge=None,
                secrets=lambda uuid: None,
                create_overlay=storage.create_overlay,
                write_config_drive=storage.write_config_drive,
            ),
            memberships=memberships,
            memory=memory,
            reporter=Reporter(store, PROVIDER),
            provider=PROVIDER,
            lanes=2,
            boot_id="boot",
            hold_reason=lambda: None,
            witness=lambda revision: None,
            on_exhausted=lambda stuck: None,
            patience=Patience(directory / "memory" / "stuck.json"),
            release_thread=lambda: None,
            has_claim=self._has_claim,
            rng=random.Random(1),
        )
        self.instances.start()
        opened.callback(self.instances.close, WAIT_S)

    def _has_claim(self, instance_uuid: str) -> bool:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Iterator[Callable[[], Host]]:
    with ExitStack() as opened:
        yield lambda: Host(store, tmp_path, opened)


def assignment() -> Put:
    spec = Spec(resources=Resources(vcpus=1, memory_mb=64, disk_gb=1), image="http://images.example/x")
    made = str(uuid.uuid4())
    return Put(
        keys.assignment(PROVIDER, made),
        Assignment(uuid=made, namespace="system", name="web", role=Role.RUN, generation=1, epoch=1, spec=spec),
    )


@pytest.mark.parametrize("then", [True, Refused("no"), RuntimeError("nobody foresaw this")], ids=repr)
def test_what_fails_or_waits_after_an_outage_does_not_keep_the_host_from_having_gone_through_all(
    store: Store, start: Callable[[], Host], then: BaseException | bool, eventually: Callable[..., None]
) -> None:
    store.commit([], [assignment()])
    host = start()
    instances = host.instances
    eventually(lambda: host.asked and instances._has_scanned.is_set() and instances._lanes.is_idle(), timeout_s=WAIT_S)
    assert not instances.has_converged(), "placement is to say whether it may be built"
    asked, host.answer = host.asked, then
    instances.rescan()
    eventually(lambda: host.asked > asked and instances.has_converged(), timeout_s=WAIT_S)
