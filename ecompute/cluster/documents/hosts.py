"""Hosts: what they report, and what is said of them."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ecompute.cluster.documents.base import SCHEMA, Document


class InventoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One resource class of a host, in placement's words."""

    total: int
    reserved: int = 0
    allocation_ratio: float = 1.0
    min_unit: int = 1
    max_unit: int
    step_size: int = 1

    @property
    def capacity(self) -> int:
        return int((self.total - self.reserved) * self.allocation_ratio)


class Node(Document, frozen=True, kw_only=True):
    """``/nodes/<provider>``: facts that the host reports; rewritten when they change."""

    provider: str
    name: str
    underlay: str
    """The address at which other hosts send VXLAN packets to it."""
    underlay_mtu: int
    accelerator: str
    hypervisor: str
    version: str
    schema_max: int = SCHEMA
    hold: str | None = None
    """Why the host neither builds nor removes anything, or nothing."""
    closed: str | None = None
    """Why it takes nothing new though no operator says so: it starts, or waits for something. Or nothing."""
    stopped: str | None = None
    """Since when its daemon is stopped, by its own word. One that says so is not lost."""
    unclaimed: int = 0
    """How many of its guests placement knows no claim of: it was emptied, or set back. The lead claims for them."""
    inventory: dict[str, InventoryFacts] = {}
    """What it offers when it is open, by resource class. What is left of it is placement's to say."""
    reported_at: str


class AdminState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    LOST = "lost"


class Admin(Document, frozen=True, kw_only=True):
    """``/admin/<provider>``: what operators and the lead say of a host."""

    state: AdminState = AdminState.ACTIVE
    """What operators say: active, draining or maintenance."""
    reason: str = ""
    lost_since: str | None = None
    """Set by the lead while the host's heartbeat is missing, beside whatever operators said."""
    zone: str | None = None
    """``/zones/<name>``"""
    location: str = ""
    """For people: a room, a rack."""
    traits: tuple[str, ...] = ()
    """``CUSTOM_`` traits that operators gave it."""
    turn: int = 0
    """How often its effective state has changed (`ecompute.cluster.closing.said`)."""

    @property
    def effective(self) -> AdminState:
        """What counts for new instances: lost before all else."""
        return AdminState.LOST if self.lost_since is not None else self.state


class Zone(Document, frozen=True, kw_only=True):
    """``/zones/<name>``: hosts that may fail together. In placement an aggregate, and a provider for groups."""

    name: str
    aggregate: str
    """The uuid of the aggregate whose members are its hosts."""
    provider: str
    """The uuid of the provider that carries group classes of scope zone; made in placement at first use."""
    created_at: str


class Alive(Document, frozen=True, kw_only=True):
    """``/alive/<provider>``: there while the daemon's lease is kept; not rewritten."""

    provider: str
    name: str
    since: str


class HostFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that two looks of a host at itself agree is wrong there."""

    what: str
    """Stable, for programs (`ecompute.audit.compare.What`)."""
    subject: str
    """An instance, a key, a file or a device."""
    since: str
    repair: str
    """What is done about it, or whose matter it is."""


class HostAudit(Document, frozen=True, kw_only=True):
    """``/audits/<provider>``: there as long as the host's own audit finds something; rewritten when that changes."""

    findings: tuple[HostFinding, ...]
    more: int = 0
    """How many there are besides."""
    reported_at: str
