"""HTTP as images are fetched over it: each connection is checked, and can be ended from outside.

`Door` opens every TCP connection of a fetch: it resolves the name once, holds `addresses.objection`
against what came out, and connects to an address that passed; TLS and the ``Host`` header still
carry the name. `Watch` runs beside a transfer and shuts its connection down when it stalls or is
cancelled, because a thread blocked in a read, or in a server's endless header, cannot look itself.

A session serves one fetch and one thread; only a `Watch` has a second one, which ends with it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import requests
import urllib3.connection
import urllib3.connectionpool
from requests.adapters import HTTPAdapter

from ecompute.cluster.config_reading import IPNetwork
from ecompute.cluster.errors import Refused, Unavailable
from ecompute.storage.fetch import addresses
from ecompute.storage.fetch.limits import Limits, Pace

WATCH_PERIOD_S = 0.2
MAX_ADDRESSES_TRIED = 4
_ALLOW = "the operator may allow its network with image.allow_networks in compute.yaml"


class Watch:
    """A context around one fetch. `reason` says afterwards why it was ended, if it was."""

    def __init__(self, limits: Limits, cancelled: Callable[[], bool]) -> None:
        self.reason: Literal["cancelled", "stalled"] | None = None
        self._cancelled = cancelled
        self._pace = Pace(limits.stall_s, limits.stall_bytes, time.monotonic())
        self._deadline = time.monotonic() + limits.total_s
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="image-watch", daemon=True)

    def attach(self, connection: socket.socket) -> None:
        """Also end ``connection``. The duplicate survives that TLS takes the original over."""
        with self._lock:
            self._pace.restart(time.monotonic(), self._bytes)
            self._sockets.append(connection.dup())

    def count(self, size_bytes: int) -> None:
        """Say that so many bytes came."""
        with self._lock:
            self._bytes += size_bytes

    def _run(self) -> None:
        while not self._ended.wait(WATCH_PERIOD_S):
            is_cancelled = self._cancelled()
            with self._lock:
                if is_cancelled:
                    self.reason = "cancelled"
                elif time.monotonic() > self._deadline or self._pace.is_stalled(time.monotonic(), self._bytes):
                    self.reason = "stalled"
                if self.reason is not None:
                    for connection in self._sockets:
                        with contextlib.suppress(OSError):  # it may be closed by its peer
                            connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for connection in self._sockets:
            connection.close()


class Door:
    """Opens the connections of one fetch."""

    def __init__(self, allowed: Sequence[IPNetwork], refused: Sequence[str], limits: Limits, watch: Watch) -> None:
        self._allowed = allowed
        self._refused = refused
        self._limits = limits
        self._watch = watch

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection to an allowed address of ``host``.

        Raises:
            Refused: none of its addresses is allowed.
            Unavailable: it has none, or none answers.
        """
        resolved = addresses.resolve(host, port)
        objections = {text: self._objection(text, port) for text in resolved}
        allowed = [text for text in resolved if objections[text] is None]
        if not allowed:
            text, why = next(iter(objections.items()))
            raise Refused(f"{host} is {why} ({text}), which images may not come from", hint=_ALLOW)
        failure: OSError | None = None
        for text in allowed[:MAX_ADDRESSES_TRIED]:
            if self._watch.reason is not None:
                break
            try:
                return self._open(text, host, port)
            except OSError as error:
                failure = error
        reason = (failure.strerror or str(failure)) if failure is not None else "given up"
        raise Unavailable(
            f"{host} port {port} does not answer: {reason}", hint="check the URL and its server"
        ) from failure

    def _open(self, text: str, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._limits.connect_s)
            self._watch.attach(connection)
            connection.connect((text, port))
            connection.settimeout(self._limits.stall_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # An address of this machine that is routable from elsewhere: nothing was sent to it yet.
            if connection.getsockname()[0] == connection.getpeername()[0] and not self._is_allowed(text):
                raise Refused(f"{host} is this host itself ({text}), which images may not come from", hint=_ALLOW)
        except BaseException:
            connection.close()
            raise
        return connection

    def _objection(self, text: str, port: int) -> str | None:
        address = addresses.parse(text)
        kind = addresses.objection(address, self._allowed)
        if kind is not None:
            return f"{kind} address"
        if not self._is_allowed(text) and any(address == parsed for parsed in self._control_plane(port)):
            return "a service of the cloud itself"
        return None

    def _is_allowed(self, text: str) -> bool:
        address = addresses.parse(text)
        return any(address.version == network.version and address in network for network in self._allowed)

    def _control_plane(self, port: int) -> list[addresses.IPAddress]:
        found: list[addresses.IPAddress] = []
        for endpoint in self._refused:
            host, _, its_port = endpoint.rpartition(":")
            if its_port == str(port):
                with contextlib.suppress(Unavailable):  # what has no address cannot be reached either
                    found += map(addresses.parse, addresses.resolve(host.strip("[]"), port))
        return found


class _Adapter(HTTPAdapter):
    """Has urllib3 open its connections through a `Door`."""

    def __init__(self, door: Door) -> None:
        self._door = door
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, **named)
        self.poolmanager.pool_classes_by_scheme = _pool_classes(self._door)


def _pool_classes(door: Door) -> dict[str, type[urllib3.connectionpool.HTTPConnectionPool]]:
    # `_new_conn` is where urllib3's own SOCKS support puts its connections in. Should a urllib3 no
    # longer call it, `connect` refuses to go on: a connection that was not checked carries nothing.
    class Connection(urllib3.connection.HTTPConnection):
        is_checked = False

        def _new_conn(self) -> socket.socket:
            connection = door.connect(self.host.strip("[]"), self.port or self.default_port)
            self.is_checked = True
            return connection

        def connect(self) -> None:
            super().connect()
            _refuse_unchecked(self)

    class TLSConnection(urllib3.connection.HTTPSConnection):
        is_checked = False

        def _new_conn(self) -> socket.socket:
            connection = door.connect(self.host.strip("[]"), self.port or self.default_port)
            self.is_checked = True
            return connection

        def connect(self) -> None:
            super().connect()
            _refuse_unchecked(self)

    def _refuse_unchecked(connection: Connection | TLSConnection) -> None:
        if not connection.is_checked:
            connection.close()
            raise Refused("the installed urllib3 connects past the address check", hint="install urllib3 2.x")

    class Pool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(urllib3.connectionpool.HTTPSConnectionPool):
        ConnectionCls = TLSConnection

    return {"http": Pool, "https": TLSPool}


def session(door: Door, ca: str | bool) -> requests.Session:
    """Return a session that reads nothing from the environment: no proxies, no ``.netrc``.

    A proxy would connect in our place, past the check of addresses.
    """
    made = requests.Session()
    made.trust_env = False
    made.verify = ca
    adapter = _Adapter(door)
    made.adapters.clear()
    made.mount("http://", adapter)
    made.mount("https://", adapter)
    made.headers.clear()
    made.headers.update(
        {"User-Agent": "ecompute", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    )
    return made
