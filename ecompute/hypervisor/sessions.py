"""Connections to libvirtd: opened with a time limit, kept alive, one a purpose.

One connection serves five calls at a time, so that five hung guests would hang it. Hence one for
events, one for the inventory of all, and one for each thread that works on a domain. A call that hangs
holds up its own thread and nothing else.

libvirt has one event loop a process. It must run before the first connection is opened, or that
connection has no keepalive and tells of no events; `connect` sees to it. A libvirtd that was suspended
accepts a connection and never greets: so each is opened in a thread of its own, which is left behind
when the time is up, and closes what it gets if it gets it after all. While one is left behind, nobody
tries again.

Invariants: a connection is closed only by the thread it belongs to, or by the garbage collector once
no call uses it; closing one under another thread's call would crash the process.

Threads: any.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import libvirt

from ecompute.cluster.documents import timestamp
from ecompute.cluster.errors import HypervisorUnavailable, one_line

OPEN_TIMEOUT_S = 10.0

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
"""A libvirtd that answers nothing for some twenty seconds is taken for dead: its calls end with an error."""

_BROKEN = frozenset({libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_RPC})

# libvirt has one event loop a process, and so have we
_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _run_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _ensure_loop() -> None:
    global _loop
    with _loop_lock:
        if _loop is None:
            # libvirt prints each error to standard error by itself; ours are logged where they are handled.
            libvirt.registerErrorHandler(lambda _context, _error: None, None)
            libvirt.virEventRegisterDefaultImpl()
            _loop = threading.Thread(target=_run_loop, name="libvirt-loop", daemon=True)
            _loop.start()


def is_broken(connection: Any, error: libvirt.libvirtError) -> bool:
    """Whether ``error`` says that the connection is gone, and not that libvirtd refused something."""
    if error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() in _BROKEN:
        return True
    return not is_alive(connection)


def is_alive(connection: Any) -> bool:
    """Whether the connection's socket is open; asks nobody."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


class _Opening(threading.Thread):
    """One attempt. Either the opener takes its result, or it is left behind and tidies up itself."""

    def __init__(self, uri: str) -> None:
        super().__init__(name="libvirt-open", daemon=True)
        self._uri = uri
        self._lock = threading.Lock()
        self._is_left = False
        self._connection: Any = None
        self._error: libvirt.libvirtError | None = None

    def run(self) -> None:
        connection = None
        try:
            connection = libvirt.open(self._uri)
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            self._error = error
            connection = None
        with self._lock:
            if not self._is_left:
                self._connection = connection
                return
        if connection is not None:
            connection.close()

    def result(self, timeout_s: float) -> Any:
        """Return the connection, or ``None`` if the time was up; raises libvirt's error."""
        self.join(timeout_s)
        with self._lock:
            if self.is_alive() and self._connection is None:
                self._is_left = True
                return None
        if self._error is not None:
            raise self._error
        return self._connection


class Opener:
    """Opens connections to one libvirtd, and knows since when it cannot."""

    def __init__(self, uri: str, *, timeout_s: float = OPEN_TIMEOUT_S) -> None:
        self.uri = uri
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._down_since: float | None = None
        self._left: _Opening | None = None

    def connect(self) -> Any:
        """Return a new connection with keepalive.

        Raises:
            HypervisorUnavailable: libvirtd is not there, or does not greet in time.
        """
        _ensure_loop()
        with self._lock:
            if self._left is not None and self._left.is_alive():
                raise self._unavailable("it accepts connections and does not greet")
        opening = _Opening(self.uri)
        opening.start()
        try:
            connection = opening.result(self._timeout_s)
        except libvirt.libvirtError as error:
            with self._lock:
                raise self._unavailable(error.get_error_message()) from error
        with self._lock:
            if connection is None:
                self._left = opening
                raise self._unavailable(f"it does not greet within {self._timeout_s:g} s")
            self._down_since = None
        return connection

    def lost(self, error: Exception) -> HypervisorUnavailable:
        """Return what to raise for a connection that broke with ``error``."""
        with self._lock:
            return self._unavailable(one_line(error))

    def _unavailable(self, reason: str) -> HypervisorUnavailable:
        if self._down_since is None:
            self._down_since = time.time()
        return HypervisorUnavailable(
            f"libvirt at {self.uri} does not answer since {timestamp(self._down_since)}: {reason}",
            hint="start libvirtd, or set `libvirt` in the configuration",
        )


class Sessions:
    """The connections of one process to one libvirtd, but for that of the events."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._shared: Any = None
        self._mine = threading.local()

    def shared(self) -> Any:
        """Return the connection that all threads use for what concerns all domains."""
        with self._lock:
            if self._shared is None or not is_alive(self._shared):
                self._shared = None  # whoever still calls with it holds it until then
                self._shared = self._opener.connect()
            return self._shared

    def mine(self) -> Any:
        """Return the calling thread's own connection."""
        connection = getattr(self._mine, "connection", None)
        if connection is None or not is_alive(connection):
            self.release_thread()
            connection = self._mine.connection = self._opener.connect()
        return connection

    def discard(self, connection: Any) -> None:
        """The calling thread found ``connection`` broken: nobody gets it again."""
        with self._lock:
            if self._shared is connection:
                self._shared = None
        if getattr(self._mine, "connection", None) is connection:
            self._mine.connection = None

    def release_thread(self) -> None:
        """Close the calling thread's own connection."""
        connection = getattr(self._mine, "connection", None)
        self._mine.connection = None
        if connection is not None:
            close(connection)

    def close(self) -> None:
        """Give back the shared connection and the calling thread's; those of other threads end with them."""
        with self._lock:
            self._shared = None
        self.release_thread()


def close(connection: Any) -> None:
    """Close a connection that only the calling thread uses; a broken one makes no trouble."""
    try:
        connection.close()
    except libvirt.libvirtError:  # it broke before
        return
