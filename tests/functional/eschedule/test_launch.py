"""A launch writes what the design says, and nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.addressing import mac_address
from ecompute.cluster.documents import (
    AddressLock,
    Assignment,
    Event,
    Instance,
    MacLock,
    Name,
    Network,
    NetworkHost,
    Port,
    Resources,
    Role,
    Secrets,
    State,
    Vni,
)
from ecompute.cluster.errors import AddressesExhausted, InvalidInput, NoRoom, OnHold
from ecompute.cluster.store import Delete, DeletePrefix, Store
from eschedule.cloud.connection import Cloud, who
from eschedule.cloud.networks import VNI_FIRST, VNI_LAST
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched

BLOB = base64.b64encode((11).to_bytes(4, "big") + b"ssh-ed25519" + bytes(36)).decode()
KEY = f"ssh-ed25519 {BLOB} me@here"


@pytest.fixture
def read(store: Store) -> Callable[[str, type], Any]:
    def get(key: str, kind: type) -> Any:
        found = store.get(key, kind)
        assert found is not None, key
        return found.value

    return get


def network_of(store: Store) -> Network:
    found = [item.value for item in store.list(keys.NETWORKS, Network).items if len(keys.parts(item.key)) == 2]
    assert len(found) == 1
    return found[0]


def written(launched: Launched, network: Network, *, has_secrets: bool) -> set[str]:
    """Return all keys that a first launch leaves, as `docs/key-schema.md` names them."""
    ip = launched.addresses[0].split("/")[0]
    port = f"/networks/{network.uuid}/ports/"
    found = {
        f"/instances/{launched.uuid}",
        f"/hosts/{launched.provider}/{launched.uuid}",
        f"/names/system/instance/{launched.name}/{launched.uuid}",
        f"/events/eschedule/instance/{launched.uuid}/0",
        f"/networks/{network.uuid}",
        f"/networks/{network.uuid}/addresses/{ip}",
        f"/networks/{network.uuid}/hosts/{launched.provider}",
        f"/names/system/network/default/{network.uuid}",
        f"/networks/{network.uuid}/macs/",
        f"/vnis/{network.vni}",
        port,
    }
    return found | ({f"/secrets/{launched.provider}/{launched.uuid}"} if has_secrets else set())


def test_a_first_launch_writes_just_the_documents_of_the_design(
    store: Store,
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
    read: Callable[[str, type], Any],
) -> None:
    host = make_host()
    steps: list[str] = []
    request = make_request(name="web-1", user_data="#cloud-config", ssh_keys=(KEY,), vcpus=2)
    launched = Launcher(cloud, on_step=steps.append, now=lambda: 0).launch(request)
    network = network_of(store)

    # Which keys: a port's is named by its interface, a MAC's by the MAC.
    instance = read(keys.instance(launched.uuid), Instance)
    interface = instance.spec.interfaces[0]
    ends = {"ports/": interface.uuid, "macs/": interface.mac}
    expected = {
        key + next((end for beginning, end in ends.items() if key.endswith(beginning)), "")
        for key in written(launched, network, has_secrets=True)
    }
    assert all_keys() == expected

    # What is in them.
    assert (instance.uuid, instance.namespace, instance.name) == (launched.uuid, "system", "web-1")
    assert (instance.state, instance.generation, instance.epoch, instance.error) == (State.INITIAL, 1, 1, None)
    assert (instance.provider, instance.query) == (host.provider, request.query)
    assert instance.created_at == "1970-01-01T00:00:00.000Z"
    assert instance.spec.resources == Resources(vcpus=2, memory_mb=64, disk_gb=1)
    assert (instance.spec.image, instance.spec.ssh_keys) == (request.image, (KEY,))
    assert instance.spec.has_user_data
    assert interface.mac == mac_address(interface.uuid)
    assert interface.addresses == launched.addresses
    assert (interface.network_uuid, interface.vni, interface.mtu) == (network.uuid, network.vni, 1450)
    assert read(keys.assignment(host.provider, launched.uuid), Assignment) == Assignment(
        uuid=launched.uuid,
        namespace="system",
        name="web-1",
        role=Role.RUN,
        generation=1,
        epoch=1,
        spec=instance.spec,
    )
    assert read(keys.secrets(host.provider, launched.uuid), Secrets).user_data == "#cloud-config"
    assert read(keys.name("system", "instance", "web-1", launched.uuid), Name) == Name(uuid=launched.uuid, name="web-1")
    ip = launched.addresses[0].split("/")[0]
    assert read(keys.address(network.uuid, ip), AddressLock) == AddressLock(
        interface_uuid=interface.uuid, instance_uuid=launched.uuid
    )
    assert read(keys.port(network.uuid, interface.uuid), Port) == Port(
        interface_uuid=interface.uuid,
        instance_uuid=launched.uuid,
        provider=host.provider,
        epoch=1,
        mac=interface.mac,
        addresses=launched.addresses,
        name="web-1",
    )
    assert read(keys.mac(network.uuid, interface.mac), MacLock) == MacLock(
        interface_uuid=interface.uuid, instance_uuid=launched.uuid
    )
    assert read(keys.network_host(network.uuid, host.provider), NetworkHost) == NetworkHost(
        provider=host.provider, underlay="192.0.2.7"
    )
    assert (network.namespace, network.name, network.cidr, network.mtu) == ("system", "default", "10.10.0.0/24", 1450)
    assert network.gateway == "10.10.0.1"
    assert (network.has_dhcp, network.has_nat, network.has_dns) == (True, True, True)
    assert (interface.gateway, interface.nameservers) == ("10.10.0.1", ("10.10.0.1",))
    assert VNI_FIRST <= network.vni <= VNI_LAST
    assert read(keys.vni(network.vni), Vni).network_uuid == network.uuid
    event = read(keys.event("instance", launched.uuid, "eschedule", 0), Event)
    assert event.type == "requested"
    assert event.message == f"claimed on {host.name}, and asked of it: 75% of it stays free (+0.75)"

    # And in placement.
    claim = cloud.placement.allocations(launched.uuid)
    assert claim.allocations == {host.provider: {"VCPU": 2, "MEMORY_MB": 64, "DISK_GB": 1}}
    assert (claim.consumer_type, claim.project_id, claim.user_id) == ("ECOMPUTE_INSTANCE", "system", who())
    assert steps == ["asking placement for candidates", f"claiming room on {host.name}", f"telling {host.name}"]


def test_all_keys_of_a_request_are_written_at_one_revision(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    launched = Launcher(cloud).launch(make_request())
    instance = store.get(keys.instance(launched.uuid), Instance)
    assert instance is not None
    for key, kind in (
        (keys.assignment(launched.provider, launched.uuid), Assignment),
        (keys.event("instance", launched.uuid, "eschedule", 0), Event),
        (keys.port(instance.value.spec.interfaces[0].network_uuid, instance.value.spec.interfaces[0].uuid), Port),
    ):
        found = store.get(key, kind)
        assert found is not None
        assert found.create_revision == instance.create_revision


def test_without_a_name_or_user_data_one_is_made_up_and_the_other_left_out(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    launched = Launcher(cloud).launch(make_request())
    assert launched.name == f"vm-{launched.uuid[:8]}"
    assert store.keys(keys.SECRETS)[0] == []


def test_a_second_launch_shares_the_network_and_gets_another_address(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    first, second = (Launcher(cloud).launch(make_request()) for _ in range(2))
    network_of(store)
    assert first.addresses != second.addresses


def test_another_namespace_has_a_network_of_its_own(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    for namespace in ("system", "team-1"):
        Launcher(cloud).launch(make_request(namespace=namespace))
    networks = [item.value for item in store.list(keys.NETWORKS, Network).items if len(keys.parts(item.key)) == 2]
    assert sorted(network.namespace for network in networks) == ["system", "team-1"]
    assert len({network.vni for network in networks}) == 2


@pytest.mark.parametrize(
    "refuse", [lambda host: host.drain(), lambda host: host.node(hold="etcd was emptied")], ids=["draining", "on hold"]
)
def test_a_host_that_takes_nothing_new_is_not_asked(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
    refuse: Callable[[Any], None],
) -> None:
    refused, other = make_host(), make_host()
    refuse(refused)
    assert {Launcher(cloud).launch(make_request()).provider for _ in range(3)} == {other.provider}
    before = all_keys()
    refuse(other)
    with pytest.raises(NoRoom, match="takes anything new now"):
        Launcher(cloud).launch(make_request())
    assert all_keys() == before


def test_a_host_that_does_not_answer_is_asked_last_and_that_is_said(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    sleeping, awake = make_host(), make_host(vcpus=2)
    sleeping.sleep()
    launched = [Launcher(cloud).launch(make_request()) for _ in range(3)]
    assert [one.provider for one in launched] == [awake.provider, awake.provider, sleeping.provider]
    assert [one.is_host_alive for one in launched] == [True, True, False]


def test_a_provider_that_is_no_host_of_this_cloud_is_not_asked(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    stranger, _ = make_host(), make_host()
    store.commit([], [Delete(keys.node(stranger.provider))])
    Launcher(cloud).launch(make_request())
    assert stranger.claims() == {}


@pytest.mark.parametrize(
    "bad",
    [
        {"vcpus": 0},
        {"vcpus": -1},
        {"vcpus": 2**31},
        {"query": "resources=VCPU:1"},
        {"image": ""},
        {"name": "a/b"},
        {"namespace": "a/b"},
        {"user_data": "a\x00b"},
        {"ssh_keys": ("ssh-rsa x",)},
    ],
    ids=str,
)
def test_what_cannot_be_meant_leaves_nothing_behind(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
    bad: dict[str, Any],
) -> None:
    host = make_host()
    with pytest.raises(InvalidInput):
        Launcher(cloud).launch(make_request(**bad))
    assert (host.claims(), all_keys()) == ({}, set())


def test_an_unknown_class_is_refused_in_placements_words(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    make_host()
    with pytest.raises(InvalidInput, match="No such resource class CUSTOM_NOPE"):
        Launcher(cloud).launch(make_request(query="resources=VCPU:1,MEMORY_MB:1,DISK_GB:1,CUSTOM_NOPE:1"))
    assert all_keys() == set()


def test_more_than_any_host_has_is_no_room(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    make_host(vcpus=2)
    with pytest.raises(NoRoom, match="no host can serve resources=VCPU:3"):
        Launcher(cloud).launch(make_request(vcpus=3))
    assert all_keys() == set()


def test_where_no_host_has_ever_registered_nothing_is_claimed(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    store.commit([], [DeletePrefix("/cluster/")])
    with pytest.raises(OnHold, match="no host has ever registered"):
        Launcher(cloud).launch(make_request())
    assert host.claims() == {}


def test_a_full_network_gives_the_claim_back(
    settings: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    import dataclasses
    import ipaddress

    host = make_host()
    small = dataclasses.replace(settings, default_network=ipaddress.IPv4Network("10.9.0.0/29"))
    with Cloud(small) as cloud:
        launched = [Launcher(cloud).launch(make_request()) for _ in range(5)]
        with pytest.raises(AddressesExhausted, match=r"all 5 addresses of 10\.9\.0\.0/29 are taken"):
            Launcher(cloud).launch(make_request())
    assert host.claims().keys() == {one.uuid for one in launched}
    assert store.keys(keys.INTENTS)[0] == []
