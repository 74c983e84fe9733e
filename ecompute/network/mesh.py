"""What a network is to be on this host, and the changes that make it so.

A network is a VXLAN segment. On every host with a member it is one bridge and one VXLAN device; the
forwarding entries of that device come from the memberships and ports in etcd: one entry of zeros for
every other member host (broadcast and what is not known go there), and one for the MAC of every port
elsewhere, so that an unknown destination is the exception. Nothing is learned from the underlay, and
nothing is multicast on it. Who asks for the address of a port elsewhere (ARP, neighbour discovery) is
answered by the device itself out of permanent neighbour entries; a question that it cannot answer ends
there. So in steady state nothing is flooded.

Invariants:

- Pure: no clock, no I/O, no logging. `plan` applied to what it was given leads to what was wanted,
  and planned again it is empty.
- Before a device goes up it is hardened (nothing on it answers for the host) and the filter is in place:
  a network killed half-way is down or closed, never open.
- What is ours is known by its name and kind. A device that has our name and is something else is an
  error, and is not touched. On our VXLAN device a permanent, plain entry with a destination is ours;
  every other entry (dynamic, static, of another port or VNI, marked by a controller, or the kernel's
  own) is somebody else's and is left. So is a neighbour that is not permanent, or marked.
- A bridge that still has ports is not removed: a guest may be behind them.

DHCP, gateway, NAT and metadata of a network will be further kinds of `Change` beside these, in a
namespace of its own joined to the bridge by a veth pair.

Any thread may call this.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, ip_interface
from itertools import chain

from ecompute.cluster.addressing import is_unicast_mac
from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network.names import (
    TAP_PREFIX,
    VXLAN_PORT,
    bridge_mac,
    bridge_name,
    is_tap_name,
    link_local,
    tap_name,
    vxlan_name,
)
from ecompute.network.terms import (
    AddBridge,
    AddVxlan,
    AttachTap,
    AttachVxlan,
    Change,
    DeleteBridge,
    DeleteVxlan,
    DropEntry,
    DropNeighbour,
    FoundBridge,
    FoundNetwork,
    FoundPort,
    FoundVxlan,
    Guard,
    Harden,
    Part,
    PutEntry,
    PutNeighbour,
    SetMtu,
    SetUp,
    Tap,
    TuneBridge,
    Unguard,
    WantedNetwork,
)

# --- wanted --------------------------------------------------------------------------------------


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
    newest = _newest(list(ports), problems)
    taps = frozenset(
        tap for port in newest if port.provider == provider and (tap := _tap(network, port, problems)) is not None
    )
    gateways, unusable = plain_addresses(ip for ip in (network.gateway, network.gateway6) if ip is not None)
    problems += [f"its gateway cannot have the address {text!r}" for text in unusable]
    # A host with our own underlay address would be sent its packets to ourselves.
    theirs = {host: underlay for host, underlay in underlays.items() if underlay != local}
    elsewhere = [port for port in newest if port.provider in theirs]
    return WantedNetwork(
        uuid=network.uuid,
        vni=network.vni,
        mtu=network.mtu,
        local=local,
        peers=frozenset(underlays.values()) - {local},
        entries=frozenset([(port.mac, theirs[port.provider]) for port in elsewhere]),
        neighbours=_neighbours(elsewhere, problems),
        taps=taps,
        gateways=gateways,
        problems=tuple(problems),
    )


def _tap(network: Network, port: Port, problems: list[str]) -> Tap | None:
    name = tap_name(port.interface_uuid)
    if not is_tap_name(name):
        problems.append(f"port {port.interface_uuid!r}: that is no interface's uuid")
        return None
    plain, unusable = plain_addresses(port.addresses + port.routed)
    problems += [f"port {port.interface_uuid}: no interface can have the address {text!r}" for text in unusable]
    has_range = network.cidr is not None or network.cidr6 is not None
    return Tap(name, port.mac, tuple(sorted(set(plain))) if has_range else None)


def _newest(ports: list[Port], problems: list[str]) -> list[Port]:
    """Return those that hold: of two with one MAC the one with the higher epoch."""
    found = {port.mac: port for port in ports}
    if len(found) == len(ports) and all(map(_is_unicast_mac, found)):
        return ports
    newest: dict[str, Port] = {}
    for port in ports:
        if not _is_unicast_mac(port.mac):
            problems.append(f"port {port.interface_uuid}: {port.mac!r} is not a MAC that an interface can have")
        elif (other := newest.get(port.mac)) is None or other.epoch < port.epoch:
            newest[port.mac] = port
    return list(newest.values())


def _neighbours(ports: list[Port], problems: list[str]) -> frozenset[tuple[str, str]]:
    """Return (address, MAC) for all addresses of ``ports``; one that two have is the newer one's."""
    answers = [_answers(port.mac, port.addresses, port.routed) for port in ports]
    pairs = list(chain.from_iterable([answer for answer, _ in answers]))
    for port, (_, unusable) in zip(ports, answers, strict=True):
        if unusable:
            texts = ", ".join(map(repr, unusable))
            problems.append(f"port {port.interface_uuid}: no interface can have the address {texts}")
    if len(dict(pairs)) == len(pairs):
        return frozenset(pairs)
    in_order = sorted(ports, key=lambda port: (port.epoch, port.mac))
    newest = dict(pair for port in in_order for pair in _answers(port.mac, port.addresses, port.routed)[0])
    return frozenset(newest.items())


