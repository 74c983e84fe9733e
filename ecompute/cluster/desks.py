"""Names of Unix sockets that the kernel takes, however long the path of their directory is.

Such a name has 107 bytes at most (unix(7)): so the socket is named from a descriptor of its directory. Any thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def socket_in(directory: Path, name: str) -> Iterator[str]:
    """Yield what to bind or to connect the socket ``name`` of ``directory`` with, meanwhile.

    Raises:
        OSError: the directory cannot be opened; FileNotFoundError: there is none.
    """
    held = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{held}/{name}"
    finally:
        os.close(held)
