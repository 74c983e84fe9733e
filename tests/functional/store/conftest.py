"""What the store's tests break: an etcd of their own, and the link to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.store import Store
from ecompute.dev.etcd import EtcdProcess, start_etcd


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