@lru_cache(maxsize=1 << 16)
def _answers(
    mac: str, addresses: tuple[str, ...], routed: tuple[str, ...]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return (address, MAC) for all addresses of a port, and what cannot be one. Kept: it is asked with every event."""
    plain, unusable = plain_addresses(addresses + routed)
    own = [link_local(mac)] if any(":" in address for address in plain) else []
    return tuple((address, mac) for address in [*plain, *own]), unusable


def plain_addresses(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return addresses, as the kernel writes them, without prefix lengths; and those that no port can have."""
    plain: list[str] = []
    unusable: list[str] = []
    for text in texts:
        try:
            address = ip_interface(text).ip
        except ValueError:
            unusable.append(text)
            continue
        special = address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local
        if special or "%" in text:
            unusable.append(text)
        else:
            plain.append(str(address))
    return tuple(plain), tuple(unusable)


_is_unicast_mac = lru_cache(maxsize=1 << 16)(is_unicast_mac)


_LOOPBACK = "is loopback"


@lru_cache(maxsize=1 << 13)
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


# --- plan ----------------------------------------------------------------------------------------


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
    changes: list[Change] = [] if found.is_guarded else [Guard(part(wanted, found))]
    changes += _plan_bridge(wanted, found.bridge)
    changes += _plan_vxlan(wanted, found)
    changes += [Harden(name) for name in sorted(_soft_taps(found.ports | found.loose))]
    loose = {port.name for port in found.loose} & wanted.tap_names
    changes += [AttachTap(wanted.vni, name) for name in sorted(loose)]
    changes += [
        SetUp(name)
        for name, device in ((bridge_name(wanted.vni), found.bridge), (vxlan_name(wanted.vni), _kept(wanted, found)))
        if device is None or not device.is_up
    ]
    return tuple(changes)


def part(wanted: WantedNetwork, found: FoundNetwork) -> Part:
    """Return the network's part of the filter. A tap keeps its rules until it is gone, whoever forgets its port."""
    existing = {port.name for port in found.ports | found.loose}
    return Part(wanted.vni, wanted.taps, wanted.peers, wanted.gateways, (found.ruled & existing) - wanted.tap_names)


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
    if found.has_rules:
        changes.append(Unguard(found.vni))
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
    if vxlan is None or vxlan.local != wanted.local or vxlan.port != VXLAN_PORT:
        return None
    if vxlan.is_learning or not vxlan.is_proxy:
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
    lacking, gone = forwarding - entries - foreign, entries - forwarding
    changes += [PutEntry(vni, mac, underlay) for mac, underlay in sorted(lacking)]
    # Where a MAC is sent elsewhere now, putting it there has already replaced the old entry.
    moved = {mac for mac, _ in wanted.entries} if gone else set()
    changes += [DropEntry(vni, mac, underlay) for mac, underlay in sorted(gone) if mac not in moved]
    return changes + _plan_neighbours(wanted, found.neighbours if kept is not None else frozenset(), kept)


def left_to_others(wanted: WantedNetwork, found: FoundNetwork) -> frozenset[tuple[str, str]]:
    """Return the foreign entries that are still there after the plan: a MAC of a port is taken over."""
    forwarding, ours = wanted.forwarding(), {mac for mac, _ in wanted.entries}
    return frozenset(entry for entry in found.foreign_entries if entry in forwarding or entry[0] not in ours)


def _plan_neighbours(wanted: WantedNetwork, found: frozenset[tuple[str, str]], kept: FoundVxlan | None) -> list[Change]:
    if kept is not None and not kept.is_hardened:
        found = frozenset(one for one in found if ":" not in one[0])  # hardening takes those of IPv6
    lacking = wanted.neighbours - found
    put = {address for address, _ in lacking}
    changes: list[Change] = [PutNeighbour(wanted.vni, address, mac) for address, mac in sorted(lacking)]
    # Where an address has another MAC now, putting it has already replaced the old one.
    changes += [DropNeighbour(wanted.vni, ip) for ip, _ in sorted(found - wanted.neighbours) if ip not in put]
    return changes
