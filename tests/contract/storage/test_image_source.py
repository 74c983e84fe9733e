"""What the cache relies on: the fake and the real fetcher answer alike."""

from __future__ import annotations

import hashlib
import ipaddress
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import pytest

from ecompute.cluster.config import ImageSettings
from ecompute.cluster.errors import Cancelled, InvalidImage, Unavailable
from ecompute.storage import partial
from ecompute.storage.fake import FakeFetcher
from ecompute.storage.fetch import Fetcher, ImageSource, Limits

IMAGE = b"\xeb" + bytes(70_000)


class World(Protocol):
    """A source, and a way to say what it finds. ``serve`` returns the URL."""

    source: ImageSource

    def serve(self, name: str, content: bytes) -> str: ...
    def break_down(self, name: str) -> str: ...


class FakeWorld:
    def __init__(self) -> None:
        self.source = self.fake = FakeFetcher()

    def serve(self, name: str, content: bytes) -> str:
        self.fake.serve(f"http://fake/{name}", content)
        return f"http://fake/{name}"

    def break_down(self, name: str) -> str:
        self.fake.fail(f"http://fake/{name}", Unavailable("fake answers 503", hint="try again later"))
        return f"http://fake/{name}"


class HTTPWorld:
    def __init__(self) -> None:
        self.contents: dict[str, bytes | None] = {}
        contents = self.contents

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = contents.get(self.path, b"")
                etag = f'"{hashlib.md5(content or b"").hexdigest()}"'
                is_known = content and self.headers.get("If-None-Match") == etag
                self.send_response(503 if content is None else 304 if is_known else 200 if content else 404)
                body = b"" if is_known or not content else content
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", etag)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        settings = ImageSettings(default="", allow_networks=(ipaddress.ip_network("127.0.0.0/8"),), max_gb=1)
        self.source: ImageSource = Fetcher(settings, limits=Limits(connect_s=5, stall_s=10))

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{name}"

    def serve(self, name: str, content: bytes) -> str:
        self.contents[f"/{name}"] = content
        return self.url(name)

    def break_down(self, name: str) -> str:
        self.contents[f"/{name}"] = None
        return self.url(name)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class PathWorld:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source: ImageSource = Fetcher(ImageSettings(default="", allow_paths=(directory,), max_gb=1))

    def serve(self, name: str, content: bytes) -> str:
        (self.directory / name).write_bytes(content)
        return str(self.directory / name)

    def break_down(self, name: str) -> str:
        pytest.skip("a file of this host is there or it is not")


@pytest.fixture(params=["fake", "http", "path"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if request.param == "fake":
        yield FakeWorld()
    elif request.param == "path":
        yield PathWorld(tmp_path_factory.mktemp("allowed"))
    else:
        http = HTTPWorld()
        yield http
        http.stop()


def expect(error: type[Exception], fetch: Callable[[], object], into: Path) -> None:
    with pytest.raises(error) as caught:
        fetch()
    assert "\n" not in str(caught.value)
    assert list(into.iterdir()) == []


def test_content_comes_with_its_hash_size_and_a_validator(world: World, tmp_path: Path) -> None:
    fetched = world.source.fetch(world.serve("a", IMAGE), tmp_path)
    assert fetched.path is not None
    assert fetched.path.parent == tmp_path
    assert fetched.path.read_bytes() == IMAGE
    assert (fetched.sha256, fetched.size_bytes) == (hashlib.sha256(IMAGE).hexdigest(), len(IMAGE))
    assert fetched.validator.is_usable
    assert not fetched.not_modified
    partial.discard(fetched.path)


def test_a_second_fetch_with_the_validator_brings_nothing(world: World, tmp_path: Path) -> None:
    url = world.serve("a", IMAGE)
    first = world.source.fetch(url, tmp_path)
    assert first.path is not None
    partial.discard(first.path)
    second = world.source.fetch(url, tmp_path, known=first.validator)
    assert second.not_modified
    assert second.path is None
    assert second.validator == first.validator
    assert list(tmp_path.iterdir()) == []


def test_changed_content_is_brought_whatever_is_known(world: World, tmp_path: Path) -> None:
    url = world.serve("a", IMAGE)
    first = world.source.fetch(url, tmp_path)
    assert first.path is not None
    partial.discard(first.path)
    world.serve("a", IMAGE + b"more")
    second = world.source.fetch(url, tmp_path, known=first.validator)
    assert second.path is not None
    assert second.path.read_bytes() == IMAGE + b"more"
    partial.discard(second.path)


def test_two_fetches_of_one_url_are_two_files(world: World, tmp_path: Path) -> None:
    url = world.serve("a", IMAGE)
    both = [world.source.fetch(url, tmp_path).path for _ in range(2)]
    assert both[0] != both[1]
    for path in both:
        assert path is not None
        partial.discard(path)


def test_what_is_not_there_is_an_invalid_image(world: World, tmp_path: Path) -> None:
    url = world.serve("a", IMAGE).removesuffix("a") + "absent"
    expect(InvalidImage, lambda: world.source.fetch(url, tmp_path), tmp_path)


def test_a_source_that_breaks_down_is_unavailable(world: World, tmp_path: Path) -> None:
    url = world.break_down("a")
    expect(Unavailable, lambda: world.source.fetch(url, tmp_path), tmp_path)


def test_a_cancelled_fetch_says_so(world: World, tmp_path: Path) -> None:
    url = world.serve("a", IMAGE)
    expect(Cancelled, lambda: world.source.fetch(url, tmp_path, cancelled=lambda: True), tmp_path)
