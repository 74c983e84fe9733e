"""One process a host that answers guests on sockets which it is handed, in any number of network namespaces.

It opens no network socket itself and enters no namespace: `ecompute` opens them there and hands them over
(`ecompute.guest.handing`), while this runs. So it forks no workers, which could take no new sockets. One thread
waits for all connections (waitress's loop); a few answer, once a request has come in as a whole. A guest has a few
connections and no more, each for a time (`md_server.connections`), so that no guest keeps another from being answered.

Whoever hands sockets over must be of the user that this runs as. It has no capabilities (`confine`). What is asked
and answered is not logged.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import os
import resource
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.task import ThreadedTaskDispatcher

from ecompute import __version__
from ecompute.cluster.desks import socket_in
from ecompute.guest import handing, told
from md_server import app, connections
from md_server.connections import NetworkServer
from md_server.told import Told

THREADS = 4
REQUEST_TIMEOUT_S = 20.0
"""From the end of a request, or the opening of its connection, until the answer to the next one is there."""
HEADER_LIMIT_BYTES = 8192
BODY_LIMIT_BYTES = 4096
SWITCH_S = 0.0002
"""How long a thread waits for another one that computes. A worker looks at files, which gives Python's lock away: it
would get that back after 5 ms, Python's own value, while it answers within 0.2."""
SWEEPS = 4
"""In the time of a request, the loop looks so often for connections whose time is over."""

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]
log = logging.getLogger(__name__)


class Ended(Exception):
    """The service was asked to end, and serves nothing."""


class AlreadyRuns(Exception):
    """Another one serves the same directory."""


class Server:
    """
    Args:
        state: the state directory of `ecompute`.
        request_timeout_s: a connection is reset that takes longer for a request.
    """

    def __init__(self, state: Path, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._request_timeout_s = request_timeout_s
        self._directory = told.directory_of(state)
        self._map: dict[int, Any] = {}
        self._app = app.make(Told(state), secrets.token_bytes(32))
        self._settings = Adjustments(
            threads=THREADS,
            connection_limit=1 << 20,  # counted a caller, by us
            max_request_header_size=HEADER_LIMIT_BYTES,
            max_request_body_size=BODY_LIMIT_BYTES,
            clear_untrusted_proxy_headers=False,  # nothing follows from them, but a token is refused for one
            ident=None,
            log_socket_errors=False,
            expose_tracebacks=False,
        )
        self._workers = ThreadedTaskDispatcher()
        connections.say_nothing()
        self._networks: dict[int, tuple[str, list[NetworkServer]]] = {}

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until told to end.

        Args:
            ready: called once sockets may be handed over.

        Raises:
            AlreadyRuns: see there.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRuns(f"another one serves {self._directory}") from error
            _allow_many_files()
            sys.setswitchinterval(SWITCH_S)
            path = self._directory / handing.SOCKET
            path.unlink(missing_ok=True)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            old = os.umask(0o177)
            try:
                with socket_in(self._directory, handing.SOCKET) as name:
                    listening.bind(name)
            finally:
                os.umask(old)
            listening.listen(8)
            self._workers.set_thread_count(THREADS)
            _Desk(listening, self._map, self.answer)
            log.info("serving %s", self._directory)
            ready()
            try:
                self._loop()
            except Ended:
                log.info("nothing is served any more")
            finally:
                path.unlink(missing_ok=True)
                self._workers.shutdown(timeout=1)

    def _loop(self) -> None:
        pause_s = self._request_timeout_s / SWEEPS
        due_s = time.monotonic()
        while True:
            wasyncore.loop(timeout=pause_s, use_poll=True, map=self._map, count=1)
            now_s = time.monotonic()
            if now_s >= due_s:
                due_s = now_s + pause_s
                for _, servers in self._networks.values():
                    for server in servers:
                        server.reset_since(now_s - self._request_timeout_s)

    def answer(self, question: handing.Question, sockets: list[socket.socket]) -> handing.Answer:
        """Do what is asked. Sockets that are not kept are closed.

        Raises:
            Ended: it is to end.
            OSError: the sockets cannot be served; they are closed.
        """
        match question:
            case handing.Serve(vni, mark):
                if not sockets:
                    raise OSError("there are no sockets to serve")
                self._leave(vni)
                self._networks[vni] = (mark, self._serve_all(vni, sockets))
            case handing.Leave(vni):
                self._leave(vni)
            case handing.End():
                if not self._networks:
                    raise Ended
        return handing.Answer({vni: mark for vni, (mark, _) in self._networks.items()}, __version__)

    def _serve_all(self, vni: int, sockets: list[socket.socket]) -> list[NetworkServer]:
        before = set(self._map)
        try:
            return [self._serve(vni, one) for one in sockets]
        except OSError:
            for number in set(self._map) - before:
                if (channel := self._map.get(number)) is not None:  # one may go with another
                    channel.close()
            for one in sockets:
                one.close()
            raise

    def _serve(self, vni: int, listening: socket.socket) -> NetworkServer:
        listening.setblocking(False)
        return NetworkServer(
            _of_network(self._app, vni),
            map=self._map,
            _sock=listening,
            dispatcher=self._workers,
            adj=self._settings,
            sockinfo=(listening.family, listening.type, 0, listening.getsockname()),
            bind_socket=False,
        )

    def _leave(self, vni: int) -> None:
        _, servers = self._networks.pop(vni, ("", []))
        for server in servers:
            server.end()


def _of_network(application: WsgiApp, vni: int) -> WsgiApp:
    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[app.VNI] = vni
        return application(environ, start_response)

    return call


# --- the desk at which sockets are handed over -----------------------------------------------------


class _Desk(wasyncore.dispatcher):  # type: ignore[misc]
    def __init__(
        self,
        listening: socket.socket,
        map_: dict[int, Any],
        answer: Callable[[handing.Question, list[socket.socket]], handing.Answer],
    ) -> None:
        super().__init__(listening, map=map_)
        self.accepting = True
        self._answer = answer

    def writable(self) -> bool:
        return False

    def handle_accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.socket.accept()
            _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid == os.geteuid():
                _Talk(connection, self._map, self._answer)
            else:
                connection.close()


class _Talk(wasyncore.dispatcher):  # type: ignore[misc]
    def __init__(
        self,
        connection: socket.socket,
        map_: dict[int, Any],
        answer: Callable[[handing.Question, list[socket.socket]], handing.Answer],
    ) -> None:
        super().__init__(connection, map=map_)
        self._answer = answer

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        room = socket.CMSG_SPACE(handing.SOCKETS_LIMIT * array.array("i").itemsize)
        try:
            data, beside, flags, _ = self.socket.recvmsg(handing.LIMIT_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        sockets = [socket.socket(fileno=number) for number in _descriptors(beside)]
        if not data:
            self.close()
            return
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise OSError("it did not come whole, or its sockets did not")
            answer = self._answer(handing.decode_question(data), sockets)
            self.socket.send(handing.encode(answer))
        except (msgspec.DecodeError, OSError) as error:
            # Who asked sees an end without an answer, and asks again.
            log.warning("a question that cannot be answered: %s", error)
            for one in sockets:
                one.close()
            self.close()

    def handle_close(self) -> None:
        self.close()

    def handle_error(self) -> None:
        if isinstance(sys.exc_info()[1], Ended):
            raise
        log.exception("nobody foresaw this")
        self.close()


def _descriptors(beside: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, data in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


def _allow_many_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
