"""What changes under us: libvirt's lifecycle events, as wake-ups.

A thread keeps one connection for events and calls the listeners. libvirt's own loop only puts the uuid
into a queue: that loop also answers the keepalive of all connections, and must not wait for anybody.

Invariants: each listener is called with ``""`` before anything else, and again whenever the connection
was opened anew, after its events flow. So nothing that happens is missed by one who then lists.

Threads: `add` and `close` from any; listeners are called from the watch's own thread, one at a time.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import libvirt

from ecompute.cluster.errors import HypervisorUnavailable
from ecompute.hypervisor.sessions import OPEN_TIMEOUT_S, Opener, close

log = logging.getLogger(__name__)

Listener = Callable[[str], None]

FIRST_RETRY_S = 0.2
LAST_RETRY_S = 10.0

LOOK_AT_EVERYTHING = ""


class _Lost:
    """The connection that had this in its close callback has ended."""


class _Close:
    """No more."""


class Watch:
    """Starts at once; tries for as long as it takes until libvirtd is there."""

    def __init__(self, opener: Opener, *, is_stopping: Callable[[], bool], rng: random.Random | None = None) -> None:
        self._opener = opener
        self._is_stopping = is_stopping
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._queue: SimpleQueue[str | Listener | _Lost | _Close] = SimpleQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._thread = threading.Thread(target=self._run, name="libvirt-watch", daemon=True)
        self._thread.start()

    def add(self, listener: Listener) -> None:
        with self._lock:
            self._listeners.append(listener)
        self._queue.put(listener)

    def close(self) -> None:
        """Stop telling; returns once no listener is being called. Idempotent."""
        self._closing.set()
        self._queue.put(_Close())
        if threading.current_thread() is not self._thread:
            self._thread.join(OPEN_TIMEOUT_S + 1)

    def _run(self) -> None:
        pause_s = FIRST_RETRY_S
        was_told = False
        while not self._closing.is_set() and not self._is_stopping():
            try:
                connection = self._opener.connect()
            except HypervisorUnavailable as error:
                if not was_told:
                    log.warning("no events of domains for now: %s", error)
                    was_told = True
                self._closing.wait(pause_s * self._rng.uniform(0.5, 1.0))
                pause_s = min(pause_s * 2, LAST_RETRY_S)
                continue
            if was_told:
                log.info("libvirt at %s is back", self._opener.uri)
            pause_s, was_told = FIRST_RETRY_S, False
            try:
                self._follow(connection)
            except libvirt.libvirtError as error:
                log.debug("the connection for events broke: %s", error)
            finally:
                close(connection)
            # A libvirtd that greets and then hangs up must not be tried without pause.
            self._closing.wait(FIRST_RETRY_S * self._rng.uniform(0.5, 1.0))

    def _follow(self, connection: Any) -> None:
        """Tell of what comes over ``connection`` until it ends or we do."""
        lost = _Lost()
        connection.registerCloseCallback(lambda *_: self._queue.put(lost), None)
        number = connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._event, None)
        try:
            self._tell(LOOK_AT_EVERYTHING)
            while True:
                item = self._queue.get()
                if item is lost or isinstance(item, _Close):
                    return
                if isinstance(item, str):
                    self._tell(item)
                elif not isinstance(item, _Lost):
                    self._call(item, LOOK_AT_EVERYTHING)
        finally:
            # Both hold the connection; without this it would never be collected.
            for forget in (lambda: connection.domainEventDeregisterAny(number), connection.unregisterCloseCallback):
                try:
                    forget()
                except libvirt.libvirtError as error:
                    log.debug("after the connection for events broke: %s", error)

    def _event(self, _connection: Any, domain: Any, _event: int, _detail: int, _opaque: object) -> None:
        self._queue.put(str(domain.UUIDString()))

    def _tell(self, uuid: str) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            self._call(listener, uuid)

    def _call(self, listener: Listener, uuid: str) -> None:
        if self._closing.is_set():
            return
        try:
            listener(uuid)
        except Exception:
            log.exception("a listener for domain %s failed", uuid or "changes")
