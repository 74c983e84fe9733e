"""The flows that a network's namespace translates, and the end of those that its rules would not begin any more.

A translation holds for as long as its flow goes on, whatever the rules say meanwhile: an address that became
another's would go on reaching the one before. So after a change of the rules what does not follow from them ends.

The format is that of ctnetlink (include/uapi/linux/netfilter/nfnetlink_conntrack.h); an entry is deleted by the very
bytes by which it was told. Everything is about the network namespace of the thread that calls.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ecompute.cluster.errors import NetworkError
from ecompute.network.nat import InsideRules

_NETLINK_NETFILTER = 12
_CONNTRACK = 1 << 8
_NEW, _GET, _DELETE = _CONNTRACK | 0, _CONNTRACK | 1, _CONNTRACK | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_ORIGINAL, _REPLY, _ZONE = 1, 2, 18
_ADDRESSES = 1
_SOURCE, _DESTINATION = 1, 2
_KIND = 0x3FFF
"""Without the bits that say of an attribute that it is nested, or in network order."""
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Flow:
    """One entry: where it comes from and goes to, and the same for its answers."""

    source: str
    destination: str
    answer_source: str
    answer_destination: str
    name: bytes
    """What the kernel knows it by."""

    def follows_from(self, rules: InsideRules, transit: str | None) -> bool:
        """Whether these rules would translate it as it is translated."""
        translated = set(rules.floating)
        is_fine = self.destination == self.answer_source or (self.destination, self.answer_source) in translated
        if self.source == self.answer_destination or self.answer_destination in (transit, rules.gateway):
            return is_fine
        return is_fine and (self.answer_destination, self.source) in translated


def end_stale(rules: InsideRules, transit: str | None) -> int:
    """End the flows that do not follow from ``rules``; return how many.

    Args:
        transit: the address behind which the rest is hidden.

    Raises:
        NetworkError: the kernel does not tell, or does not end one.
    """
    stale = [flow for flow in flows() if not flow.follows_from(rules, transit)]
    for flow in stale:
        _end(flow)
    return len(stale)


def flows() -> list[Flow]:
    """Return all flows of IPv4.

    Raises:
        NetworkError: the kernel does not tell.
    """
    with _opened() as netlink:
        netlink.send(_message(_GET, _REQUEST | _DUMP, b""))
        found = []
        for kind, body in _answers(netlink):
            if kind == _NEW and (flow := _flow(body)) is not None:
                found.append(flow)
        return found


def _end(flow: Flow) -> None:
    with _opened() as netlink:
        netlink.send(_message(_DELETE, _REQUEST | _ACK, flow.name))
        for _ in _answers(netlink):
            pass


def _opened() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    netlink.settimeout(_TIMEOUT_S)
    return netlink


def _message(kind: int, flags: int, attributes: bytes) -> bytes:
    return struct.pack("=IHHIIBBH", 20 + len(attributes), kind, flags, 1, 0, socket.AF_INET, 0, 0) + attributes


def _answers(netlink: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of each message, until the kernel says that there are no more."""
    try:
        while True:
            answer = netlink.recv(1 << 17)
            at = 0
            while at + 16 <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                body = answer[at + 16 : at + length]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    if number and -number != errno.ENOENT:  # it ended by itself
                        raise OSError(-number, os.strerror(-number))
                    return
                yield kind, body
                at += (length + 3) & ~3
    except OSError as error:
        raise NetworkError(f"asking the kernel for the flows that it translates: {error}") from error


def _flow(body: bytes) -> Flow | None:
    found = {kind: (value, raw) for kind, value, raw in _attributes(body[4:])}
    if _ORIGINAL not in found or _REPLY not in found:
        return None
    ends = [_ends(found[which][0]) for which in (_ORIGINAL, _REPLY)]
    name = found[_ORIGINAL][1] + (found[_ZONE][1] if _ZONE in found else b"")
    return Flow(*ends[0], *ends[1], name=name) if ends[0] and ends[1] else None


def _ends(tuple_: bytes) -> tuple[str, str] | tuple[()]:
    for kind, value, _ in _attributes(tuple_):
        if kind == _ADDRESSES:
            addresses = {which: socket.inet_ntoa(octets) for which, octets, _ in _attributes(value) if len(octets) == 4}
            if _SOURCE in addresses and _DESTINATION in addresses:
                return addresses[_SOURCE], addresses[_DESTINATION]
    return ()


def _attributes(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield kind, value, and the whole of each attribute with its padding."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        end = at + ((length + 3) & ~3)
        yield kind & _KIND, data[at + 4 : at + length], data[at:end]
        at = end
