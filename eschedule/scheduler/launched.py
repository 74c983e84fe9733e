"""What is told of a launch: where it would go, and where it went. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ecompute.cluster.documents import Instance
from eschedule.scheduler.rank import Ranked, Reason


@dataclass(frozen=True)
class Launched:
    """A request that its host has been told of."""

    uuid: str
    name: str
    provider: str
    host: str
    is_host_alive: bool
    """Whether its daemon answers; one that does not takes the request up when it is back."""
    addresses: tuple[str, ...]
    reasons: tuple[Reason, ...] = ()
    """Why this host."""
    is_repeated: bool = False
    """It had been launched before, with the same uuid or key."""


@dataclass(frozen=True)
class Choice:
    """A host that could take it, as it would be tried now."""

    host: str
    ranked: Ranked


def launched_of(
    instance: Instance, host: str, *, is_alive: bool, reasons: tuple[Reason, ...] = (), is_repeated: bool = False
) -> Launched:
    """Return what is told of a launched instance."""
    addresses = tuple(address for interface in instance.spec.interfaces for address in interface.addresses)
    return Launched(instance.uuid, instance.name, instance.provider, host, is_alive, addresses, reasons, is_repeated)
