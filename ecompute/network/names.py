"""What is ours on a host by its name, and the MACs that we give.

Devices are named from their network's VNI, taps from their interface. A name that begins with one of
the prefixes is ours, and a rule that matches the prefix holds for devices that are yet to come.

Pure. Any thread may call this.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

VXLAN_PORT = 4789
METADATA = "169.254.169.254"
METADATA6 = "fe80::a9fe:a9fe"
"""Where a guest asks who it is, on every network."""

ZEROS = "00:00:00:00:00:00"
"""The address of the entries for broadcast, multicast and unknown destinations."""

BRIDGE_PREFIX = "ecb"
VXLAN_PREFIX = "ecx"
TAP_PREFIX = "ect"
GATEWAY_PREFIX = "ecg"
"""Of the outer ends of the veth pairs to the networks' namespaces, on their bridges."""
UPLINK_PREFIX = "ecu"
"""Of the outer ends of the veth pairs by which those namespaces lead out."""
VLAN_PREFIX = "ecv"
LAN = "lan"
"""The inner end of the gateway's veth pair, in the network's namespace."""
UP = "up"
"""The inner end of the uplink's veth pair, in the network's namespace."""
NO_NETWORK = 0
"""Stands for a VNI with taps that are on an operator's bridge and of no network."""
PREFIXES = (BRIDGE_PREFIX, VXLAN_PREFIX, VLAN_PREFIX, TAP_PREFIX)
"""Of what is listed by `links.Links.devices`."""

_TAP = re.compile(rf"{TAP_PREFIX}[0-9a-f]{{11}}")
_SEGMENT = re.compile(rf"(?:{BRIDGE_PREFIX}|{VXLAN_PREFIX}|{VLAN_PREFIX})([0-9a-f]{{6}})")
_GATEWAY = re.compile(rf"(?:{GATEWAY_PREFIX}|{UPLINK_PREFIX})([0-9a-f]{{6}})")


def gateway_name(vni: int) -> str:
    return f"{GATEWAY_PREFIX}{vni:06x}"


def uplink_name(vni: int) -> str:
    return f"{UPLINK_PREFIX}{vni:06x}"


def vlan_name(vni: int) -> str:
    return f"{VLAN_PREFIX}{vni:06x}"


def bridge_name(vni: int) -> str:
    return f"{BRIDGE_PREFIX}{vni:06x}"


def vxlan_name(vni: int) -> str:
    return f"{VXLAN_PREFIX}{vni:06x}"


def tap_name(interface_uuid: str) -> str:
    """Return the tap's name, 14 characters of the 15 that the kernel allows."""
    return TAP_PREFIX + interface_uuid.replace("-", "").lower()[:11]


def is_tap_name(name: str) -> bool:
    """Whether it is what `tap_name` makes of a uuid."""
    return _TAP.fullmatch(name) is not None


def vni_of(device_name: str) -> int | None:
    """Return the VNI in the name of a bridge, VXLAN or VLAN device of ours."""
    match = _SEGMENT.fullmatch(device_name)
    return int(match[1], 16) if match else None


def vni_of_gateway(device_name: str) -> int | None:
    """Return the VNI in the name of an outer end of a veth pair that leads to a network's namespace."""
    match = _GATEWAY.fullmatch(device_name)
    return int(match[1], 16) if match else None


def bridge_mac(vni: int) -> str:
    """Return the bridge's own MAC: given, else it would change with every port that comes or goes."""
    return "06:ec:00:" + vni.to_bytes(3, "big").hex(":")


def gateway_mac(vni: int) -> str:
    """Return the MAC of the network's gateway, which every host answers for with the same."""
    return "06:ec:01:" + vni.to_bytes(3, "big").hex(":")


def link_local(mac: str) -> str:
    """Return the IPv6 address that a device with ``mac`` gives itself (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + host))


def uplink_mac(vni: int) -> str:
    """Return the MAC of the inner end of the network's uplink on each host."""
    return "06:ec:02:" + vni.to_bytes(3, "big").hex(":")


def uplink_outer_mac(vni: int) -> str:
    return "06:ec:03:" + vni.to_bytes(3, "big").hex(":")
