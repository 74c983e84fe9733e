"""IPv6 addresses of networks and their ports: a /64 each, checked, and derived.

An interface's address follows from its uuid: among 2^64 of them none need be looked for. Whoever creates
its key, only if absent, finds the one case in which it is taken, and takes another interface.

Pure. What a network's IPv4 addresses are is `ecompute.cluster.addressing`.
"""

from __future__ import annotations

import hashlib
from ipaddress import AddressValueError, IPv6Address, IPv6Network, NetmaskValueError
from uuid import UUID

from ecompute.cluster.errors import InvalidInput, one_line

EXAMPLE = "fd5c:1f4e:73a2:1::/64"
PREFIX = 64

_USABLE = tuple(
    IPv6Network(cidr)
    for cidr in (
        "2000::/3",  # global unicast (RFC 4291, section 2.4)
        "fd00::/8",  # unique local, of one's own choice (RFC 4193, section 3.1)
    )
)
_UNUSABLE = tuple(
    (IPv6Network(cidr), what)
    for cidr, what in (
        ("::/8", "loopback, or stands for IPv4 addresses"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
_ANYCAST_FIRST = 0xFDFF_FFFF_FFFF_FF80
"""The first of 128 interface identifiers of a subnet that are anycast (RFC 2526, section 2)."""
_ANYCAST_LAST = 0xFDFF_FFFF_FFFF_FFFF


def parse_cidr6(cidr: str) -> IPv6Network:
    """Return the range that ``cidr`` names, if a network can have it.

    Raises:
        InvalidInput: not an IPv6 range in CIDR notation, with bits behind its prefix, no /64, or one
            that no guest can use.
    """
    address, slash, length = cidr.partition("/")
    try:
        if not slash or not length.isascii() or not length.isdigit() or "%" in address:
            raise NetmaskValueError("no prefix length")
        exact = IPv6Network((IPv6Address(address), int(length)), strict=False)
    except (AddressValueError, NetmaskValueError) as error:
        raise InvalidInput(f"{one_line(cidr, 80)!r} is not an IPv6 range", hint=f"write it like {EXAMPLE}") from error
    if exact.prefixlen != PREFIX:
        raise InvalidInput(f"{exact} has a prefix of {exact.prefixlen} bits", hint=f"a network has a /{PREFIX}")
    if exact.network_address != IPv6Address(address):
        raise InvalidInput(f"{cidr} has bits set behind its prefix", hint=f"the range is {exact}")
    for unusable, what in _UNUSABLE:
        if exact.overlaps(unusable):
            raise InvalidInput(f"{exact} is {what}: no guest can use it", hint=f"use another range, like {EXAMPLE}")
    if not any(exact.subnet_of(usable) for usable in _USABLE):
        raise InvalidInput(f"{exact} is no range for hosts", hint=f"use a unique local one, like {EXAMPLE}")
    return exact


def gateway_address6(cidr: IPv6Network) -> str:
    """Return the address that is kept for the gateway: the first one behind the range's own."""
    return str(cidr.network_address + 1)


def check_address6(cidr: IPv6Network, address: str, *, gateway: str | None = None) -> str:
    """Return ``address`` in its usual form, if a port of ``cidr`` may have it.

    Args:
        gateway: the gateway's, where it is not the first one.

    Raises:
        InvalidInput: not an address, outside of the range, or one that is kept back.
    """
    try:
        if "%" in address:
            raise AddressValueError("has a scope")
        parsed = IPv6Address(address)
    except AddressValueError as error:
        raise InvalidInput(f"{one_line(address, 80)!r} is not an IPv6 address", hint=f"choose one of {cidr}") from error
    if parsed not in cidr:
        raise InvalidInput(f"{parsed} is outside of {cidr}")
    what = _reserved(cidr, parsed, gateway or gateway_address6(cidr))
    if what is not None:
        raise InvalidInput(f"{parsed} is {what} of {cidr}", hint="choose another one")
    return str(parsed)


def derive_address6(cidr: IPv6Network, interface_uuid: str, *, gateway: str | None = None) -> str:
    """Return the address of an interface in ``cidr``: the same for the same uuid, and never one that is kept back.

    Raises:
        InvalidInput: not a uuid.
    """
    try:
        seed = UUID(interface_uuid).bytes
    except ValueError as error:
        raise InvalidInput(f"{interface_uuid!r} is not a uuid") from error
    kept = gateway or gateway_address6(cidr)
    while True:
        seed = hashlib.sha256(seed).digest()
        address = cidr.network_address + int.from_bytes(seed[:8])
        if _reserved(cidr, address, kept) is None:
            return str(address)


def _reserved(cidr: IPv6Network, address: IPv6Address, gateway: str) -> str | None:
    """Return what ``address`` is kept for, if it is."""
    identifier = int(address) - int(cidr.network_address)
    if identifier == 0:
        return "the routers' address"
    if address == IPv6Address(gateway):
        return "the gateway's address"
    if _ANYCAST_FIRST <= identifier <= _ANYCAST_LAST:
        return "an anycast address"
    return None
