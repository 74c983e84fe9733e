"""This machine's devices and networks, as anybody may see them below /proc and /sys. Changes nothing, sends nothing.

Any thread may call this; it is about the network namespace of the process.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

from ecompute.network import names

USUAL_MTU = 1500
SHORTEST_PREFIX = 8
"""Of a network that a machine is on; what is wider is a way, such as the half of all addresses into a tunnel."""
ARPHRD_ETHER, IFF_NOARP = 1, 0x80  # include/uapi/linux/if_arp.h, if.h


def _routes() -> list[tuple[str, ipaddress.IPv4Network, bool]]:
    """Return the main table: device, destination, and whether it is a neighbour's to lead there."""
    try:
        lines = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return []
    return [
        (fields[0], ipaddress.IPv4Network((_address(fields[1]), str(_address(fields[7])))), fields[2] != "00000000")
        for fields in map(str.split, lines)
        if len(fields) > 7
    ]


def _address(text: str) -> ipaddress.IPv4Address:
    """Return an address as /proc has it: the number that its octets are on this machine."""
    return ipaddress.IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))


def default_device() -> str | None:
    """Return the device of the default route, if there is one."""
    return next((device for device, network, _ in _routes() if not network.prefixlen), None)


def networks() -> tuple[tuple[ipaddress.IPv4Network, str], ...]:
    """Return the networks that this machine is on itself, without those that guests' gateways have here."""
    return tuple(
        (network, device)
        for device, network, is_led in _routes()
        if network.prefixlen >= SHORTEST_PREFIX and not is_led and names.vni_of_gateway(device) is None
    )


def device_of(address: str | None, networks: tuple[tuple[ipaddress.IPv4Network, str], ...]) -> str | None:
    """Return the device that has an address, as far as can be seen; None stands for the default route's."""
    if address is None:
        return default_device()
    around = [(network.prefixlen, device) for network, device in networks if ipaddress.IPv4Address(address) in network]
    return max(around)[1] if around else None


def mtu(device: str | None) -> int:
    """Return the MTU of a device; of one that is not there nothing is said."""
    try:
        return int(Path("/sys/class/net", device or "", "mtu").read_text(encoding="ascii"))
    except OSError:
        return USUAL_MTU


def is_device(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def has_arp(device: str | None) -> bool:
    """Whether neighbours are found on a device by ARP; of one that is not there nothing is said."""
    try:
        about = Path("/sys/class/net", device or "")
        kind, flags = ((about / name).read_text(encoding="ascii") for name in ("type", "flags"))
    except OSError:
        return True
    return int(kind) == ARPHRD_ETHER and not int(flags, 16) & IFF_NOARP
