"""The watch, and everything that may happen to it, against a real etcd."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import msgspec
import psutil
import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Name
from ecompute.cluster.store import Change, Delete, DeletePrefix, Follow, Put, Store, Watcher
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.processes import free_port


def name(text: str = "x") -> Name:
    return Name(uuid="u", name=text)


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.changes: list[Change[Name]] = []

    def __call__(self, change: Change[Name]) -> None:
        self.changes.append(change)

    @property
    def relists(self) -> int:
        return sum(change.is_relist for change in self.changes)

    def of(self, key: str) -> list[tuple[str | None, str | None]]:
        return [
            (change.before and change.before.value.name, change.after and change.after.value.name)
            for change in self.changes
            if change.key == key
        ]


@pytest.fixture
def watcher(store: Store) -> Iterator[Watcher]:
    opened = store.watcher()
    yield opened
    opened.close()


def names(follow: Follow[Name]) -> dict[str, str]:
    return {key: item.value.name for key, item in follow.snapshot().items()}


def test_a_follower_sees_what_is_there_and_then_each_change(store: Store, watcher: Watcher, eventually) -> None:
    store.commit([], [Put("/w/a", name("1")), Put("/other", name())])
    heard = Recorder()
    follow = watcher.follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    assert names(follow) == {"/w/a": "1"}
    assert [change.key for change in heard.changes] == ["/w/a", ""]
    assert (heard.relists, heard.changes[-1].is_relist) == (1, True)
    store.commit([], [Put("/w/a", name("2"))])
    store.commit([], [Put("/w/b", name("1")), Delete("/w/a"), Put("/other", name("2"))])
    store.commit([], [Put("/w/a", name("3"))])
    eventually(lambda: len(heard.changes) == 6)
    assert heard.of("/w/a") == [(None, "1"), ("1", "2"), ("2", None), (None, "3")]
    assert heard.of("/w/b") == [(None, "1")]
    assert names(follow) == {"/w/a": "3", "/w/b": "1"}
    assert follow.is_current


def test_what_is_told_is_already_in_the_snapshot(store: Store, watcher: Watcher, eventually) -> None:
    consistent: list[bool] = []
    follow: Follow[Name]
    known = threading.Event()

    def listen(change: Change[Name]) -> None:
        known.wait(5)
        if change.after is not None:
            consistent.append(follow.snapshot()[change.key].mod_revision >= change.after.mod_revision)

    follow = watcher.follow("/w/", Name, listen)
    known.set()
    for n in range(50):
        store.commit([], [Put(f"/w/{n % 7}", name(str(n)))])
    eventually(lambda: len(follow.snapshot()) == 7 and follow.snapshot()["/w/0"].value.name == "49")
    assert consistent
    assert all(consistent)


def test_many_prefixes_share_one_stream_and_come_and_go(store: Store, watcher: Watcher, eventually) -> None:
    heard = [Recorder() for _ in range(20)]
    follows = [watcher.follow(f"/p/{n}/", Name, recorder) for n, recorder in enumerate(heard)]
    assert all(follow.wait_ready(5) for follow in follows)
    assert sum(thread.name.startswith("etcd-watch-") for thread in threading.enumerate()) == 1
    for follow in follows[::2]:
        follow.stop()
    late = Recorder()
    assert watcher.follow("/p/", Name, late).wait_ready(5)
    store.commit([], [Put(f"/p/{n}/k", name()) for n in range(20)])
    followed, stopped = range(1, 20, 2), range(0, 20, 2)
    eventually(lambda: len(late.changes) == 21 and all(heard[n].of(f"/p/{n}/k") for n in followed))
    assert not any(heard[n].of(f"/p/{n}/k") for n in stopped)


def test_a_listener_that_fails_or_stops_itself_does_not_end_the_watch(
    store: Store, watcher: Watcher, eventually, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(change: Change[Name]) -> None:
        raise RuntimeError("a listener's mistake")

    once: list[str] = []
    heard = Recorder()
    bad = watcher.follow("/w/", Name, fail)
    stopping = watcher.follow("/w/", Name, lambda change: (once.append(change.key), stopping.stop()))
    good = watcher.follow("/w/", Name, heard)
    with caplog.at_level(logging.CRITICAL, "ecompute"):
        assert bad.wait_ready(5)
        assert good.wait_ready(5)
        store.commit([], [Put("/w/a", name())])
        eventually(lambda: heard.of("/w/a"))
    assert names(bad) == names(good)
    assert once == [""]


def test_an_unreadable_document_keeps_the_last_one_and_wakes(
    store: Store, watcher: Watcher, etcd: EtcdProcess, etcdctl: Callable[..., str], eventually
) -> None:
    store.commit([], [Put("/w/a", name("1"))])
    etcdctl(etcd, "put", "/w/bad", "{")
    heard = Recorder()
    follow = watcher.follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    assert set(follow.unreadable) == {"/w/bad"}
    assert heard.of("/w/bad") == [(None, None)]
    etcdctl(etcd, "put", "/w/a", "[]")
    eventually(lambda: heard.of("/w/a") == [(None, "1"), ("1", "1")])
    assert names(follow) == {"/w/a": "1"}
    store.commit([], [Put("/w/a", name("2")), Delete("/w/bad")])
    eventually(lambda: names(follow) == {"/w/a": "2"} and not follow.unreadable)


def test_an_idle_watch_is_kept_by_progress_answers(store: Store, etcd: EtcdProcess, eventually) -> None:
    with Store(EtcdSettings(endpoints=(etcd.endpoint,))) as own:
        watcher = own.watcher(silence_limit_s=1.0)
        heard = Recorder()
        follow = watcher.follow("/w/", Name, heard)
        assert follow.wait_ready(5)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert follow.is_current
            threading.Event().wait(0.05)
        assert heard.relists == 1
        store.commit([], [Put("/w/a", name())])
        eventually(lambda: heard.of("/w/a"))


class Interrupting(msgspec.Struct):
    """A document that tells when it is decoded: between the list and the start of its watch."""

    uuid: str
    on_decode: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __post_init__(self) -> None:
        Interrupting.on_decode()


def test_compaction_past_our_revision_lists_again(
    store: Store, watcher: Watcher, etcd: EtcdProcess, etcdctl: Callable[..., str], monkeypatch, eventually
) -> None:
    store.commit([], [Put("/w/a", name("1"))])
    reads = 0

    def compact() -> None:
        nonlocal reads
        reads += 1
        if reads == 1:
            store.commit([], [Delete("/w/a")])
            store.commit([], [Put("/w/b", name("1"))])
            etcdctl(etcd, "compaction", str(store.commit([], [Put("/w/c", name("1"))])))

    monkeypatch.setattr(Interrupting, "on_decode", staticmethod(compact))
    changes: list[Change[Interrupting]] = []
    follow = watcher.follow("/w/", Interrupting, changes.append)
    eventually(lambda: sum(change.is_relist for change in changes) == 2)
    assert sorted(follow.snapshot()) == ["/w/b", "/w/c"]
    assert [change.key for change in changes if change.before is not None and change.after is None] == ["/w/a"]
    eventually(lambda: follow.is_current)
    store.commit([], [Put("/w/d", name())])
    eventually(lambda: "/w/d" in follow.snapshot())


def test_no_change_is_lost_over_kill_and_restart(
    own_etcd: EtcdProcess, own_store: Store, eventually, tmp_path: Path
) -> None:
    heard = Recorder()
    follow = own_store.watcher().follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    written: set[str] = set()
    for round_ in range(3):
        with Store(EtcdSettings(endpoints=(own_etcd.endpoint,))) as writer:
            for n in range(20):
                key = f"/w/{round_}-{n}"
                writer.commit([], [Put(key, name())])
                written.add(key)
        own_etcd.kill()
        eventually(lambda: not follow.is_current)
        own_etcd.start()
    eventually(lambda: set(follow.snapshot()) == written, timeout_s=10)
    assert {change.key for change in heard.changes if change.after} == written
    assert all(len(heard.of(key)) == 1 for key in written)
    own_store.commit([], [Put("/w/last", name())])
    eventually(lambda: heard.of("/w/last"))


def test_a_key_deleted_and_made_again_in_a_gap_is_seen_as_both(
    store: Store, link, linked_store: Store, eventually
) -> None:
    store.commit([], [Put(f"/w/{key}", name("1")) for key in ("again", "gone", "same", "written")])
    heard = Recorder()
    follow = linked_store.watcher().follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    link.cut()
    eventually(lambda: not follow.is_current)
    store.commit([], [Delete("/w/again"), Delete("/w/gone"), Put("/w/written", name("2"))])
    store.commit([], [Put("/w/again", name("1")), Put("/w/new", name("1"))])
    assert len(heard.changes) == 5
    link.mend()
    eventually(lambda: heard.relists == 2)
    assert heard.of("/w/again") == [(None, "1"), ("1", None), (None, "1")]
    assert heard.of("/w/gone") == [(None, "1"), ("1", None)]
    assert heard.of("/w/written") == [(None, "1"), ("1", "2")]
    assert heard.of("/w/new") == [(None, "1")]
    assert heard.of("/w/same") == [(None, "1")]
    assert heard.changes[-1].is_relist


def test_a_silent_link_is_given_up_and_listed_again(store: Store, link, linked_store: Store, eventually) -> None:
    heard = Recorder()
    watcher = linked_store.watcher(silence_limit_s=1.0)
    follow = watcher.follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    link.hold_answers()
    store.commit([], [Put("/w/a", name())])
    eventually(lambda: not follow.is_current)
    link.cut()
    link.mend()
    eventually(lambda: heard.of("/w/a") and follow.is_current)


def test_a_stream_that_etcd_ends_is_opened_again(own_etcd: EtcdProcess, own_store: Store, eventually) -> None:
    heard = Recorder()
    follow = own_store.watcher().follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    own_etcd.restart()  # SIGTERM: etcd closes its streams in good order
    eventually(lambda: heard.relists == 2 and follow.is_current, timeout_s=10)
    own_store.commit([], [Put("/w/a", name())])
    eventually(lambda: heard.of("/w/a"))


def test_a_watch_notices_an_etcd_that_hangs_for_15_s_and_goes_on(
    own_etcd: EtcdProcess, own_store: Store, eventually
) -> None:
    heard = Recorder()
    follow = own_store.watcher().follow("/w/", Name, heard)
    assert follow.wait_ready(5)
    own_etcd.suspend()
    suspended_s = time.monotonic()
    eventually(lambda: not follow.is_current, timeout_s=12)
    eventually(lambda: time.monotonic() - suspended_s > 15, timeout_s=16)
    own_etcd.resume()
    with Store(EtcdSettings(endpoints=(own_etcd.endpoint,))) as writer:
        writer.commit([], [Put("/w/a", name())])
    eventually(lambda: heard.of("/w/a") and follow.is_current, timeout_s=15)
    assert heard.relists >= 2


def test_a_watch_may_begin_before_etcd_does_and_costs_little_while_it_is_down(tmp_path: Path, eventually) -> None:
    port = free_port()
    with Store(EtcdSettings(endpoints=(f"127.0.0.1:{port}",)), timeout_s=2) as store:
        heard = Recorder()
        follow = store.watcher().follow("/w/", Name, heard)
        assert not follow.wait_ready(0.5)
        assert not follow.is_current
        process = psutil.Process()
        before, began_s = process.cpu_times(), time.monotonic()
        threading.Event().wait(3)
        after = process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        assert cpu_s / (time.monotonic() - began_s) < 0.05
        with start_etcd(tmp_path / "etcd", port=port, is_durable=False):
            assert follow.wait_ready(12)
            store.commit([], [Put("/w/a", name())])
            eventually(lambda: heard.of("/w/a"))


def test_the_cost_of_losing_etcd_is_small(own_etcd: EtcdProcess, own_store: Store, eventually) -> None:
    watcher = own_store.watcher()
    follows = [watcher.follow(f"/w/{n}/", Name, Recorder()) for n in range(20)]
    lease = own_store.lease(4, on_lost=lambda: None)
    assert all(follow.wait_ready(5) for follow in follows)
    own_etcd.kill()
    eventually(lambda: not follows[0].is_current)
    process = psutil.Process()
    before, began_s = process.cpu_times(), time.monotonic()
    eventually(lambda: not lease.is_held)
    eventually(lambda: time.monotonic() - began_s > 5, timeout_s=6)
    after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    assert cpu_s / (time.monotonic() - began_s) < 0.05


def test_closing_is_quick_while_etcd_hangs(own_etcd: EtcdProcess, own_store: Store) -> None:
    watcher = own_store.watcher()
    assert watcher.follow("/w/", Name, Recorder()).wait_ready(5)
    own_etcd.suspend()
    began_s = time.monotonic()
    watcher.close()
    own_store.close()
    assert time.monotonic() - began_s < 4


def test_a_thousand_changes_arrive_in_order(store: Store, watcher: Watcher, eventually) -> None:
    heard = Recorder()
    assert watcher.follow("/w/", Name, heard).wait_ready(5)
    for n in range(10):
        store.commit([], [Put(f"/w/{n}-{k}", name(str(n))) for k in range(100)])
    store.commit([], [DeletePrefix("/w/")])
    eventually(lambda: len(heard.changes) == 2001)
    revisions = [change.after.mod_revision for change in heard.changes if change.after]
    assert revisions == sorted(revisions)
