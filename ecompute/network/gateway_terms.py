"""What is said of a network's gateway on a host: as it is to be, as it is, and what leads from one to the other.

Pure data; `ecompute.network.gateway` decides with it. Any thread may use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from ecompute.network.dnsmasq import Files
from ecompute.network.names import LAN, UP
from ecompute.network.nat import InsideRules

INNER = (LAN, UP)

Route: TypeAlias = tuple[str, str | None, str]
"""Destination with prefix length, the address of the next hop or None, device."""

UPLINK_MTU = 65_535
"""Whatever comes is cut, or refused, inside: there the guest's sender is known."""

# --- wanted --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WantedUplink:
    """The way out of a network's namespace."""

    transit: str
    """The address of its inner end, which the host chose."""
    addresses: frozenset[str] = frozenset()
    """Those that lead in from outside: floating ones, and routed ones from outside of the network's range."""


@dataclass(frozen=True)
class WantedGateway:
    """A network's gateway as it is to be on this host."""

    uuid: str
    vni: int
    namespace: str
    mtu: int
    addresses: frozenset[str]
    """Of the gateway, with prefix length."""
    uplink: WantedUplink | None
    rules: InsideRules
    routed: frozenset[tuple[str, str]] = frozenset()
    """(address, MAC) of what is reached by a route of its own."""
    files: Files | None = None
    """Of dnsmasq; None: there is none."""
    problems: tuple[str, ...] = field(default=(), compare=False)
    """Records that could not be used, one line each."""

    def mtu_of(self, inner: str) -> int:
        return self.mtu if inner == LAN else UPLINK_MTU


# --- found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundOuter:
    """The end of a veth pair that is in the host's own namespace."""

    kind: str
    is_paired: bool = False
    """Whether its other end is the one that is found inside."""
    mtu: int = 0
    is_up: bool = False
    is_settled: bool = False
    """Whether it has the settings that are given to it."""
    is_attached: bool = False
    """To our bridge."""


@dataclass(frozen=True)
class FoundInner:
    """The end of a veth pair that is in the network's namespace."""

    index: int = 0
    mac: str = ""
    mtu: int = 0
    is_up: bool = False
    is_settled: bool = False
    addresses: frozenset[str] = frozenset()
    """With prefix length."""


@dataclass(frozen=True)
class FoundService:
    """What is there of a network's dnsmasq."""

    is_running: bool = False
    """In the network's namespace."""
    conf: str | None = None
    """The digest of what it was started with."""
    told: str | None = None
    """The digest of what it has been told; None: it is not known."""
    lan: int | None = None
    """The index of the device that it was started on: made anew, it is deaf there."""
    has_files: bool = False


@dataclass(frozen=True)
class FoundGateway:
    vni: int
    has_namespace: bool = False
    has_name: bool = False
    """Whether its name is taken, if only by what a killed run left of it."""
    outer_lan: FoundOuter | None = None
    outer_up: FoundOuter | None = None
    lan: FoundInner | None = None
    up: FoundInner | None = None
    routes: frozenset[Route] = frozenset()
    """Those inside that are not the kernel's own."""
    neighbours: frozenset[tuple[str, str, str]] = frozenset()
    """The permanent ones inside: (device, address, MAC)."""
    has_rules: bool = False
    """Whether the rules inside are the wanted ones, as a whole."""
    are_flows_ended: bool = False
    """Whether `EndFlows` was done since they are."""
    service: FoundService = field(default_factory=FoundService)
    host_routes: frozenset[str] = frozenset()
    """The addresses that the host sends to the uplink."""
    is_transit_known: bool = False
    """Whether the host knows the MAC of the uplink's inner end, and has its own address there."""
    proxied: frozenset[tuple[str, str]] = frozenset()
    """(address, device) for which the host answers there, as far as they are this network's."""
    announced: frozenset[tuple[str, str]] = frozenset()
    """Of these, those that were announced by the device as it is now."""

    def outer(self, inner: str) -> FoundOuter | None:
        return self.outer_lan if inner == LAN else self.outer_up

    def inner(self, inner: str) -> FoundInner | None:
        return self.lan if inner == LAN else self.up


