"""What is in a network's namespace: found and changed, in a thread that is in it (`netns.in_namespace`).

In there everything is ours: what is not wanted goes, whoever put it there.
"""

from __future__ import annotations

import socket
from typing import Any

from ecompute.network import flows, netlink
from ecompute.network.gateway import DEFAULT_ROUTE, mac_of
from ecompute.network.gateway_terms import (
    INNER,
    DeleteInner,
    DropAddress,
    DropInnerNeighbour,
    DropRoute,
    EndFlows,
    FoundInner,
    InnerChange,
    PutAddress,
    PutInnerNeighbour,
    PutRoute,
    PutRules,
    Route,
    SetInnerUp,
    SettleInner,
    StartService,
    TellService,
)
from ecompute.network.names import LAN, UP
from ecompute.network.nft import Kept
from ecompute.network.service import Services

_NO_DAD = 0x02
"""IFA_F_NODAD: every host's gateway has the same addresses."""
_ON_LINK = 4
"""RTNH_F_ONLINK"""
_ANYWHERE = DEFAULT_ROUTE[0].split("/")[0]

SETTINGS = {
    LAN: {
        "ipv4/forwarding": 1,
        "ipv4/rp_filter": 1,
        "ipv4/arp_ignore": 1,
        "ipv4/send_redirects": 0,
        "ipv4/accept_redirects": 0,
        "ipv4/accept_source_route": 0,
        "ipv4/promote_secondaries": 1,  # an address that goes takes no other with it
        "ipv6/disable_ipv6": 0,
        "ipv6/addr_gen_mode": 1,  # none: it has the addresses that it is given
        "ipv6/accept_ra": 0,
        "ipv6/autoconf": 0,
        "ipv6/accept_dad": 0,
        "ipv6/accept_redirects": 0,
    },
    UP: {
        "ipv4/forwarding": 1,
        "ipv4/rp_filter": 1,
        "ipv4/arp_ignore": 8,
        "ipv4/send_redirects": 0,
        "ipv4/accept_redirects": 0,
        "ipv4/accept_source_route": 0,
        "ipv4/promote_secondaries": 1,  # an address that goes takes no other with it
        "ipv6/disable_ipv6": 1,
    },
}
_OF_NEW = {"ipv6/addr_gen_mode": 1}
"""With which IPv6 comes to a device whose MTU had been below 1280."""
_OF_ALL = {"ipv4/rp_filter": 0, "ipv4/arp_ignore": 0, "ipv4/send_redirects": 0}
"""Which count where a device says less; what the machine's own namespace has is copied into a new one."""


def look(rtnetlink: Any) -> tuple[dict[str, tuple[int, FoundInner]], frozenset[Route], frozenset[tuple[str, str, str]]]:
    """Return the devices by name, with the index of their other end; the routes; the permanent neighbours."""
    links = {name: link for name in INNER if (link := netlink.device(rtnetlink, name)) is not None}
    names = {link["index"]: name for name, link in links.items()}
    addresses: dict[str, set[str]] = {name: set() for name in links}
    for address in rtnetlink.addr("dump"):
        if (name := names.get(address["index"])) is not None:
            ip = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            addresses[name].add(f"{ip}/{address['prefixlen']}")
    inner = {
        name: (
            link.get_attr("IFLA_LINK") or 0,
            FoundInner(
                index=link["index"],
                mac=link.get_attr("IFLA_ADDRESS"),
                mtu=link.get_attr("IFLA_MTU"),
                is_up=bool(link["flags"] & netlink.IFF_UP),
                is_settled=netlink.has(link, SETTINGS[name]),
                addresses=frozenset(addresses[name]),
            ),
        )
        for name, link in links.items()
    }
    routes = set()
    for route in rtnetlink.route("dump", family=socket.AF_INET, table=netlink.MAIN_TABLE):
        if route["proto"] != netlink.KERNEL:
            destination = f"{route.get_attr('RTA_DST') or _ANYWHERE}/{route['dst_len']}"
            oif = route.get_attr("RTA_OIF")
            routes.add((destination, route.get_attr("RTA_GATEWAY"), names.get(oif, str(oif))))
    neighbours = {
        (name, *neighbour) for name, link in links.items() for neighbour in netlink.permanent(rtnetlink, link["index"])
    }
    return inner, frozenset(routes), frozenset(neighbours)


def apply(rtnetlink: Any, change: InnerChange, rules: Kept, services: Services) -> None:
    """Make one change.

    Raises:
        NetworkError: nft or dnsmasq did not do it.
        NetlinkError, OSError: the kernel refused it.
    """
    match change:
        case PutRules(_, wanted):
            rules.put(wanted.items())
        case EndFlows(_, wanted, transit):
            flows.end_stale(wanted, transit)
        case StartService(vni, files):
            services.start(vni, files, netlink.index(LAN))
        case TellService(vni, files):
            services.tell(vni, files, netlink.index(LAN))
        case DropRoute(_, route):
            with netlink.gone_is_fine():
                rtnetlink.route("del", **{**_route(route), "proto": 0, "scope": netlink.ANY_SCOPE})
        case PutRoute(_, route):
            rtnetlink.route("replace", **_route(route))
        case _:
            _apply_to_device(rtnetlink, change)


def _apply_to_device(
    rtnetlink: Any,
    change: DeleteInner | SettleInner | PutAddress | DropAddress | SetInnerUp | PutInnerNeighbour | DropInnerNeighbour,
) -> None:
    match change:
        case DeleteInner(_, name):
            with netlink.gone_is_fine():
                rtnetlink.link("del", index=netlink.index(name))
        case SettleInner(vni, name, mtu):
            if name == LAN:
                rtnetlink.link("set", index=netlink.index("lo"), state="up")
                netlink.set_all("all", _OF_ALL)
                netlink.set_all("default", _OF_NEW)
            netlink.dress(rtnetlink, name, mtu, mac_of(vni, name))
            netlink.set_all(name, SETTINGS[name])  # after the MTU: below 1280 there is no IPv6 to set
        case PutAddress(_, name, address):
            ip, length = address.split("/")
            flags = _NO_DAD if ":" in ip else 0
            rtnetlink.addr("replace", index=netlink.index(name), address=ip, prefixlen=int(length), flags=flags)
        case DropAddress(_, name, address):
            ip, length = address.split("/")
            with netlink.gone_is_fine():
                rtnetlink.addr("del", index=netlink.index(name), address=ip, prefixlen=int(length))
        case SetInnerUp(_, name):
            rtnetlink.link("set", index=netlink.index(name), state="up")
        case PutInnerNeighbour(_, name, address, mac):
            rtnetlink.neigh("replace", ifindex=netlink.index(name), dst=address, lladdr=mac, state=netlink.PERMANENT)
        case DropInnerNeighbour(_, name, address):
            with netlink.gone_is_fine():
                rtnetlink.neigh("del", ifindex=netlink.index(name), dst=address)


def _route(route: Route) -> dict[str, Any]:
    destination, gateway, name = route
    # A device without a name of ours is shown by its index.
    oif = int(name) if name.isdigit() else netlink.index(name)
    common = {"dst": destination, "oif": oif, "proto": netlink.STATIC}
    if gateway is None:
        return {**common, "scope": netlink.LINK_SCOPE}
    return {**common, "gateway": gateway, "flags": _ON_LINK}
