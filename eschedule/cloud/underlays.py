"""What a network's making takes from what hosts say of their underlays. Pure.

Each host writes that itself: so one that lies, by mistake or on purpose, must not keep anybody from a network. What
cannot be is passed over, and said. What can be and is in the way is refused by name, where a person asked for that
range and can choose another. Of a default network, whose range the operator chose, one host alone is not believed to
be in the way: more than half of the hosts would have to be, and one that is too narrow for any network is passed over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ecompute.cluster.addressing import OVERHEAD_BYTES, mtu_over
from ecompute.cluster.documents import Node
from ecompute.cluster.errors import InvalidInput, one_line
from eschedule.cloud.network_request import LARGEST_MTU, PHYSICAL_MTU, SMALLEST_MTU, SMALLEST_MTU6, NetworkRequest

_LARGEST_UNDERLAY_MTU = LARGEST_MTU + 1
"""Loopback's."""


@dataclass(frozen=True)
class Underlay:
    """What one host says of its own."""

    host: str
    address: ipaddress.IPv4Address
    mtu: int
    """In bytes."""


def believed(nodes: Iterable[Node]) -> tuple[list[Underlay], list[str]]:
    """Return the underlays that can be, and one line for each that cannot."""
    found, notes = [], []
    for node in nodes:
        host = one_line(node.name, 80)
        address = _address(node.underlay)
        if address is None:
            notes.append(f"host {host} is passed over: its underlay cannot be {one_line(node.underlay, 40)!r}")
        elif not SMALLEST_MTU <= node.underlay_mtu <= _LARGEST_UNDERLAY_MTU:
            notes.append(f"host {host} is passed over: its underlay cannot have an MTU of {node.underlay_mtu}")
        else:
            found.append(Underlay(host, address, node.underlay_mtu))
    return found, notes


def check_underlays(request: NetworkRequest, underlays: Sequence[Underlay], *, is_default: bool = False) -> list[str]:
    """See that no host is reached at an address that would be a guest's.

    Args:
        is_default: the range was not chosen by who asks: half of the hosts do not keep anybody from it.

    Returns:
        What is to be said of those that are in it all the same.

    Raises:
        InvalidInput: one is; of a default network, more than half of them are.
    """
    if request.cidr is None:
        return []
    cidr = ipaddress.IPv4Network(request.cidr)
    inside = [one for one in underlays if one.address in cidr]
    if not inside:
        return []
    first = inside[0]
    if is_default and 2 * len(inside) <= len(underlays):
        return [f"{cidr} overlaps the underlay that host {one.host} says it has, {one.address}" for one in inside]
    raise InvalidInput(
        f"{cidr} overlaps the underlay: host {first.host} is {first.address}",
        hint="choose another range; `eschedule hosts` says who is where",
    )


def mtu_of(
    request: NetworkRequest, underlays: Sequence[Underlay], *, is_default: bool = False
) -> tuple[int, list[str]]:
    """Return the MTU in bytes: what the narrowest underlay leaves, or what a physical network has.

    Args:
        is_default: hosts that are too narrow for a network are passed over, as long as there are others.

    Returns:
        It, and what is to be said of it.

    Raises:
        InvalidInput: it is too small for a network.
    """
    if request.mtu is not None:
        return request.mtu, []
    floor = SMALLEST_MTU if request.cidr6 is None else SMALLEST_MTU6
    wide = [one for one in underlays if mtu_over(one.mtu) >= floor]
    counted = wide if is_default and wide else underlays
    notes = [
        f"host {one.host} is passed over: an underlay of {one.mtu} leaves no network an MTU of {floor}"
        for one in underlays
        if one not in counted
    ]
    if not counted:
        return mtu_over(PHYSICAL_MTU), notes
    narrowest = min(counted, key=lambda one: one.mtu)
    mtu = mtu_over(narrowest.mtu)
    if mtu < floor:
        what, advice = "a network", f"raise the MTU there to {floor + OVERHEAD_BYTES} or more"
        if request.cidr6 is not None:
            what, advice = "IPv6", f"{advice}, or leave the IPv6 range out"
        raise InvalidInput(
            f"the underlay of host {narrowest.host} leaves an MTU of {mtu}, and {what} needs {floor}", hint=advice
        )
    if mtu < mtu_over(PHYSICAL_MTU) and any(one.mtu > narrowest.mtu for one in counted):
        notes.append(f"the MTU is {mtu} for all: host {narrowest.host} has the narrowest underlay, {narrowest.mtu}")
    return mtu, notes


def _address(text: str) -> ipaddress.IPv4Address | None:
    """Return the address, if packets of other hosts could come to it."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return None
    # The blocks with a meaning of their own: this network, loopback, multicast and beyond.
    is_elsewhere = address in ipaddress.IPv4Network("0.0.0.0/8") or address in ipaddress.IPv4Network("224.0.0.0/3")
    return None if is_elsewhere or address.is_loopback else address
