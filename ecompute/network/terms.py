"""What is said of a network on a host: as it is to be, as it is, and what leads from one to the other.

Pure data; `ecompute.network.mesh` decides with it. Any thread may use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ecompute.network.names import ZEROS, bridge_name

# --- wanted --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tap:
    """A tap, and what the guest behind it may send."""

    name: str
    mac: str
    addresses: tuple[str, ...] | None
    """Without prefix lengths; None: any (the network has no range)."""


@dataclass(frozen=True)
class Part:
    """What belongs to one network in the filter."""

    vni: int
    taps: frozenset[Tap] = frozenset()
    members: frozenset[str] | None = frozenset()
    """The underlay addresses from which its VXLAN packets are taken; None: it has no VXLAN."""
    gateways: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()
    """Taps that no port has any more, but that are still there: their rules stay until they are gone."""


@dataclass(frozen=True)
class Physical:
    """Where a physical network is on this host."""

    outlet: str
    """The operator's bridge."""
    vlan: int | None = None
    """On that bridge; None: untagged."""


@dataclass(frozen=True)
class WantedNetwork:
    """One network as it is to be on this host."""

    uuid: str
    vni: int
    mtu: int
    """At most; less where what carries it has less."""
    local: str | None
    """This host's underlay address; None: of a physical network."""
    physical: Physical | None = None
    peers: frozenset[str] = frozenset()
    """The underlay addresses of the other member hosts."""
    entries: frozenset[tuple[str, str]] = frozenset()
    """(MAC, underlay address) of every port on another host."""
    neighbours: frozenset[tuple[str, str]] = frozenset()
    """(address, MAC) of every port on another host: who asks for one of them is answered here."""
    taps: frozenset[Tap] = frozenset()
    """Those of this host's own ports; those that exist belong on the bridge."""
    gateways: tuple[str, ...] = ()
    """The addresses of the gateway, which every host has for itself."""
    problems: tuple[str, ...] = field(default=(), compare=False)
    """Records that could not be used, one line each. They cost their own host its place, no other."""

    @property
    def tap_bridge(self) -> str:
        """The bridge on which its taps are: the operator's, where it is a network without a VLAN."""
        is_outlet = self.physical is not None and self.physical.vlan is None
        return self.physical.outlet if is_outlet and self.physical is not None else bridge_name(self.vni)

    @property
    def tap_names(self) -> frozenset[str]:
        return frozenset(tap.name for tap in self.taps)

    def forwarding(self) -> frozenset[tuple[str, str]]:
        return self.entries | {(ZEROS, peer) for peer in self.peers}


# --- found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundBridge:
    """A device that has the name of our bridge."""

    kind: str
    mac: str = ""
    mtu: int = 0
    is_up: bool = False
    is_hardened: bool = False
    is_tuned: bool = False
    """No spanning tree, no forward delay, no multicast snooping, the usual ageing."""


@dataclass(frozen=True)
class FoundVxlan:
    """A device that has the name of our VXLAN device."""

    kind: str
    vni: int | None = None
    local: str | None = None
    port: int = 0
    is_learning: bool = False
    is_proxy: bool = False
    """Whether it answers for neighbours behind it."""
    mtu: int = 0
    is_up: bool = False
    is_hardened: bool = False
    is_attached: bool = False
    """To our bridge."""
    index: int = field(default=0, compare=False)
    """The kernel's; a device made anew has another one."""


@dataclass(frozen=True)
class FoundVlan:
    """A device that has the name of our VLAN device."""

    kind: str
    outlet: str | None = None
    """The device that it is upon."""
    vlan: int | None = None
    mtu: int = 0
    is_up: bool = False
    is_hardened: bool = False
    is_attached: bool = False
    """To our bridge."""


@dataclass(frozen=True)
class FoundPort:
    """A port of the network's bridge other than the device that leads out, or a tap that should be one."""

    name: str
    is_hardened: bool
    mtu: int | None = None
    """None: it is not known."""


@dataclass(frozen=True)
class FoundNetwork:
    vni: int
    bridge: FoundBridge | None = None
    vxlan: FoundVxlan | None = None
    vlan: FoundVlan | None = None
    carrier_mtu: int | None = None
    """That of the underlay's device, or of the operator's bridge; None: there is none, or it was not asked for."""
    entries: frozenset[tuple[str, str]] = frozenset()
    """Ours: (MAC, underlay address)."""
    foreign_entries: frozenset[tuple[str, str]] = frozenset()
    """Those of others that do the same as one of ours would; the rest of theirs is not shown."""
    neighbours: frozenset[tuple[str, str]] = frozenset()
    """Ours: (address, MAC)."""
    ports: frozenset[FoundPort] = frozenset()
    loose: frozenset[FoundPort] = frozenset()
    """Taps that were asked for and are there, but not on our bridge."""
    ruled: frozenset[str] = frozenset()
    """Taps that have rules."""
    has_rules: bool = False
    """Whether anything of the network is in the filter."""
    is_guarded: bool = False
    """Whether the filter is in place, with `mesh.part`."""


# --- changes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guard:
    """Put the filter in place: the rules that hold for all networks, and those of this one."""

    part: Part


@dataclass(frozen=True)
class Unguard:
    """Take the rules of a network away, and with the last one the filter."""

    vni: int


@dataclass(frozen=True)
class AddBridge:
    vni: int
    mtu: int


@dataclass(frozen=True)
class TuneBridge:
    """Set everything on the bridge that `AddBridge` sets."""

    vni: int
    mtu: int


@dataclass(frozen=True)
class DeleteBridge:
    vni: int


@dataclass(frozen=True)
class AddVxlan:
    vni: int
    local: str
    mtu: int


@dataclass(frozen=True)
class DeleteVxlan:
    vni: int


@dataclass(frozen=True)
class AttachVxlan:
    vni: int


@dataclass(frozen=True)
class AddVlan:
    vni: int
    outlet: str
    vlan: int


@dataclass(frozen=True)
class DeleteVlan:
    vni: int


@dataclass(frozen=True)
class AttachVlan:
    vni: int


@dataclass(frozen=True)
class AttachTap:
    """Put a tap on its bridge again: libvirt did so when it made it, and does not look after it."""

    bridge: str
    device: str


@dataclass(frozen=True)
class SetMtu:
    device: str
    mtu: int


@dataclass(frozen=True)
class Harden:
    """No answer to ARP for any of the host's addresses, and no IPv6; on a VXLAN device, IPv6 without an address."""

    device: str


@dataclass(frozen=True)
class SetUp:
    device: str


@dataclass(frozen=True)
class PutEntry:
    """Send ``mac`` to ``underlay``. For a port's MAC this replaces where it was sent before."""

    vni: int
    mac: str
    underlay: str


@dataclass(frozen=True)
class DropEntry:
    vni: int
    mac: str
    underlay: str


@dataclass(frozen=True)
class PutNeighbour:
    """Answer for ``address`` with ``mac``, whatever was answered before."""

    vni: int
    address: str
    mac: str


@dataclass(frozen=True)
class DropNeighbour:
    vni: int
    address: str


EntryChange: TypeAlias = PutEntry | DropEntry | PutNeighbour | DropNeighbour
"""Of which there may be tens of thousands."""
LinkChange: TypeAlias = (
    AddBridge
    | TuneBridge
    | DeleteBridge
    | AddVxlan
    | DeleteVxlan
    | AttachVxlan
    | AddVlan
    | DeleteVlan
    | AttachVlan
    | AttachTap
    | SetMtu
    | Harden
    | SetUp
    | EntryChange
)
Change: TypeAlias = Guard | Unguard | LinkChange
