"""A small HTTP server on loopback, whose answers each test writes itself."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Answer = Callable[[BaseHTTPRequestHandler], None]


class ImageServer:
    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client went away, as some tests want
                    outer.answers.get(self.path.split("?")[0], not_found)(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def use_tls(self, context: object) -> None:
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)  # type: ignore[attr-defined]
        self.url = f"https://localhost:{self.port}"

    def stop(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(body: bytes, *, status: int = 200, **headers: str) -> Answer:
    """An answer with its length; ``Content_Type`` stands for Content-Type."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | named).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def raw(*pieces: bytes, then: Callable[[], object] = lambda: None) -> Answer:
    """An answer byte by byte as given; ``then`` runs before the connection closes."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
        then()
        handler.connection.shutdown(socket.SHUT_RDWR)

    return send


not_found = answer(b"no such file\n", status=404)


class Toolbox:
    """What the tests make answers with."""

    answer = staticmethod(answer)
    raw = staticmethod(raw)
    ImageServer = ImageServer


@pytest.fixture
def http() -> type[Toolbox]:
    return Toolbox


@pytest.fixture
def server() -> Iterator[ImageServer]:
    made = ImageServer()
    yield made
    made.stop()
