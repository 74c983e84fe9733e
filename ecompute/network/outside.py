"""What a network's gateway has in the host's own namespace: found and changed.

The outer ends of its veth pairs, the host's routes to its uplink, and what the host answers for on its egress device.
Any thread of that namespace may call this.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ecompute.cluster.failpoint import reach
from ecompute.network import netlink, netns
from ecompute.network.announce import Announcer
from ecompute.network.gateway import HOST_TRANSIT, mac_of
from ecompute.network.gateway_terms import (
    AddPair,
    Attach,
    DeletePair,
    DropHostRoute,
    DropProxy,
    FoundOuter,
    PutHostRoute,
    PutProxy,
    PutTransit,
    SetOuterUp,
    SettleOuter,
)
from ecompute.network.names import LAN, UP, bridge_name, gateway_name, uplink_mac, uplink_name, uplink_outer_mac

FAILPOINTS = ("transit.addressed", "transit.met", "proxy.put")

_ON_LINK = 4

SETTINGS = {
    LAN: {"ipv4/arp_ignore": 8, "ipv6/disable_ipv6": 1},
    UP: {
        "ipv4/arp_ignore": 8,
        "ipv4/forwarding": 1,
        "ipv4/rp_filter": 1,
        "ipv4/send_redirects": 0,
        "ipv4/accept_redirects": 0,
        "ipv4/accept_source_route": 0,
        "ipv6/disable_ipv6": 1,
    },
}

Change = (
    AddPair
    | DeletePair
    | SettleOuter
    | Attach
    | SetOuterUp
    | PutTransit
    | PutHostRoute
    | DropHostRoute
    | PutProxy
    | DropProxy
)


@dataclass(frozen=True)
class Seen:
    """An outer end, with its index and that of its other end."""

    outer: FoundOuter
    index: int
    other: int


def outer_name(vni: int, inner: str) -> str:
    return gateway_name(vni) if inner == LAN else uplink_name(vni)


class Outside:
    """Remembers what was announced, by which device; the rest is read each time."""

    def __init__(self) -> None:
        self._announcer = Announcer()

    def close(self) -> None:
        self._announcer.close()

    def ends(self, rtnetlink: Any, vni: int) -> dict[str, Seen]:
        """Return the outer ends by the names of their inner ones; whether they are paired is not known here."""
        bridge = netlink.device(rtnetlink, bridge_name(vni))
        found = {}
        for inner in (LAN, UP):
            link = netlink.device(rtnetlink, outer_name(vni, inner))
            if link is not None:
                outer = FoundOuter(
                    kind=netlink.kind(link),
                    mtu=link.get_attr("IFLA_MTU"),
                    is_up=bool(link["flags"] & netlink.IFF_UP),
                    is_settled=netlink.has(link, SETTINGS[inner])
                    and (inner == LAN or link.get_attr("IFLA_ADDRESS") == uplink_outer_mac(vni)),
                    is_attached=bridge is not None and link.get_attr("IFLA_MASTER") == bridge["index"],
                )
                found[inner] = Seen(outer, link["index"], link.get_attr("IFLA_LINK") or 0)
        return found

    @staticmethod
    def uplink(rtnetlink: Any, index: int, vni: int) -> tuple[frozenset[str], bool, frozenset[str]]:
        """Return what the host sends to an uplink, whether it knows who is there, and the transit addresses of it."""
        routes = {
            str(route.get_attr("RTA_DST"))
            for route in rtnetlink.route("dump", family=socket.AF_INET, table=netlink.MAIN_TABLE, oif=index)
            if route["dst_len"] == 32 and route.get_attr("RTA_OIF") == index
        }
        neighbours = {address for address, mac in netlink.permanent(rtnetlink, index) if mac == uplink_mac(vni)}
        own = {address.get_attr("IFA_LOCAL") for address in rtnetlink.addr("dump", family=socket.AF_INET, index=index)}
        transit = frozenset(neighbours & routes)
        return frozenset(routes - transit), own == {HOST_TRANSIT}, transit

    def proxied(
        self, rtnetlink: Any, known: Collection[tuple[str, str]]
    ) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
        """Return which of ``known``, (address, device), the host answers for, and which of them it has announced."""
        if not known:
            return frozenset(), frozenset()
        links = {name: netlink.device(rtnetlink, name) for name in {device for _, device in known}}
        indexes = {link["index"]: name for name, link in links.items() if link is not None}
        there = frozenset(
            (str(entry.get_attr("NDA_DST")), indexes[entry["ifindex"]])
            for entry in rtnetlink.neigh("dump", dump_filter=None, family=socket.AF_INET, flags=netlink.PROXY)
            if entry["ifindex"] in indexes
        )
        now = {name: _identity(link) for name, link in links.items() if link is not None}
        return there & frozenset(known), there & self._announcer.announced(now)

    def apply(self, rtnetlink: Any, change: Change, namespace: str) -> None:
        """Make one change.

        Raises:
            NetworkError: there is no namespace for an inner end.
            NetlinkError, OSError: the kernel refused it.
        """
        match change:
            case AddPair(vni, inner, mtu):
                _add(rtnetlink, vni, inner, mtu, namespace)
            case DeletePair(vni, inner):
                with netlink.gone_is_fine():
                    rtnetlink.link("del", index=netlink.index(outer_name(vni, inner)))
            case SettleOuter(vni, inner, mtu):
                name = outer_name(vni, inner)
                netlink.dress(rtnetlink, name, mtu, uplink_outer_mac(vni) if inner == UP else None)
                netlink.set_all(name, SETTINGS[inner])  # after the MTU: below 1280 there is no IPv6 to set
            case Attach(vni):
                master = netlink.index(bridge_name(vni))
                rtnetlink.link("set", index=netlink.index(gateway_name(vni)), master=master)
            case SetOuterUp(vni, inner):
                rtnetlink.link("set", index=netlink.index(outer_name(vni, inner)), state="up")
            case _:
                self._apply_to_way(rtnetlink, change)

    def _apply_to_way(
        self, rtnetlink: Any, change: PutTransit | PutHostRoute | DropHostRoute | PutProxy | DropProxy
    ) -> None:
        match change:
            case PutTransit(vni, transit):
                oif = netlink.index(uplink_name(vni))
                for address in list(rtnetlink.addr("dump", family=socket.AF_INET, index=oif)):
                    if address.get_attr("IFA_LOCAL") != HOST_TRANSIT:
                        ip = address.get_attr("IFA_LOCAL")
                        rtnetlink.addr("del", index=oif, address=ip, prefixlen=address["prefixlen"])
                for other, _ in netlink.permanent(rtnetlink, oif):
                    if other != transit:
                        rtnetlink.neigh("del", ifindex=oif, dst=other)
                        with netlink.gone_is_fine():
                            rtnetlink.route("del", dst=f"{other}/32", oif=oif, scope=netlink.ANY_SCOPE)
                rtnetlink.addr("replace", index=oif, address=HOST_TRANSIT, prefixlen=32, scope=netlink.LINK_SCOPE)
                reach("transit.addressed")
                rtnetlink.neigh("replace", ifindex=oif, dst=transit, lladdr=uplink_mac(vni), state=netlink.PERMANENT)
                reach("transit.met")
                rtnetlink.route("replace", dst=f"{transit}/32", oif=oif, scope=netlink.LINK_SCOPE, proto=netlink.STATIC)
            case PutHostRoute(vni, address, transit):
                oif = netlink.index(uplink_name(vni))
                rtnetlink.route(
                    "replace", dst=f"{address}/32", gateway=transit, oif=oif, flags=_ON_LINK, proto=netlink.STATIC
                )
            case DropHostRoute(vni, address):
                self._announcer.forget(address)
                with netlink.gone_is_fine():
                    oif = netlink.index(uplink_name(vni))
                    rtnetlink.route("del", dst=f"{address}/32", oif=oif, scope=netlink.ANY_SCOPE)
            case PutProxy(_, address, device):
                rtnetlink.neigh("replace", ifindex=netlink.index(device), dst=address, flags=netlink.PROXY)
                reach("proxy.put")
                link = netlink.device(rtnetlink, device)
                if link is not None and netlink.has_arp(link):
                    self._announcer.announce(address, device, *_identity(link))
            case DropProxy(_, address, device):
                self._announcer.forget(address, device)
                with netlink.gone_is_fine():
                    rtnetlink.neigh("del", ifindex=netlink.index(device), dst=address, flags=netlink.PROXY)


def _add(rtnetlink: Any, vni: int, inner: str, mtu: int, namespace: str) -> None:
    mac = {} if inner == LAN else {"address": uplink_outer_mac(vni)}
    inside = os.open(netns.path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = {"ifname": inner, "address": mac_of(vni, inner), "mtu": mtu, "net_ns_fd": inside}
        rtnetlink.link("add", ifname=outer_name(vni, inner), kind="veth", mtu=mtu, peer=peer, **mac)
    finally:
        os.close(inside)


def _identity(link: Any) -> tuple[int, str]:
    return link["index"], link.get_attr("IFLA_ADDRESS")
