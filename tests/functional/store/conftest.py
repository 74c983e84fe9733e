"""What the store's tests break: an etcd of their own, and the link to it."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.store import Store
from ecompute.dev.etcd import EtcdProcess, start_etcd


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
                threading.Thread(target=self._pump, args=pair, daemon=True).start()
                threading.Thread(target=self._pump, args=(*reversed(pair), self._answers_flow), daemon=True).start()

    @classmethod
    def _pump(cls, source: socket.socket, sink: socket.socket, may_flow: threading.Event | None = None) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                select.select([source], [], [])
                if may_flow is not None:
                    may_flow.wait()
                data = source.recv(1 << 16)
                if not data:
                    break
                sink.sendall(data)
        cls._shut((source, sink))

    @staticmethod
    def _shut(pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd that this test may kill, suspend and restart."""
    with start_etcd(tmp_path / "etcd", is_durable=False) as process:
        yield process
        process.resume()


@pytest.fixture
def own_store(own_etcd: EtcdProcess) -> Iterator[Store]:
    with Store(EtcdSettings(endpoints=(own_etcd.endpoint,)), timeout_s=2) as opened:
        yield opened


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
