"""The forwarding entries and neighbours of one VXLAN device, read from the kernel.

A network may have tens of thousands, which pyroute2 would take seconds to decode: so the answers are
taken apart here (linux/netlink.h, linux/neighbour.h), and the kernel filters by the device. Changes
are few, and go through pyroute2 like everything else.

What is ours: permanent entries without any mark. All others (dynamic, static, of a controller, of
another port or VNI, the kernel's own) are somebody else's; of those only the forwarding entries are
told that do the same as one of ours would.

Any thread may call this; it is about the network namespace of the thread that calls.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_GET_NEIGHBOUR = 30
_REQUEST_DUMP = 0x301
_DONE, _ERROR = 3, 2
_SOL_NETLINK, _STRICT_CHECK = 270, 12

_DST, _LLADDR, _PORT, _VNI, _IFINDEX, _SRC_VNI = 1, 2, 6, 7, 8, 11
_MARKS = frozenset({_PORT, _VNI, _IFINDEX, _SRC_VNI})
_SELF = 0x02
_PERMANENT, _NOARP = 0x80, 0x40

_AF_BRIDGE = 7
_HEADER = struct.Struct("=IHHII")
_NEIGHBOUR = struct.Struct("=BBHiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 1 << 18
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Entries:
    ours: frozenset[tuple[str, str]]
    """(MAC, underlay address)."""
    foreign: frozenset[tuple[str, str]]
    neighbours: frozenset[tuple[str, str]]
    """(address, MAC)."""


def read(index: int) -> Entries:
    """Return what there is on the device with that index.

    Raises:
        OSError: the kernel does not tell.
    """
    ours: set[tuple[str, str]] = set()
    foreign: set[tuple[str, str]] = set()
    neighbours: set[tuple[str, str]] = set()
    for _, state, flags, attributes in _dump(_AF_BRIDGE, index):
        underlay = attributes.get(_DST)
        if underlay is None or not flags & _SELF or attributes.keys() & _MARKS:
            continue
        is_ours = flags == _SELF and state == _PERMANENT | _NOARP
        (ours if is_ours else foreign).add((attributes[_LLADDR].hex(":"), _address(underlay)))
    for _, state, flags, attributes in _dump(socket.AF_UNSPEC, index):
        if state == _PERMANENT and flags == 0 and _LLADDR in attributes:
            neighbours.add((_address(attributes[_DST]), attributes[_LLADDR].hex(":")))
    return Entries(frozenset(ours), frozenset(foreign), frozenset(neighbours))


def _address(octets: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(octets) == 4 else socket.AF_INET6, octets)


def _dump(family: int, index: int) -> Iterator[tuple[int, int, int, dict[int, bytes]]]:
    """Yield device, state, flags and attributes of each neighbour of a family (0: IPv4 and IPv6)."""
    body = _NEIGHBOUR.pack(family, 0, 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _IFINDEX, index)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _GET_NEIGHBOUR, _REQUEST_DUMP, 1, 0) + body)
        while True:
            data = netlink.recv(_RECEIVE_BYTES)
            offset = 0
            while offset < len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
                if kind == _DONE:
                    return
                start = offset + _HEADER.size
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", data, start)
                    raise OSError(-code, "reading neighbours")
                _, _, _, device, state, flags, _ = _NEIGHBOUR.unpack_from(data, start)
                if device == index:
                    yield device, state, flags, _attributes(data, start + _NEIGHBOUR.size, offset + length)
                offset += (length + 3) & ~3


def _attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    attributes = {}
    while offset < end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        attributes[kind] = data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
    return attributes
