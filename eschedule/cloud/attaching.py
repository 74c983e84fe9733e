"""Which interface of an instance an address is handed to: chosen out of what is there. Pure.

Whoever hands out an address, floating or routed, chooses here, so that both are refused in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from ecompute.cluster.documents import Interface, Network, NetworkKind, Port
from ecompute.cluster.errors import Ambiguous, Conflict, NotFound, Refused, one_line, some_of
from ecompute.cluster.store import Versioned

MAX_ROUTED = 4
"""Addresses that one interface may be handed without translation: all that an instance has goes in one transaction."""


@dataclass(frozen=True)
class Place:
    """One interface of an instance, with its network and its port."""

    interface: Interface
    network: Network
    port: Versioned[Port]


def choose(
    name: str,
    places: Sequence[Place],
    *,
    interface: str | None,
    network: str | None,
    network_name: str | None = None,
    needs_gateway: bool = True,
) -> Place:
    """Return the one of ``places`` that is meant and can have an address.

    Args:
        name: of the instance, for errors.
        interface: only the one with this uuid.
        network: only those on the network of this name or uuid.
        network_name: what people call that; None: the same.
        needs_gateway: whether the address comes from outside of the network.

    Raises:
        NotFound: there is none, or not the one that was named.
        Refused: those that are meant cannot have one; says why.
        Ambiguous: several can.
    """
    meant = [
        place
        for place in places
        if (interface is None or place.interface.uuid == interface)
        and (network is None or network in (place.network.uuid, place.network.name))
    ]
    if not meant:
        which = f" {one_line(interface, 80)}" if interface is not None else ""
        where = f" on network {one_line(network_name or network, 80)}" if network is not None else ""
        raise NotFound(f"{name} has no interface{which}{where}", hint=f"see `eschedule interface list {name}`")
    reasons = {place.interface.uuid: _why_not(place, needs_gateway=needs_gateway) for place in meant}
    able = [place for place in meant if reasons[place.interface.uuid] is None]
    if not able:
        told = "; ".join(sorted({reason for reason in reasons.values() if reason is not None}))
        raise Refused(f"no address can be handed to {name}: {told}")
    if len(able) > 1:
        some = some_of([f"{place.interface.uuid} on {place.network.name}" for place in able], 4)
        raise Ambiguous(f"{name} has {len(able)} interfaces for it: {some}", hint="say which, with --interface")
    return able[0]


def check_outside(ip: str, network: Network) -> None:
    """See that an address of the outside is not one of the network's own: its guests would look for it among them.

    Raises:
        Refused: it is.
    """
    if network.cidr is not None and IPv4Address(ip) in IPv4Network(network.cidr):
        raise Refused(
            f"{ip} lies in the range of network {network.name} ({network.cidr})",
            hint="attach it to an interface on another network, or take an address of another pool",
        )


def check_routed(name: str, port: Port) -> None:
    """See that the interface may be handed one more address without translation.

    Raises:
        Conflict: it has as many as it may.
    """
    if len(port.routed) >= MAX_ROUTED:
        raise Conflict(
            f"interface {port.interface_uuid} of {name} has {MAX_ROUTED} routed addresses, which is all it may have",
            hint=f"see `eschedule interface show {name} {port.interface_uuid}`",
        )


def _why_not(place: Place, *, needs_gateway: bool) -> str | None:
    if not any(":" not in address for address in place.interface.addresses):
        return f"its interface on {place.network.name} has no IPv4 address"
    if not needs_gateway:
        return None
    if place.network.kind is not NetworkKind.VIRTUAL:
        return f"network {place.network.name} is a physical one, which has no gateway of ours"
    if place.network.gateway is None:
        return f"network {place.network.name} has no gateway"
    return None
