"""The cache with the real fetcher, real disks, and a process that is killed."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from ecompute.cluster.config import ImageSettings
from ecompute.storage import disks
from ecompute.storage.fetch import Fetcher, Limits
from ecompute.storage.images import ImageCache

SETTINGS = ImageSettings(default="", allow_networks=(ipaddress.ip_network("127.0.0.0/8"),), max_gb=1)

CHILD = """
import ipaddress, sys
from pathlib import Path
from ecompute.cluster.config import ImageSettings
from ecompute.storage import disks
from ecompute.storage.fetch import Fetcher
from ecompute.storage.images import ImageCache

directory, url = Path(sys.argv[1]), sys.argv[2]
settings = ImageSettings(default="", allow_networks=(ipaddress.ip_network("127.0.0.0/8"),), max_gb=1)
cache = ImageCache(directory / "cache", Fetcher(settings))
print("ready", flush=True)
n = int(sys.argv[3])
while True:
    futures = [cache.ensure(f"{url}/{n % 7}") for n in range(n, n + 4)]
    for future in futures:
        disks.create_overlay(future.result(), directory / "disks" / f"{n}", disk_gb=1)
        n += 1
"""


def content(n: int) -> bytes:
    return b"\xeb" + bytes([n]) * (2 << 20) + bytes(512)


def until(condition: Callable[[], bool], deadline_s: float = 20) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


def begin(directory: Path, url: str, n: int) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), url, str(n)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    return child


def kill(child: subprocess.Popen[bytes]) -> None:
    assert child.poll() is None, "the child ended by itself"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_a_kill_at_any_moment_leaves_only_complete_files_under_their_names(
    server: Any, http: Any, tmp_path: Path
) -> None:
    (tmp_path / "disks").mkdir()
    for n in range(7):
        server.answers[f"/{n}"] = http.answer(content(n))  # no validator: fetched each time
    chance = random.Random(7)
    for round_ in range(8):
        child = begin(tmp_path, server.url, round_ * 10_000)
        time.sleep(chance.uniform(0, 0.15))  # the moment of the kill; nothing is waited for
        kill(child)
        for path in (tmp_path / "cache" / "images").iterdir():
            if not path.name.startswith("."):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for path in (tmp_path / "disks").iterdir():
            assert path.name.startswith(".") or disks.is_complete(path)
    ImageCache(tmp_path / "cache", Fetcher(SETTINGS)).close()
    disks.sweep(tmp_path / "disks")
    for directory in ("cache/images", "cache/index", "disks"):
        assert not [path for path in (tmp_path / directory).iterdir() if path.name.startswith(".")]


def test_a_kill_within_a_download_costs_only_that_download(server: Any, http: Any, tmp_path: Path) -> None:
    length = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    server.answers["/0"] = http.raw(length, bytes([1]) * 500_000, then=lambda: server.ended.wait(30))
    images = tmp_path / "cache" / "images"
    child = begin(tmp_path, server.url, 0)
    until(lambda: any(path.stat().st_size > 0 for path in images.iterdir()))
    kill(child)
    assert list(images.iterdir())
    cache = ImageCache(tmp_path / "cache", Fetcher(SETTINGS))
    assert not list(images.iterdir())
    server.answers["/0"] = http.answer(content(0))
    assert cache.ensure(f"{server.url}/0").result(20).path.read_bytes() == content(0)
    cache.close()


def test_a_hung_server_holds_up_nobody_else(server: Any, http: Any, tmp_path: Path) -> None:
    server.answers["/hung"] = http.raw(then=lambda: server.ended.wait(60))
    server.answers["/fine"] = http.answer(content(1))
    cache = ImageCache(tmp_path, Fetcher(SETTINGS, limits=Limits(stall_s=50)))
    hung = cache.ensure(f"{server.url}/hung")
    assert cache.ensure(f"{server.url}/fine").result(20).virtual_size_bytes == len(content(1)) + 511
    assert not hung.done()
    began = time.monotonic()
    cache.close()
    assert time.monotonic() - began < 4
    assert hung.done()


def test_many_who_ask_and_give_up_at_random_all_get_an_end(server: Any, http: Any, tmp_path: Path) -> None:
    for n in range(5):
        server.answers[f"/{n}"] = http.answer(content(n), ETag=f'"{n}"')
    cache = ImageCache(tmp_path, Fetcher(SETTINGS), max_fetches=3)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            n = chance.randrange(5)
            future = cache.ensure(f"{server.url}/{n}")
            if chance.random() < 0.5:
                future.cancel()
            try:
                image = future.result(30)
                if image.path.stat().st_size != len(content(n)):
                    wrong.append((n, image))
            except CancelledError:
                pass
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    until(lambda: not [thread for thread in threading.enumerate() if thread.name in ("image-fetch", "image-watch")])
    assert {path.name for path in (tmp_path / "images").iterdir()} <= {
        hashlib.sha256(content(n)).hexdigest() for n in range(5)
    }
    cache.close()
