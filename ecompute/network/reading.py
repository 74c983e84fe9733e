"""What the kernel says of devices, in our terms; and how a device is that is as it should be.

Nothing is asked here: the answers of netlink come in. Any thread may call this.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ecompute.network import names
from ecompute.network import netlink as kernel
from ecompute.network.present import Device, Kind
from ecompute.network.terms import FoundBridge, FoundPort, FoundVlan, FoundVxlan

AGEING_S = 300
BRIDGE_OPTIONS = {
    "br_stp_state": 0,
    "br_forward_delay": 0,
    "br_mcast_snooping": 0,
    "br_ageing_time": AGEING_S * 100,
}

_NO_ARP = {"ipv4/arp_ignore": 8}
"""Documentation/networking/ip-sysctl: "do not reply for all local addresses"."""
_NO_ADDRESS = {"ipv6/addr_gen_mode": 1, "ipv6/accept_ra": 0, "ipv6/forwarding": 0}
"""IPv6 that gives itself no address, takes none, and joins no group of routers."""


def hardening(device: str) -> dict[str, int]:
    """Return the settings with which nothing on a device answers for the host.

    Neighbour entries on a VXLAN device need IPv6.
    """
    if device.startswith(names.VXLAN_PREFIX):
        return {**_NO_ARP, **_NO_ADDRESS, "ipv6/disable_ipv6": 0}
    return {**_NO_ARP, "ipv6/disable_ipv6": 1}


def _data(link: Any, name: str) -> Any:
    return link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", name)


def _is_up(link: Any) -> bool:
    return bool(link["flags"] & kernel.IFF_UP)


def is_hardened(link: Any) -> bool:
    return kernel.has(link, hardening(link.get_attr("IFLA_IFNAME")))


def is_ours(link: Any | None, name: str, vni: int) -> bool:
    if link is None:
        return False
    if name.startswith(names.BRIDGE_PREFIX):
        return kernel.kind(link) == "bridge"
    if name.startswith(names.VLAN_PREFIX):
        return kernel.kind(link) == "vlan"
    return kernel.kind(link) == "vxlan" and _data(link, "IFLA_VXLAN_ID") == vni


def present(name: str, link: Any, vni_of_bridge: int | None) -> Device | None:
    vni = names.vni_of(name)
    if vni is not None and is_ours(link, name, vni):
        return Device(name, Kind(kernel.kind(link)), vni)
    if name.startswith(names.TAP_PREFIX) and kernel.kind(link) == "tun":
        return Device(name, Kind.TAP, vni_of_bridge)
    return None


def bridge(link: Any) -> FoundBridge:
    if kernel.kind(link) != "bridge":
        return FoundBridge(kind=kernel.kind(link))
    return FoundBridge(
        kind="bridge",
        mac=link.get_attr("IFLA_ADDRESS"),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=_is_up(link),
        is_hardened=is_hardened(link),
        is_tuned=all(_data(link, f"IFLA_{name.upper()}") == value for name, value in BRIDGE_OPTIONS.items()),
    )


def vxlan(link: Any, bridge_index: int | None) -> FoundVxlan:
    if kernel.kind(link) != "vxlan":
        return FoundVxlan(kind=kernel.kind(link))
    return FoundVxlan(
        kind="vxlan",
        # A device that takes its VNI from the packets' metadata has none of its own.
        vni=None if _data(link, "IFLA_VXLAN_COLLECT_METADATA") else _data(link, "IFLA_VXLAN_ID"),
        local=_data(link, "IFLA_VXLAN_LOCAL"),
        port=_data(link, "IFLA_VXLAN_PORT"),
        is_learning=bool(_data(link, "IFLA_VXLAN_LEARNING")),
        is_proxy=bool(_data(link, "IFLA_VXLAN_PROXY")),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=_is_up(link),
        is_hardened=is_hardened(link),
        is_attached=bridge_index is not None and link.get_attr("IFLA_MASTER") == bridge_index,
        index=link["index"],
    )


def ports(netlink: Any, bridge_index: int, without: Collection[str]) -> frozenset[FoundPort]:
    links = netlink.link("dump", dump_filter=None, master=bridge_index, ext_mask=kernel.SKIP_STATS)
    return frozenset(port(link) for link in links if link.get_attr("IFLA_IFNAME") not in without)


def port(link: Any) -> FoundPort:
    return FoundPort(link.get_attr("IFLA_IFNAME"), is_hardened(link), link.get_attr("IFLA_MTU"))


def vlan(link: Any, outlet: str | None, bridge_index: int | None) -> FoundVlan:
    """
    Args:
        outlet: the device that it is upon.
    """
    if kernel.kind(link) != "vlan":
        return FoundVlan(kind=kernel.kind(link))
    return FoundVlan(
        kind="vlan",
        outlet=outlet,
        vlan=_data(link, "IFLA_VLAN_ID"),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=_is_up(link),
        is_hardened=is_hardened(link),
        is_attached=bridge_index is not None and link.get_attr("IFLA_MASTER") == bridge_index,
    )
