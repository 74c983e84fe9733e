"""What a guest's connection may cost: waitress's, held to less than it asks for.

A guest is somebody who may mean harm. So one request is in flight on a connection, and there is one answer, at most,
that is not yet read; a connection has a time for each request, from the end of the one before it until the answer is
read, however its octets trickle; then it is reset, and what the kernel has kept for it goes too. Nothing that comes
from a guest is logged, waitress's own words included: they quote it.

Threads: the loop's; `Connection.service` runs on the workers.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections import Counter
from typing import Any

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.utilities import BadRequest

CONNECTIONS_A_CALLER = 16
SEND_BUFFER_BYTES = 1 << 13
"""Of an answer that is not read the kernel keeps about twice so much, and not megabytes: the rest waits here, where the
connections of a guest are counted."""
UNREAD_TIMEOUT_MS = 20_000
"""The kernel gives up so soon what is left of a connection that we have closed."""

_RESET = struct.pack("ii", 1, 0)


class Request(HTTPRequestParser):  # type: ignore[misc]
    """What comes in on a connection, up to the end of one request."""

    def received(self, data: bytes) -> int:
        """Take in ``data``, all of it. What follows a request at once is dropped: its answer ends the connection."""
        try:
            taken = int(super().received(data))
        except ValueError:  # of an address that is none: waitress does not foresee it
            self.error = BadRequest("Bad URI")
            self.completed = self.headers_finished = True
            return len(data)
        if not self.completed or self.empty:
            return taken
        if data[taken:].strip():
            self.headers["CONNECTION"] = "close"
        return len(data)


class Connection(HTTPChannel):  # type: ignore[misc]
    """One connection of a guest's."""

    parser_class = Request

    def __init__(self, *args: Any, **others: Any) -> None:
        self.since_s = time.monotonic()
        """Since when the next request is waited for."""
        super().__init__(*args, **others)

    def service(self) -> None:
        super().service()
        self.since_s = time.monotonic()

    def reset(self) -> None:
        """End it, whatever is still to be sent."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.handle_close()


class NetworkServer(TcpWSGIServer):  # type: ignore[misc]
    """Answers on one socket of one network."""

    channel_class = Connection

    def handle_accept(self) -> None:
        before = set(self.active_channels)
        super().handle_accept()
        callers = Counter(channel.addr[0] for channel in self.active_channels.values())
        for number in set(self.active_channels) - before:
            channel = self.active_channels[number]
            if callers[channel.addr[0]] > CONNECTIONS_A_CALLER:
                channel.handle_close()

    def set_socket_options(self, conn: socket.socket) -> None:
        super().set_socket_options(conn)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)

    def maintenance(self, now: float) -> None:
        """Do nothing: waitress would wait for a connection to be writable before it closes it. See `reset_since`."""

    def reset_since(self, before_s: float) -> None:
        """Reset the connections that wait for a request since ``before_s`` of the monotonic clock, or longer."""
        for channel in list(self.active_channels.values()):
            if channel.since_s <= before_s:
                channel.reset()

    def end(self) -> None:
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        self.close()


def say_nothing() -> None:
    """Have waitress log nothing: what it says quotes guests, who could fill the host's disk with it."""
    logger = logging.getLogger("waitress")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
    logging.getLogger("waitress.queue").setLevel(logging.CRITICAL)
