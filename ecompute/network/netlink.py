"""What is asked of the kernel through netlink in several places, in one way.

A socket belongs to the network namespace of the thread that opens it, and is shared with no other thread:
pyroute2 keeps an event loop for every thread that has one (see `links`). Opening one costs as much as two requests: so
within `opened` a thread that opens another one has the same. Settings are those of the same namespace.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ecompute.cluster.errors import NetworkError

IFF_UP = 0x1
IFF_NOARP = 0x80
ARPHRD_ETHER = 1
"""include/uapi/linux/if_arp.h"""
PERMANENT = 0x80
"""NUD_PERMANENT: include/uapi/linux/neighbour.h"""
PROXY = 0x08
"""NTF_PROXY"""
MAIN_TABLE = 254
STATIC, KERNEL = 4, 2
"""RTPROT_STATIC, RTPROT_KERNEL: include/uapi/linux/rtnetlink.h"""

LINK_SCOPE = 253
ANY_SCOPE = 255
"""RT_SCOPE_LINK, RT_SCOPE_NOWHERE: the latter, of a route that is to be deleted, means any."""

SKIP_STATS = 8


@contextmanager
def opened() -> Iterator[Any]:
    """A socket in the namespace of this thread, which stays there meanwhile. Dumps are filtered by the kernel."""
    netlink = getattr(_of_thread, "netlink", None)
    if netlink is not None:
        yield netlink
        return
    netlink = _of_thread.netlink = IPRoute(strict_check=True)
    try:
        yield netlink
    finally:
        _of_thread.netlink = None
        netlink.close()


_of_thread = threading.local()


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Say of what the kernel refuses what was tried.

    Raises:
        NetworkError: it refused something.
    """
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(f"{what}: {error.args[-1]} (errno {error.code})") from error
    except OSError as error:
        raise NetworkError(f"{what}: {error}") from error


@contextmanager
def gone_is_fine() -> Iterator[None]:
    """Pass over that what is to be removed is not there."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL):
            raise


def device(netlink: Any, name: str) -> Any | None:
    """Return what the kernel says of a device, or None where there is none.

    Whether there is one is asked first, which costs a hundredth: most of what is looked for is not there.
    """
    try:
        index(name)
        return next(iter(netlink.link("get", ifname=name, ext_mask=SKIP_STATS)))
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise NetlinkError(errno.ENODEV, f"there is no device {name}") from error


def kind(link: Any) -> str:
    """Return the kind of a device, or that it has none (a physical one)."""
    return str(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "physical")


def has_arp(link: Any) -> bool:
    """Whether neighbours are found on a device by ARP: in tunnels of IP packets (tun, WireGuard, ppp) are none."""
    return link["ifi_type"] == ARPHRD_ETHER and not link["flags"] & IFF_NOARP


def permanent(netlink: Any, device_index: int) -> list[tuple[str, str]]:
    """Return address and MAC of the permanent IPv4 neighbours of a device: others may have very many."""
    return [
        (str(entry.get_attr("NDA_DST")), str(entry.get_attr("NDA_LLADDR")))
        for entry in netlink.neigh("dump", dump_filter=None, family=socket.AF_INET, NDA_IFINDEX=device_index)
        if entry["state"] == PERMANENT and entry["ifindex"] == device_index
    ]


def settings(link: Any) -> dict[str, int | None]:
    """Return the settings of a device, as ``family/name``; None for all of IPv6 in a kernel without it."""
    four = link.get_nested("IFLA_AF_SPEC", "AF_INET") or {}
    six = link.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_CONF")
    found: dict[str, int | None] = {f"ipv4/{name}": value for name, value in four.items()}
    if six is not None:
        found |= {f"ipv6/{name}": value for name, value in six.items()}
        found["ipv6/addr_gen_mode"] = link.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")
    return found


def has(link: Any, wanted: Mapping[str, int]) -> bool:
    """Whether a device has these settings, as far as the kernel knows them."""
    found = settings(link)
    has_six = any(name.startswith("ipv6/") for name in found)
    return all(found.get(name) == value for name, value in wanted.items() if has_six or name.startswith("ipv4/"))


def dress(netlink: Any, name: str, mtu: int, mac: str | None = None) -> None:
    """Give a device its MTU and MAC. One that gets its MAC, even the same again, forgets its neighbours."""
    found_mtu, found_mac = dress_of(name)
    changed: dict[str, Any] = {"mtu": mtu} if found_mtu != mtu else {}
    if mac not in (None, found_mac):
        changed |= {"address": mac}
    if changed:
        netlink.link("set", index=index(name), **changed)


def dress_of(name: str) -> tuple[int, str]:
    """Return the MTU and MAC of a device (netdevice(7)): a hundredth of what netlink takes to tell all of it."""
    request = struct.pack("16s24x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        (mtu,) = struct.unpack_from("=i", fcntl.ioctl(asking, _GET_MTU, request), 16)
        return mtu, fcntl.ioctl(asking, _GET_MAC, request)[18:24].hex(":")


_GET_MTU, _GET_MAC = 0x8921, 0x8927
"""SIOCGIFMTU, SIOCGIFHWADDR"""


def set_all(device_name: str, wanted: Mapping[str, int]) -> None:
    """Give a device these settings; ``all`` is one, too."""
    for name, value in wanted.items():
        family, setting = name.split("/")
        directory = Path("/proc/sys/net", family, "conf", device_name)
        if family == "ipv4" or directory.exists():  # there may be no IPv6, in the kernel or with a small MTU
            (directory / setting).write_text(f"{value}\n", encoding="ascii")
