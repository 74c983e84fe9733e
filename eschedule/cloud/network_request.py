"""What a network may be, checked before anything is written. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from ecompute.cluster.addressing import check_address, gateway_address, parse_cidr
from ecompute.cluster.addressing6 import parse_cidr6
from ecompute.cluster.errors import InvalidInput, one_line
from ecompute.cluster.given import check_physical
from eschedule.cloud import references
from eschedule.cloud.interface_request import NONE

PHYSICAL_MTU = 1500
SMALLEST_MTU = 576
SMALLEST_MTU6 = 1280
"""RFC 8200, section 5."""
LARGEST_MTU = 65535
VLAN_FIRST = 1
VLAN_LAST = 4094

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE | re.ASCII)
_DOMAIN_LIMIT = 180
"""Characters, so that a name before it keeps to the 253 of a host name."""


@dataclass(frozen=True)
class NetworkRequest:
    """A network, as asked for."""

    name: str
    cidr: str | None = None
    cidr6: str | None = None
    has_dhcp: bool | None = None
    """None: as usual, which is on for a network of ours and off for a physical one."""
    has_nat: bool | None = None
    has_dns: bool | None = None
    domain: str | None = None
    physical: str | None = None
    vlan: int | None = None
    gateway: str | None = None
    """Of a physical network, the router that is there; in others ours has the first address."""
    mtu: int | None = None
    """Of a physical network; others have what their underlay leaves."""


def check(request: NetworkRequest) -> NetworkRequest:
    """Return ``request`` with all that it does not say, and in our own way of writing.

    Raises:
        InvalidInput: one line that says what is wrong and what would be right.
    """
    check_name(request.name)
    cidr = None if request.cidr is None else parse_cidr(request.cidr.strip())
    cidr6 = None if request.cidr6 is None else parse_cidr6(request.cidr6.strip())
    request = replace(
        request,
        cidr=None if cidr is None else str(cidr),
        cidr6=None if cidr6 is None else str(cidr6),
        domain=None if request.domain is None else check_domain(request.domain),
    )
    if request.physical is not None:
        return _physical(request)
    if request.vlan is not None:
        raise InvalidInput("a VLAN is on a bridge of the hosts", hint="name that with --physical too")
    if request.gateway is not None or request.mtu is not None:
        raise InvalidInput(
            "a gateway or an MTU of one's own is for a physical network", hint="leave it out, or name a --physical one"
        )
    if cidr is None:
        raise InvalidInput("a network needs an IPv4 range", hint="write one like 10.0.0.0/24")
    return replace(
        request,
        has_dhcp=request.has_dhcp is not False,
        has_nat=request.has_nat is not False,
        has_dns=request.has_dns is not False,
        gateway=gateway_address(cidr),
    )


def _physical(request: NetworkRequest) -> NetworkRequest:
    assert request.physical is not None
    check_physical(request.physical)
    for is_on, what in ((request.has_dhcp, "DHCP"), (request.has_nat, "NAT"), (request.has_dns, "DNS")):
        if is_on:
            raise InvalidInput(f"{what} of a physical network is the operator's", hint="leave it out here")
    if request.vlan is not None and not VLAN_FIRST <= request.vlan <= VLAN_LAST:
        raise InvalidInput(f"{request.vlan} is no VLAN", hint=f"{VLAN_FIRST} to {VLAN_LAST}, or none")
    smallest = SMALLEST_MTU if request.cidr6 is None else SMALLEST_MTU6
    if request.mtu is not None and not smallest <= request.mtu <= LARGEST_MTU:
        raise InvalidInput(f"an MTU of {request.mtu} is none", hint=f"{smallest} to {LARGEST_MTU}")
    gateway = request.gateway
    if gateway is not None:
        if request.cidr is None:
            raise InvalidInput("a gateway was given, and no range", hint="give the range that it is in")
        # Its own address is the one that is kept back: any other may be it.
        others = str(ipaddress.IPv4Network(request.cidr)[1])
        gateway = gateway if gateway == others else check_address(request.cidr, gateway)
    return replace(
        request, has_dhcp=False, has_nat=False, has_dns=False, gateway=gateway, mtu=request.mtu or PHYSICAL_MTU
    )


def check_name(name: str) -> str:
    """Return ``name``, if it can be a network's.

    Raises:
        InvalidInput: it cannot.
    """
    if not _NAME.fullmatch(name) or references.full_uuid(name) is not None:
        raise InvalidInput(
            f"{one_line(name, 80)!r} cannot be a network's name", hint="use letters, digits and hyphens, at most 63"
        )
    if name.lower() == NONE:
        raise InvalidInput(f"no network is called {name}: -n none is no interface", hint="choose another name")
    return name


def check_domain(domain: str) -> str:
    """Return ``domain`` without capitals and without a dot at its end, if guests can be told it.

    Raises:
        InvalidInput: they cannot.
    """
    usual = domain.strip().removesuffix(".").lower()
    if len(usual) > _DOMAIN_LIMIT or not all(_NAME.fullmatch(label) for label in usual.split(".")):
        raise InvalidInput(
            f"{one_line(domain, 80)!r} is no domain", hint="write it like lab.internal, letters, digits and hyphens"
        )
    return usual
