"""Ways to the services that fail on demand, for the tests of all parts that need them."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

import pytest

from ecompute.cluster.config import EtcdSettings, PlacementSettings
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.dev.etcd import EtcdProcess
from ecompute.dev.placement import PlacementProcess

# --- placement -----------------------------------------------------------------------------------


class Fault(Enum):
    RESET_UNSENT = auto()  # the request never reaches the service
    RESET_UNANSWERED = auto()  # the service has done it; its answer is lost
    UNAVAILABLE = auto()  # 503, not done
    UNAVAILABLE_DONE = auto()  # 503, and yet done
    HANG = auto()  # neither done nor answered
    OVERTAKEN = auto()  # 409, not done: another's write came first


_OVERTAKEN = b'{"errors": [{"code": "placement.concurrent_update", "detail": "a generation has changed"}]}'


@dataclass
class FaultyProxy:
    """Passes requests on; ``fault(method, path)`` says what goes wrong with each."""

    endpoint: str
    fault: Callable[[str, str], Fault | None] = lambda method, path: None
    seen: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def proxy(placement: PlacementProcess) -> Iterator[FaultyProxy]:
    ends = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state.seen.append((self.command, self.path))
            fault = state.fault(self.command, self.path)
            if fault is Fault.HANG:
                ends.wait(30)
            if fault in (Fault.HANG, Fault.RESET_UNSENT):
                return self.reset()
            if fault is Fault.UNAVAILABLE:
                return self.answer(503, [], b"")
            if fault is Fault.OVERTAKEN:
                return self.answer(409, [("Content-Type", "application/json")], _OVERTAKEN)
            upstream = http.client.HTTPConnection("127.0.0.1", placement.port, timeout=10)
            try:
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
            finally:
                upstream.close()
            if fault is Fault.RESET_UNANSWERED:
                return self.reset()
            if fault is Fault.UNAVAILABLE_DONE:
                return self.answer(503, [], b"")
            return self.answer(answer.status, answer.getheaders(), content)

        do_GET = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("connection", "content-length", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()  # now that no file holds it, this sends RST
            self.rfile = self.wfile = io.BytesIO()  # what the base class flushes after us

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = FaultyProxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    ends.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def faulty(proxy: FaultyProxy) -> Iterator[Placement]:
    """A client whose way to the service is the proxy."""
    with Placement(PlacementSettings(endpoint=proxy.endpoint)) as client:
        yield client


@pytest.fixture
def faults() -> type[Fault]:
    return Fault


# --- etcd ----------------------------------------------------------------------------------------


class Link:
    """A TCP relay to etcd that can be cut, or fall silent with its connections left open."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._is_cut = False
        self._answers_flow = threading.Event()
        self._answers_flow.set()
        self._marker: bytes | None = None
        self._is_lost = False
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close every connection, and every new one at once."""
        with self._lock:
            self._is_cut = True
            for pair in self._pairs:
                self._shut(pair)
            self._pairs.clear()
        self._answers_flow.set()

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False
        self._answers_flow.set()

    def hold_answers(self) -> None:
        """Let questions through and keep what etcd answers."""
        self._answers_flow.clear()

    def hold_answers_after(self, marker: bytes, *, is_lost: bool = False) -> None:
        """Keep what etcd answers from the moment a question holds ``marker``.

        Args:
            is_lost: that question does not get through either; its connection is of no use then: `cut` it.
        """
        self._marker = marker
        self._is_lost = is_lost

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with self._lock:
                    if self._is_cut:
                        near.close()
                        continue
                    try:
                        pair = near, socket.create_connection(self._target)
                    except OSError:
                        near.close()
                        continue
                    self._pairs.append(pair)
                threading.Thread(target=self._pump, args=(*pair, self._question), daemon=True).start()
                threading.Thread(target=self._pump, args=(*reversed(pair), self._answer), daemon=True).start()

    def _question(self, data: bytes) -> bytes:
        if self._marker is not None and self._marker in data:
            self._marker = None
            self._answers_flow.clear()
            return b"" if self._is_lost else data
        return data

    def _answer(self, data: bytes) -> bytes:
        self._answers_flow.wait()
        return data

    @classmethod
    def _pump(cls, source: socket.socket, sink: socket.socket, through: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := source.recv(1 << 16):
                sink.sendall(through(data))
        cls._shut((source, sink))

    @staticmethod
    def _shut(pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def link(etcd: EtcdProcess) -> Iterator[Link]:
    relay = Link(etcd.port)
    yield relay
    relay.close()


@pytest.fixture
def linked_store(link: Link) -> Iterator[Store]:
    """A store that reaches the etcd of this run over `link`."""
    with Store(EtcdSettings(endpoints=(link.endpoint,)), timeout_s=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def etcdctl() -> Callable[..., str]:
    """``etcdctl(etcd, "put", "/a", "b")`` runs the tool; anything but success fails the test."""

    def run(process: EtcdProcess, *arguments: str) -> str:
        done = subprocess.run(
            ["etcdctl", "--endpoints", process.endpoint, *arguments],
            env={"ETCDCTL_API": "3", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
