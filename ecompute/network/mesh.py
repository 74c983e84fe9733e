"""What a network is to be on this host, and the changes that make it so.

A network is a VXLAN segment. On every host with a member it is one bridge and one VXLAN device; the
forwarding entries of that device come from the memberships and ports in etcd: one entry of zeros for
every other member host (broadcast and what is not known go there), and one for the MAC of every port
elsewhere, so that an unknown destination is the exception. Nothing is learned from the underlay, and
nothing is multicast on it.

Invariants:

- Pure: no clock, no I/O, no logging. `plan` applied to what it was given leads to what was wanted,
  and planned again it is empty.
- Before a device goes up it is hardened (no IPv6, no ARP for the host) and the filter is in place:
  a network killed half-way is down or closed, never open.
- What is ours is known by its name and kind. A device that has our name and is something else is an
  error, and is not touched. On our VXLAN device a permanent, plain entry with a destination is ours;
  every other entry (dynamic, static, of another port or VNI, marked by a controller, or the kernel's
  own) is somebody else's and is left.
- A bridge that still has ports is not removed: a guest may be behind them.

DHCP, gateway, NAT and metadata of a network will be further kinds of `Change` beside these, in a
namespace of its own joined to the bridge by a veth pair.

Any thread may call this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address
from typing import TypeAlias

from ecompute.cluster.addressing import is_unicast_mac
from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.cluster.errors import NetworkError

VXLAN_PORT = 4789
OVERHEAD_BYTES = 50
"""Outer Ethernet, IPv4, UDP and VXLAN headers: a network's MTU is the underlay's less this."""

ZEROS = "00:00:00:00:00:00"
"""The address of the entries for broadcast, multicast and unknown destinations."""

BRIDGE_PREFIX = "ecb"
VXLAN_PREFIX = "ecx"
TAP_PREFIX = "ect"

_OURS = re.compile(rf"(?:{BRIDGE_PREFIX}|{VXLAN_PREFIX})([0-9a-f]{{6}})")


def bridge_name(vni: int) -> str:
    return f"{BRIDGE_PREFIX}{vni:06x}"


def vxlan_name(vni: int) -> str:
    return f"{VXLAN_PREFIX}{vni:06x}"


def tap_name(interface_uuid: str) -> str:
    """Return the tap's name, 14 characters of the 15 that the kernel allows."""
    return TAP_PREFIX + interface_uuid.replace("-", "").lower()[:11]


def vni_of(device_name: str) -> int | None:
    """Return the VNI in the name of a bridge or VXLAN device of ours."""
    match = _OURS.fullmatch(device_name)
    return int(match[1], 16) if match else None


def bridge_mac(vni: int) -> str:
    """Return the bridge's own MAC: given, else it would change with every port that comes or goes."""
    return "06:ec:00:" + vni.to_bytes(3, "big").hex(":")


def mtu_over(underlay_mtu: int) -> int:
    """Return the MTU of a network whose packets travel over an underlay of ``underlay_mtu``."""
    return underlay_mtu - OVERHEAD_BYTES


# --- wanted --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WantedNetwork:
    """One network as it is to be on this host."""

    uuid: str
    vni: int
    mtu: int
    local: str
    """This host's underlay address."""
    peers: frozenset[str] = frozenset()
    """The underlay addresses of the other member hosts."""
    entries: frozenset[tuple[str, str]] = frozenset()
    """(MAC, underlay address) of every port on another host."""
    taps: frozenset[str] = frozenset()
    """The taps of this host's own ports; those that exist belong on the bridge."""
    problems: tuple[str, ...] = field(default=(), compare=False)
    """Records that could not be used, one line each. They cost their own host its place, no other."""

    def forwarding(self) -> frozenset[tuple[str, str]]:
        return self.entries | {(ZEROS, peer) for peer in self.peers}


