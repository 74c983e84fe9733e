"""The changes that lead from what is found of a network on this host to what it is to be.

Invariants:

- Pure: no clock, no I/O, no logging. `plan` applied to what it was given leads to what was wanted,
  and planned again it is empty.
- Before a device goes up it is hardened (nothing on it answers for the host) and the filter is in place:
  a network killed half-way is down or closed, never open.
- A device whose MTU was below that of IPv6 gets IPv6 anew, with the kernel's own settings: it is hardened after that.
- What is ours is known by its name and kind. A device that has our name and is something else is an
  error, and is not touched. On our VXLAN device a permanent, plain entry with a destination is ours;
  every other entry (dynamic, static, of another port or VNI, marked by a controller, or the kernel's
  own) is somebody else's and is left. So is a neighbour that is not permanent, or marked.
- A bridge that still has ports is not removed: a guest may be behind them.

Any thread may call this.
"""

from __future__ import annotations

from ecompute.cluster.addressing import mtu_over
from ecompute.cluster.errors import NetworkError
from ecompute.network.names import (
    TAP_PREFIX,
    VXLAN_PORT,
    bridge_mac,
    bridge_name,
    vlan_name,
    vxlan_name,
)
from ecompute.network.terms import (
    AddBridge,
    AddVlan,
    AddVxlan,
    AttachTap,
    AttachVlan,
    AttachVxlan,
    Change,
    DeleteBridge,
    DeleteVlan,
    DeleteVxlan,
    DropEntry,
    DropNeighbour,
    FoundBridge,
    FoundNetwork,
    FoundPort,
    FoundVlan,
    FoundVxlan,
    Guard,
    Harden,
    Part,
    Physical,
    PutEntry,
    PutNeighbour,
    SetMtu,
    SetUp,
    TuneBridge,
    Unguard,
    WantedNetwork,
)

IPV6_MTU = 1280
"""The least with which a device has IPv6 (RFC 8200, section 5)."""


def plan(wanted: WantedNetwork | None, found: FoundNetwork) -> tuple[Change, ...]:
    """Return the changes that lead from ``found`` to ``wanted``; to nothing, if that is None.

    Raises:
        NetworkError: a device has our name and is not ours, guests' ports are still on a bridge that is to
            go, or the operator's bridge is missing.
    """
    _check_ours(found)
    if wanted is None:
        return _plan_removal(found)
    assert wanted.vni == found.vni
    mtu = mtu_here(wanted, found)
    physical = wanted.physical
    changes: list[Change] = [] if found.is_guarded else [Guard(part(wanted, found))]
    if physical is None:
        changes += _plan_bridge(found, mtu)
        changes += _plan_vxlan(wanted, found, mtu)
        is_up = [_is_up(found.bridge), _is_up(_kept(wanted, found))]
        names = [bridge_name(wanted.vni), vxlan_name(wanted.vni)]
    elif found.carrier_mtu is None:
        raise NetworkError(
            f"network {wanted.uuid} is on the bridge {physical.outlet}, which this host does not have",
            hint="make it, or name another one under `bridges` in compute.yaml",
        )
    elif physical.vlan is not None:
        changes += _plan_bridge(found, mtu)
        changes += _plan_vlan(wanted, physical.vlan, found, mtu)
        is_up = [_is_up(found.bridge), _is_up(_kept_vlan(physical, found))]
        names = [bridge_name(wanted.vni), vlan_name(wanted.vni)]
    else:
        is_up, names = [], []
    changes += _plan_taps(wanted, found, mtu)
    changes += [SetUp(name) for name, is_ready in zip(names, is_up, strict=True) if not is_ready]
    return tuple(changes)


def mtu_here(wanted: WantedNetwork, found: FoundNetwork) -> int:
    """Return the network's MTU here: what carries it may have become smaller than it was."""
    if found.carrier_mtu is None:
        return wanted.mtu
    return min(wanted.mtu, mtu_over(found.carrier_mtu) if wanted.physical is None else found.carrier_mtu)


def _is_up(device: FoundBridge | FoundVxlan | FoundVlan | None) -> bool:
    return device is not None and device.is_up