# --- changes -------------------------------------------------------------------------------------
# ``inner`` says which of the two pairs is meant, by the name of its inner end.


@dataclass(frozen=True)
class DropProxy:
    vni: int
    address: str
    device: str


@dataclass(frozen=True)
class DropHostRoute:
    vni: int
    address: str


@dataclass(frozen=True)
class StopService:
    vni: int


@dataclass(frozen=True)
class RemoveFiles:
    vni: int


@dataclass(frozen=True)
class MakeNamespace:
    vni: int


@dataclass(frozen=True)
class RemoveNamespace:
    vni: int


@dataclass(frozen=True)
class DeletePair:
    vni: int
    inner: str


@dataclass(frozen=True)
class AddPair:
    """Make a veth pair whose inner end is in the network's namespace."""

    vni: int
    inner: str
    mtu: int


@dataclass(frozen=True)
class SettleOuter:
    """Set the MTU, and that nothing of the host answers there; the uplink's forwards."""

    vni: int
    inner: str
    mtu: int


@dataclass(frozen=True)
class Attach:
    """Put the gateway's outer end on the network's bridge."""

    vni: int


@dataclass(frozen=True)
class SetOuterUp:
    vni: int
    inner: str


@dataclass(frozen=True)
class PutTransit:
    """Give the uplink's outer end its address, and tell the host the way to the inner one."""

    vni: int
    transit: str


@dataclass(frozen=True)
class PutHostRoute:
    vni: int
    address: str
    transit: str


@dataclass(frozen=True)
class PutProxy:
    """Let the host answer for an address on its egress device, and say so there."""

    vni: int
    address: str
    device: str


OuterChange: TypeAlias = (
    DropProxy
    | DropHostRoute
    | StopService
    | RemoveFiles
    | MakeNamespace
    | RemoveNamespace
    | DeletePair
    | AddPair
    | SettleOuter
    | Attach
    | SetOuterUp
    | PutTransit
    | PutHostRoute
    | PutProxy
)


@dataclass(frozen=True)
class DeleteInner:
    """Delete a device of somebody else that has the name of ours."""

    vni: int
    inner: str


@dataclass(frozen=True)
class PutRules:
    vni: int
    rules: InsideRules


@dataclass(frozen=True)
class SettleInner:
    """Set MAC, MTU and all settings of the device."""

    vni: int
    inner: str
    mtu: int


@dataclass(frozen=True)
class PutAddress:
    vni: int
    inner: str
    address: str


@dataclass(frozen=True)
class DropAddress:
    vni: int
    inner: str
    address: str


@dataclass(frozen=True)
class SetInnerUp:
    vni: int
    inner: str


@dataclass(frozen=True)
class PutInnerNeighbour:
    vni: int
    inner: str
    address: str
    mac: str


@dataclass(frozen=True)
class DropInnerNeighbour:
    vni: int
    inner: str
    address: str


@dataclass(frozen=True)
class PutRoute:
    vni: int
    route: Route


@dataclass(frozen=True)
class DropRoute:
    vni: int
    route: Route


@dataclass(frozen=True)
class EndFlows:
    """End what goes on over translations that are not the rules' any more."""

    vni: int
    rules: InsideRules
    transit: str | None


@dataclass(frozen=True)
class StartService:
    """Start dnsmasq; one that runs is ended first."""

    vni: int
    files: Files


@dataclass(frozen=True)
class TellService:
    vni: int
    files: Files


InnerChange: TypeAlias = (
    DeleteInner
    | PutRules
    | SettleInner
    | PutAddress
    | DropAddress
    | SetInnerUp
    | PutInnerNeighbour
    | DropInnerNeighbour
    | PutRoute
    | DropRoute
    | EndFlows
    | StartService
    | TellService
)
"""What is done in the network's namespace."""

GatewayChange: TypeAlias = OuterChange | InnerChange