def wanted(network: Network, provider: str, ports: Iterable[Port], hosts: Iterable[NetworkHost]) -> WantedNetwork:
    """Return what ``network`` is to be on the host ``provider``, one of its members.

    Two ports with one MAC are a guest that moves: the higher epoch holds.

    Raises:
        NetworkError: this host's own record is missing or says what cannot be.
    """
    problems: list[str] = []
    underlays: dict[str, str] = {}
    for host in hosts:
        if (reason := _refusal(host.underlay)) is None or host.provider == provider:
            underlays[host.provider] = host.underlay
        else:
            problems.append(f"host {host.provider}: its underlay address {host.underlay!r} {reason}")
    local = underlays.pop(provider, None)
    if local is None:
        raise NetworkError(f"network {network.uuid}: host {provider} has no underlay address among its members")
    reason = _refusal(local)
    if reason is not None and (underlays or reason != _LOOPBACK):
        raise NetworkError(
            f"network {network.uuid}: the underlay address {local!r} of this host {reason}",
            hint="set `underlay:` in its configuration to an address at which other hosts reach it",
        )
    newest: dict[str, Port] = {}
    for port in ports:
        if not is_unicast_mac(port.mac):
            problems.append(f"port {port.interface_uuid}: {port.mac!r} is not a MAC that an interface can have")
        elif (other := newest.get(port.mac)) is None or other.epoch < port.epoch:
            newest[port.mac] = port
    taps = frozenset(tap_name(port.interface_uuid) for port in newest.values() if port.provider == provider)
    # A host with our own underlay address would be sent its packets to ourselves.
    return WantedNetwork(
        uuid=network.uuid,
        vni=network.vni,
        mtu=network.mtu,
        local=local,
        peers=frozenset(underlays.values()) - {local},
        entries=frozenset(
            (mac, underlay)
            for mac, port in newest.items()
            if (underlay := underlays.get(port.provider)) is not None and underlay != local
        ),
        taps=taps,
        problems=tuple(problems),
    )


_LOOPBACK = "is loopback"


def _refusal(underlay: str) -> str | None:
    try:
        address = IPv4Address(underlay)
    except AddressValueError:
        return "is not an IPv4 address"
    if address.is_loopback:
        return _LOOPBACK
    if address.is_multicast or address.is_unspecified or address == IPv4Address("255.255.255.255"):
        return "is not the address of one host"
    return None


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
    mtu: int = 0
    is_up: bool = False
    is_hardened: bool = False
    is_attached: bool = False
    """To our bridge."""


@dataclass(frozen=True)
class FoundPort:
    """A port of our bridge other than the VXLAN device, or a tap that should be one."""

    name: str
    is_hardened: bool


@dataclass(frozen=True)
class FoundNetwork:
    vni: int
    bridge: FoundBridge | None = None
    vxlan: FoundVxlan | None = None
    entries: frozenset[tuple[str, str]] = frozenset()
    """Ours: (MAC, underlay address)."""
    foreign_entries: frozenset[tuple[str, str]] = frozenset()
    """Those of others that do the same as one of ours would; the rest of theirs is not shown."""
    ports: frozenset[FoundPort] = frozenset()
    loose: frozenset[FoundPort] = frozenset()
    """Taps that were asked for and are there, but not on our bridge."""
    is_guarded: bool = False
    """The filter is in place (it is one for all networks)."""


# --- changes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guard:
    """Put the filter in place that keeps guests from the host."""


@dataclass(frozen=True)
class Unguard:
    """Take the filter away: no network of ours is left on this host."""


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
class AttachTap:
    """Put a tap on the bridge again: libvirt did so when it made it, and does not look after it."""

    vni: int
    device: str


@dataclass(frozen=True)
class SetMtu:
    device: str
    mtu: int


@dataclass(frozen=True)
class Harden:
    """No IPv6, and no answer to ARP for any of the host's addresses."""

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


LinkChange: TypeAlias = (
    AddBridge
    | TuneBridge
    | DeleteBridge
    | AddVxlan
    | DeleteVxlan
    | AttachVxlan
    | AttachTap
    | SetMtu
    | Harden
    | SetUp
    | PutEntry
    | DropEntry
)
Change: TypeAlias = Guard | Unguard | LinkChange


