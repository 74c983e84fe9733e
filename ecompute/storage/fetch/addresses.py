"""Which addresses an image may come from.

Who asks for an instance names a URL, and this host, which stands inside the operator's network,
opens it. Without a rule a tenant could read what only the host can reach: etcd, a metadata service,
a management network. Therefore a target must be a globally routable unicast address of another
machine, or lie in a network that the operator has allowed. The rule is held against the address
that is connected to, never against a name (which may resolve differently the next time) and never
against the text of a URL.

Pure, but for `resolve`. Any thread may call it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from ecompute.cluster.config_reading import IPNetwork
from ecompute.cluster.errors import Unavailable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_NEVER_GLOBAL = (
    ipaddress.ip_network("100.64.0.0/10"),
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("198.18.0.0/15"),
    ipaddress.ip_network("64:ff9b:1::/48"),
    ipaddress.ip_network("2001::/23"),
    ipaddress.ip_network("3fff::/20"),
    ipaddress.ip_network("5f00::/16"),
    ipaddress.ip_network("fec0::/10"),
)


def parse(text: str) -> IPAddress:
    """Return the address that packets to ``text`` really go to: an IPv4-mapped one is IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def objection(address: IPAddress, allowed: Sequence[IPNetwork]) -> str | None:
    """Return what kind of address forbids ``address`` as a target, or None if it may be one.

    Args:
        address: from `parse`.
        allowed: the networks that the operator allows in spite of the rule.
    """
    if any(_is_in(address, network) for network in allowed):
        return None
    embedded = _embedded(address)
    if embedded is not None:
        return objection(embedded, allowed)
    for is_it, kind in (
        (address.is_unspecified, "an unspecified"),
        (address.is_loopback, "a loopback"),
        (address.is_link_local, "a link-local"),
        (address.is_multicast, "a multicast"),
        (any(_is_in(address, network) for network in _NEVER_GLOBAL), "a special-purpose"),
        (address.is_private, "a private"),
        (address.is_reserved, "a reserved"),
        (not address.is_global, "a special-purpose"),
    ):
        if is_it:
            return kind
    return None


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of ``host`` in the resolver's order, each once.

    Raises:
        Unavailable: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise Unavailable(f"the host name {host} cannot be resolved: {reason}", hint="check the URL") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _embedded(address: IPAddress) -> IPAddress | None:
    """The IPv4 address to which a gateway translates this one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _6TO4:
            return ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return None


def _is_in(address: IPAddress, network: IPNetwork | ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return address.version == network.version and address in network
