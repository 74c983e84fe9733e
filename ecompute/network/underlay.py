"""This host's addresses, and the one at which other hosts send it VXLAN packets.

Any thread may call this; it is about the network namespace of the thread that calls.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, cast

from ecompute.cluster.errors import NetworkError
from ecompute.network import netlink as kernel


@dataclass(frozen=True)
class Address:
    """An address of this host, the device that has it, and that device's MTU."""

    ip: str
    interface: str
    mtu: int

    @property
    def is_loopback(self) -> bool:
        return IPv4Address(self.ip).is_loopback


def pick(addresses: dict[str, Address], configured: str) -> Address:
    """Return the configured one of this host's addresses."""
    if configured not in addresses:
        have = ", ".join(sorted(addresses)) or "none"
        raise NetworkError(f"the underlay address {configured} is not an address of this host (it has {have})")
    return addresses[configured]


def read(netlink: Any) -> dict[str, Address]:
    """Return the host's IPv4 addresses. Of its devices, which are many, only those that have one are looked at."""
    addresses = {}
    for address in netlink.addr("dump", family=socket.AF_INET):
        ip = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
        with suppress(OSError):  # the device may be gone meanwhile
            name = socket.if_indextoname(address["index"])
            mtu, _ = kernel.dress_of(name)
            addresses[ip] = Address(ip, name, mtu)
    return addresses


def of_default_route(netlink: Any) -> Address:
    """Return the address from which packets leave by the default route.

    Raises:
        NetworkError: there is no default route, or it leads to loopback.
    """
    hint = "set `underlay:` in the configuration to an address of this host"
    # A default route has no destination in its answer; `dst_len` alone also tells it from 0.0.0.0/1.
    routes = [
        route
        for route in netlink.route("dump", family=socket.AF_INET, table=kernel.MAIN_TABLE)
        if route["dst_len"] == 0 and _hop(route) is not None
    ]
    if not routes:
        raise NetworkError("this host has no default route, so no underlay address can be derived", hint=hint)
    best = min(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0)
    index, gateway = cast("tuple[int, str | None]", _hop(best))
    source = best.get_attr("RTA_PREFSRC") or _source_on(netlink, index, gateway)
    link = next(iter(netlink.link("get", index=index, ext_mask=kernel.SKIP_STATS)))
    name, mtu = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU")
    if source is None:
        raise NetworkError(f"the default route's device {name} has no IPv4 address", hint=hint)
    found = Address(source, name, mtu)
    if found.is_loopback or name == "lo":
        raise NetworkError(f"the default route leads to loopback ({source} on {name})", hint=hint)
    return found


def _hop(route: Any) -> tuple[int, str | None] | None:
    """Return the device index and gateway of a route, of its first hop where it has several."""
    index = route.get_attr("RTA_OIF")
    if index is not None:
        return int(index), route.get_attr("RTA_GATEWAY")
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        return int(hop["oif"]), hop.get_attr("RTA_GATEWAY")
    return None


def _source_on(netlink: Any, index: int, gateway: str | None) -> str | None:
    """Return the address that packets to ``gateway`` have, or the first of the device."""
    if gateway is not None:
        for route in netlink.route("get", dst=gateway, oif=index):
            return cast("str | None", route.get_attr("RTA_PREFSRC"))
    for address in netlink.addr("dump", family=socket.AF_INET, index=index):
        return cast("str | None", address.get_attr("IFA_LOCAL"))
    return None
