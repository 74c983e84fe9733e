"""Networks, made, found and deleted, and instances launched on them: with real etcd and placement."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from ecompute.cluster import keys
from ecompute.cluster.documents import (
    AddressLock,
    Instance,
    MacLock,
    Name,
    Network,
    NetworkHost,
    NetworkKind,
    Node,
    Port,
    State,
    Vni,
)
from ecompute.cluster.errors import (
    AddressesExhausted,
    AddressTaken,
    Ambiguous,
    Conflict,
    InvalidInput,
    MacTaken,
    NoRoom,
    NotFound,
    Refused,
)
from ecompute.cluster.given import physnet_trait
from ecompute.cluster.store import Put, Store
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks, Usage
from eschedule.scheduler.gang import GangLauncher
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched

SMALL = "10.9.0.0/29"
"""Five addresses: .2 to .6."""


@pytest.fixture
def networks(store: Store) -> Networks:
    return Networks(store)


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host(vcpus=64)


@pytest.fixture
def create(networks: Networks, host: Any) -> Callable[..., Network]:
    """Return a maker of networks: ``create("web", cidr="10.1.0.0/24")``."""

    def make(name: str = "web", *, namespace: str = "system", **values: Any) -> Network:
        values = {"cidr": "10.1.0.0/24"} | values
        return networks.create(namespace, NetworkRequest(name, **values)).value

    return make


@pytest.fixture
def launch(cloud: Cloud, make_request: Callable[..., Any]) -> Callable[..., Launched]:
    """Return what launches an instance on networks: ``launch(on("web"))``."""

    def one(*interfaces: InterfaceRequest, **values: Any) -> Launched:
        return Launcher(cloud).launch(make_request(interfaces=interfaces, **values))

    return one


@pytest.fixture
def end(cloud: Cloud, host: Any) -> Callable[[Launched], None]:
    """Return what ends an instance, and all that it has."""

    def one(launched: Launched) -> None:
        instances = Instances(cloud)
        instances.destroy(instances.find(launched.uuid, "system"))
        host.report(launched.uuid, State.DELETED, is_gone=True)
        instances.finish(launched.uuid)

    return one


def on(network: str | None, address: str | None = None, **values: Any) -> InterfaceRequest:
    return InterfaceRequest(network, address, **values)


def ips(launched: Launched) -> list[str]:
    return [address.split("/")[0] for address in launched.addresses]


def instance_of(store: Store, launched: Launched) -> Instance:
    found = store.get(keys.instance(launched.uuid), Instance)
    assert found is not None
    return found.value


def below(store: Store, network: Network) -> set[str]:
    prefix = keys.network_prefix(network.uuid)
    return {key.removeprefix(prefix) for key in store.keys(prefix)[0]}


# --- made ----------------------------------------------------------------------------------------


def test_a_network_is_a_document_with_a_vni_and_a_name(
    store: Store, create: Callable[..., Network], all_keys: Callable[[], set[str]]
) -> None:
    made = create(cidr6="fd5c:1f4e:73a2:7::/64", has_nat=False, domain="lab.internal")
    found = store.get(keys.network(made.uuid), Network)
    assert found is not None and found.value == made
    assert (made.kind, made.gateway, made.gateway6, made.mtu) == (
        NetworkKind.VIRTUAL, "10.1.0.1", "fd5c:1f4e:73a2:7::1", 1450,
    )  # fmt: skip
    assert (made.has_dhcp, made.has_nat, made.has_dns, made.domain) == (True, False, True, "lab.internal")
    assert store.list(keys.VNIS, Vni).items[0].value == Vni(network_uuid=made.uuid)
    assert all_keys() == {
        keys.network(made.uuid),
        keys.vni(made.vni),
        keys.name("system", "network", "web", made.uuid),
    }


def test_what_no_network_can_be_leaves_nothing(
    create: Callable[..., Network], all_keys: Callable[[], set[str]]
) -> None:
    with pytest.raises(InvalidInput, match="overlaps the underlay"):
        create(cidr="192.0.2.0/24")
    with pytest.raises(InvalidInput, match="has bits set"):
        create(cidr="10.1.0.1/24")
    assert all_keys() == set()


def test_ranges_and_names_may_repeat_and_then_the_uuid_says_which(
    networks: Networks, create: Callable[..., Network]
) -> None:
    one, other, foreign = create(), create(), create(namespace="team-a")
    assert len({one.vni, other.vni, foreign.vni}) == 3
    with pytest.raises(Ambiguous) as caught:
        networks.find("web", "system")
    assert one.uuid in str(caught.value) and other.uuid in str(caught.value)
    assert networks.find(one.uuid.upper(), "system").value == one
    assert networks.find("web", "team-a").value == foreign
    assert networks.names("system", "w") == sorted([one.uuid, other.uuid])
    assert [network.uuid for network in networks.all("system")] == sorted([one.uuid, other.uuid])
    assert {network.uuid for network in networks.all(None)} == {one.uuid, other.uuid, foreign.uuid}


def test_of_a_network_of_another_namespace_it_is_not_said_whether_it_is_there(
    networks: Networks, create: Callable[..., Network]
) -> None:
    foreign = create(namespace="team-a").uuid
    nowhere = "0d5e7c1a-6f5b-4c0e-9d58-5b8f2d3f9c11"
    said = []
    for uuid in (foreign, nowhere):
        with pytest.raises(NotFound) as caught:
            networks.find(uuid, "system")
        said.append(str(caught.value).replace(uuid, ""))
    assert said[0] == said[1]


@pytest.mark.parametrize("ref", ["", "a/b", "\x00", "\ud800", "x" * 5000, "nothing"])
def test_what_is_no_name_is_not_found(networks: Networks, host: Any, ref: str) -> None:
    with pytest.raises(NotFound):
        networks.find(ref, "system")


def test_a_namespace_has_one_default_network_and_may_make_it_by_hand(
    store: Store, create: Callable[..., Network], launch: Callable[..., Launched]
) -> None:
    made = create("default", cidr="10.2.0.0/24", has_nat=False)
    with pytest.raises(Conflict, match="has a default network already"):
        create("default")
    interface = instance_of(store, launch(on(None))).spec.interfaces[0]
    assert interface.network_uuid == made.uuid
    assert (interface.gateway, interface.nameservers) == ("10.2.0.1", ("10.2.0.1",))


def test_a_default_range_that_overlaps_the_underlay_is_said_to_be_the_configurations(
    settings: Any, host: Any, make_request: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    import dataclasses
    import ipaddress

    wrong = dataclasses.replace(settings, default_network=ipaddress.IPv4Network("192.0.2.0/24"))
    with Cloud(wrong) as cloud, pytest.raises(InvalidInput, match=r"overlaps the underlay.*default_network"):
        Launcher(cloud).launch(make_request())
    assert (host.claims(), all_keys()) == ({}, set())


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"underlay": "10.10.0.7"}, "overlaps the underlay that host bad says it has, 10.10.0.7"),
        ({"underlay": "nonsense"}, "its underlay cannot be 'nonsense'"),
        ({"underlay_mtu": 20}, "its underlay cannot have an MTU of 20"),
        ({"underlay_mtu": 600}, "an underlay of 600 leaves no network an MTU of 576"),
    ],
    ids=str,
)
def test_one_hosts_word_keeps_nobody_from_a_default_network(
    store: Store,
    host: Any,
    cloud: Cloud,
    make_request: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    said: dict[str, Any],
    what: str,
) -> None:
    honest = store.get(keys.node(host.provider), Node)
    assert honest is not None
    bad = replace(honest.value, provider=str(uuid4()), name="bad", **said)
    store.commit([], [Put(keys.node(bad.provider), bad)])
    interface = instance_of(store, Launcher(cloud).launch(make_request())).spec.interfaces[0]
    assert interface.mtu == 1450
    assert what in caplog.text


def test_a_bridge_and_vlan_is_one_network(networks: Networks, create: Callable[..., Network]) -> None:
    untagged = create("lan", cidr=None, physical="lan")
    tagged = create("lan-5", physical="lan", vlan=5, gateway="10.1.0.254")
    assert (untagged.kind, untagged.cidr, untagged.gateway, untagged.mtu) == (NetworkKind.PHYSICAL, None, None, 1500)
    assert (tagged.gateway, tagged.has_dhcp) == ("10.1.0.254", False)
    with pytest.raises(Conflict, match=f"there is a network {tagged.uuid} on VLAN 5 of lan already; use that one"):
        create("again", physical="lan", vlan=5)
    with pytest.raises(Conflict, match="there is a network on VLAN 5 of lan already; choose another bridge"):
        create("again", namespace="team-a", physical="lan", vlan=5)
    networks.delete("lan-5", "system")
    assert create("again", namespace="team-a", physical="lan", vlan=5).vlan == 5


# --- deleted -------------------------------------------------------------------------------------


def test_a_deleted_network_leaves_nothing_and_gives_its_vni_back(
    networks: Networks, create: Callable[..., Network], all_keys: Callable[[], set[str]]
) -> None:
    create(physical="lan", vlan=7)
    assert networks.delete("web", "system").name == "web"
    assert all_keys() == set()
    with pytest.raises(NotFound):
        networks.delete("web", "system")


def test_a_network_with_an_interface_is_not_deleted_and_one_with_resting_addresses_is(
    store: Store,
    networks: Networks,
    create: Callable[..., Network],
    launch: Callable[..., Launched],
    end: Callable[[Launched], None],
    all_keys: Callable[[], set[str]],
) -> None:
    web = create()
    one, two = launch(on("web")), launch(on("web"))
    with pytest.raises(Refused, match=rf"has 2 interfaces, of instance ({one.uuid}|{two.uuid}) for one"):
        networks.delete("web", "system")
    end(one), end(two)
    assert below(store, web) == {f"addresses/{ip}" for ip in (*ips(one), *ips(two))}
    networks.delete("web", "system")
    assert all_keys() == set()


def test_a_network_that_a_host_has_not_left_is_not_deleted(
    store: Store, networks: Networks, create: Callable[..., Network], host: Any
) -> None:
    web = create()
    member = NetworkHost(provider=host.provider, underlay="192.0.2.7")
    store.commit([], [Put(keys.network_host(web.uuid, host.provider), member)])
    with pytest.raises(Refused, match=r"still has hosts.*eschedule audit --repair"):
        networks.delete("web", "system")


def test_a_deleted_default_network_is_made_anew_by_a_launcher_that_still_knows_the_old_one(
    networks: Networks,
    cloud: Cloud,
    host: Any,
    make_request: Callable[..., Any],
    end: Callable[[Launched], None],
) -> None:
    launcher = Launcher(cloud)
    end(launcher.launch(make_request()))
    old = networks.delete("default", "system")
    launcher.launch(make_request())
    assert networks.find("default", "system").value.uuid != old.uuid


# --- addresses -----------------------------------------------------------------------------------


def test_how_many_addresses_are_left_is_counted(
    networks: Networks, create: Callable[..., Network], launch: Callable[..., Launched], end: Callable[[Launched], None]
) -> None:
    web = create(cidr=SMALL, cidr6="fd5c:1f4e:73a2:7::/64")
    end(launch(on("web")))
    launch(on("web"))
    assert networks.usage(web) == Usage(total=5, in_use=1, resting=1)
    usage = networks.usage(web)
    assert usage is not None and usage.free == 4
    assert networks.usage(create("lan", cidr=None, physical="lan")) is None


def test_an_address_that_is_asked_for_is_given_or_is_an_error_that_says_nothing_of_its_owner(
    create: Callable[..., Network], launch: Callable[..., Launched], host: Any, all_keys: Callable[[], set[str]]
) -> None:
    create()
    first = launch(on("web", "10.1.0.7"))
    assert ips(first) == ["10.1.0.7"]
    before = all_keys()
    with pytest.raises(AddressTaken) as caught:
        launch(on("web", "10.1.0.7"))
    assert str(caught.value) == "10.1.0.7 is taken on network web; choose another address, or none"
    for reserved in ("10.1.0.0", "10.1.0.1", "10.1.0.255", "10.2.0.1"):
        with pytest.raises(InvalidInput):
            launch(on("web", reserved))
    assert (all_keys(), host.claims().keys()) == (before, {first.uuid})


def test_a_resting_address_is_taken_over_where_it_is_asked_for(
    store: Store, create: Callable[..., Network], launch: Callable[..., Launched], end: Callable[[Launched], None]
) -> None:
    web = create()
    end(launch(on("web", "10.1.0.7")))
    again = launch(on("web", "10.1.0.7"))
    lock = store.get(keys.address(web.uuid, "10.1.0.7"), AddressLock)
    assert lock is not None
    assert (lock.value.instance_uuid, lock.value.is_resting, lock.lease) == (again.uuid, False, 0)


def test_resting_addresses_are_taken_over_only_where_nothing_else_is_free_the_longest_first(
    create: Callable[..., Network], launch: Callable[..., Launched], end: Callable[[Launched], None]
) -> None:
    create(cidr=SMALL)
    first, second = launch(on("web", "10.9.0.4")), launch(on("web", "10.9.0.3"))
    end(first), end(second)
    others = [ips(launch(on("web")))[0] for _ in range(3)]
    assert sorted(others) == ["10.9.0.2", "10.9.0.5", "10.9.0.6"]
    assert [ips(launch(on("web"))) for _ in range(2)] == [["10.9.0.4"], ["10.9.0.3"]]
    with pytest.raises(AddressesExhausted, match=r"all 5 addresses of 10\.9\.0\.0/29 are taken"):
        launch(on("web"))


def test_who_asks_for_more_addresses_than_there_are_is_told_how_many_there_are(
    create: Callable[..., Network], launch: Callable[..., Launched]
) -> None:
    create(cidr=SMALL)
    launch(on("web"))
    with pytest.raises(AddressesExhausted, match=r"^4 addresses of 10\.9\.0\.0/29 can be had, and more were asked for"):
        launch(*[on("web")] * 6)


def test_an_ipv6_address_is_the_interfaces_own_or_the_one_that_is_asked_for(
    store: Store, create: Callable[..., Network], launch: Callable[..., Launched]
) -> None:
    web = create(cidr6="fd5c:1f4e:73a2:7::/64")
    one, other = launch(on("web")), launch(on("web", address6="fd5c:1f4e:73a2:7::5"))
    assert ips(one)[1].startswith("fd5c:1f4e:73a2:7:") and one.addresses[1].endswith("/64")
    assert ips(other)[1] == "fd5c:1f4e:73a2:7::5"
    assert {f"addresses/{ip}" for ip in (*ips(one), *ips(other))} <= below(store, web)
    with pytest.raises(AddressTaken, match="fd5c:1f4e:73a2:7::5 is taken"):
        launch(on("web", address6="fd5c:1f4e:73a2:7::5"))
    with pytest.raises(InvalidInput, match="the gateway's address"):
        launch(on("web", address6="fd5c:1f4e:73a2:7::1"))
    interface = instance_of(store, one).spec.interfaces[0]
    assert interface.addresses == one.addresses


def test_an_address_of_a_kind_that_the_network_has_not_is_refused(
    create: Callable[..., Network], launch: Callable[..., Launched], all_keys: Callable[[], set[str]]
) -> None:
    create()
    create("lan", cidr=None, physical="lan")
    before = all_keys()
    with pytest.raises(InvalidInput, match="network web has no IPv6 addresses"):
        launch(on("web", address6="fd00::5"))
    with pytest.raises(InvalidInput, match="network lan has no IPv4 addresses"):
        launch(on("lan", "10.1.0.5"))
    assert all_keys() == before


# --- interfaces ----------------------------------------------------------------------------------


def test_the_default_route_goes_where_something_leads_out_and_else_by_the_first_gateway(
    store: Store, create: Callable[..., Network], launch: Callable[..., Launched]
) -> None:
    create("inner", cidr="10.2.0.0/24", has_nat=False)
    create("back", cidr="10.3.0.0/24", has_nat=False)
    create("web")

    def gateways(launched: Launched) -> list[str | None]:
        return [interface.gateway for interface in instance_of(store, launched).spec.interfaces]

    # A floating address may be attached to it later: a config drive is not written again for that.
    assert gateways(launch(on("inner"), on("back"))) == ["10.2.0.1", None]
    assert gateways(launch(on("inner"), on("web"))) == [None, "10.1.0.1"]


def test_an_instance_has_its_interfaces_in_the_order_in_which_they_are_asked_for(
    store: Store, create: Callable[..., Network], launch: Callable[..., Launched], host: Any
) -> None:
    web, db = create(), create("db", has_dhcp=False, has_nat=False, has_dns=False)
    launched = launch(
        on("web", "10.1.0.7"),
        on("db", mac="52:54:00:00:00:01", model="e1000"),
        on(None),
        on("web"),
        on("db", has_address=False),
        name="Web-1",
    )
    interfaces = instance_of(store, launched).spec.interfaces
    assert host.assigned(launched.uuid).spec.interfaces == interfaces
    assert [i.network_uuid for i in interfaces[:2]] == [web.uuid, db.uuid]
    assert [interfaces[n].network_uuid for n in (3, 4)] == [web.uuid, db.uuid]
    assert (interfaces[0].addresses, interfaces[4].addresses) == (("10.1.0.7/24",), ())
    assert (interfaces[1].mac, interfaces[1].model) == ("52:54:00:00:00:01", "e1000")
    assert [(i.gateway, i.nameservers) for i in interfaces[:2]] == [("10.1.0.1", ("10.1.0.1",)), (None, ())]
    assert len({i.uuid for i in interfaces}) == len({i.mac for i in interfaces}) == 5
    for interface in interfaces:
        port = store.get(keys.port(interface.network_uuid, interface.uuid), Port)
        assert port is not None
        assert (port.value.mac, port.value.addresses, port.value.name) == (
            interface.mac, interface.addresses, "web-1",
        )  # fmt: skip
        assert store.get(keys.mac(interface.network_uuid, interface.mac), MacLock) is not None
    assert list(launched.addresses) == [a for i in interfaces for a in i.addresses]


def test_all_that_several_interfaces_had_is_given_back(
    store: Store, create: Callable[..., Network], launch: Callable[..., Launched], end: Callable[[Launched], None]
) -> None:
    web, db = create(cidr6="fd5c:1f4e:73a2:7::/64"), create("db")
    launched = launch(on("web"), on("db"), on("web"))
    end(launched)
    for network in (web, db):
        assert {key.split("/")[0] for key in below(store, network)} == {"addresses"}
    locks = [lock.value.is_resting for n in (web, db) for lock in store.list(keys.addresses(n.uuid), AddressLock).items]
    assert locks == [True] * 5


def test_an_instance_may_have_no_interface(
    store: Store, launch: Callable[..., Launched], host: Any, all_keys: Callable[[], set[str]]
) -> None:
    launched = launch()
    assert (launched.addresses, instance_of(store, launched).spec.interfaces) == ((), ())
    assert not [key for key in all_keys() if key.startswith((keys.NETWORKS, keys.VNIS))]


def test_a_mac_is_taken_once_a_network(create: Callable[..., Network], launch: Callable[..., Launched]) -> None:
    create(), create("db")
    mac = "52:54:00:00:00:01"
    launch(on("web", mac=mac))
    with pytest.raises(MacTaken, match=f"{mac} is taken on network web; choose another MAC, or none"):
        launch(on("web", mac=mac))
    launch(on("db", mac=mac))


def test_a_network_that_is_not_there_is_told_before_anything_is_claimed(
    create: Callable[..., Network], launch: Callable[..., Launched], host: Any, all_keys: Callable[[], set[str]]
) -> None:
    foreign = create(namespace="team-a")
    before = all_keys()
    for ref in ("web", foreign.uuid):
        with pytest.raises(NotFound, match=f"there is no network '{ref}' in namespace system"):
            launch(on(ref))
    assert (all_keys(), host.claims()) == (before, {})


# --- physical networks ---------------------------------------------------------------------------


def test_a_launch_on_a_physical_network_goes_where_its_bridge_is(
    store: Store,
    cloud: Cloud,
    create: Callable[..., Network],
    launch: Callable[..., Launched],
    make_host: Callable[..., Any],
    trait: str,
) -> None:
    lan = create("lan", physical="test-lan", vlan=5, gateway="10.1.0.254")
    with_bridge = make_host()
    cloud.placement.set_traits(with_bridge.provider, {trait, physnet_trait("test-lan")})
    launched = [launch(on("lan"), on(None)) for _ in range(3)]
    assert {one.provider for one in launched} == {with_bridge.provider}
    instance = instance_of(store, launched[0])
    assert physnet_trait("test-lan") in instance.query
    interface = instance.spec.interfaces[0]
    assert (interface.physical, interface.vlan, interface.vni, interface.mtu) == ("test-lan", 5, lan.vni, 1500)
    assert (interface.gateway, interface.nameservers) == ("10.1.0.254", ())


def test_where_no_host_has_its_bridge_the_tool_says_so_and_explain_names_it(
    cloud: Cloud, tool: Any, make_host: Callable[..., Any], trait: str
) -> None:
    name = f"lan-{uuid4().hex[:8]}"
    made = tool("network", "create", name, "10.5.0.0/24", "--physical", name, "--gateway", "10.5.0.254")
    assert made.returncode == 0
    assert f"no host has a bridge called {name} yet; name it under `bridges`" in made.stderr
    query = f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&required={trait}"
    assert f"no host has a bridge called {name}" in tool("explain", query, "-n", name).stderr
    without, having = make_host(), make_host()
    cloud.placement.set_traits(having.provider, {trait, physnet_trait(name)})
    rows = json.loads(tool("explain", query, "-n", name, "-o", "json").stdout)
    lacking = {row["host"]: row["lacks"] for row in rows}
    assert lacking[having.name] == []
    assert lacking[without.name] == [f"lacks a bridge called {name} (trait {physnet_trait(name)})"]
    other = tool("network", "create", name, "10.5.0.0/24", "--physical", name, "--vlan", "7")
    assert "no host has" not in other.stderr and "next: eschedule launch" in other.stderr


def test_a_refused_launch_on_a_physical_network_says_which_bridge_is_missing(
    cloud: Cloud,
    create: Callable[..., Network],
    launch: Callable[..., Launched],
    make_host: Callable[..., Any],
    host: Any,
    trait: str,
) -> None:
    create("lan", physical="no-such-lan")
    with pytest.raises(InvalidInput, match=r"no host has a bridge called no-such-lan; .*bridges"):
        launch(on("lan"))
    create("far", physical="far-lan")
    full = make_host(vcpus=1)
    cloud.placement.set_traits(full.provider, {trait, physnet_trait("far-lan")})
    launch(on("far"))
    with pytest.raises(NoRoom, match="lacks 1 VCPU"):
        launch(on("far"))
    with pytest.raises(NoRoom, match="lacks a bridge called far-lan"):
        launch(on("far"), host=host.name)


# --- several at once -----------------------------------------------------------------------------


def test_a_gang_has_its_interfaces_and_no_two_share_an_address(
    store: Store, cloud: Cloud, create: Callable[..., Network], make_request: Callable[..., Any]
) -> None:
    create(cidr="10.9.0.0/28", cidr6="fd5c:1f4e:73a2:7::/64"), create("db")
    requests = [make_request(interfaces=(on("web"), on("db"), on("web"))) for _ in range(6)]
    launched = GangLauncher(cloud).launch_all(requests)
    found = [ips(one) for one in launched]
    assert all(len(addresses) == 5 for addresses in found)
    web = [ip for addresses in found for ip in (*addresses[:2], *addresses[3:])]
    assert len(set(web)) == 24
    with pytest.raises(AddressesExhausted):
        GangLauncher(cloud).launch_all(requests)
    assert {keys.last(key) for key in store.keys(keys.INSTANCES)[0]} == {one.uuid for one in launched}


def test_a_gang_cannot_have_one_address_twice(
    cloud: Cloud, create: Callable[..., Network], make_request: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    web = create()
    before = all_keys()
    with pytest.raises(InvalidInput, match=r"10\.1\.0\.7 is asked for 2 times"):
        GangLauncher(cloud).launch_all([make_request(interfaces=(on("web", "10.1.0.7"),))] * 2)
    with pytest.raises(AddressTaken):
        GangLauncher(cloud).launch_all([make_request(interfaces=(on(ref, "10.1.0.7"),)) for ref in ("web", web.uuid)])
    assert all_keys() == before


def test_eight_interfaces_each_of_two_kinds_fit_in_one_transaction(
    create: Callable[..., Network], launch: Callable[..., Launched], end: Callable[[Launched], None]
) -> None:
    for number in range(8):
        create(f"net-{number}", cidr6="fd5c:1f4e:73a2:7::/64")
    tags = tuple(f"tag-{number}" for number in range(16))
    launched = launch(*(on(f"net-{number}") for number in range(8)), tags=tags, expires="2h", user_data="#cloud-config")
    assert len(launched.addresses) == 16
    end(launched)


# --- what it costs -------------------------------------------------------------------------------


class Counting(Store):
    """Counts what is read."""

    reads = 0

    def _read(self, pick: Any, request: Any) -> Any:
        type(self).reads += 1
        return super()._read(pick, request)


def test_a_warm_launch_reads_nothing_of_its_networks(
    settings: Any, create: Callable[..., Network], make_request: Callable[..., Any]
) -> None:
    create(), create("db", cidr="10.2.0.0/16")
    with Cloud(settings) as cloud, Counting(settings.etcd) as counting:
        cloud.__dict__["store"] = counting
        launcher = Launcher(cloud)

        def reads(*interfaces: InterfaceRequest) -> int:
            before = Counting.reads
            launcher.launch(make_request(interfaces=interfaces))
            return Counting.reads - before

        reads(on("db")), reads(on("db"), on("db", mac=None))
        assert reads(on("db")) == reads()
        # A narrow range is looked at, with one read.
        reads(on("web"))
        assert reads(on("web"), on("web")) == reads() + 1


def test_a_name_that_is_left_over_goes_with_the_audit(store: Store, create: Callable[..., Network]) -> None:
    from ecompute.cluster.upkeep.owners import ownerless

    made = create(physical="lan")
    segment = keys.name("system", "segment", "lan", made.uuid)
    assert store.get(segment, Name) is not None
    assert segment not in ownerless(store)
