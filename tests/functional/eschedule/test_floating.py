"""Floating addresses and their pools, on real etcd: what is given, to whom, and what is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Floating, Instance, Network, NetworkKind, Pool, Port, State
from ecompute.cluster.errors import (
    AddressesExhausted,
    AddressTaken,
    Ambiguous,
    Conflict,
    InvalidInput,
    NotFound,
    Refused,
)
from ecompute.cluster.events import INSTANCE, read
from ecompute.cluster.store import Put, Store, Versioned
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FloatingAddresses, FloatingAttached, Target
from eschedule.cloud.instances import Instances
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.cloud.pools import Pools
from eschedule.scheduler.launch import Launcher

RANGE = "203.0.113.0/29"


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def pools(cloud: Cloud, host: Any) -> Pools:
    return Pools(cloud)


@pytest.fixture
def pool(pools: Pools) -> Pool:
    return pools.create("public", RANGE)


@pytest.fixture
def addresses(cloud: Cloud, pool: Pool) -> FloatingAddresses:
    return FloatingAddresses(cloud)


@pytest.fixture
def launch(cloud: Cloud, host: Any, make_request: Callable[..., Any]) -> Callable[..., str]:
    return lambda **values: Launcher(cloud).launch(make_request(**values)).uuid


def port_of(store: Store, guest: str) -> Port:
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    (interface,) = found.value.spec.interfaces
    port = store.get(keys.port(interface.network_uuid, interface.uuid), Port)
    assert port is not None
    return port.value


def network_of(store: Store, guest: str) -> Versioned[Network]:
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    network = store.get(keys.network(found.value.spec.interfaces[0].network_uuid), Network)
    assert network is not None
    return network


# --- pools ---------------------------------------------------------------------------------------


def test_a_pool_says_how_much_of_it_is_in_use(pools: Pools, addresses: FloatingAddresses) -> None:
    pools.create("more", "198.51.100.7/32")
    addresses.create("system", pool="more")
    addresses.create("team-1", pool="public")
    addresses.create("system", pool="public")
    assert [(view.pool.name, view.size, view.used) for view in pools.all()] == [("more", 1, 1), ("public", 8, 2)]
    assert pools.view("public").used == 2


@pytest.mark.parametrize(
    ("name", "cidr", "error", "what"),
    [
        ("public", "198.51.100.0/24", Conflict, "there is a pool public already"),
        ("other", "203.0.113.0/24", Conflict, "has addresses of pool public"),
        ("other", "203.0.113.7/32", Conflict, "has addresses of pool public"),
        ("other", "192.0.2.0/24", Conflict, r"has the underlay address of host host-\w+ \(192.0.2.7\)"),
        ("other", "10.0.0.1/24", InvalidInput, "bits set behind its prefix"),
        ("other", "10.0.0.0/8", InvalidInput, "use /16 to /32"),
        ("other", "169.254.1.0/24", InvalidInput, "link-local"),
        ("other", "fd00::/64", InvalidInput, "not an IPv4 range"),
        ("a/b", "198.51.100.0/24", InvalidInput, "cannot be a pool's name"),
        ("", "198.51.100.0/24", InvalidInput, "cannot be a pool's name"),
    ],
)
def test_a_pool_that_cannot_be_is_refused_and_leaves_nothing(
    pools: Pools, pool: Pool, store: Store, name: str, cidr: str, error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        pools.create(name, cidr)
    assert store.keys(keys.POOLS)[0] == [keys.pool("public")]


def test_a_pool_goes_only_when_none_of_its_addresses_is_in_use(
    pools: Pools, addresses: FloatingAddresses, store: Store
) -> None:
    made = addresses.create("team-1")
    with pytest.raises(Refused, match=f"of pool public 1 address is in use, {made.ip} for one"):
        pools.delete("public")
    addresses.delete(made.ip, "team-1")
    pools.delete("public")
    assert store.keys(keys.POOLS)[0] == []
    with pytest.raises(NotFound, match="there is no pool 'public'"):
        pools.delete("public")


# --- had -----------------------------------------------------------------------------------------


def test_any_free_address_or_the_one_asked_for(addresses: FloatingAddresses, store: Store) -> None:
    asked = addresses.create("system", ip="203.0.113.7")
    assert (asked.ip, asked.pool, asked.namespace) == ("203.0.113.7", "public", "system")
    others = {addresses.create("system").ip for _ in range(7)}
    assert others == {f"203.0.113.{n}" for n in range(7)}, "the first and the last too"
    assert {view.floating.ip for view in addresses.all("system")} == {*others, asked.ip}
    with pytest.raises(AddressesExhausted, match=r"all 8 addresses of pool public \(203.0.113.0/29\) are in use"):
        addresses.create("system")
    assert len(store.keys(keys.FLOATING)[0]) == len(store.keys(keys.names("system", "floating"))[0]) == 8


def test_where_one_pool_is_used_up_another_is_taken(pools: Pools, addresses: FloatingAddresses) -> None:
    pools.create("a-small-one", "198.51.100.0/31")
    assert [addresses.create("system").pool for _ in range(3)] == ["a-small-one", "a-small-one", "public"]
    for _ in range(7):
        addresses.create("system")
    with pytest.raises(AddressesExhausted, match="all addresses of all 2 pools are in use"):
        addresses.create("system")


def test_a_wide_pool_is_drawn_from(pools: Pools, addresses: FloatingAddresses) -> None:
    pools.create("wide", "10.99.0.0/16")
    assert len({addresses.create("system", pool="wide").ip for _ in range(20)}) == 20


def test_without_a_pool_it_is_said_who_makes_one(cloud: Cloud, host: Any) -> None:
    with pytest.raises(NotFound, match="there is no pool of floating addresses; an operator makes one"):
        FloatingAddresses(cloud).create("system")


def test_a_taken_address_names_no_foreign_tenant(addresses: FloatingAddresses) -> None:
    addresses.create("team-1", ip="203.0.113.1")
    addresses.create("system", ip="203.0.113.2")
    with pytest.raises(AddressTaken) as taken:
        addresses.create("system", ip="203.0.113.1")
    assert str(taken.value) == "203.0.113.1 is in use; choose another one, or leave --address out"
    with pytest.raises(AddressTaken, match="is a floating address of namespace system already"):
        addresses.create("system", ip="203.0.113.2")


@pytest.mark.parametrize(
    ("ip", "pool_name", "error", "what"),
    [
        ("198.51.100.1", None, InvalidInput, "198.51.100.1 is not in any pool"),
        ("198.51.100.1", "public", InvalidInput, r"is not in pool public \(203.0.113.0/29\)"),
        ("203.0.113", None, InvalidInput, "not an IPv4 address"),
        ("203.0.113.1/32", None, InvalidInput, "not an IPv4 address"),
        ("203.0.113.1", "nope", NotFound, "there is no pool 'nope'"),
        (None, "a/b", NotFound, "there is no pool 'a/b'"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(
    addresses: FloatingAddresses, store: Store, ip: str | None, pool_name: str | None, error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        addresses.create("system", pool=pool_name, ip=ip)
    assert store.keys(keys.FLOATING)[0] == []


def test_one_namespace_does_not_see_another_s(addresses: FloatingAddresses, launch: Callable[..., str]) -> None:
    made = addresses.create("team-1")
    guest = launch(name="web-1")
    for act in (
        lambda: addresses.find(made.ip, "system"),
        lambda: addresses.attach(made.ip, "system", Target("web-1")),
        lambda: addresses.detach(made.ip, "system"),
        lambda: addresses.delete(made.ip, "system"),
    ):
        with pytest.raises(NotFound, match=f"there is no floating address {made.ip} in namespace system"):
            act()
    assert addresses.all("system") == []
    with pytest.raises(NotFound, match=f"there is no instance {guest} in namespace team-1"):
        addresses.attach(made.ip, "team-1", Target(guest))


# --- attached ------------------------------------------------------------------------------------


def test_attached_both_say_so_and_detached_neither(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store
) -> None:
    guest = launch(name="web-1")
    made = addresses.create("system")
    before = port_of(store, guest)
    done = addresses.attach(made.ip, "system", Target("web-1"))
    port = port_of(store, guest)
    assert (done.instance_uuid, done.interface_uuid) == (guest, port.interface_uuid)
    assert done.network_uuid == network_of(store, guest).value.uuid
    assert port == structs.replace(before, floating=made.ip)
    assert addresses.attach(made.ip, "system", Target(guest, interface=port.interface_uuid)) == done, "once more"
    assert addresses.detach(made.ip, "system") == made == addresses.detach(made.ip, "system")
    assert port_of(store, guest) == before
    types = [event.type for event in read(store, INSTANCE, guest)]
    assert types == ["requested", "floating.attached", "floating.detached"]


def test_it_is_made_and_attached_in_one_go_or_not_at_all(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store
) -> None:
    guest = launch(name="web-1")
    made = addresses.create("system", target=Target("web-1"))
    assert port_of(store, guest).floating == made.ip
    with pytest.raises(Conflict, match=f"of web-1 has the floating address {made.ip}"):
        addresses.create("system", target=Target("web-1"))
    assert len(store.keys(keys.FLOATING)[0]) == 1


def test_routed_it_is_handed_on_as_it_is(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store
) -> None:
    guest = launch(name="web-1")
    addresses.create("system", target=Target("web-1"))
    routed = [addresses.create("system", target=Target("web-1", is_routed=True)) for _ in range(4)]
    assert port_of(store, guest).routed == tuple(one.ip for one in routed)
    assert all(one.is_routed for one in routed)
    with pytest.raises(Conflict, match="has 4 routed addresses, which is all it may have"):
        addresses.create("system", target=Target("web-1", is_routed=True))
    with pytest.raises(FloatingAttached, match=r"is attached to web-1 \("):
        addresses.attach(routed[0].ip, "system", Target("web-1"))
    assert not addresses.detach(routed[0].ip, "system").is_routed
    assert port_of(store, guest).routed == tuple(one.ip for one in routed[1:])


def test_attached_elsewhere_says_where_and_keeps_it_from_being_deleted(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store
) -> None:
    guest, _ = launch(name="web-1"), launch(name="web-2")
    made = addresses.create("system", target=Target("web-1"))
    where = rf"is attached to web-1 \({guest}\), interface {port_of(store, guest).interface_uuid}; detach it first"
    with pytest.raises(FloatingAttached, match=where):
        addresses.attach(made.ip, "system", Target("web-2"))
    with pytest.raises(Refused, match=where):
        addresses.delete(made.ip, "system")


def test_a_network_that_leads_nowhere_takes_no_address(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store
) -> None:
    guest = launch(name="web-1")
    made = addresses.create("system")
    network = network_of(store, guest)
    for change, what in (
        ({"gateway": None}, "network default has no gateway"),
        ({"kind": NetworkKind.PHYSICAL}, "network default is a physical one, which has no gateway of ours"),
    ):
        store.commit([], [Put(network.key, structs.replace(network.value, **change))])
        with pytest.raises(Refused, match=f"no address can be handed to web-1: {what}"):
            addresses.attach(made.ip, "system", Target("web-1"))
    assert port_of(store, guest).floating is None


def test_an_address_that_lies_in_the_network_s_own_range_is_not_attached_there(
    addresses: FloatingAddresses, pools: Pools, launch: Callable[..., str], store: Store
) -> None:
    launch(name="web-1")
    pools.create("inside", "10.10.0.0/29")
    for is_routed in (False, True):
        with pytest.raises(Refused, match=r"10\.10\.0\.[0-7] lies in the range of network default"):
            addresses.create("system", pool="inside", target=Target("web-1", is_routed=is_routed))
    assert store.keys(keys.FLOATING)[0] == []


def test_of_several_interfaces_one_is_named(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store
) -> None:
    guest = launch(name="web-1")
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    (first,) = found.value.spec.interfaces
    second = structs.replace(first, uuid=str(uuid.uuid4()), addresses=("10.10.0.77/24",))
    spec = structs.replace(found.value.spec, interfaces=(first, second))
    port = structs.replace(port_of(store, guest), interface_uuid=second.uuid, addresses=second.addresses)
    store.commit(
        [],
        [
            Put(found.key, structs.replace(found.value, spec=spec)),
            Put(keys.port(second.network_uuid, second.uuid), port),
        ],
    )
    made = addresses.create("system")
    with pytest.raises(Ambiguous, match=r"web-1 has 2 interfaces for it: .* on default"):
        addresses.attach(made.ip, "system", Target("web-1"))
    with pytest.raises(Ambiguous):
        addresses.attach(made.ip, "system", Target("web-1", network="default"))
    with pytest.raises(NotFound, match="web-1 has no interface on network back"):
        addresses.attach(made.ip, "system", Target("web-1", network="back"))
    with pytest.raises(NotFound, match="web-1 has no interface nope"):
        addresses.attach(made.ip, "system", Target("web-1", interface="nope"))
    done = addresses.attach(made.ip, "system", Target("web-1", interface=second.uuid))
    assert done.interface_uuid == second.uuid
    assert addresses.attach(made.ip, "system", Target("web-1")) == done, "the one that has it is meant"


def test_an_instance_that_is_being_destroyed_is_given_nothing_and_its_end_frees_what_it_has(
    addresses: FloatingAddresses, launch: Callable[..., str], store: Store, cloud: Cloud, host: Any
) -> None:
    guest = launch(name="web-1")
    one, routed, other = (addresses.create("system") for _ in range(3))
    addresses.attach(one.ip, "system", Target("web-1"))
    addresses.attach(routed.ip, "system", Target("web-1", is_routed=True))
    instances = Instances(cloud)
    instances.destroy(instances.find(guest, "system"))
    with pytest.raises(Conflict, match="web-1 is being destroyed"):
        addresses.attach(other.ip, "system", Target("web-1"))
    host.report(guest, State.DELETED, is_gone=True)
    instances.finish(guest)
    assert [view.floating for view in addresses.all("system")] == sorted([one, routed, other], key=lambda f: f.ip)
    assert not [key for key in store.keys("/")[0] if guest in key]


def test_what_is_attached_to_nothing_that_is_there_can_be_detached(addresses: FloatingAddresses, store: Store) -> None:
    made = addresses.create("system")
    gone = structs.replace(made, network_uuid="n", interface_uuid="i", instance_uuid="u")
    store.commit([], [Put(keys.floating(made.ip), gone)])
    assert addresses.detach(made.ip, "system") == made
    addresses.delete(made.ip, "system")
    assert store.keys(keys.FLOATING)[0] == store.keys(keys.NAMES)[0] == store.keys(keys.EVENTS)[0] == []


# --- the tool ------------------------------------------------------------------------------------


def test_the_tool_says_what_an_instance_has_to_do_that_was_told_of_no_way(
    tool: Any, cloud: Cloud, addresses: FloatingAddresses, make_request: Callable[..., Any]
) -> None:
    networks = Networks.of(cloud)
    networks.create("system", NetworkRequest(name="inner", cidr="10.1.0.0/24", has_nat=False))
    networks.create("system", NetworkRequest(name="front", cidr="10.2.0.0/24"))
    for name, others in (("alone", ()), ("both", ("front",))):
        asked = tuple(InterfaceRequest(network=network) for network in ("inner", *others))
        Launcher(cloud).launch(make_request(name=name, interfaces=asked))
    done = tool("floating", "create", "--attach", "alone")
    assert (done.returncode, done.stderr) == (0, "")
    done = tool("floating", "create", "--attach", "both", "--network", "inner", "-o", "name")
    address = done.stdout.strip()
    note = (
        "note: both was given no default route on inner; the one by 10.1.0.1 comes with its next lease by DHCP, or is "
        "for it to set up\n"
    )
    assert (done.returncode, done.stderr) == (0, note)
    assert tool("floating", "detach", address).returncode == 0
    assert tool("floating", "attach", address, "both", "--network", "inner").stderr == note
    assert tool("floating", "detach", address).returncode == 0
    assert tool("floating", "attach", address, "both", "--network", "front").stderr == ""


def test_the_tool_makes_attaches_lists_and_gives_back(tool: Any, host: Any, launch: Callable[..., str]) -> None:
    launch(name="web-1")
    done = tool("floating", "pool", "create", "public", "--cidr", RANGE)
    assert (done.returncode, done.stderr) == (0, "next: eschedule floating create\n")
    made = json.loads(tool("floating", "create", "--address", "203.0.113.3", "-o", "json").stdout)
    assert (made["address"], made["pool"], made["instance"]) == ("203.0.113.3", "public", None)
    assert tool("floating", "attach", "203.0.113.3", "web-1", "-o", "name").stdout == "203.0.113.3\n"
    (row,) = json.loads(tool("floating", "list", "-o", "json").stdout)
    assert row == json.loads(tool("floating", "show", "203.0.113.3", "-o", "json").stdout)
    assert (row["instance"], row["is_routed"]) == ("web-1", False)
    for args in (("show", "web-1"), ("extend", "web-1", "--never")):
        shown = json.loads(tool(*args, "-o", "json").stdout)
        assert (shown["floating"], shown["routed"]) == (["203.0.113.3"], [])
    (shown,) = json.loads(tool("list", "-o", "json").stdout)
    assert shown["floating"] == ["203.0.113.3"]
    (row,) = json.loads(tool("floating", "pool", "list", "-o", "json").stdout)
    assert (row["addresses"], row["used"]) == (8, 1)
    assert "public" in tool("floating", "list", "-A").stdout
    refused = tool("floating", "delete", "203.0.113.3")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert tool("floating", "detach", "203.0.113.3").returncode == 0
    assert [
        tool("floating", *args).returncode for args in (("delete", "203.0.113.3"), ("pool", "delete", "public"))
    ] == [0, 0]
    assert tool("floating", "list").stderr.startswith("there are no floating addresses")
    assert tool("floating", "pool", "list", "-o", "json").stdout == "[]\n"


def test_what_is_attached_is_said_or_it_is_no_attaching(tool: Any, host: Any) -> None:
    done = tool("floating", "create", "--network", "default")
    assert (done.returncode, "give --attach INSTANCE" in done.stderr) == (2, True)


def test_addresses_and_pools_are_completed(tool: Any, addresses: FloatingAddresses) -> None:
    made = addresses.create("system")
    for words, expected in (
        ("eschedule floating show 203", made.ip),
        ("eschedule floating create --pool pu", "public"),
    ):
        count = str(len(words.split()) - 1)
        done = tool(_ESCHEDULE_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
        assert done.stdout.strip().endswith(expected)


def test_a_document_by_hand_is_passed_over(addresses: FloatingAddresses, pools: Pools, store: Store) -> None:
    junk = Floating(ip="what", pool="public", namespace="system", created_at="")
    store.commit(
        [], [Put(keys.floating("what"), junk), Put(keys.pool("junk"), Pool(name="junk", cidr="x", created_at=""))]
    )
    assert pools.view("public").used == 0
    assert addresses.create("system").pool == "public"
