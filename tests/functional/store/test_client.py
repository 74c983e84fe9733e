"""Reading and writing, against a real etcd."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Name, Unreadable
from ecompute.cluster.errors import CompareFailed, InvalidInput, StoreUnavailable
from ecompute.cluster.store import (
    Delete,
    DeletePrefix,
    Put,
    Store,
    absent,
    absent_under,
    created_at,
    present,
    unchanged,
    unwritten_under,
)
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.processes import free_port


def name(text: str = "x") -> Name:
    return Name(uuid="u", name=text)


class Noticed(msgspec.Struct):
    """A document that tells when it is decoded, which is between the pages of a list."""

    uuid: str
    on_decode: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __post_init__(self) -> None:
        Noticed.on_decode()


@pytest.fixture
def on_decode(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    return lambda hook: monkeypatch.setattr(Noticed, "on_decode", staticmethod(hook))


def test_what_was_put_is_read_back_with_its_revisions(store: Store) -> None:
    first = store.commit([absent("/a")], [Put("/a", name("1"))])
    second = store.commit([present("/a")], [Put("/a", name("2"))])
    found = store.get("/a", Name)
    assert found is not None
    assert (found.value, found.create_revision, found.mod_revision, found.lease) == (name("2"), first, second, 0)
    assert store.get("/b", Name) is None
    assert store.highest_revision == second


def test_a_failed_comparison_writes_nothing_and_names_its_key(store: Store) -> None:
    store.commit([], [Put("/a", name())])
    stale = store.get("/a", Name)
    assert stale is not None
    store.commit([unchanged(stale)], [Put("/a", name("2"))])
    with pytest.raises(CompareFailed, match=r"/a is not unchanged since \d+: written at \d+") as caught:
        store.commit([unchanged(stale), absent("/b"), present("/c")], [Put("/b", name()), Delete("/a")])
    assert caught.value.keys == ("/a", "/c")
    assert store.keys("/")[0] == ["/a"]


def test_a_key_that_was_made_anew_is_not_the_one_created_before(store: Store) -> None:
    created = store.commit([], [Put("/lead/x", name())])
    store.commit([created_at("/lead/x", created)], [Put("/lead/x", name("again"))])
    store.commit([], [Delete("/lead/x")])
    store.commit([absent("/lead/x")], [Put("/lead/x", name("other"))])
    with pytest.raises(CompareFailed):
        store.commit([created_at("/lead/x", created)], [Delete("/lead/x")])


def test_absent_under_holds_only_for_an_empty_range(store: Store) -> None:
    store.commit([absent_under("/blobs/b/refs/")], [Put("/blobs/b", name()), Put("/blobs/b0", name())])
    store.commit([absent_under("/blobs/b/refs/")], [Put("/blobs/b/refs/image/1", name())])
    with pytest.raises(CompareFailed) as caught:
        store.commit([absent_under("/blobs/b/refs/")], [Delete("/blobs/b")])
    assert caught.value.keys == ("/blobs/b/refs/",)
    assert store.get("/blobs/b", Name) is not None


def test_unwritten_under_fails_for_what_was_made_or_changed_since(store: Store) -> None:
    revision = store.commit([], [Put(key, name()) for key in ("/hosts/a/1", "/hosts/a/2", "/hosts/b")])
    store.commit([unwritten_under("/hosts/a/", revision)], [Put("/hosts/b", name("other"))])
    store.commit([unwritten_under("/hosts/a/", revision)], [Delete("/hosts/a/1")])
    store.commit([unwritten_under("/hosts/a/", revision), unwritten_under("/nobody/", 1)], [])
    later = store.commit([], [Put("/hosts/a/3", name())])
    store.commit([unwritten_under("/hosts/a/", later)], [Put("/hosts/a/2", name("other"))])
    for since in (revision, later):
        with pytest.raises(CompareFailed) as caught:
            store.commit([unwritten_under("/hosts/a/", since)], [Delete("/hosts/b")])
        assert caught.value.keys == ("/hosts/a/",)
    assert store.get("/hosts/b", Name) is not None


def test_delete_prefix_deletes_nothing_beside_it(store: Store) -> None:
    store.commit([], [Put(key, name()) for key in ("/n/1", "/n/1/ports/a", "/n/1/ports/b", "/n/1/porty", "/n/2")])
    store.commit([], [DeletePrefix("/n/1/ports/")])
    assert store.keys("/n/")[0] == ["/n/1", "/n/1/porty", "/n/2"]
    with pytest.raises(InvalidInput):
        store.commit([], [DeletePrefix("")])


def test_128_operations_pass_and_129_are_refused_before_they_are_sent(store: Store) -> None:
    operations = [Put(f"/many/{n:03}", name()) for n in range(129)]
    store.commit([absent(put.key) for put in operations[:128]], operations[:128])
    assert len(store.keys("/many/")[0]) == 128
    with pytest.raises(InvalidInput, match="at most 128 operations, this one has 129"):
        store.commit([], operations)
    with pytest.raises(InvalidInput, match="at most 128 comparisons"):
        store.commit([absent(put.key) for put in operations], [])


def test_one_key_twice_in_a_transaction_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="duplicate key"):
        store.commit([], [Put("/a", name()), Put("/a", name("2"))])
    assert store.get("/a", Name) is None


def test_a_document_that_is_too_large_is_refused(store: Store) -> None:
    for size in (1_600_000, 3_000_000):
        with pytest.raises(InvalidInput, match="too large"):
            store.commit([], [Put("/big", name("x" * size))])


def test_a_list_of_more_than_4_mib_is_read_whole(store: Store) -> None:
    for batch in range(6):
        store.commit([], [Put(f"/big/{batch}/{n:02}", name("x" * 60_000)) for n in range(20)])
    listing = store.list("/big/", Name)
    assert len(listing.items) == 120
    assert sum(len(item.value.name) for item in listing.items) > 4 << 20


def test_all_pages_of_a_list_are_of_one_revision(store: Store, on_decode: Callable[[Callable[[], None]], None]) -> None:
    for batch in range(10):
        store.commit([], [Put(f"/page/{batch}/{n:03}", name()) for n in range(120)])
    revision = store.highest_revision
    seen = 0

    def disturb() -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            store.commit([], [DeletePrefix("/page/9/"), Put("/page/5/000/new", name())])

    on_decode(disturb)
    listing = store.list("/page/", Noticed)
    assert (len(listing.items), listing.revision) == (1200, revision)
    assert [item.key for item in listing.items] == sorted(item.key for item in listing.items)
    assert len(store.list("/page/", Name).items) == 1081
    assert len(store.list("/page/", Name, revision=revision).items) == 1200


def test_a_list_overtaken_by_compaction_begins_anew(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str], on_decode: Callable[[Callable[[], None]], None]
) -> None:
    for batch in range(5):
        store.commit([], [Put(f"/page/{batch}/{n:03}", name()) for n in range(120)])
    seen = 0

    def compact() -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            etcdctl(etcd, "compaction", str(store.commit([], [Delete("/page/4/000")])))

    on_decode(compact)
    assert len(store.list("/page/", Noticed).items) == 599
    with pytest.raises(InvalidInput, match="compacted"):
        store.list("/page/", Name, revision=2)


def test_limits_are_kept(store: Store) -> None:
    store.commit([], [Put(f"/l/{n}", name()) for n in range(5)])
    assert [item.key for item in store.list("/l/", Name, limit=2).items] == ["/l/0", "/l/1"]
    assert store.list("/l/", Name, limit=0).items == ()
    found, revision = store.keys("/l/", limit=3)
    assert (found, revision) == (["/l/0", "/l/1", "/l/2"], store.highest_revision)
    assert store.list("/none/", Name).revision == revision


def test_many_keys_are_read_at_one_revision_in_the_order_asked_for(store: Store) -> None:
    keys = [f"/k/{n:03}" for n in range(300)]
    for start in range(0, 300, 100):
        store.commit([], [Put(key, name(key)) for key in keys[start : start + 100]])
    wanted = [*reversed(keys), "/k/none"]
    listing = store.get_many(wanted, Name)
    assert [item.key for item in listing.items] == list(reversed(keys))
    assert listing.revision == store.highest_revision
    assert store.get_many([], Name).items == ()


def test_a_document_that_cannot_be_read_is_set_aside(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str]
) -> None:
    store.commit([], [Put("/d/a", name()), Put("/d/c", name())])
    etcdctl(etcd, "put", "/d/b", "{not json")
    listing = store.list("/d/", Name)
    assert [item.key for item in listing.items] == ["/d/a", "/d/c"]
    assert [key for key, _ in listing.unreadable] == ["/d/b"]
    assert [key for key, _ in store.get_many(["/d/a", "/d/b"], Name).unreadable] == ["/d/b"]
    with pytest.raises(Unreadable, match="/d/b is not a Name"):
        store.get("/d/b", Name)


def test_the_status_says_who_and_where(store: Store, etcd: EtcdProcess) -> None:
    revision = store.commit([], [Put("/a", name())])
    status = store.status()
    assert (status.revision, status.endpoint, status.cluster_id) == (revision, etcd.endpoint, store.cluster_id)
    assert status.cluster_id and status.member_id and status.raft_term


def test_etcd_that_is_not_there_is_named_with_a_time() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    with Store(EtcdSettings(endpoints=(endpoint,)), timeout_s=2) as store:
        with pytest.raises(StoreUnavailable, match=rf"etcd at {endpoint} does not answer since 20\d\d-.*refused"):
            store.get("/a", Name)
        with pytest.raises(StoreUnavailable) as caught:
            store.commit([], [Delete("/a")])
    assert not caught.value.may_be_written


def test_a_commit_whose_answer_is_lost_says_that_it_may_be_written(store: Store, link, linked_store: Store) -> None:
    linked_store.status()
    link.hold_answers()
    with pytest.raises(StoreUnavailable, match="it may have been written") as caught:
        linked_store.commit([absent("/a")], [Put("/a", name())])
    assert caught.value.may_be_written
    assert store.get("/a", Name) is not None


def test_a_commit_whose_link_is_reset_says_that_it_may_be_written(store: Store, link, linked_store: Store) -> None:
    linked_store.status()
    link.hold_answers()
    threading.Timer(0.3, link.cut).start()
    with pytest.raises(StoreUnavailable) as caught:
        linked_store.commit([absent("/a")], [Put("/a", name())])
    assert caught.value.may_be_written
    assert store.get("/a", Name) is not None


def test_reads_go_to_another_endpoint_when_one_is_down_or_hangs(store: Store, etcd: EtcdProcess, link) -> None:
    store.commit([], [Put("/a", name())])
    dead = f"127.0.0.1:{free_port()}"
    for _ in range(4):  # the first endpoint is drawn by lot
        with Store(EtcdSettings(endpoints=(dead, etcd.endpoint)), timeout_s=3) as several:
            assert several.get("/a", Name) is not None
            several.commit([present("/a")], [Put("/a", name("2"))])
    with Store(EtcdSettings(endpoints=(link.endpoint, etcd.endpoint)), timeout_s=2) as several:
        link.hold_answers()
        began = time.monotonic()
        assert several.get("/a", Name) is not None
        assert time.monotonic() - began < 2


def test_a_store_works_again_after_etcd_was_killed(own_etcd: EtcdProcess, own_store: Store, eventually) -> None:
    own_store.commit([], [Put("/a", name())])
    own_etcd.kill()
    with pytest.raises(StoreUnavailable):
        own_store.get("/a", Name)
    own_etcd.start()

    def answers() -> bool:
        try:
            return own_store.get("/a", Name) is not None
        except StoreUnavailable:
            return False

    eventually(answers, timeout_s=4)


def test_a_full_database_is_no_fault_of_who_asks_and_reads_go_on(tmp_path: Path) -> None:
    with (
        start_etcd(tmp_path, is_durable=False, options=["--quota-backend-bytes", str(1 << 20)]) as full,
        Store(EtcdSettings(endpoints=(full.endpoint,))) as store,
    ):
        store.commit([], [Put("/a", name())])
        with pytest.raises(StoreUnavailable, match="database space exceeded") as caught:
            for n in range(100):
                store.commit([], [Put(f"/fill/{n}", name("x" * 100_000))])
        assert not caught.value.may_be_written
        assert store.get("/a", Name) is not None
        assert store.get(f"/fill/{len(store.keys('/fill/')[0])}", Name) is None


def test_a_closed_store_says_so(etcd: EtcdProcess) -> None:
    store = Store(EtcdSettings(endpoints=(etcd.endpoint,)))
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.get("/a", Name)


def test_threads_may_share_a_store(store: Store) -> None:
    store.commit([], [Put("/counter", name("0"))])

    def count() -> None:
        for _ in range(10):
            while True:
                read = store.get("/counter", Name)
                assert read is not None
                try:
                    store.commit([unchanged(read)], [Put("/counter", name(str(int(read.value.name) + 1)))])
                    break
                except CompareFailed:
                    continue

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = store.get("/counter", Name)
    assert final is not None
    assert final.value.name == "40"
