"""A single etcd, on loopback unless told otherwise, with its data under one directory.

The embedded cloud and the tests use it. Each start is ready when it returns: the member has elected
itself and answers. Stopping keeps the data; starting again on the same directory finds it.

Threads: as `ecompute.dev.processes.Child`.
"""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ecompute.cluster.errors import StepFailed
from ecompute.dev.processes import Child, free_port

HOST = "127.0.0.1"
_START_ATTEMPTS = 3
_READY_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of a server that also demands a certificate of its clients."""

    ca: Path
    cert: Path
    key: Path


class EtcdProcess:
    """A running etcd; made by `start_etcd`. ``endpoint`` stays the same across restarts."""

    def __init__(self, child: Child, port: int, tls: TlsFiles | None, host: str = HOST) -> None:
        self.child = child
        self.host = host
        self.port = port
        self.tls = tls

    @property
    def endpoint(self) -> str:
        """``host:port``, as in the configuration."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def is_running(self) -> bool:
        return self.child.is_running

    @property
    def is_healthy(self) -> bool:
        """Whether the member has a leader and answers."""
        try:
            connection = self._connect()
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == http.HTTPStatus.OK
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return False

    def start(self, *, timeout_s: float = _READY_TIMEOUT_S) -> Self:
        """Start it and wait until it answers; nothing happens if it runs.

        Raises:
            StepFailed: it ended, or does not answer in time; says what its log ends with.
        """
        self.child.start().wait_ready(lambda: self.is_healthy, timeout_s=timeout_s)
        return self

    def stop(self) -> None:
        self.child.stop()

    def kill(self) -> None:
        """End it as a power cut would; the data stays."""
        self.child.kill()

    def restart(self) -> Self:
        """Stop it, if it runs, and start it on the same data and port."""
        self.stop()
        return self.start()

    def suspend(self) -> None:
        self.child.suspend()

    def resume(self) -> None:
        self.child.resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _connect(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=1)
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        context.load_cert_chain(self.tls.cert, self.tls.key)
        return http.client.HTTPSConnection(self.host, self.port, timeout=1, context=context)


def start_etcd(
    directory: Path,
    *,
    host: str = HOST,
    port: int = 0,
    tls: TlsFiles | None = None,
    is_durable: bool = True,
    options: Sequence[str] = (),
) -> EtcdProcess:
    """Start etcd with its data in ``directory/data`` and its log in ``directory/etcd.log``.

    One that a killed run left on the same directory is ended first.

    Args:
        directory: made if it is missing; readable by us alone.
        host: the address at which clients reach it. Without TLS whoever reaches it may do everything.
        port: of the clients; 0: a free one.
        tls: serve TLS with these files; they must be valid for ``host``.
        is_durable: False passes ``--unsafe-no-fsync`` (a power cut may then lose everything).
        options: further command-line options.

    Raises:
        StepFailed: etcd is not installed, or does not come up; says what its log ends with.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    # Variables for an etcd of the machine's own would contradict our options, which etcd refuses.
    env = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    for attempt in range(1, _START_ATTEMPTS + 1):
        client_port = port or free_port(host)
        argv = _command(data, host, client_port, free_port(), tls, is_durable, options)
        child = Child("etcd", argv, directory / "etcd.log", env=env, pid_file=directory / "etcd.pid")
        etcd = EtcdProcess(child, client_port, tls, host)
        try:
            return etcd.start()
        except StepFailed:
            taken = "address already in use" in etcd.child.log_tail()
            etcd.kill()
            if not taken or attempt == _START_ATTEMPTS:
                raise
    raise AssertionError("the loop returns or raises")


def _command(
    data: Path, host: str, port: int, peer_port: int, tls: TlsFiles | None, is_durable: bool, options: Sequence[str]
) -> list[str]:
    client_url = f"{'https' if tls else 'http'}://{host}:{port}"
    peer_url = f"http://{HOST}:{peer_port}"
    argv = [
        *("etcd", "--name", "default", "--data-dir", str(data)),
        *("--listen-client-urls", client_url, "--advertise-client-urls", client_url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", f"default={peer_url}"),
        *("--logger", "zap", "--log-level", "warn"),
        # Alone, it has nobody to wait for: it may call itself leader early.
        *("--heartbeat-interval", "50", "--election-timeout", "250"),
        # Without compaction every version of every key is kept for ever.
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
    ]
    if tls is not None:
        argv += ["--cert-file", str(tls.cert), "--key-file", str(tls.key), "--client-cert-auth"]
        argv += ["--trusted-ca-file", str(tls.ca)]
    if not is_durable:
        argv.append("--unsafe-no-fsync")
    return [*argv, *options]
