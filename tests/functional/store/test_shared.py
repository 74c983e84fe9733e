"""Many users of one store: one stream, one thread for leases, and none hears of another's end."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ecompute.cluster.documents import Name
from ecompute.cluster.errors import StoreUnavailable
from ecompute.cluster.store import Change, Delete, Put, SharedStore, Store, Watcher, absent


class Heard:
    """A listener, and the keys it was told of."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.lists = 0

    def __call__(self, change: Change[Name]) -> None:
        if change.is_relist:
            self.lists += 1
        else:
            self.keys.append(change.key)


def name(text: str = "x") -> Name:
    return Name(uuid="u", name=text)


def streams() -> int:
    return sum(thread.name.startswith("etcd-watch-") for thread in threading.enumerate())


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_a_part_does_all_that_a_whole_does(store: Store) -> None:
    store.commit([], [Put("/names/a", name())])
    user = SharedStore(store)
    does: dict[str, Callable[[], object]] = {
        "get": lambda: user.get("/names/a", Name),
        "get_many": lambda: user.get_many(["/names/a"], Name).items,
        "list": lambda: user.list("/names/", Name).items,
        "each": lambda: list(user.each("/names/", Name)),
        "keys": lambda: user.keys("/names/")[0],
        "revisions": lambda: user.revisions("/names/"),
        "count": lambda: user.count("/names/"),
        "status": user.status,
        "commit": lambda: user.commit([absent("/names/b")], [Put("/names/b", name())]),
        "lease": lambda: user.lease(2, on_lost=lambda: None).is_held,
        "unkept_lease": lambda: user.unkept_lease(5),
        "users": lambda: not user.users.is_enabled(),
        "watcher": lambda: user.watcher().follow("/names/", Name, Heard()).wait_ready(10),
        "common_watcher": lambda: user.common_watcher().follow("/names/", Name, Heard()).wait_ready(10),
        "highest_revision": lambda: user.highest_revision,
        "cluster_id": lambda: user.cluster_id,
    }
    assert set(does) == public(Store) - {"close"}
    assert [asked for asked, do in does.items() if not do()] == []
    user.close()


def test_a_part_of_a_watcher_does_all_that_a_whole_does(store: Store) -> None:
    user = SharedStore(store)
    watcher = user.watcher()
    assert public(Watcher) == {"follow", "follow_for", "stopped", "close", "is_closed", "is_heard"}
    follows = [
        watcher.follow("/names/", Name, Heard()),
        watcher.follow_for(watcher, "/names/", Name, Heard()),
    ]
    assert all(follow.wait_ready(10) for follow in follows)
    assert watcher.is_heard
    watcher.stopped(follows[0])
    watcher.close()
    assert watcher.is_closed
    assert all(follow.is_stopped for follow in follows)
    user.close()


def test_all_users_follow_over_one_stream(store: Store, eventually: Callable[..., None]) -> None:
    before = streams()
    users = [SharedStore(store) for _ in range(30)]
    heard = [Heard() for _ in users]
    follows = [
        user.watcher().follow(f"/names/{n}/", Name, listener)
        for n, (user, listener) in enumerate(zip(users, heard, strict=True))
    ]
    assert all(follow.wait_ready(10) for follow in follows)
    assert streams() - before == 1
    for n in range(len(users)):
        store.commit([], [Put(f"/names/{n}/a", name())])
    eventually(lambda: [one.keys for one in heard] == [[f"/names/{n}/a"] for n in range(len(users))])
    for user in users:
        user.close()


def test_those_who_follow_the_same_prefix_share_what_is_known_and_each_hears_all(
    store: Store, eventually: Callable[..., None]
) -> None:
    store.commit([], [Put("/names/a", name("a"))])
    first, late = SharedStore(store), SharedStore(store)
    one, other = Heard(), Heard()
    follow = first.watcher().follow("/names/", Name, one)
    assert follow.wait_ready(10)
    store.commit([], [Put("/names/b", name("b"))])
    eventually(lambda: one.keys == ["/names/a", "/names/b"])
    joined = late.watcher().follow("/names/", Name, other)
    assert joined.wait_ready(10)
    assert (other.keys, other.lists) == (["/names/a", "/names/b"], 1)
    assert (one.keys, one.lists) == (["/names/a", "/names/b"], 1), "who was there is told nothing anew"
    assert joined.followed is follow.followed
    store.commit([], [Delete("/names/a")])
    eventually(lambda: one.keys[-1] == other.keys[-1] == "/names/a")
    assert set(joined.snapshot()) == {"/names/b"}
    first.close()
    store.commit([], [Put("/names/c", name("c"))])
    eventually(lambda: other.keys[-1] == "/names/c")
    assert "/names/c" not in one.keys
    late.close()


def test_what_nobody_follows_any_more_is_let_go_and_can_be_followed_anew(
    store: Store, eventually: Callable[..., None]
) -> None:
    user = SharedStore(store)
    watcher = user.watcher()
    for round_ in range(5):
        heard = Heard()
        follow = watcher.follow("/names/", Name, heard)
        assert follow.wait_ready(10)
        store.commit([], [Put(f"/names/{round_}", name())])
        eventually(lambda heard=heard, round_=round_: f"/names/{round_}" in heard.keys)
        follow.stop()
    eventually(lambda: not store.common_watcher()._followed)
    user.close()


def test_a_closed_user_asks_nothing_more_and_the_others_go_on(store: Store, eventually: Callable[..., None]) -> None:
    gone, stays = SharedStore(store), SharedStore(store)
    gone.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        gone.get("/names/a", Name)
    with pytest.raises(StoreUnavailable, match="closed"):
        gone.commit([absent("/names/a")], [Put("/names/a", name())])
    with pytest.raises(StoreUnavailable, match="closed"):
        gone.lease(5, on_lost=lambda: None)
    assert stays.get("/names/a", Name) is None
    stays.close()
    assert store.get("/names/a", Name) is None


def test_the_leases_of_a_closed_user_end_by_themselves_and_those_of_others_are_kept(
    store: Store, eventually: Callable[..., None]
) -> None:
    gone, stays = SharedStore(store), SharedStore(store)
    lost = threading.Event()
    for key, user in (("/alive/gone", gone), ("/alive/stays", stays)):
        lease = user.lease(2, on_lost=lost.set)
        user.commit([], [Put(key, name(), lease=lease.id)])
    gone.close()
    assert store.get("/alive/gone", Name) is not None, "it is not revoked"
    eventually(lambda: store.get("/alive/gone", Name) is None, timeout_s=8)
    assert store.get("/alive/stays", Name) is not None
    assert not lost.is_set()
    stays.close()


def test_a_thousand_leases_are_kept(store: Store, eventually: Callable[..., None]) -> None:
    lost: list[int] = []
    leases = [store.lease(3, on_lost=lambda n=n: lost.append(n)) for n in range(1000)]
    ends_s = leases[-1].held_until_s
    eventually(lambda: all(lease.held_until_s > ends_s + 2 for lease in leases), timeout_s=20)
    assert not lost
    for lease in leases:
        lease.abandon()
