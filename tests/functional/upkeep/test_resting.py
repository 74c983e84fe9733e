"""Addresses that are given up: under a lease, in a real etcd."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ecompute.cluster import keys
from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import AddressLock, Interface, MacLock
from ecompute.cluster.errors import CompareFailed, StoreUnavailable
from ecompute.cluster.store import Compare, Op, Put, Store, Versioned
from ecompute.cluster.upkeep.locks import REST_S, SHARED_S, Locks
from ecompute.dev.etcd import EtcdProcess

NETWORK = "6f7d1a52-91a5-4a0a-8f6b-0c5a7d5f6d10"


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def interface(number: int) -> Interface:
    return Interface(
        uuid=f"if-{number}",
        network_uuid=NETWORK,
        vni=5000,
        mac=f"02:00:00:00:00:{number:02x}",
        addresses=(f"10.0.0.{number}/24", f"fd00::{number:x}/64"),
        mtu=1450,
    )


def locked(store: Store, number: int) -> Interface:
    """Return an interface whose addresses and MAC are locked."""
    made = interface(number)
    owner = {"interface_uuid": made.uuid, "instance_uuid": "vm"}
    addresses = [keys.address(NETWORK, address.split("/")[0]) for address in made.addresses]
    store.commit(
        [],
        [
            *(Put(key, AddressLock(**owner)) for key in addresses),
            Put(keys.mac(NETWORK, made.mac), MacLock(**owner)),
        ],
    )
    return made


def give_up(store: Store, locks: Locks, *interfaces: Interface) -> None:
    compares: list[Compare] = []
    operations: list[Op] = []
    locks.give_up(interfaces, "vm", compares, operations)
    store.commit(compares, operations)


def left(store: Store) -> list[Versioned[AddressLock]]:
    assert store.keys(keys.macs(NETWORK))[0] == []
    return list(store.list(keys.addresses(NETWORK), AddressLock).items)


def test_an_address_that_is_given_up_rests_and_a_mac_does_not(
    store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str]
) -> None:
    give_up(store, Locks(store), locked(store, 5))
    resting = left(store)
    assert [keys.last(lock.key) for lock in resting] == ["10.0.0.5", "fd00::5"]
    assert {lock.value for lock in resting} == {AddressLock(interface_uuid="if-5", instance_uuid="vm", is_resting=True)}
    (lease,) = {lock.lease for lock in resting}
    assert f"granted with TTL({REST_S}s)" in etcdctl(etcd, "lease", "timetolive", f"{lease:x}")


def test_etcd_ends_the_rest_by_itself(store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str]) -> None:
    give_up(store, Locks(store), locked(store, 5))
    etcdctl(etcd, "lease", "revoke", f"{left(store)[0].lease:x}")
    assert left(store) == []


def test_what_is_given_up_within_a_minute_shares_a_lease(store: Store, clock: Clock) -> None:
    locks = Locks(store, clock)
    for number, at_s in ((5, 0.0), (6, SHARED_S - 1), (7, SHARED_S)):
        clock.now_s = at_s
        give_up(store, locks, locked(store, number))
    leases = {keys.last(lock.key): lock.lease for lock in left(store)}
    assert leases["10.0.0.5"] == leases["10.0.0.6"] != leases["10.0.0.7"]


def test_a_lease_that_has_ended_is_replaced(store: Store, etcd: EtcdProcess, etcdctl: Callable[..., str]) -> None:
    locks = Locks(store)
    give_up(store, locks, locked(store, 5))
    lease = left(store)[0].lease
    etcdctl(etcd, "lease", "revoke", f"{lease:x}")
    another = locked(store, 6)
    with pytest.raises(CompareFailed) as failed:
        give_up(store, locks, another)
    assert failed.value.keys == ()
    locks.lease_has_ended()
    give_up(store, locks, another)
    assert [lock.value.is_resting for lock in left(store)] == [True, True]
    assert lease not in {lock.lease for lock in left(store)}


class WithoutLeases(Store):
    """An etcd that grants none."""

    asked = 0

    def unkept_lease(self, ttl_s: int) -> int:
        self.asked += 1
        raise StoreUnavailable("no lease")


def test_where_there_are_no_leases_an_address_is_free_at_once_and_nobody_waits(
    store: Store, etcd: EtcdProcess, clock: Clock
) -> None:
    with WithoutLeases(EtcdSettings(endpoints=(etcd.endpoint,))) as poor:
        locks = Locks(poor, clock)
        give_up(store, locks, locked(store, 5), locked(store, 6))
        assert (left(store), poor.asked) == ([], 1)
        clock.now_s = 60
        give_up(store, locks, locked(store, 7))
        assert (left(store), poor.asked) == ([], 2)


def test_what_is_somebody_elses_by_now_is_left_alone(store: Store) -> None:
    mine = locked(store, 5)
    theirs = AddressLock(interface_uuid="other", instance_uuid="vm")
    store.commit([], [Put(keys.address(NETWORK, "10.0.0.5"), theirs)])
    give_up(store, Locks(store), mine)
    found = {keys.last(lock.key): lock.value.is_resting for lock in left(store)}
    assert found == {"10.0.0.5": False, "fd00::5": True}
