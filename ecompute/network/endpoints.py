"""The addresses of etcd and placement, by the names that the configuration has for them.

Looked up again when they are old, beside whoever asks: an answer may take as long as a resolver's patience, and what is
known holds until then. What cannot be looked up stays as it was, also over a new start of the daemon. What never
could be looked up is not passed over: the rules that keep guests away from there would let them.

Any thread may call this.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.errors import Unavailable
from ecompute.cluster.timers import shared

KEPT_S = 600.0
RETRY_S = 60.0
FIRST_RETRY_S = 3.0
"""Where a name never could be looked up."""

log = logging.getLogger(__name__)


def look_up(host: str) -> frozenset[str]:
    """Return the IPv4 addresses of a name.

    Raises:
        OSError: it cannot be looked up.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return frozenset(str(entry[4][0]) for entry in found if entry[0] == socket.AF_INET)


class Endpoints:
    """
    Args:
        endpoints: ``host:port`` each.
        memory: the file in which answers are remembered; None: nowhere.
        clock: seconds, monotonic.
        look_up: returns the addresses of a name, or raises OSError.
        beside: calls a function on some other thread.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        memory: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_up: Callable[[str], frozenset[str]] = look_up,
        beside: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._hosts = tuple(dict.fromkeys(endpoint.rpartition(":")[0].strip("[]") for endpoint in endpoints))
        self._memory = memory
        self._clock = clock
        self._look_up = look_up
        self._beside = beside if beside is not None else partial(shared().soon, "endpoints")
        self._lock = threading.Lock()
        """Of what is known; nobody looks up under it."""
        self._known: dict[str, frozenset[str]] | None = None
        self._due = clock()
        self._is_looking = False
        self._unknown: set[str] = set()
        """Names of which it was said that they cannot be looked up."""

    def addresses(self) -> frozenset[str]:
        """Return the IPv4 addresses.

        Raises:
            Unavailable: a name cannot be looked up, and never could.
        """
        with self._lock:
            known = self._known = self._remembered() if self._known is None else self._known
            missing = [host for host in self._hosts if host not in known]
            is_due = self._clock() >= self._due and not self._is_looking
            self._is_looking = self._is_looking or (is_due and not missing)
        if is_due and missing:
            self._ask(missing)
        elif is_due:
            self._beside(self._ask_all)
        with self._lock:
            assert self._known is not None
            for host in self._hosts:
                if host not in self._known:
                    raise Unavailable(
                        f"guests cannot be kept away from {host}: its name cannot be looked up",
                        hint="name it by its address in compute.yaml",
                    )
            return frozenset().union(*self._known.values())

    def _ask_all(self) -> None:
        try:
            self._ask(self._hosts)
        finally:
            with self._lock:
                self._is_looking = False

    def _ask(self, hosts: Iterable[str]) -> None:
        """Look names up, and keep what is answered."""
        found: dict[str, frozenset[str]] = {}
        failed: dict[str, str] = {}
        for host in hosts:
            try:
                found[host] = self._look_up(host)
            except OSError as error:
                failed[host] = error.strerror or str(error)
        with self._lock:
            before = self._known or {}
            self._known = {**before, **found}
            is_whole = all(host in self._known for host in self._hosts)
            self._due = self._clock() + (KEPT_S if not failed else RETRY_S if is_whole else FIRST_RETRY_S)
            new = failed.keys() - self._unknown
            self._unknown = (self._unknown - found.keys()) | failed.keys()
            if self._known != before:
                self._remember(self._known)
        for host in new:
            log.warning("the name %s cannot be looked up; what was known stays: %s", host, failed[host])

    def _remembered(self) -> dict[str, frozenset[str]]:
        if self._memory is None:
            return {}
        try:
            found = from_json(self._memory.read_bytes(), dict[str, frozenset[str]])
        except (OSError, msgspec.DecodeError):
            return {}
        return {host: addresses for host, addresses in found.items() if host in self._hosts}

    def _remember(self, known: dict[str, frozenset[str]]) -> None:
        if self._memory is None:
            return
        new = self._memory.with_name(f"{self._memory.name}.new")
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.write_bytes(msgspec.json.encode(known, order="deterministic"))
            new.replace(self._memory)
        except OSError as error:
            log.warning("%s cannot be written, so that a new start has to look names up: %s", self._memory, error)
