"""Leases, against a real etcd."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Name
from ecompute.cluster.errors import CompareFailed, InvalidInput, StoreUnavailable
from ecompute.cluster.store import Put, Store, present
from ecompute.dev.etcd import EtcdProcess


class Count:
    def __init__(self) -> None:
        self.value = 0

    def __call__(self) -> None:
        self.value += 1


def name() -> Name:
    return Name(uuid="u", name="x")


def test_a_lease_is_kept_over_three_times_its_life(store: Store, eventually) -> None:
    lost = Count()
    lease = store.lease(2, on_lost=lost)
    store.commit([], [Put("/alive/h", name(), lease=lease.id)])
    began_s = time.monotonic()

    def is_over() -> bool:
        assert lease.is_held
        assert store.get("/alive/h", Name) is not None
        return time.monotonic() - began_s > 6.5

    eventually(is_over, timeout_s=8)
    found = store.get("/alive/h", Name)
    assert found is not None
    assert found.lease == lease.id
    assert found.mod_revision == found.create_revision
    lease.revoke()
    assert not lease.is_held
    assert store.get("/alive/h", Name) is None
    assert lost.value == 0


def test_revoking_twice_or_after_the_end_is_harmless(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str], eventually
) -> None:
    lease = store.lease(30, on_lost=lambda: None)
    etcdctl(etcd, "lease", "revoke", f"{lease.id:x}")
    lease.revoke()
    lease.revoke()


def test_a_lease_that_etcd_dropped_calls_its_owner_once(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str], eventually
) -> None:
    lost, kept = Count(), Count()
    lease = store.lease(3, on_lost=lost)
    other = store.lease(3, on_lost=kept)
    etcdctl(etcd, "lease", "revoke", f"{lease.id:x}")
    eventually(lambda: lost.value == 1, timeout_s=4)
    assert not lease.is_held
    assert other.is_held
    with pytest.raises(CompareFailed, match="lease"):
        store.commit([], [Put("/alive/h", name(), lease=lease.id)])
    assert (lost.value, kept.value) == (1, 0)
    other.revoke()


def test_a_lease_is_given_up_before_etcd_can_end_it(own_etcd: EtcdProcess, own_store: Store, eventually) -> None:
    lost = Count()
    began_s = time.monotonic()
    lease = own_store.lease(3, on_lost=lost)
    own_etcd.suspend()
    eventually(lambda: not lease.is_held)
    assert time.monotonic() - began_s < 3
    eventually(lambda: lost.value == 1, timeout_s=1.5)
    own_etcd.resume()
    assert not lease.is_held


def test_a_lease_outlives_a_short_loss_of_etcd(own_etcd: EtcdProcess, own_store: Store, eventually) -> None:
    lost = Count()
    lease = own_store.lease(4, on_lost=lost)
    own_store.commit([], [Put("/alive/h", name(), lease=lease.id)])
    own_etcd.kill()
    own_etcd.start()
    began_s = time.monotonic()
    eventually(lambda: time.monotonic() - began_s > 4.5, timeout_s=6)
    assert lease.is_held
    assert lost.value == 0
    own_store.commit([present("/alive/h")], [])


def test_a_callback_may_ask_for_the_next_lease(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str], eventually
) -> None:
    again: list[object] = []
    lease = store.lease(3, on_lost=lambda: again.append(store.lease(3, on_lost=lambda: None)))
    etcdctl(etcd, "lease", "revoke", f"{lease.id:x}")
    eventually(lambda: again, timeout_s=4)


def test_a_callback_that_fails_costs_the_other_leases_nothing(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str], eventually
) -> None:
    called = threading.Event()

    def fail() -> None:
        called.set()
        raise RuntimeError("an owner's mistake")

    lease = store.lease(2, on_lost=fail)
    other = store.lease(2, on_lost=lambda: None)
    etcdctl(etcd, "lease", "revoke", f"{lease.id:x}")
    assert called.wait(4)
    began_s = time.monotonic()
    eventually(lambda: time.monotonic() - began_s > 2.5)
    assert other.is_held
    other.revoke()


def test_a_lease_too_short_to_be_kept_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput):
        store.lease(1, on_lost=lambda: None)


def test_there_is_no_lease_without_etcd(own_etcd: EtcdProcess) -> None:
    own_etcd.kill()
    with Store(EtcdSettings(endpoints=(own_etcd.endpoint,)), timeout_s=1) as store, pytest.raises(StoreUnavailable):
        store.lease(5, on_lost=lambda: None)
