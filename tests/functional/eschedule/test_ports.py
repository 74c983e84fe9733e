"""Ports, made by many writers at once: with a real etcd."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, MacLock, Network, Node
from ecompute.cluster.errors import AddressesExhausted, AddressTaken, CompareFailed, MacTaken
from ecompute.cluster.store import Put, Store, Versioned
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.cloud.ports import Lost, PortRequest, Ports

WRITERS = 16
ANY = InterfaceRequest()


@pytest.fixture
def node(store: Store, make_host: Callable[..., Any]) -> Versioned[Node]:
    found = store.get(keys.node(make_host().provider), Node)
    assert found is not None
    return found


@pytest.fixture
def make_network(store: Store, node: Versioned[Node]) -> Callable[..., Versioned[Network]]:
    def make(cidr: str = "10.9.0.0/29", **values: Any) -> Versioned[Network]:
        return Networks(store).create("system", NetworkRequest("web", cidr, **values))

    return make


def take(
    store: Store, network: Versioned[Network], node: Versioned[Node], asked: InterfaceRequest = ANY, seed: int = 0
) -> PortRequest:
    """Make one port, as often as it takes."""
    ports, lost = Ports(store, random.Random(seed)), Lost()
    while True:
        made = ports.draft(lost).port(
            network,
            asked,
            instance_uuid=str(uuid4()),
            interface_uuid=str(uuid4()),
            name="Web-1",
            node=node,
            epoch=1,
        )
        try:
            store.commit(made.compares, made.operations)
            return made
        except CompareFailed as error:
            assert set(error.keys) <= {compare.name for compare in made.compares}
            lost.note(error)


def at_once(
    store: Store,
    network: Versioned[Network],
    node: Versioned[Node],
    asked: InterfaceRequest = ANY,
    count: int = WRITERS,
) -> tuple[list[PortRequest], list[Exception]]:
    """Return the ports that ``count`` writers have made at once, and what the others were told."""

    def one(seed: int) -> PortRequest | Exception:
        try:
            return take(store, network, node, asked, seed)
        except (AddressesExhausted, AddressTaken, MacTaken) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(one, range(count)))
    return (
        [result for result in results if isinstance(result, PortRequest)],
        [result for result in results if isinstance(result, Exception)],
    )


def addresses(made: list[PortRequest]) -> list[str]:
    return [address for one in made for address in one.interface.addresses]


def test_of_sixteen_writers_for_the_last_address_just_one_gets_it(
    store: Store, node: Versioned[Node], make_network: Callable[..., Versioned[Network]]
) -> None:
    network = make_network()
    first = [take(store, network, node, seed=seed) for seed in range(4)]
    made, told = at_once(store, network, node)
    assert len(made) == 1
    assert {type(error) for error in told} == {AddressesExhausted}
    assert sorted(addresses([*first, *made])) == [f"10.9.0.{n}/29" for n in range(2, 7)]


def test_of_sixteen_writers_with_one_address_or_one_mac_just_one_gets_it(
    store: Store, node: Versioned[Node], make_network: Callable[..., Versioned[Network]]
) -> None:
    network = make_network("10.9.0.0/16")
    made, told = at_once(store, network, node, InterfaceRequest(address="10.9.1.1"))
    assert addresses(made) == ["10.9.1.1/16"]
    assert {type(error) for error in told} == {AddressTaken}
    made, told = at_once(store, network, node, InterfaceRequest(mac="52:54:00:00:00:01"))
    assert [one.interface.mac for one in made] == ["52:54:00:00:00:01"]
    assert {type(error) for error in told} == {MacTaken}


@pytest.mark.parametrize("cidr", ["10.9.0.0/27", "10.9.0.0/16"])
def test_writers_who_draw_never_meet(
    store: Store, node: Versioned[Node], make_network: Callable[..., Versioned[Network]], cidr: str
) -> None:
    network = make_network(cidr, cidr6="fd5c:1f4e:73a2:7::/64")
    made, told = at_once(store, network, node, count=24)
    assert told == []
    assert len(set(addresses(made))) == 48
    locks = {
        keys.last(item.key): item.value for item in store.list(keys.addresses(network.value.uuid), AddressLock).items
    }
    assert locks == {
        address.split("/")[0]: AddressLock(
            interface_uuid=one.interface.uuid,
            instance_uuid=locks[address.split("/")[0]].instance_uuid,
        )
        for one in made
        for address in one.interface.addresses
    }
    assert len(store.list(keys.macs(network.value.uuid), MacLock).items) == 24


def test_what_rests_is_given_to_each_once_and_only_when_nothing_is_free(
    store: Store, node: Versioned[Node], make_network: Callable[..., Versioned[Network]]
) -> None:
    network = make_network()
    lease = store.unkept_lease(300)
    for n in (3, 4, 5):
        lock = AddressLock(interface_uuid="gone", instance_uuid="gone", is_resting=True)
        store.commit([], [Put(keys.address(network.value.uuid, f"10.9.0.{n}"), lock, lease=lease)])
    fresh = [take(store, network, node, seed=seed) for seed in range(2)]
    assert sorted(addresses(fresh)) == ["10.9.0.2/29", "10.9.0.6/29"]
    made, told = at_once(store, network, node)
    assert sorted(addresses(made)) == [f"10.9.0.{n}/29" for n in (3, 4, 5)]
    assert {type(error) for error in told} == {AddressesExhausted}
    assert not any(
        item.value.is_resting or item.lease
        for item in store.list(keys.addresses(network.value.uuid), AddressLock).items
    )


def test_ports_of_one_transaction_share_nothing(
    store: Store, node: Versioned[Node], make_network: Callable[..., Versioned[Network]]
) -> None:
    network = make_network()
    draft = Ports(store, random.Random(1)).draft()
    owner = {"instance_uuid": str(uuid4()), "name": "web", "node": node, "epoch": 1}
    made = [draft.port(network, ANY, interface_uuid=str(uuid4()), **owner) for _ in range(5)]
    assert len(set(addresses(made))) == 5
    with pytest.raises(AddressesExhausted):
        draft.port(network, ANY, interface_uuid=str(uuid4()), **owner)
    with pytest.raises(AddressTaken, match="is taken on network web"):
        asked = InterfaceRequest(address=addresses(made)[0].split("/")[0])
        draft.port(network, asked, interface_uuid=str(uuid4()), **owner)
    store.commit(
        list(dict.fromkeys(compare for one in made for compare in one.compares)),
        list({op.key: op for one in made for op in one.operations}.values()),
    )
