"""The sockets of the metadata service, opened in a network's namespace.

Each function is about the namespace of the thread that calls it (`ecompute.network.netns.in_namespace`). Any thread.
"""

from __future__ import annotations

import contextlib
import socket

from ecompute.cluster.errors import NetworkError
from ecompute.network import netns
from ecompute.network.names import LAN, METADATA, METADATA6

ADDRESS, ADDRESS6 = METADATA, METADATA6
PORT = 80
BACKLOG = 64


def mark(namespace: str) -> str:
    """Return what is another one when the namespace or its device was made anew."""
    try:
        index = socket.if_nametoindex(LAN)
    except OSError as error:
        raise NetworkError(f"the namespace {namespace} has no device {LAN} yet") from error
    return f"{netns.identity(namespace)} {index}"


def listening() -> list[socket.socket]:
    """Open the sockets of the service in the namespace of this thread: the one of IPv6 where there is IPv6."""
    try:
        opened = [_open(socket.AF_INET, (ADDRESS, PORT))]
    except OSError as error:
        raise NetworkError(f"{ADDRESS}:{PORT} cannot be listened on: {error.strerror}") from error
    with contextlib.suppress(OSError):
        opened.append(_open_six())
    return opened


def _open_six() -> socket.socket:
    return _open(socket.AF_INET6, (ADDRESS6, PORT, 0, socket.if_nametoindex(LAN)))


def is_six_there() -> bool:
    """Whether the socket of IPv6 can be opened, where none is served."""
    with contextlib.suppress(OSError), _open_six():
        return True
    return False


def _open(family: socket.AddressFamily, address: tuple[str, int] | tuple[str, int, int, int]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    return one
