"""The addresses of etcd and placement, by the names that the configuration has for them.

Looked up again when they are old; what cannot be looked up then stays as it was. What never could be looked up is not
passed over: the rules that keep guests away from there would let them.

Any thread may call this.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable

from ecompute.cluster.errors import Unavailable

KEPT_S = 600.0
RETRY_S = 60.0

log = logging.getLogger(__name__)


class Endpoints:
    """
    Args:
        endpoints: ``host:port`` each.
        clock: seconds, monotonic.
    """

    def __init__(self, endpoints: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._hosts = tuple(dict.fromkeys(endpoint.rpartition(":")[0].strip("[]") for endpoint in endpoints))
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, frozenset[str]] = {}
        self._due = clock()

    def addresses(self) -> frozenset[str]:
        """Return the IPv4 addresses.

        Raises:
            Unavailable: a name cannot be looked up, and never could.
        """
        with self._lock:
            if self._clock() >= self._due:
                self._due = self._clock() + KEPT_S
                for host in self._hosts:
                    self._look_up(host)
            return frozenset().union(*self._known.values())

    def _look_up(self, host: str) -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            self._due = self._clock() + RETRY_S
            if host not in self._known:
                self._due = self._clock()
                raise Unavailable(
                    f"guests cannot be kept away from {host}: its name cannot be looked up ({error.strerror})",
                    hint="name it by its address in compute.yaml",
                ) from error
            log.warning("the name %s cannot be looked up; what is known of it stays: %s", host, error.strerror)
            return
        self._known[host] = frozenset(str(entry[4][0]) for entry in found if entry[0] == socket.AF_INET)
