"""What a network is to be on this host, as etcd says.

A virtual network is a VXLAN segment. On every host with a member it is one bridge and one VXLAN device; the
forwarding entries of that device come from the memberships and ports in etcd: one entry of zeros for
every other member host (broadcast and what is not known go there), and one for the MAC of every port
elsewhere, so that an unknown destination is the exception. Nothing is learned from the underlay, and
nothing is multicast on it. Who asks for the address of a port elsewhere (ARP, neighbour discovery) is
answered by the device itself out of permanent neighbour entries; a question that it cannot answer ends
there. So in steady state nothing is flooded.

A physical network is a bridge of the operator, or a VLAN on it: then a bridge of ours stands on a VLAN
device upon it. What is behind the bridge is the operator's.

Pure: no clock, no I/O, no logging; what leads there is `plan`'s. Any thread may call this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, ip_interface
from itertools import chain
from types import MappingProxyType

from ecompute.cluster.addressing import is_unicast_mac
from ecompute.cluster.documents import Network, NetworkHost, NetworkKind, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network.names import is_tap_name, link_local, tap_name
from ecompute.network.terms import Physical, Tap, WantedNetwork


def wanted(
    network: Network,
    provider: str,
    ports: Iterable[Port],
    hosts: Iterable[NetworkHost],
    bridges: Mapping[str, str] = MappingProxyType({}),
) -> WantedNetwork:
    """Return what ``network`` is to be on the host ``provider``, one of its members.

    Two ports with one MAC are a guest that moves: the higher epoch holds.

    Args:
        bridges: what operators call the host's bridges, and their names.

    Raises:
        NetworkError: this host's own record is missing or says what cannot be, or it has no such bridge.
    """
    problems: list[str] = []
    newest = _newest(list(ports), problems)
    taps = frozenset(
        tap for port in newest if port.provider == provider and (tap := _tap(network, port, problems)) is not None
    )
    if network.kind is NetworkKind.PHYSICAL:
        made = WantedNetwork(network.uuid, network.vni, network.mtu, None, _physical(network, bridges))
    else:
        made = _virtual(network, provider, newest, hosts, problems)
    return replace(made, taps=taps, problems=tuple(problems))


def _physical(network: Network, bridges: Mapping[str, str]) -> Physical:
    outlet = bridges.get(network.physical or "")
    if outlet is None:
        raise NetworkError(
            f"network {network.uuid} is on the bridge that operators call {network.physical!r}; this host has none",
            hint="name it under `bridges` in compute.yaml, on hosts that have it",
        )
    return Physical(outlet, network.vlan)


def _virtual(
    network: Network, provider: str, newest: list[Port], hosts: Iterable[NetworkHost], problems: list[str]
) -> WantedNetwork:
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
        peers=frozenset(theirs.values()),
        entries=frozenset([(port.mac, theirs[port.provider]) for port in elsewhere]),
        neighbours=_neighbours(elsewhere, problems),
        gateways=gateways,
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