def _is_soft(device: FoundBridge | FoundVxlan | FoundVlan | FoundPort, mtu: int) -> bool:
    """Whether it is to be hardened, once it has ``mtu``."""
    return not device.is_hardened or (device.mtu is not None and device.mtu < IPV6_MTU <= mtu)


def _plan_taps(wanted: WantedNetwork, found: FoundNetwork, mtu: int) -> list[Change]:
    changes: list[Change] = []
    ports = {port.name: port for port in found.ports | found.loose}
    to_set: set[str] = set()
    if wanted.physical is None:
        to_set = {name for name, port in ports.items() if port.mtu not in (None, mtu)} & wanted.tap_names
        changes += [SetMtu(name, mtu) for name in sorted(to_set)]
    soft = {name for name, port in ports.items() if name.startswith(TAP_PREFIX) and not port.is_hardened}
    soft |= {name for name in to_set if _is_soft(ports[name], mtu)}
    changes += [Harden(name) for name in sorted(soft)]  # what else an operator has put on our bridge is his
    loose = {port.name for port in found.loose} & wanted.tap_names
    return changes + [AttachTap(wanted.tap_bridge, name) for name in sorted(loose)]


def part(wanted: WantedNetwork, found: FoundNetwork) -> Part:
    """Return the network's part of the filter. A tap keeps its rules until it is gone, whoever forgets its port."""
    existing = {port.name for port in found.ports | found.loose}
    members = wanted.peers if wanted.physical is None else None
    return Part(wanted.vni, wanted.taps, members, wanted.gateways, (found.ruled & existing) - wanted.tap_names)


def _check_ours(found: FoundNetwork) -> None:
    bridge, vxlan, vlan, vni = found.bridge, found.vxlan, found.vlan, found.vni
    hint = "rename or remove it: names that begin with ecb, ecx and ecv are ours"
    if bridge is not None and bridge.kind != "bridge":
        raise NetworkError(f"{bridge_name(vni)} is a device of kind {bridge.kind!r}, not our bridge", hint=hint)
    if vxlan is not None and (vxlan.kind != "vxlan" or vxlan.vni != vni):
        what = f"VNI {vxlan.vni}" if vxlan.kind == "vxlan" else f"kind {vxlan.kind!r}"
        raise NetworkError(f"{vxlan_name(vni)} is a device of {what}, not our VXLAN device of VNI {vni}", hint=hint)
    if vlan is not None and vlan.kind != "vlan":
        raise NetworkError(f"{vlan_name(vni)} is a device of kind {vlan.kind!r}, not our VLAN device", hint=hint)


def guests(found: FoundNetwork) -> frozenset[str]:
    """Return the ports that keep a network from being removed: those on its bridge, and taps that have rules."""
    return frozenset(
        [port.name for port in found.ports] + [port.name for port in found.loose if port.name in found.ruled]
    )


def _plan_removal(found: FoundNetwork) -> tuple[Change, ...]:
    if names := guests(found):
        listed = ", ".join(sorted(names))
        raise NetworkError(f"{bridge_name(found.vni)} still has ports: {listed}", hint="stop the guests behind them")
    changes: list[Change] = []
    if found.vxlan is not None:
        changes.append(DeleteVxlan(found.vni))
    if found.vlan is not None:
        changes.append(DeleteVlan(found.vni))
    if found.bridge is not None:
        changes.append(DeleteBridge(found.vni))
    if found.has_rules:
        changes.append(Unguard(found.vni))
    return tuple(changes)


def _plan_bridge(found: FoundNetwork, mtu: int) -> list[Change]:
    vni, bridge = found.vni, found.bridge
    if bridge is None:
        return [AddBridge(vni, mtu), Harden(bridge_name(vni))]
    changes: list[Change] = []
    if not bridge.is_tuned or bridge.mac != bridge_mac(vni) or bridge.mtu != mtu:
        changes.append(TuneBridge(vni, mtu))
    return [*changes, Harden(bridge_name(vni))] if _is_soft(bridge, mtu) else changes


