"""The forwarding entries and neighbours of one VXLAN device, read from the kernel and changed.

A network may have tens of thousands, with which pyroute2 would take seconds or minutes: so messages are
made and taken apart here (linux/netlink.h, linux/neighbour.h), and the kernel filters by the device.
A host that joins such a network sends them in batches.

What is ours: permanent entries without any mark. All others (dynamic, static, of a controller, of
another port or VNI, the kernel's own) are somebody else's; of those only the forwarding entries are
told that do the same as one of ours would.

Any thread may call this; it is about the network namespace of the thread that calls.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ecompute.network.names import ZEROS
from ecompute.network.terms import DropEntry, DropNeighbour, EntryChange, PutEntry, PutNeighbour

_NEW_NEIGHBOUR, _DELETE_NEIGHBOUR, _GET_NEIGHBOUR = 28, 29, 30
_REQUEST_DUMP = 0x301
_REQUEST_ACK = 0x5
_REPLACE, _CREATE, _APPEND = 0x100, 0x400, 0x800
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
_BATCH = 64
"""Messages that are sent at once: so many answers have room in a socket that is not read meanwhile."""
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL})


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


def change(index: int, changes: Sequence[EntryChange]) -> None:
    """Make changes on the device with that index, in their order. What is to be dropped may be gone.

    Raises:
        OSError: the kernel refused one; those after it may have been made or not.
    """
    with _opened() as netlink:
        for start in range(0, len(changes), _BATCH):
            batch = changes[start : start + _BATCH]
            netlink.send(b"".join([_message(index, one, number) for number, one in enumerate(batch)]))
            for number, code in _answers(netlink, len(batch)):
                is_drop = isinstance(batch[number], DropEntry | DropNeighbour)
                if code and not (is_drop and code in _GONE):
                    raise OSError(code, f"{os.strerror(code)}: {batch[number]}")


def _message(index: int, one: EntryChange, number: int) -> bytes:
    match one:
        case PutEntry(_, mac, underlay):
            # An entry of zeros has one destination for each peer; a port's MAC has exactly one.
            kind, flags = _NEW_NEIGHBOUR, _CREATE | (_APPEND if mac == ZEROS else _REPLACE)
            body = _entry(index, mac, underlay)
        case DropEntry(_, mac, underlay):
            kind, flags, body = _DELETE_NEIGHBOUR, 0, _entry(index, mac, underlay)
        case PutNeighbour(_, address, mac):
            kind, flags = _NEW_NEIGHBOUR, _CREATE | _REPLACE
            body = _neighbour(index, address) + _attribute(_LLADDR, _octets(mac))
        case DropNeighbour(_, address):
            kind, flags, body = _DELETE_NEIGHBOUR, 0, _neighbour(index, address)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_ACK | flags, number, 0) + body


def _entry(index: int, mac: str, underlay: str) -> bytes:
    # Without SELF it would be the bridge's, and keep the MAC from ever being learned.
    head = _NEIGHBOUR.pack(_AF_BRIDGE, 0, 0, index, _PERMANENT | _NOARP, _SELF, 0)
    return head + _attribute(_LLADDR, _octets(mac)) + _attribute(_DST, socket.inet_aton(underlay))


def _neighbour(index: int, address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    head = _NEIGHBOUR.pack(family, 0, 0, index, _PERMANENT, 0, 0)
    return head + _attribute(_DST, socket.inet_pton(family, address))


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _answers(netlink: socket.socket, count: int) -> Iterator[tuple[int, int]]:
    """Yield number and error of each message that was sent, 0 for none."""
    while count > 0:
        data = netlink.recv(_RECEIVE_BYTES)
        offset = 0
        while offset < len(data):
            length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                count -= 1
                yield number, -code
            offset += (length + 3) & ~3


@contextmanager
def _opened() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        yield netlink


def _address(octets: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(octets) == 4 else socket.AF_INET6, octets)


def _dump(family: int, index: int) -> Iterator[tuple[int, int, int, dict[int, bytes]]]:
    """Yield device, state, flags and attributes of each neighbour of a family (0: IPv4 and IPv6)."""
    body = _NEIGHBOUR.pack(family, 0, 0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _IFINDEX, index)
    with _opened() as netlink:
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
