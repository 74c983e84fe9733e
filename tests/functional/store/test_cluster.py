"""Three members: one may go, and a member without a leader is not believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Name
from ecompute.cluster.errors import StoreUnavailable
from ecompute.cluster.store import Put, Store
from ecompute.dev.etcd import EtcdProcess
from ecompute.dev.processes import Child, free_port


def name() -> Name:
    return Name(uuid="u", name="x")


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[EtcdProcess]]:
    peers = {f"m{n}": f"http://127.0.0.1:{free_port()}" for n in range(3)}
    started: list[EtcdProcess] = []
    env = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
    for member, peer in peers.items():
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        argv = [
            *("etcd", "--name", member, "--data-dir", str(tmp_path / member), "--unsafe-no-fsync"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", ",".join(f"{each}={at}" for each, at in peers.items())),
            *("--logger", "zap", "--log-level", "error"),
        ]
        started.append(EtcdProcess(Child(member, argv, tmp_path / f"{member}.log", env=env), port, None))
        started[-1].child.start()
    for process in started:
        process.start()
    yield started
    for process in started:
        process.resume()
        process.kill()


def test_losing_a_member_costs_nothing_and_losing_the_leader_is_noticed(members: list[EtcdProcess], eventually) -> None:
    reasons: list[str] = []
    settings = EtcdSettings(endpoints=tuple(member.endpoint for member in members))
    with Store(settings, timeout_s=5, on_rollback=reasons.append) as store:
        follow = store.watcher().follow("/w/", Name, lambda change: None)
        assert follow.wait_ready(10)
        lease = store.lease(10, on_lost=lambda: None)
        store.commit([], [Put("/w/a", name(), lease=lease.id)])

        gone = next(member for member in members if member.endpoint == store.status().endpoint)
        gone.kill()

        def writes() -> bool:
            try:
                return store.commit([], [Put("/w/b", name())]) > 0
            except StoreUnavailable:
                return False

        eventually(writes, timeout_s=10)
        eventually(lambda: "/w/b" in follow.snapshot() and follow.is_current, timeout_s=10)
        assert lease.is_held

        alone, other = (member for member in members if member is not gone)
        with Store(EtcdSettings(endpoints=(alone.endpoint,)), timeout_s=2) as single:
            watch = single.watcher().follow("/w/", Name, lambda change: None)
            assert watch.wait_ready(5)
            other.kill()
            # its connection is whole, and it answers: only that it has no leader
            eventually(lambda: not watch.is_current, timeout_s=10)
            with pytest.raises(StoreUnavailable, match="leader"):
                single.get("/w/a", Name)
            other.start(timeout_s=15)
            eventually(lambda: watch.is_current, timeout_s=15)
        assert reasons == []