def _kept_vlan(physical: Physical, found: FoundNetwork) -> FoundVlan | None:
    """Return the VLAN device unless it must be made anew."""
    vlan = found.vlan
    return vlan if vlan is not None and (vlan.outlet, vlan.vlan) == (physical.outlet, physical.vlan) else None


def _plan_vlan(wanted: WantedNetwork, vlan: int, found: FoundNetwork, mtu: int) -> list[Change]:
    assert wanted.physical is not None
    vni, name = wanted.vni, vlan_name(wanted.vni)
    kept = _kept_vlan(wanted.physical, found)
    changes: list[Change] = []
    if kept is None:
        if found.vlan is not None:
            changes.append(DeleteVlan(vni))
        changes += [AddVlan(vni, wanted.physical.outlet, vlan), Harden(name), SetMtu(name, mtu), AttachVlan(vni)]
        return changes
    if kept.mtu != mtu:
        changes.append(SetMtu(name, mtu))
    if _is_soft(kept, mtu):
        changes.append(Harden(name))
    if not kept.is_attached or found.bridge is None:
        changes.append(AttachVlan(vni))
    return changes


def _kept(wanted: WantedNetwork, found: FoundNetwork) -> FoundVxlan | None:
    """Return the VXLAN device unless it must be made anew: the kernel does not change these in place."""
    vxlan = found.vxlan
    if vxlan is None or vxlan.local != wanted.local or vxlan.port != VXLAN_PORT:
        return None
    if vxlan.is_learning or not vxlan.is_proxy:
        return None
    return vxlan


def _plan_vxlan(wanted: WantedNetwork, found: FoundNetwork, mtu: int) -> list[Change]:
    assert wanted.local is not None
    vni, name = wanted.vni, vxlan_name(wanted.vni)
    kept = _kept(wanted, found)
    changes: list[Change] = []
    if kept is None:
        if found.vxlan is not None:
            changes.append(DeleteVxlan(vni))
        changes += [AddVxlan(vni, wanted.local, mtu), Harden(name), AttachVxlan(vni)]
    else:
        if kept.mtu != mtu:
            changes.append(SetMtu(name, mtu))
        if _is_soft(kept, mtu):
            changes.append(Harden(name))
        # A bridge made anew has no ports.
        if not kept.is_attached or found.bridge is None:
            changes.append(AttachVxlan(vni))
    forwarding = wanted.forwarding()
    entries = found.entries if kept is not None else frozenset()
    foreign = found.foreign_entries if kept is not None else frozenset()
    lacking, gone = forwarding - entries - foreign, entries - forwarding
    changes += [PutEntry(vni, mac, underlay) for mac, underlay in sorted(lacking)]
    # Where a MAC is sent elsewhere now, putting it there has already replaced the old entry.
    moved = {mac for mac, _ in wanted.entries} if gone else set()
    changes += [DropEntry(vni, mac, underlay) for mac, underlay in sorted(gone) if mac not in moved]
    is_kept = kept is not None and not _is_soft(kept, mtu)
    return changes + _plan_neighbours(wanted, found.neighbours if kept is not None else frozenset(), is_kept=is_kept)


def left_to_others(wanted: WantedNetwork, found: FoundNetwork) -> frozenset[tuple[str, str]]:
    """Return the foreign entries that are still there after the plan: a MAC of a port is taken over."""
    forwarding, ours = wanted.forwarding(), {mac for mac, _ in wanted.entries}
    return frozenset(entry for entry in found.foreign_entries if entry in forwarding or entry[0] not in ours)


def _plan_neighbours(wanted: WantedNetwork, found: frozenset[tuple[str, str]], *, is_kept: bool) -> list[Change]:
    if not is_kept:
        found = frozenset(one for one in found if ":" not in one[0])  # hardening takes those of IPv6
    lacking = wanted.neighbours - found
    put = {address for address, _ in lacking}
    changes: list[Change] = [PutNeighbour(wanted.vni, address, mac) for address, mac in sorted(lacking)]
    # Where an address has another MAC now, putting it has already replaced the old one.
    changes += [DropNeighbour(wanted.vni, ip) for ip, _ in sorted(found - wanted.neighbours) if ip not in put]
    return changes
