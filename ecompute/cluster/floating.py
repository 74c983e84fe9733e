"""Floating addresses: the ranges that they come from, and which interface has which. Pure.

What is taken and where to begin come in as arguments, as in `ecompute.cluster.addressing`; nothing here
reserves an address. A pool's range is all of it to be given out: /16 to /32, IPv4.

An attached address is said twice, by ``/floating/<ip>`` and by the port; both change in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from msgspec import structs

from ecompute.cluster.addressing import parse_cidr
from ecompute.cluster.documents import Floating, Pool, Port
from ecompute.cluster.errors import AddressesExhausted, InvalidInput

LONGEST_PREFIX = 32
EXAMPLE = "203.0.113.0/24"


def parse_range(cidr: str) -> IPv4Network:
    """Return the range that ``cidr`` names, if a pool can have it.

    Raises:
        InvalidInput: see `ecompute.cluster.addressing.parse_cidr`.
    """
    return parse_cidr(cidr, longest_prefix=LONGEST_PREFIX, example=EXAMPLE)


def overlapping(cidr: IPv4Network, pools: Iterable[Pool]) -> Pool | None:
    """Return the first of ``pools`` that has an address of ``cidr``; one that cannot be read has none."""
    return next((pool for pool in pools if (own := _range_of(pool)) is not None and own.overlaps(cidr)), None)


def pool_of(ip: str, pools: Iterable[Pool]) -> Pool | None:
    """Return the one of ``pools`` that ``ip`` belongs to."""
    address = IPv4Address(ip)
    return next((pool for pool in pools if (own := _range_of(pool)) is not None and address in own), None)


def size(pool: Pool) -> int:
    """Return how many addresses it has."""
    cidr = _range_of(pool)
    return 0 if cidr is None else cidr.num_addresses


def beginning(pool: Pool) -> str:
    """Return what all of its addresses begin with, written out, so that others need not be read: ``203.0.113.``."""
    cidr = _range_of(pool)
    if cidr is None:
        return ""
    whole = min(cidr.prefixlen // 8, 3)
    return "".join(f"{octet}." for octet in str(cidr.network_address).split(".")[:whole])


def parse_address(ip: str) -> str:
    """Return ``ip`` in its usual form.

    Raises:
        InvalidInput: it is no IPv4 address.
    """
    try:
        return str(IPv4Address(ip))
    except AddressValueError as error:
        raise InvalidInput(f"{ip!r} is not an IPv4 address", hint="write it like 203.0.113.7") from error


def choose(pool: Pool, taken: Set[str], seed: int) -> str:
    """Return an address of ``pool`` that is not in ``taken``; where the search begins is given by ``seed``.

    Raises:
        AddressesExhausted: every address is taken.
    """
    cidr = _range_of(pool)
    first, count = (0, 0) if cidr is None else (int(cidr.network_address), cidr.num_addresses)
    for step in range(count):
        ip = str(IPv4Address(first + (seed + step) % count))
        if ip not in taken:
            return ip
    raise AddressesExhausted(
        f"all {count} addresses of pool {pool.name} ({pool.cidr}) are in use",
        hint="delete a floating address, or name another --pool",
    )


def is_attached(floating: Floating) -> bool:
    return floating.interface_uuid is not None


def is_target(floating: Floating, interface_uuid: str, instance_uuid: str) -> bool:
    """Whether it is attached to that interface."""
    return (floating.interface_uuid, floating.instance_uuid) == (interface_uuid, instance_uuid)


def is_said(port: Port, floating: Floating) -> bool:
    """Whether ``port`` says what ``floating`` says of it."""
    if not is_target(floating, port.interface_uuid, port.instance_uuid):
        return False
    return floating.ip in port.routed if floating.is_routed else floating.ip == port.floating


def attached(floating: Floating, port: Port, network_uuid: str, *, is_routed: bool) -> tuple[Floating, Port]:
    """Return both as they are when ``floating`` is attached to the interface of ``port``.

    Args:
        floating: of nobody.
        port: without a floating address, unless ``is_routed``.
        is_routed: it is handed on without translation.
    """
    target = structs.replace(
        floating,
        network_uuid=network_uuid,
        interface_uuid=port.interface_uuid,
        instance_uuid=port.instance_uuid,
        is_routed=is_routed,
    )
    if is_routed:
        return target, structs.replace(port, routed=(*port.routed, floating.ip))
    return target, structs.replace(port, floating=floating.ip)


def freed(floating: Floating) -> Floating:
    """Return it as it is when it is attached to nothing."""
    return structs.replace(floating, network_uuid=None, interface_uuid=None, instance_uuid=None, is_routed=False)


def without(port: Port, ip: str) -> Port:
    """Return ``port`` as it is when ``ip`` is neither translated nor handed to it."""
    return structs.replace(
        port,
        floating=None if port.floating == ip else port.floating,
        routed=tuple(other for other in port.routed if other != ip),
    )


def _range_of(pool: Pool) -> IPv4Network | None:
    """Return the range, which somebody may have put there by hand so that it is none."""
    try:
        return IPv4Network(pool.cidr)
    except ValueError:
        return None
