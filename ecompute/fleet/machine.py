"""A machine of a fleet: hypervisor, devices and images in memory, with the times and failures of one's choice.

It outlives the daemon that runs on it, as a machine does: its guests go on while the daemon is gone.

Threads: any.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from uuid import uuid4

from ecompute.cluster.errors import CloudError, HypervisorError, StorageUnavailable
from ecompute.hypervisor.accelerator import Trial
from ecompute.hypervisor.api import Hypervisor
from ecompute.hypervisor.domain import TapPlan
from ecompute.hypervisor.fake import FakeHypervisor
from ecompute.inventory import Measured
from ecompute.machine import Machine
from ecompute.network.fake import FakeAlarms, FakeFilter, FakeLinks
from ecompute.network.fake_gateways import FakeEgress, FakeGateways
from ecompute.network.metadata import FakeMetadata
from ecompute.network.underlay import Address
from ecompute.storage import fake as storage

UNDERLAY = IPv4Network("100.64.0.0/10")
"""The range for carriers' own use (RFC 6598), in which a fleet's hosts say that they are."""
MTU = 1500
IMAGE = b"an image of a fleet".ljust(512, b"\0")
"""What every URL gives: a raw image of one sector."""

FETCH = "fetch"
CALLS = (FETCH, "define", "start", "stop", "undefine", "attach", "detach")
"""What can take its time, or fail."""


@dataclass
class Conduct:
    """How the machines of a fleet behave; may be changed while they run.

    Attributes:
        seconds: how long a call takes, by its name in `CALLS`, give or take a half.
        failure_rates: which share of a call's runs fails, from 0 to 1.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    failure_rates: dict[str, float] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)

    def act(self, call: str, what: str, is_cut: threading.Event) -> None:
        """Take the time that ``call`` takes.

        Raises:
            CloudError: it is one that fails.
        """
        seconds = self.seconds.get(call, 0.0) * self.rng.uniform(0.5, 1.5)
        if seconds > 0:
            is_cut.wait(seconds)
        if self.rng.random() < self.failure_rates.get(call, 0.0):
            raise _failure(call, what)


def _failure(call: str, what: str) -> CloudError:
    if call == FETCH:
        return StorageUnavailable(f"{what} cannot be fetched: the fleet was told to fail")
    return HypervisorError(f"cannot {call} domain {what}: the fleet was told to fail")


class FleetMachine:
    """One machine.

    Args:
        name: the host's; its underlay address is made of it.
        measured: what it has.
        conduct: how it behaves.
    """

    def __init__(self, name: str, measured: Measured, conduct: Conduct) -> None:
        self.name = name
        self.links = FakeLinks(address=Address(underlay_of(name), "fleet0", MTU))
        self.filter = FakeFilter()
        self.gateways = FakeGateways()
        self.egress = FakeEgress("fleet0")
        self.metadata = FakeMetadata()
        self._measured = measured
        self._conduct = conduct
        self._boot_id = str(uuid4())
        self._lock = threading.Lock()
        self._is_cut = threading.Event()
        self._hypervisor: FakeHypervisor | None = None
        self._connection: FakeHypervisor | None = None

    def machine(self) -> Machine:
        """Return what a daemon takes; each daemon one of its own."""
        self._is_cut = is_cut = threading.Event()
        return Machine(
            name=self.name,
            boot_id=self._boot_id,
            hypervisor=self._connect,
            links=self.links,
            filter=self.filter,
            alarms=FakeAlarms(),
            gateways=lambda provider, directory: self.gateways,
            egress=lambda memory: self.egress,
            metadata=lambda state: self.metadata,
            images=storage.FakeFetcher(otherwise=IMAGE, before=lambda url: self._conduct.act(FETCH, url, is_cut)),
            measure=lambda: self._measured,
            trial=lambda: Trial("tcg", {}, "a machine of a fleet runs nothing"),
            create_overlay=storage.create_overlay,
            write_config_drive=storage.write_config_drive,
            spare_lanes=0,
        )

    def cut(self) -> None:
        """Let nothing that the present daemon does reach the machine any more; its guests go on."""
        self._is_cut.set()
        with self._lock:
            if self._connection is not None:
                self._connection.cut()

    def guests(self) -> Mapping[str, bool]:
        """Return the domains on it, and which of them are on."""
        hypervisor = self._hypervisor
        return {} if hypervisor is None else {uuid: d.power == "on" for uuid, d in hypervisor.list().items()}

    def _connect(self, provider: str, *, is_stopping: Callable[[], bool]) -> Hypervisor:
        with self._lock:
            if self._hypervisor is None:
                self._hypervisor = FakeHypervisor(
                    provider, before=self._conduct.act, on_taps=partial(_plug, self.links)
                )
            self._connection = self._hypervisor.share()
            return self._connection


def _plug(links: FakeLinks, taps: tuple[TapPlan, ...], is_there: bool) -> None:
    for tap in taps:
        if is_there:
            links.plug(tap.tap, tap.bridge)
        else:
            links.unplug(tap.tap)


def underlay_of(name: str) -> str:
    """Return the underlay address of the host ``name``: the same in each of its lives."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return str(IPv4Address(int(UNDERLAY.network_address) + 1 + number % (UNDERLAY.num_addresses - 2)))
