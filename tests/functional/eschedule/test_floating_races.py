"""Floating addresses asked for by many at once, and by those who die on the way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Floating, Instance, Port, Seen, State
from ecompute.cluster.errors import AddressesExhausted, AddressTaken, CloudError, CompareFailed, Conflict, NotFound
from ecompute.cluster.floating import is_attached, is_said
from ecompute.cluster.store import Put, Store, unchanged
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FAILPOINTS, FloatingAddresses, FloatingAttached, Target
from eschedule.cloud.instances import Instances
from eschedule.cloud.pools import Pools
from eschedule.scheduler.launch import Launcher

T = TypeVar("T")


@pytest.fixture
def guests(cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]) -> list[str]:
    """Two instances, web-0 and web-1, and a pool of sixteen addresses."""
    make_host()
    Pools(cloud).create("public", "203.0.113.0/28")
    return [Launcher(cloud).launch(make_request(name=f"web-{n}")).uuid for n in range(2)]


def at_once(make_cloud: Callable[[], Cloud], acts: Sequence[Callable[[Cloud], T]]) -> list[T | CloudError]:
    """Do ``acts`` at once, each as a process of its own would; return what came of each."""

    def one(act: Callable[[Cloud], T], cloud: Cloud) -> T | CloudError:
        try:
            return act(cloud)
        except CloudError as error:
            return error

    clouds = [make_cloud() for _ in acts]
    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(one, acts, clouds))


def floatings(store: Store) -> list[Floating]:
    return [item.value for item in store.list(keys.FLOATING, Floating).items]


def ports(store: Store) -> dict[str, Port]:
    found = store.each(keys.NETWORKS, Port)
    return {item.value.interface_uuid: item.value for item in found if "/ports/" in item.key}


def check(store: Store) -> None:
    """Both say the same of every attached address, and no port names one that is not its."""
    known = floatings(store)
    found = ports(store)
    attached = [one for one in known if is_attached(one)]
    assert all(is_said(found[one.interface_uuid or ""], one) for one in attached)
    said = [ip for port in found.values() for ip in (port.floating, *port.routed) if ip is not None]
    assert sorted(said) == sorted(one.ip for one in attached)


def test_of_sixteen_who_want_one_address_one_gets_it(
    store: Store, make_cloud: Callable[[], Cloud], guests: list[str]
) -> None:
    acts = [lambda cloud, n=n: FloatingAddresses(cloud).create(f"team-{n}", ip="203.0.113.5") for n in range(16)]
    results = at_once(make_cloud, acts)
    (made,) = (result for result in results if isinstance(result, Floating))
    assert all(isinstance(result, AddressTaken) for result in results if result is not made)
    assert floatings(store) == [made]
    assert store.keys(keys.names(made.namespace, "floating"))[0] != []


def test_sixteen_addresses_are_had_by_twenty_at_once_none_of_them_twice(
    store: Store, make_cloud: Callable[[], Cloud], guests: list[str]
) -> None:
    results = at_once(make_cloud, [lambda cloud: FloatingAddresses(cloud).create("system")] * 20)
    made = [result for result in results if isinstance(result, Floating)]
    assert len({one.ip for one in made}) == len(made) == 16
    assert all(isinstance(result, AddressesExhausted) for result in results if not isinstance(result, Floating))


def test_of_two_attaches_of_one_address_one_wins(
    store: Store, make_cloud: Callable[[], Cloud], cloud: Cloud, guests: list[str]
) -> None:
    made = FloatingAddresses(cloud).create("system")
    acts = [lambda cloud, n=n: FloatingAddresses(cloud).attach(made.ip, "system", Target(f"web-{n}")) for n in range(2)]
    for _ in range(5):
        results = at_once(make_cloud, acts)
        assert sorted(type(result).__name__ for result in results) == ["Floating", FloatingAttached.__name__]
        check(store)
        FloatingAddresses(cloud).detach(made.ip, "system")


def test_of_two_addresses_for_one_interface_one_wins(
    store: Store, make_cloud: Callable[[], Cloud], cloud: Cloud, guests: list[str]
) -> None:
    made = [FloatingAddresses(cloud).create("system") for _ in range(2)]
    acts = [lambda cloud, ip=one.ip: FloatingAddresses(cloud).attach(ip, "system", Target("web-0")) for one in made]
    results = at_once(make_cloud, acts)
    assert sorted(isinstance(result, Conflict) for result in results) == [False, True]
    check(store)


@pytest.mark.parametrize("is_created", [False, True], ids=["attach", "create"])
def test_an_attach_against_a_destroy_leaves_nothing(
    store: Store, make_cloud: Callable[[], Cloud], cloud: Cloud, guests: list[str], is_created: bool
) -> None:
    made = None if is_created else FloatingAddresses(cloud).create("system")

    def attach(other: Cloud) -> Floating:
        if made is None:
            return FloatingAddresses(other).create("system", target=Target("web-0"))
        return FloatingAddresses(other).attach(made.ip, "system", Target("web-0"))

    def destroy(other: Cloud) -> None:
        instances = Instances(other)
        found = instances.find(guests[0], "system")
        instances.destroy(found)
        report_gone(store, guests[0], found.value.provider)
        instances.finish(guests[0])

    results = at_once(make_cloud, [attach, destroy, attach])
    assert results[1] is None
    for result in (results[0], results[2]):
        assert isinstance(result, Floating | Conflict | NotFound), result
    assert not any(is_attached(one) for one in floatings(store))
    assert not [key for key in store.keys("/")[0] if guests[0] in key]
    check(store)


def report_gone(store: Store, uuid: str, provider: str) -> None:
    found = store.get(keys.instance(uuid), Instance)
    assert found is not None
    seen = Seen(
        uuid=uuid,
        generation=found.value.generation,
        epoch=found.value.epoch,
        state=State.DELETED,
        is_gone=True,
        reported_at="",
    )
    store.commit([], [Put(keys.seen(provider, uuid), seen)])


def test_a_detach_against_a_move_leaves_the_port_where_it_went(
    store: Store, make_cloud: Callable[[], Cloud], cloud: Cloud, guests: list[str]
) -> None:
    made = FloatingAddresses(cloud).create("system", target=Target("web-0"))

    def move(other: Cloud) -> None:
        for epoch in range(2, 12):
            while True:
                key = keys.port(made.network_uuid or "", made.interface_uuid or "")
                port = other.store.get(key, Port)
                assert port is not None
                try:
                    moved = structs.replace(port.value, epoch=epoch, provider=f"host-{epoch}")
                    other.store.commit([unchanged(port)], [Put(key, moved)])
                    break
                except CompareFailed:
                    continue

    results = at_once(make_cloud, [move, lambda cloud: FloatingAddresses(cloud).detach(made.ip, "system")])
    assert not any(isinstance(result, CloudError) for result in results)
    port = ports(store)[made.interface_uuid or ""]
    assert (port.epoch, port.provider, port.floating) == (11, "host-11", None)
    check(store)


def test_a_pool_is_not_removed_under_an_address(
    store: Store, make_cloud: Callable[[], Cloud], cloud: Cloud, guests: list[str]
) -> None:
    for _ in range(5):
        results = at_once(
            make_cloud,
            [
                lambda cloud: FloatingAddresses(cloud).create("system"),
                lambda cloud: Pools(cloud).delete("public"),
            ],
        )
        assert sorted(isinstance(result, CloudError) for result in results) == [False, True]
        for one in floatings(store):
            assert store.keys(keys.POOLS)[0] == [keys.pool("public")]
            FloatingAddresses(cloud).delete(one.ip, "system")
        if not store.keys(keys.POOLS)[0]:
            Pools(cloud).create("public", "203.0.113.0/28")


def test_of_pools_that_overlap_one_is_made(store: Store, make_cloud: Callable[[], Cloud], guests: list[str]) -> None:
    acts = [lambda cloud, n=n: Pools(cloud).create(f"p{n}", f"198.51.100.0/{24 + n}") for n in range(6)]
    results = at_once(make_cloud, acts)
    assert sum(not isinstance(result, CloudError) for result in results) == 1
    assert len(store.keys(keys.POOLS)[0]) == 2


BEGUN: dict[str, tuple[str, ...]] = {
    "floating.before": ("create",),
    "floating.created": ("create", "--attach", "web-0"),
    "floating.attached": ("attach", "203.0.113.1", "web-0"),
    "floating.detached": ("detach", "203.0.113.2"),
    "floating.deleted": ("delete", "203.0.113.1"),
}


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_killed_anywhere_all_of_it_is_there_or_nothing(
    store: Store, cloud: Cloud, guests: list[str], tool: Any, failpoint: str
) -> None:
    addresses = FloatingAddresses(cloud)
    addresses.create("system", ip="203.0.113.1")
    addresses.create("system", ip="203.0.113.2", target=Target("web-1"))
    done = tool("floating", *BEGUN[failpoint], ECOMPUTE_FAILPOINT=failpoint)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")
    check(store)
    instances = Instances(cloud)
    for guest in guests:
        found = instances.find(guest, "system")
        instances.destroy(found)
        report_gone(store, guest, found.value.provider)
        instances.finish(guest)
    for one in floatings(store):
        assert not is_attached(one)
        addresses.delete(one.ip, "system")
    Pools(cloud).delete("public")
    left = {key.split("/")[1] for key in store.keys("/")[0]}
    assert left == {"cluster", "nodes", "alive", "networks", "names", "vnis"}
