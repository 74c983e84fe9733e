"""Addresses of networks and their ports: checked, and chosen.

Pure: what is taken and where to begin come in as arguments. Nothing here reserves an address; that
is done by whoever creates its key, only if absent, and who on a conflict chooses again with the
address added to ``taken``. IPv4, /16 to /29; an IPv6 /64 is `ecompute.cluster.addressing6`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Set
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from uuid import UUID

from ecompute.cluster.errors import AddressesExhausted, InvalidInput, one_line

OVERHEAD_BYTES = 50
"""Outer Ethernet, IPv4, UDP and VXLAN headers (RFC 7348, section 5)."""
SHORTEST_PREFIX = 16
LONGEST_PREFIX = 29
LABEL_LIMIT = 63
EXAMPLE = "10.10.0.0/24"

_UNUSABLE = tuple(
    (IPv4Network(cidr), what)
    for cidr, what in (
        ("0.0.0.0/8", '"this" network'),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_RESERVED_MACS = ("fe:", "06:ec:00:", "06:ec:01:")
"""What libvirt makes of a guest's MAC for its tap, our bridges, and the gateways of networks."""
_UNICAST_MAC = re.compile(r"(?!00:00:00:00:00:00)[0-9a-f][02468ace](?::[0-9a-f]{2}){5}")


@functools.lru_cache(maxsize=256)
def parse_cidr(cidr: str | IPv4Network, *, longest_prefix: int = LONGEST_PREFIX, example: str = EXAMPLE) -> IPv4Network:
    """Return the range that ``cidr`` (``10.10.0.0/24``) names, if a network can have it.

    Args:
        longest_prefix: of the smallest range that is allowed.
        example: what one should look like, for errors.

    Raises:
        InvalidInput: not an IPv4 range in CIDR notation, with host bits, too small or too large, or
            in a range that no guest can use.
    """
    text = str(cidr)
    address, slash, length = text.partition("/")
    try:
        if not slash or not length.isascii() or not length.isdigit():
            raise NetmaskValueError("no prefix length")
        exact = IPv4Network((IPv4Address(address), int(length)), strict=False)
    except (AddressValueError, NetmaskValueError) as error:
        raise InvalidInput(f"{one_line(text, 80)!r} is not an IPv4 range", hint=f"write it like {example}") from error
    if exact.network_address != IPv4Address(address):
        raise InvalidInput(f"{text} has bits set behind its prefix", hint=f"the range is {exact}")
    if not SHORTEST_PREFIX <= exact.prefixlen <= longest_prefix:
        raise InvalidInput(
            f"{text} has a prefix of {exact.prefixlen} bits", hint=f"use /{SHORTEST_PREFIX} to /{longest_prefix}"
        )
    for unusable, what in _UNUSABLE:
        if exact.overlaps(unusable):
            raise InvalidInput(f"{text} is {what}: no guest can use it", hint=f"use another range, like {example}")
    return exact


def gateway_address(cidr: str | IPv4Network) -> str:
    """Return the address that is kept for the gateway: the first one of the range.

    Raises:
        InvalidInput: see `parse_cidr`.
    """
    return str(parse_cidr(cidr).network_address + 1)


def choose_address(cidr: str | IPv4Network, taken: Set[str], seed: int, *, gateway: str | None = None) -> str:
    """Return a free address of ``cidr``, without prefix length.

    Never the network's own address, the broadcast address or the gateway's. Where the search begins
    is given by ``seed``: callers with random seeds rarely meet, and need not ask in order.

    Args:
        taken: addresses without prefix length; others than those of the range do no harm.
        gateway: the gateway's address where it is not the first one.

    Raises:
        InvalidInput: see `parse_cidr`.
        AddressesExhausted: every address is taken.
    """
    network = parse_cidr(cidr)
    first = int(network.network_address) + 1
    count = network.num_addresses - 2
    reserved = gateway if gateway is not None else str(IPv4Address(first))
    for step in range(count):
        address = str(IPv4Address(first + (seed + step) % count))
        if address != reserved and address not in taken:
            return address
    raise AddressesExhausted(f"all {count - 1} addresses of {network} are taken", hint="remove an instance of it")


def check_address(cidr: str | IPv4Network, address: str, *, gateway: str | None = None) -> str:
    """Return ``address`` in its usual form, if a port of ``cidr`` may have it.

    Raises:
        InvalidInput: not an address, outside of the range, or one that is kept back.
    """
    network = parse_cidr(cidr)
    try:
        parsed = IPv4Address(address)
    except AddressValueError as error:
        raise InvalidInput(
            f"{one_line(address, 80)!r} is not an IPv4 address", hint=f"choose one of {network}"
        ) from error
    if parsed not in network:
        raise InvalidInput(f"{parsed} is outside of {network}")
    for reserved, what in (
        (network.network_address, "network's own"),
        (network.broadcast_address, "broadcast"),
        (IPv4Address(gateway) if gateway else network.network_address + 1, "gateway's"),
    ):
        if parsed == reserved:
            raise InvalidInput(f"{parsed} is the {what} address of {network}", hint="choose another one")
    return str(parsed)


def mac_address(interface_uuid: str) -> str:
    """Return the MAC of an interface: the same for the same uuid, locally administered, unicast.

    The first octet is 02: libvirt gives a tap its guest's MAC with the first octet fe, which must
    then differ, and the devices that we make ourselves use 06.

    Raises:
        InvalidInput: not a uuid.
    """
    try:
        digest = hashlib.sha256(UUID(interface_uuid).bytes).digest()
    except ValueError as error:
        raise InvalidInput(f"{interface_uuid!r} is not a uuid") from error
    return "02:" + digest[:5].hex(":")


def label(name: str | None) -> str | None:
    """Return ``name`` as a label of a domain (RFC 1123), as near as can be; None if nothing is left of it."""
    return re.sub(r"[^a-z0-9-]+", "-", (name or "").lower()).strip("-")[:LABEL_LIMIT].strip("-") or None


def is_unicast_mac(text: str) -> bool:
    """Whether ``text`` is a MAC, in lower case with colons, that one interface can have."""
    return _UNICAST_MAC.fullmatch(text) is not None


def check_mac(text: str) -> str:
    """Return the MAC ``text`` in lower case, if a guest may have it.

    Raises:
        InvalidInput: it is none, or of a group, or one that libvirt gives to taps or we to devices of ours.
    """
    mac = text.lower()
    shown = repr(one_line(text, 40))
    if not _MAC.fullmatch(mac):
        raise InvalidInput(f"{shown} is not a MAC", hint="write it like 52:54:00:12:34:56")
    if not is_unicast_mac(mac):
        what = "no interface's" if mac == "00:00:00:00:00:00" else "a multicast MAC"
        raise InvalidInput(f"{mac} is {what}", hint="choose one whose second digit is 2, 6, a or e")
    if mac.startswith(_RESERVED_MACS):
        raise InvalidInput(
            f"{mac} is kept for devices of the hosts", hint="choose one that begins with 52:54:00, for example"
        )
    return mac


def mtu_over(underlay_mtu: int) -> int:
    """Return the MTU of a network whose packets travel over an underlay of ``underlay_mtu``, both in bytes."""
    return underlay_mtu - OVERHEAD_BYTES
