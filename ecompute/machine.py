"""What a daemon needs of the machine under it: hypervisor, devices, images, disks, what there is of it.

`Machine.real` is the machine that this process runs on. `ecompute.fleet` makes others, of the fakes
that ship with the product; the daemon cannot tell them apart. Nothing is opened by making one.

Threads: any; each part says for itself what it allows.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self
from urllib.parse import urlsplit

from ecompute import inventory
from ecompute.cluster.config import Config
from ecompute.guest import configdrive
from ecompute.hypervisor import accelerator
from ecompute.hypervisor.accelerator import Trial
from ecompute.hypervisor.api import Hypervisor
from ecompute.hypervisor.connection import LibvirtHypervisor
from ecompute.inventory import Measured
from ecompute.network import egress, guard
from ecompute.network.alarms import Alarms, NetlinkAlarms
from ecompute.network.egress import Egress, HostEgress
from ecompute.network.endpoints import Endpoints
from ecompute.network.filter import Filter, NftFilter
from ecompute.network.gateways import Gateways, HostGateways
from ecompute.network.links import Links, NetlinkLinks
from ecompute.network.metadata import HostMetadata, Metadata
from ecompute.network.nft import Ledger
from ecompute.network.resolvers import Resolvers
from ecompute.storage import disks
from ecompute.storage.fetch import Fetcher
from ecompute.storage.fetch.api import ImageSource

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Connect(Protocol):
    """Reaches the hypervisor, for the host ``provider``.

    Raises:
        HypervisorUnavailable: it does not answer.
    """

    def __call__(self, provider: str, *, is_stopping: Callable[[], bool]) -> Hypervisor: ...


class MakeGateways(Protocol):
    """Reaches the gateways of the host ``provider``, whose files lie in ``directory``."""

    def __call__(self, provider: str, directory: Path) -> Gateways: ...


@dataclass(frozen=True)
class Machine:
    """One machine.

    ``measure`` says what it has, ``trial`` which accelerator its guests get. ``spare_lanes`` is how
    many idle lanes keep their thread, and with it a connection to the hypervisor.
    """

    name: str
    boot_id: str
    hypervisor: Connect
    links: Links
    filter: Filter
    alarms: Alarms
    gateways: MakeGateways
    egress: Callable[[Path], Egress]
    """Given the file in which it remembers how its device was set."""
    metadata: Callable[[Path], Metadata]
    """Given the state directory."""
    images: ImageSource
    measure: Callable[[], Measured]
    trial: Callable[[], Trial]
    create_overlay: disks.CreateOverlay = disks.create_overlay
    write_config_drive: configdrive.WriteDrive = configdrive.write
    upstream: Callable[[], Sequence[str]] = tuple
    """The name servers that know what is outside."""
    control_plane: Callable[[], frozenset[str]] = frozenset
    """The addresses of etcd and placement, which no guest is to reach."""
    spare_lanes: int = 1

    @classmethod
    def real(cls, config: Config) -> Self:
        """Return the machine that this process runs on."""

        def connect(provider: str, *, is_stopping: Callable[[], bool]) -> Hypervisor:
            return LibvirtHypervisor(config.libvirt_uri, provider, is_stopping=is_stopping)

        ledger = Ledger()
        boot_id = BOOT_ID.read_text(encoding="ascii").strip()
        return cls(
            name=socket.gethostname(),
            boot_id=boot_id,
            hypervisor=connect,
            links=NetlinkLinks(),
            filter=NftFilter(ledger),
            alarms=NetlinkAlarms(guard.TABLE, egress.TABLE),
            gateways=HostGateways,
            egress=partial(HostEgress, config.egress, boot_id=boot_id, ledger=ledger),
            metadata=HostMetadata,
            upstream=Resolvers(config.dns).upstream,
            control_plane=Endpoints(_control_plane(config), config.state_dir / "memory" / "endpoints.json").addresses,
            images=Fetcher(config.images, refused=_control_plane(config)),
            measure=partial(inventory.measure, config.state_dir),
            trial=partial(accelerator.remembered, config.state_dir / "accelerator.json", config.accelerator),
        )


def _control_plane(config: Config) -> list[str]:
    """Return ``host:port`` of etcd and placement: no image comes from there."""
    placement = urlsplit(config.placement.endpoint)
    port = placement.port or (443 if placement.scheme == "https" else 80)
    return [*config.etcd.endpoints, f"{placement.hostname}:{port}"]
