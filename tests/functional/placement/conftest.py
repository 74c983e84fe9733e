"""One real placement for these tests, and a proxy before it that fails on demand.

Tests share the service, so each makes providers of its own and asks ``in_tree`` of them.
"""

from __future__ import annotations

import http.client
import http.server
import io
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.placement import Inventory, Placement
from ecompute.dev.placement import PlacementProcess


@pytest.fixture
def client(placement: PlacementProcess) -> Iterator[Placement]:
    with Placement(PlacementSettings(endpoint=placement.endpoint)) as client:
        yield client


def new_uuid() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def make_provider(client: Placement) -> Iterator[Callable[..., str]]:
    """Return a maker of providers: ``make_provider(VCPU=4)`` gives a uuid. They go with the test."""
    made: list[str] = []

    def make(**totals: int) -> str:
        provider = new_uuid()
        made.append(provider)
        client.ensure_provider(provider, f"host-{provider}")
        client.set_inventories(provider, {name: Inventory(total=total) for name, total in totals.items()})
        return provider

    yield make
    for provider in made:
        if client.provider(provider) is not None:
            for consumer in client.provider_allocations(provider):
                client.release(consumer)
            client.delete_provider(provider)


class Fault(Enum):
    RESET_UNSENT = auto()  # the request never reaches the service
    RESET_UNANSWERED = auto()  # the service has done it; its answer is lost
    UNAVAILABLE = auto()  # 503, not done
    UNAVAILABLE_DONE = auto()  # 503, and yet done
    HANG = auto()  # neither done nor answered


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
