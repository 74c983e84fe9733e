"""How much a piece of work asks of the kernel: netlink messages, their bytes, and programs started.

Netlink sockets are Python's, pyroute2's as well as ours, so what is sent is counted there; what ``nft`` sends itself is
one batch, and is counted as a program.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    messages: int = 0
    size_bytes: int = 0
    programs: list[tuple[str, ...]] = field(default_factory=list)


@contextlib.contextmanager
def counted() -> Iterator[Asked]:
    """Count what all threads of this process do meanwhile."""
    asked, lock = Asked(), threading.Lock()
    send, run = socket.socket.send, subprocess.run

    def count(self: socket.socket, data: Any, *others: Any) -> int:
        if self.family == socket.AF_NETLINK:
            with lock:
                asked.messages += _messages(data)
                asked.size_bytes += len(data)
        return send(self, data, *others)

    def started(argv: Any, *others: Any, **named: Any) -> Any:
        with lock:
            asked.programs.append(tuple(map(str, argv)))
        return run(argv, *others, **named)

    socket.socket.send, subprocess.run = count, started  # type: ignore[method-assign,assignment]
    try:
        yield asked
    finally:
        socket.socket.send, subprocess.run = send, run  # type: ignore[method-assign]


def _messages(data: Any) -> int:
    """Return how many messages are in one piece: each begins with its length (netlink(7))."""
    count, offset = 0, 0
    while offset + 16 <= len(data):
        offset += (int.from_bytes(bytes(data[offset : offset + 4]), sys.byteorder) + 3) & ~3
        count += 1
    return count
