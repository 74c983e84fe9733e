"""Notices that somebody deletes a device of ours, or changes our rules: it is put back at once, not at the next scan.

Between the two nothing would keep guests from the host: a firewall that is restarted flushes every
rule, ours too. The kernel tells of both (rtnetlink(7); NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h),
also of what we do ourselves, which whoever is told must find out: what has happened is not said here.

One thread waits, and is woken by such changes only. It is about the network namespace of the process. Where something
that the kernel told was lost, it may have been about any network.
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
import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from ecompute.network import names

SETTLE_S = 0.05
"""One change is many messages."""
LONGEST_SETTLE_S = 1.0
"""Where devices come and go all the time, it is told all the same."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""Before it is listened for again, where that failed."""

_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_LINK_GROUP, _NFTABLES_GROUP = 1, 7
_DELETE_LINK = 17
_NFTABLES = 10
_INTERFACE_NAME = 3
_TABLE_NAME = 1
"""Of every object of nftables that has one: linux/netfilter/nf_tables.h."""

log = logging.getLogger(__name__)


OnDevice = Callable[[int | None], None]


class Alarms(Protocol):
    def start(self, on_device: OnDevice, on_rules: Callable[[], None]) -> None:
        """
        Args:
            on_device: called with the VNI of a network of which a device was deleted; None: it may be any.
            on_rules: called when a table that is named like ours was changed.
        """

    def close(self) -> None:
        """Call nobody any more. Idempotent."""


def subscribed(protocol: int, group: int) -> socket.socket:
    """Open a socket on which the kernel tells of a group of things."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    netlink.bind((0, 0))
    netlink.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    return netlink


class NetlinkAlarms:
    """
    Args:
        tables: the names of our tables.
        subscribe: opens the sockets.
    """

    def __init__(self, *tables: str, subscribe: Callable[[int, int], socket.socket] = subscribed) -> None:
        self._tables = tables
        self._subscribe = subscribe
        self._thread: threading.Thread | None = None
        self._wake: int | None = None
        self._on_device: OnDevice = lambda vni: None
        self._on_rules: Callable[[], None] = lambda: None

    def start(self, on_device: OnDevice, on_rules: Callable[[], None]) -> None:
        self._on_device, self._on_rules = on_device, on_rules
        sockets = self._opened()
        heard, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(heard, *sockets), name="network-alarms", daemon=True)
        self._thread.start()

    def close(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            os.close(wake)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _opened(self) -> tuple[socket.socket, socket.socket]:
        devices = self._subscribe(socket.NETLINK_ROUTE, _LINK_GROUP)
        try:
            rules = self._subscribe(_NETFILTER, _NFTABLES_GROUP)
        except OSError:
            devices.close()
            raise
        devices.setblocking(False)
        rules.setblocking(False)
        return devices, rules

    def _run(self, heard: int, devices: socket.socket, rules: socket.socket) -> None:
        pause_s = FIRST_PAUSE_S
        with open(heard, "rb") as end:
            while True:
                try:
                    with devices, rules:
                        self._listen(end.fileno(), devices, rules)
                    return
                except OSError as error:
                    log.warning("what the kernel tells of devices and rules was not heard: %s", error)
                while True:
                    if _ready([end.fileno()], pause_s):
                        return
                    pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                    try:
                        devices, rules = self._opened()
                        break
                    except OSError as error:
                        log.warning("the kernel cannot be listened to: %s", error)
                self._tell({None}, is_changed=True)

    def _listen(self, end: int, devices: socket.socket, rules: socket.socket) -> None:
        """Tell what is heard, until the end."""
        both = [devices.fileno(), rules.fileno()]
        while end not in _ready([end, *both]):
            gone: set[int | None] = set()
            is_changed = False
            until = time.monotonic() + LONGEST_SETTLE_S
            while not _ready([end], 0):
                gone |= deleted(_messages(devices))
                is_changed = self._is_about_ours(_messages(rules)) or is_changed
                if time.monotonic() > until or not _ready(both, SETTLE_S):
                    break
            self._tell(gone, is_changed=is_changed)

    def _tell(self, gone: set[int | None], *, is_changed: bool) -> None:
        try:
            for vni in {None} if None in gone else gone:
                self._on_device(vni)
            if is_changed:
                self._on_rules()
        except Exception:
            log.exception("what the kernel told of our network was not looked at")

    def _is_about_ours(self, messages: list[tuple[int, bytes]]) -> bool:
        """Whether a message is about a table of our name; also where some were lost."""
        return any(
            kind == 0 or (kind >> 8 == _NFTABLES and _attribute(body[4:], _TABLE_NAME) in self._tables)
            for kind, body in messages
        )


def deleted(messages: list[tuple[int, bytes]]) -> set[int | None]:
    """Return the VNIs of the networks of which a device was deleted; None for one that is not known."""
    found: set[int | None] = {None for kind, _ in messages if kind == 0}
    for kind, body in messages:
        if kind == _DELETE_LINK:
            name = _attribute(body[16:], _INTERFACE_NAME)
            vni = names.vni_of(name)
            vni = names.vni_of_gateway(name) if vni is None else vni
            found |= set() if vni is None else {vni}
    return found


def _ready(descriptors: Collection[int], timeout_s: float | None = None) -> set[int]:
    """Wait until something can be read, or for so long; return where."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}


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
