"""What the store's tests break: an etcd of their own, and the link to it."""

from __future__ import annotations

from collections.abc import Iterator
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
