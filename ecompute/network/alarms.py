"""Notices that somebody deletes a device of ours, or changes our rules: it is put back at once, not at the next scan.

Between the two nothing would keep guests from the host: a firewall that is restarted flushes every
rule, ours too. The kernel tells of both (rtnetlink(7); NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h),
also of what we do ourselves, which whoever is told must find out: what has happened is not said here.

One thread waits, and is woken by such changes only. It is about the network namespace of the process.
Every method may be called from any thread; the functions are called in the thread that waits.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from ecompute.network import names

SETTLE_S = 0.05
"""One change is many messages."""

_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_LINK_GROUP, _NFTABLES_GROUP = 1, 7
_DELETE_LINK = 17
_NFTABLES = 10
_INTERFACE_NAME = 3
_TABLE_NAME = 1
"""Of every object of nftables that has one: linux/netfilter/nf_tables.h."""

log = logging.getLogger(__name__)


class Alarms(Protocol):
    def start(self, on_device: Callable[[int], None], on_rules: Callable[[], None]) -> None:
        """
        Args:
            on_device: called with the VNI of a network of which a device was deleted.
            on_rules: called when a table that is named like ours was changed.
        """

    def close(self) -> None:
        """Call nobody any more. Idempotent."""


class NetlinkAlarms:
    """
    Args:
        tables: the names of our tables.
    """

    def __init__(self, *tables: str) -> None:
        self._tables = tables
        self._thread: threading.Thread | None = None
        self._wake: int | None = None

    def start(self, on_device: Callable[[int], None], on_rules: Callable[[], None]) -> None:
        heard, self._wake = os.pipe()
        devices = _subscribed(socket.NETLINK_ROUTE, _LINK_GROUP)
        rules = _subscribed(_NETFILTER, _NFTABLES_GROUP)
        self._thread = threading.Thread(
            target=self._wait, args=(heard, devices, rules, on_device, on_rules), name="network-alarms", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            os.close(wake)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _wait(
        self,
        heard: int,
        devices: socket.socket,
        rules: socket.socket,
        on_device: Callable[[int], None],
        on_rules: Callable[[], None],
    ) -> None:
        with devices, rules, open(heard, "rb") as end:
            while True:
                ready, _, _ = select.select([end.fileno(), devices.fileno(), rules.fileno()], [], [])
                if end.fileno() in ready:
                    return
                gone: set[int] = set()
                is_changed = False
                while not select.select([end], [], [], 0)[0]:
                    gone |= deleted(_messages(devices))
                    is_changed = self._is_about_ours(_messages(rules)) or is_changed
                    if not select.select([devices, rules], [], [], SETTLE_S)[0]:
                        break
                try:
                    for vni in sorted(gone):
                        on_device(vni)
                    if is_changed:
                        on_rules()
                except Exception:
                    log.exception("what the kernel told of our network was not looked at")

    def _is_about_ours(self, messages: list[tuple[int, bytes]]) -> bool:
        """Whether a message is about a table of our name; also where some were lost."""
        return any(
            kind == 0 or (kind >> 8 == _NFTABLES and _attribute(body[4:], _TABLE_NAME) in self._tables)
            for kind, body in messages
        )


def deleted(messages: list[tuple[int, bytes]]) -> set[int]:
    """Return the VNIs of the networks of which a device was deleted."""
    found = {names.vni_of(_attribute(body[16:], _INTERFACE_NAME)) for kind, body in messages if kind == _DELETE_LINK}
    return {vni for vni in found if vni is not None}


def _subscribed(protocol: int, group: int) -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    netlink.bind((0, 0))
    netlink.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    netlink.setblocking(False)
    return netlink


def _messages(netlink: socket.socket) -> list[tuple[int, bytes]]:
    """Return kind and body of what has come; a kind of 0 stands for messages that were lost."""
    messages: list[tuple[int, bytes]] = []
    while True:
        try:
            data = netlink.recv(1 << 16)
        except BlockingIOError:
            return messages
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            messages.append((0, b""))
            continue
        messages += _parted(data)


def _parted(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        yield kind, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _attribute(data: bytes, wanted: int) -> str:
    """Return a text among attributes; empty: there is none."""
    offset = 0
    while offset + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4:
            return ""
        if kind & 0x3FFF == wanted:
            return data[offset + 4 : offset + size].rstrip(b"\0").decode(errors="replace")
        offset += (size + 3) & ~3
    return ""
