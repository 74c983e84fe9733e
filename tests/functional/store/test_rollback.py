"""A backup put back under a running process is found, once, whatever it looks like."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Name
from ecompute.cluster.errors import StoreUnavailable
from ecompute.cluster.store import Put, Store
from ecompute.dev.etcd import EtcdProcess


def name(text: str = "x") -> Name:
    return Name(uuid="u", name=text)


class Rollbacks:
    """An etcd, a store on it, and its backup."""

    def __init__(self, etcd: EtcdProcess, directory: Path, etcdctl: Callable[..., str]) -> None:
        self.etcd = etcd
        self.data = directory / "etcd" / "data"
        self.backup = directory / "backup.db"
        self.etcdctl = etcdctl
        self.reasons: list[str] = []
        self.store = Store(EtcdSettings(endpoints=(etcd.endpoint,)), timeout_s=2, on_rollback=self.reasons.append)

    def put(self, *names: str) -> None:
        for each in names:
            self.store.commit([], [Put(f"/r/{each}", name())])

    def save(self) -> None:
        self.etcdctl(self.etcd, "snapshot", "save", str(self.backup))

    def restore(self, *, as_the_same_cluster: bool) -> None:
        self.etcd.kill()
        shutil.rmtree(self.data)
        peer = next(part for part in self.etcd.child.argv if part.startswith("default=")).removeprefix("default=")
        identity = ["--initial-cluster", f"default={peer}", "--initial-advertise-peer-urls", peer]
        self.etcdctl(
            self.etcd,
            *("snapshot", "restore", str(self.backup), "--data-dir", str(self.data), "--name", "default"),
            *(identity if as_the_same_cluster else []),
        )
        self.etcd.start()


@pytest.fixture
def rollbacks(own_etcd: EtcdProcess, tmp_path: Path, etcdctl: Callable[..., str]):
    made = Rollbacks(own_etcd, tmp_path, etcdctl)
    yield made
    made.store.close()


def read(store: Store) -> bool:
    try:
        return store.get("/r/a", Name) is not None
    except StoreUnavailable:
        return False


def test_an_older_revision_is_told_once(rollbacks: Rollbacks, eventually) -> None:
    rollbacks.put("a", "b")
    rollbacks.save()
    rollbacks.put("c", "d")
    seen = rollbacks.store.highest_revision
    rollbacks.restore(as_the_same_cluster=True)
    eventually(lambda: read(rollbacks.store))
    assert len(rollbacks.reasons) == 1
    assert f"after {seen} had been seen" in rollbacks.reasons[0]
    rollbacks.put("e")
    read(rollbacks.store)
    assert len(rollbacks.reasons) == 1
    assert rollbacks.store.highest_revision < seen


def test_another_cluster_is_told_once_and_watchers_list_again(rollbacks: Rollbacks, eventually) -> None:
    rollbacks.put("a", "b")
    rollbacks.save()
    rollbacks.put("c")
    changes: list[str] = []
    follow = rollbacks.store.watcher().follow("/r/", Name, lambda change: changes.append(change.key))
    assert follow.wait_ready(5)
    rollbacks.restore(as_the_same_cluster=False)
    eventually(lambda: sorted(follow.snapshot()) == ["/r/a", "/r/b"] and follow.is_current, timeout_s=10)
    assert len(rollbacks.reasons) == 1
    assert "another cluster" in rollbacks.reasons[0]
    rollbacks.put("f")
    eventually(lambda: "/r/f" in follow.snapshot())


def test_a_backup_written_past_the_revision_we_knew_is_found_by_its_term(rollbacks: Rollbacks, eventually) -> None:
    rollbacks.etcd.restart()
    rollbacks.etcd.restart()
    eventually(lambda: not read(rollbacks.store) and rollbacks.store.highest_revision)
    rollbacks.put("a")
    rollbacks.save()
    rollbacks.put("b")
    rollbacks.restore(as_the_same_cluster=True)
    with Store(EtcdSettings(endpoints=(rollbacks.etcd.endpoint,))) as other:
        for n in range(10):
            other.commit([], [Put(f"/r/other-{n}", name())])
    eventually(lambda: read(rollbacks.store))
    assert len(rollbacks.reasons) == 1
    assert "term" in rollbacks.reasons[0]


def test_restarts_and_kills_are_no_rollback(rollbacks: Rollbacks, eventually) -> None:
    rollbacks.put("a")
    follow = rollbacks.store.watcher().follow("/r/", Name, lambda change: None)
    is_done = threading.Event()

    def keep_reading() -> None:
        while not is_done.is_set():
            read(rollbacks.store)
            is_done.wait(0.005)

    readers = [threading.Thread(target=keep_reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(3):
        eventually(lambda: follow.is_current, timeout_s=10)
        rollbacks.put(*[f"{n}-{k}" for k in range(10)])
        rollbacks.etcd.kill()
        rollbacks.etcd.start()
        eventually(lambda: read(rollbacks.store))
    is_done.set()
    for reader in readers:
        reader.join()
    assert rollbacks.reasons == []
