"""A host's instances on an etcd, with the rest of the machine in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ecompute.audit.look import Looker
from ecompute.cluster.errors import PlacementUnavailable
from ecompute.cluster.store import Store
from ecompute.hypervisor.domain import TapPlan
from ecompute.hypervisor.fake import FakeHypervisor
from ecompute.instances.actuate import Actuator
from ecompute.instances.memory import Memory
from ecompute.instances.patience import Patience
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.instances.reporter import Reporter
from ecompute.network.fake import FakeAlarms, FakeFilter, FakeLinks
from ecompute.network.fake_gateways import FakeEgress, FakeGateways
from ecompute.network.gateway_memory import GatewayMemory
from ecompute.network.gateway_reconcile import GatewayReconciler
from ecompute.network.membership import Memberships
from ecompute.network.metadata import FakeMetadata
from ecompute.network.reconcile import NetworkReconciler
from ecompute.storage import fake as storage
from ecompute.storage.images import ImageCache
from ecompute.storage.place import Place

PROVIDER = "00000000-0000-0000-0000-00000000000a"
WAIT_S = 20.0
BRIDGES = {"lan": "br0"}
"""As they are configured; whether they are there, tests say."""


class Host:
    """A host's instances; its placement gives ``answer`` to each question, and no image arrives."""

    def __init__(self, store: Store, directory: Path, opened: ExitStack, before: Host | None) -> None:
        self.answer: BaseException | bool = PlacementUnavailable("placement is away")
        self.asked = 0
        watcher = store.watcher()
        opened.callback(watcher.close)
        self.links = links = FakeLinks() if before is None else before.links
        self.hypervisor = hypervisor = (
            FakeHypervisor(PROVIDER, on_taps=self._plug) if before is None else before.hypervisor.share()
        )
        self.files = directory / "instances"
        memory = Memory(directory / "memory")
        opened.callback(hypervisor.close)
        self.source = storage.FakeFetcher(otherwise=b"an image".ljust(512, b"\0"))
        self.source.gate.clear()
        images = ImageCache(directory / "images", self.source)
        opened.callback(images.close)
        opened.callback(self.source.gate.set)
        self.filter = FakeFilter()
        networks = NetworkReconciler(links, self.filter)
        remembered = directory / "memory" / "networks"
        self.gateways = FakeGateways()
        gateways = GatewayReconciler(
            self.gateways,
            FakeEgress(),
            PROVIDER,
            GatewayMemory(remembered),
            upstream=tuple,
            control_plane=frozenset,
            metadata=FakeMetadata(),
        )
        self.alarms = FakeAlarms()
        memberships = Memberships(
            store,
            watcher,
            networks,
            gateways,
            PROVIDER,
            remembered,
            is_held=lambda: False,
            bridges=BRIDGES,
            alarms=self.alarms,
        )
        memberships.start()
        opened.callback(memberships.close)
        actuator = Actuator(
            provider=PROVIDER,
            place=Place(self.files, PROVIDER, is_new=before is None),
            hypervisor=hypervisor,
            images=images,
            memberships=memberships,
            links=links,
            accelerator="tcg",
            resize=True,
            bridge=None,
            bridges=BRIDGES,
            secrets=lambda uuid: None,
            create_overlay=storage.create_overlay,
            write_config_drive=storage.write_config_drive,
        )
        self.instances = InstanceReconciler(
            store=store,
            watcher=watcher,
            hypervisor=hypervisor,
            actuator=actuator,
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
        looker = Looker(
            store=store,
            provider=PROVIDER,
            hypervisor=hypervisor,
            actuator=actuator,
            memory=memory,
            instances=self.instances,
            devices=lambda: links.devices() | self.gateways.devices(),
        )
        self.look = looker.look
        self.memberships, self._watcher = memberships, watcher
        self.instances.start()
        opened.callback(self.instances.close, WAIT_S)

    def end(self) -> None:
        """As when its daemon ends; the machine stays."""
        assert self.instances.close(WAIT_S)
        self.memberships.close()
        self.hypervisor.close()
        self._watcher.close()

    def _plug(self, taps: tuple[TapPlan, ...], is_there: bool) -> None:
        for tap in taps:
            if is_there:
                self.links.plug(tap.tap, tap.bridge)
            else:
                self.links.unplug(tap.tap)

    def _has_claim(self, instance_uuid: str) -> bool:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Iterator[Callable[[], Host]]:
    with ExitStack() as opened:
        yield lambda before=None: Host(store, tmp_path, opened, before)
