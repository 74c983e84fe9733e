"""Launches at the same time as other launches, operators and audits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Incarnation, Instance, Network, Port, Vni
from ecompute.cluster.errors import (
    AddressesExhausted,
    AddressTaken,
    CloudError,
    Conflict,
    MacTaken,
    NoRoom,
    NotFound,
    Refused,
)
from ecompute.cluster.store import Delete, Put, Store
from eschedule.cloud.connection import Cloud
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched

SCHEDULERS = 16


def launch_at_once(
    make_cloud: Callable[[], Cloud], requests: list[Any], *, at_once: int
) -> list[Launched | CloudError]:
    """Launch ``requests``, ``at_once`` at a time, each as a scheduler of its own would."""

    def one(request: Any, cloud: Cloud) -> Launched | CloudError:
        try:
            return Launcher(cloud).launch(request)
        except CloudError as error:
            return error

    clouds = [make_cloud() for _ in range(at_once)]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, requests, [clouds[i % at_once] for i in range(len(requests))]))


def test_of_sixteen_launches_for_the_last_slot_just_one_gets_it(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host(vcpus=1)
    results = launch_at_once(make_cloud, [make_request() for _ in range(SCHEDULERS)], at_once=SCHEDULERS)
    launched = [result for result in results if isinstance(result, Launched)]
    assert [result for result in results if not isinstance(result, Launched | NoRoom)] == []
    assert len(launched) == 1
    assert host.claims().keys() == {launched[0].uuid}
    assert [keys.last(key) for key in store.keys(keys.INSTANCES)[0]] == [launched[0].uuid]
    assert [keys.last(key) for key in store.keys(keys.assignments(host.provider))[0]] == [launched[0].uuid]
    assert store.keys(keys.INTENTS)[0] == []


def test_of_eight_first_launches_one_makes_the_default_network(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host(), make_host()]
    results = launch_at_once(make_cloud, [make_request() for _ in range(8)], at_once=8)
    assert [result for result in results if not isinstance(result, Launched)] == []
    networks = [item.value for item in store.list(keys.NETWORKS, Network).items if len(keys.parts(item.key)) == 2]
    assert len(networks) == 1
    network = networks[0]
    assert [item.value for item in store.list(keys.VNIS, Vni).items] == [Vni(network_uuid=network.uuid)]
    assert store.keys(keys.named("system", "network", "default"))[0] == [
        keys.name("system", "network", "default", network.uuid)
    ]
    members = {keys.last(key) for key in store.keys(keys.network_hosts(network.uuid))[0]}
    assert members == {host.provider for host in hosts if host.claims()}


def test_no_address_is_given_twice_and_every_one_has_its_lock_and_port(
    settings: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    import dataclasses
    import ipaddress

    make_host(vcpus=32), make_host(vcpus=32)
    small = dataclasses.replace(settings, default_network=ipaddress.IPv4Network("10.9.0.0/28"))
    clouds = [Cloud(small) for _ in range(8)]
    try:
        results = launch_at_once(iter(clouds).__next__, [make_request() for _ in range(20)], at_once=8)
    finally:
        for cloud in clouds:
            cloud.close()
    launched = [result for result in results if isinstance(result, Launched)]
    # 14 addresses, one of them the gateway's.
    assert len(launched) == 13
    assert Counter(address for one in launched for address in one.addresses).most_common(1)[0][1] == 1
    network = next(item.value for item in store.list(keys.NETWORKS, Network).items if len(keys.parts(item.key)) == 2)
    locks = {keys.last(item.key): item.value for item in store.list(keys.addresses(network.uuid), AddressLock).items}
    ports = [item.value for item in store.list(keys.ports(network.uuid), Port).items]
    assert {ip: lock.instance_uuid for ip, lock in locks.items()} == {
        one.addresses[0].split("/")[0]: one.uuid for one in launched
    }
    assert {port.interface_uuid: port.addresses[0].split("/")[0] for port in ports} == {
        lock.interface_uuid: ip for ip, lock in locks.items()
    }
    assert network.gateway not in locks


def test_every_network_has_a_vni_of_its_own(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Out of so few, most first draws are taken.
    monkeypatch.setattr("eschedule.cloud.networks.VNI_LAST", 4096 + 7)
    make_host(vcpus=32)
    results = launch_at_once(make_cloud, [make_request(namespace=f"team-{i}") for i in range(6)], at_once=6)
    assert [result for result in results if not isinstance(result, Launched)] == []
    networks = [item.value for item in store.list(keys.NETWORKS, Network).items if len(keys.parts(item.key)) == 2]
    assert len({network.vni for network in networks}) == len(networks) == 6
    assert {int(keys.last(item.key)): item.value.network_uuid for item in store.list(keys.VNIS, Vni).items} == {
        network.vni: network.uuid for network in networks
    }


def on_telling(act: Callable[[], object], times: int = 1) -> Callable[[str], None]:
    """Return an ``on_step`` that acts between the claim and the request, so many times."""
    left = [times]

    def step(text: str) -> None:
        if text.startswith("telling") and left[0]:
            left[0] -= 1
            act()

    return step


def test_a_host_drained_between_claim_and_request_is_passed_over_and_its_claim_given_back(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    hosts = {host.provider: host for host in (make_host(), make_host())}
    drained: list[str] = []

    def drain() -> None:
        provider = next(provider for provider, host in hosts.items() if host.claims())
        hosts[provider].drain()
        drained.append(provider)

    refused: list[str] = []
    launched = Launcher(cloud, on_step=on_telling(drain), on_refused=refused.append).launch(make_request())
    assert launched.provider not in drained
    assert refused == [f"{drained[0]} takes nothing new"]
    assert hosts[drained[0]].claims() == {}
    assert store.keys(keys.assignments(drained[0]))[0] == []
    assert hosts[launched.provider].claims().keys() == {launched.uuid}


def test_where_the_only_host_is_drained_meanwhile_there_is_no_room_and_nothing_stays(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], store: Store
) -> None:
    host = make_host()
    with pytest.raises(NoRoom):
        Launcher(cloud, on_step=on_telling(host.drain)).launch(make_request())
    assert host.claims() == {}
    assert store.keys(keys.INTENTS)[0] == store.keys(keys.INSTANCES)[0] == store.keys(keys.HOSTS)[0] == []


def test_a_host_that_reports_other_facts_meanwhile_is_read_again(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    launched = Launcher(cloud, on_step=on_telling(host.node, times=3)).launch(make_request())
    assert host.claims().keys() == {launched.uuid}


def test_an_intent_that_the_audit_has_taken_ends_the_launch_cleanly(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()

    def take() -> None:
        (key,) = store.keys(keys.INTENTS)[0]
        store.commit([], [Delete(key)])

    with pytest.raises(Conflict, match="took too long and was given up for dead; launch it again"):
        Launcher(cloud, on_step=on_telling(take)).launch(make_request())
    assert host.claims() == {}
    assert store.keys(keys.INSTANCES)[0] == store.keys(keys.INTENTS)[0] == store.keys(keys.HOSTS)[0] == []


def test_a_restore_in_between_ends_the_launch_cleanly(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()

    def restore() -> None:
        other = Incarnation(id="11111111-1111-1111-1111-111111111111", made_by="a restore", made_at="")
        store.commit([], [Put(keys.INCARNATION, other)])

    with pytest.raises(Conflict):
        Launcher(cloud, on_step=on_telling(restore)).launch(make_request())
    assert host.claims() == {}
    assert store.keys(keys.INSTANCES)[0] == store.keys(keys.INTENTS)[0] == []


def test_an_interrupt_between_claim_and_request_gives_both_back(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Launcher(cloud, on_step=on_telling(interrupt)).launch(make_request())
    assert host.claims() == {}
    assert store.keys(keys.INTENTS)[0] == []


def test_two_launches_of_one_name_are_two_instances(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    first, second = (Launcher(cloud).launch(make_request(name="web-1")) for _ in range(2))
    assert first.uuid != second.uuid
    assert len(store.list(keys.INSTANCES, Instance).items) == 2


def test_of_sixteen_launches_for_the_last_address_just_one_gets_it(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host() for _ in range(8)]  # claims do not meet on one
    Networks(store).create("system", NetworkRequest("small", "10.9.0.0/29"))
    request = make_request(interfaces=(InterfaceRequest("small"),))
    taken = [Launcher(make_cloud()).launch(request) for _ in range(4)]
    results = launch_at_once(make_cloud, [request] * SCHEDULERS, at_once=SCHEDULERS)
    launched = [result for result in results if isinstance(result, Launched)]
    assert [result for result in results if not isinstance(result, Launched | AddressesExhausted)] == []
    assert len(launched) == 1
    assert len({one.addresses for one in (*taken, *launched)}) == 5
    assert {uuid for host in hosts for uuid in host.claims()} == {one.uuid for one in (*taken, *launched)}
    assert store.keys(keys.INTENTS)[0] == []


def test_of_sixteen_launches_with_one_address_just_one_gets_it(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    for _ in range(8):
        make_host()
    Networks(store).create("system", NetworkRequest("web", "10.9.0.0/16"))
    request = make_request(interfaces=(InterfaceRequest("web", "10.9.1.1", mac="52:54:00:00:00:01"),))
    results = launch_at_once(make_cloud, [request] * SCHEDULERS, at_once=SCHEDULERS)
    launched = [result for result in results if isinstance(result, Launched)]
    assert [result for result in results if not isinstance(result, Launched | AddressTaken | MacTaken)] == []
    assert [one.addresses for one in launched] == [("10.9.1.1/16",)]


def test_what_rests_is_taken_over_once(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    make_host(vcpus=64)
    network = Networks(store).create("system", NetworkRequest("small", "10.9.0.0/29")).value
    lease = store.unkept_lease(300)
    for n in range(2, 7):
        lock = AddressLock(interface_uuid="gone", instance_uuid="gone", is_resting=True)
        store.commit([], [Put(keys.address(network.uuid, f"10.9.0.{n}"), lock, lease=lease)])
    request = make_request(interfaces=(InterfaceRequest("small"),))
    results = launch_at_once(make_cloud, [request] * 8, at_once=8)
    launched = [result for result in results if isinstance(result, Launched)]
    assert [result for result in results if not isinstance(result, Launched | AddressesExhausted)] == []
    assert len({one.addresses for one in launched}) == len(launched) == 5
    locks = [item.value for item in store.list(keys.addresses(network.uuid), AddressLock).items]
    assert sorted(lock.instance_uuid for lock in locks) == sorted(one.uuid for one in launched)


@pytest.mark.parametrize("turn", range(3))
def test_a_network_is_deleted_or_launched_on_and_never_both(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    turn: int,
) -> None:
    host = make_host(vcpus=64)
    network = Networks(store).create("system", NetworkRequest("web", "10.9.0.0/24")).value
    request = make_request(interfaces=(InterfaceRequest("web"),))

    def delete(cloud: Cloud) -> Network | CloudError:
        try:
            return Networks(cloud.store).delete(network.uuid, "system")
        except CloudError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        launches = [pool.submit(launch_at_once, make_cloud, [request], at_once=1) for _ in range(2)]
        deletes = [pool.submit(delete, make_cloud()) for _ in range(2)]
        launched = [result for one in launches for result in one.result() if isinstance(result, Launched)]
        deleted = [one.result() for one in deletes]
    gone = [one for one in deleted if isinstance(one, Network)]
    assert (len(gone), len(launched)) in ((1, 0), (0, 2))
    assert all(isinstance(one, Network | NotFound | Refused) for one in deleted)
    left = {key for key in store.keys("/")[0] if network.uuid in key or key.startswith(keys.VNIS)}
    assert bool(left) is not bool(gone)
    assert host.claims().keys() == {one.uuid for one in launched}


def test_no_two_of_many_networks_have_one_vni(
    store: Store, make_host: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eschedule.cloud.networks.VNI_LAST", 4096 + 31)
    make_host()

    def create(n: int) -> Network:
        return Networks(store).create("system", NetworkRequest("web", "10.9.0.0/24")).value

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(24)))
    assert len({network.vni for network in made}) == 24
    assert {int(keys.last(item.key)): item.value.network_uuid for item in store.list(keys.VNIS, Vni).items} == {
        network.vni: network.uuid for network in made
    }