def plan(wanted: WantedNetwork | None, found: FoundNetwork) -> tuple[Change, ...]:
    """Return the changes that lead from ``found`` to ``wanted``; to nothing, if that is None.

    Raises:
        NetworkError: a device has our name and is not ours, or guests' ports are still on a bridge
            that is to go.
    """
    _check_ours(found)
    if wanted is None:
        return _plan_removal(found)
    assert wanted.vni == found.vni
    changes: list[Change] = [] if found.is_guarded else [Guard()]
    changes += _plan_bridge(wanted, found.bridge)
    changes += _plan_vxlan(wanted, found)
    changes += [Harden(name) for name in sorted(_soft_taps(found.ports | found.loose))]
    changes += [AttachTap(wanted.vni, port.name) for port in sorted(found.loose, key=lambda port: port.name)]
    changes += [
        SetUp(name)
        for name, device in ((bridge_name(wanted.vni), found.bridge), (vxlan_name(wanted.vni), _kept(wanted, found)))
        if device is None or not device.is_up
    ]
    return tuple(changes)


def _soft_taps(ports: frozenset[FoundPort]) -> list[str]:
    """Return the taps that are not hardened. What else an operator has put on our bridge is his."""
    return [port.name for port in ports if not port.is_hardened and port.name.startswith(TAP_PREFIX)]


def _check_ours(found: FoundNetwork) -> None:
    bridge, vxlan, vni = found.bridge, found.vxlan, found.vni
    hint = "rename or remove it: names that begin with ecb and ecx are ours"
    if bridge is not None and bridge.kind != "bridge":
        raise NetworkError(f"{bridge_name(vni)} is a device of kind {bridge.kind!r}, not our bridge", hint=hint)
    if vxlan is not None and (vxlan.kind != "vxlan" or vxlan.vni != vni):
        what = f"VNI {vxlan.vni}" if vxlan.kind == "vxlan" else f"kind {vxlan.kind!r}"
        raise NetworkError(f"{vxlan_name(vni)} is a device of {what}, not our VXLAN device of VNI {vni}", hint=hint)


def _plan_removal(found: FoundNetwork) -> tuple[Change, ...]:
    if found.ports:
        names = ", ".join(sorted(port.name for port in found.ports))
        raise NetworkError(f"{bridge_name(found.vni)} still has ports: {names}", hint="stop the guests behind them")
    changes: list[Change] = []
    if found.vxlan is not None:
        changes.append(DeleteVxlan(found.vni))
    if found.bridge is not None:
        changes.append(DeleteBridge(found.vni))
    return tuple(changes)


def _plan_bridge(wanted: WantedNetwork, bridge: FoundBridge | None) -> list[Change]:
    vni = wanted.vni
    if bridge is None:
        return [AddBridge(vni, wanted.mtu), Harden(bridge_name(vni))]
    changes: list[Change] = [] if bridge.is_hardened else [Harden(bridge_name(vni))]
    if not bridge.is_tuned or bridge.mac != bridge_mac(vni) or bridge.mtu != wanted.mtu:
        changes.append(TuneBridge(vni, wanted.mtu))
    return changes


def _kept(wanted: WantedNetwork, found: FoundNetwork) -> FoundVxlan | None:
    """Return the VXLAN device unless it must be made anew: the kernel does not change these in place."""
    vxlan = found.vxlan
    if vxlan is None or vxlan.local != wanted.local or vxlan.port != VXLAN_PORT or vxlan.is_learning:
        return None
    return vxlan


def _plan_vxlan(wanted: WantedNetwork, found: FoundNetwork) -> list[Change]:
    vni, name = wanted.vni, vxlan_name(wanted.vni)
    kept = _kept(wanted, found)
    changes: list[Change] = []
    if kept is None:
        if found.vxlan is not None:
            changes.append(DeleteVxlan(vni))
        changes += [AddVxlan(vni, wanted.local, wanted.mtu), Harden(name), AttachVxlan(vni)]
    else:
        if not kept.is_hardened:
            changes.append(Harden(name))
        if kept.mtu != wanted.mtu:
            changes.append(SetMtu(name, wanted.mtu))
        # A bridge made anew has no ports.
        if not kept.is_attached or found.bridge is None:
            changes.append(AttachVxlan(vni))
    forwarding = wanted.forwarding()
    entries = found.entries if kept is not None else frozenset()
    foreign = found.foreign_entries if kept is not None else frozenset()
    moved = {mac for mac, _ in wanted.entries}
    changes += [PutEntry(vni, mac, underlay) for mac, underlay in sorted(forwarding - entries - foreign)]
    # Where a MAC is sent elsewhere now, putting it there has already replaced the old entry.
    changes += [DropEntry(vni, mac, underlay) for mac, underlay in sorted(entries - forwarding) if mac not in moved]
    return changes
