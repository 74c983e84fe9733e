"""A server of images, good and bad, on an address that the hosts reach and are allowed to fetch from.

Each method makes a new URL, so that no host has ever seen it.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path


class ImageServer:
    """Args:
    address: where it listens, at a free port.
    image: a good one.
    """

    def __init__(self, address: str, image: Path) -> None:
        self._image = image.read_bytes()
        self._routes: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self._requests: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._released = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._requests[self.path] += 1
                server._open[self.path] += 1
                try:
                    server._routes[self.path](self)
                except OSError:
                    pass  # the other side has gone
                finally:
                    server._open[self.path] -= 1

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.base = f"http://{address}:{self._server.server_address[1]}"

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def requests(self, url: str) -> int:
        """Return how often ``url`` was asked for."""
        return self._requests[url.removeprefix(self.base)]

    def is_deserted(self, url: str) -> bool:
        """Whether nobody is being served ``url``."""
        return self._open[url.removeprefix(self.base)] == 0

    # --- what can be asked for ---

    def good(self) -> str:
        return self.serving(self._image)

    def serving(self, content: bytes, *, type_: str = "application/octet-stream") -> str:
        return self._route(lambda request: _send(request, 200, content, {"Content-Type": type_}))

    def missing(self) -> str:
        return self._route(lambda request: _send(request, 404, b"not here"))

    def redirecting(self, target: str) -> str:
        return self._route(lambda request: _send(request, 302, b"", {"Location": target}))

    def redirect(self, url: str, target: str) -> None:
        """Let ``url``, which was made before, lead to ``target``."""
        answer = self._routes[self.redirecting(target).removeprefix(self.base)]
        self._routes[url.removeprefix(self.base)] = answer

    def truncated(self) -> str:
        """Half of what was announced, then the end."""

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            _head(request, 200, {"Content-Length": str(len(self._image))})
            request.wfile.write(self._image[: len(self._image) // 2])
            request.close_connection = True

        return self._route(answer)

    def dripping(self) -> str:
        """A little, and nothing more until the server is closed."""

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            _head(request, 200, {"Content-Length": str(len(self._image))})
            request.wfile.write(self._image[:1000])
            request.wfile.flush()
            request.connection.settimeout(0.1)
            while not self._released.is_set():
                with contextlib.suppress(TimeoutError):
                    if not request.connection.recv(1):
                        return  # the other side has gone

        return self._route(answer)

    def _route(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> str:
        path = f"/image-{next(self._numbers)}"
        self._routes[path] = answer
        return self.base + path


def _head(request: http.server.BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.end_headers()


def _send(
    request: http.server.BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    _head(request, status, {"Content-Length": str(len(body)), **(headers or {})})
    request.wfile.write(body)
