"""Operators drain, maintain, activate and place hosts, with the real etcd and the real placement."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED, closed
from ecompute.cluster.config import Config, PlacementSettings
from ecompute.cluster.documents import (
    Admin,
    AdminState,
    Group,
    Instance,
    Member,
    Policy,
    Scope,
    Zone,
    timestamp,
)
from ecompute.cluster.errors import (
    Ambiguous,
    ClaimRefused,
    Conflict,
    InvalidInput,
    NoRoom,
    NotFound,
    PlacementUnavailable,
    Refused,
)
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Put, Store
from eschedule.cloud.connection import Cloud
from eschedule.cloud.groups import Groups
from eschedule.cloud.hosts import Hosts
from eschedule.cloud.zones import Zones
from eschedule.scheduler.launch import Launcher


def admin(store: Store, provider: str) -> Admin:
    found = store.get(keys.admin(provider), Admin)
    return Admin() if found is None else found.value


def is_shut(placement: Placement, provider: str) -> bool:
    found = placement.inventories(provider).inventories
    return closed(found) == found and DISABLED in placement.traits(provider)


@pytest.fixture
def hosts(cloud: Cloud) -> Hosts:
    return Hosts(cloud)


@pytest.mark.parametrize("state", [AdminState.DRAINING, AdminState.MAINTENANCE])
def test_a_drained_host_refuses_the_claim_of_an_old_answer(
    cloud: Cloud, store: Store, hosts: Hosts, make_host: Callable[..., Any], state: AdminState
) -> None:
    host = make_host()
    answer = cloud.placement.candidates(f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&in_tree={host.provider}", limit=1)
    hosts.drain(hosts.find(host.name), state, "a fan")
    assert admin(store, host.provider) == Admin(state=state, reason="a fan", turn=1)
    assert is_shut(cloud.placement, host.provider)
    with pytest.raises(ClaimRefused):
        candidate = answer.items[0]
        cloud.placement.claim(
            str(uuid.uuid4()), candidate.allocations, candidate.mappings, project_id="system", user_id="system"
        )


def test_a_launch_that_had_its_claim_before_the_drain_is_refused_by_its_request(
    cloud: Cloud,
    hosts: Hosts,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
) -> None:
    host = make_host()
    drained: list[str] = []

    def drain(step: str) -> None:
        if step.startswith("telling") and not drained:
            drained.append(step)
            assert host.claims()
            hosts.drain(hosts.find(host.name), AdminState.DRAINING)

    with pytest.raises(NoRoom):
        Launcher(cloud, on_step=drain).launch(make_request())
    assert drained
    assert not host.claims()
    assert not {key for key in all_keys() if key.startswith((keys.HOSTS, keys.INSTANCES))}


def test_draining_again_changes_nothing_and_puts_placement_right(
    cloud: Cloud, store: Store, hosts: Hosts, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    node = hosts.find(host.name)
    hosts.drain(node, AdminState.DRAINING, "a fan")
    before = store.get(keys.admin(host.provider), Admin)
    cloud.placement.set_traits(host.provider, {host.trait})
    hosts.drain(node, AdminState.DRAINING)
    assert store.get(keys.admin(host.provider), Admin) == before
    assert is_shut(cloud.placement, host.provider)
    hosts.drain(node, AdminState.DRAINING, "another fan")
    assert admin(store, host.provider).reason == "another fan"
    hosts.drain(node, AdminState.MAINTENANCE)
    assert admin(store, host.provider) == Admin(state=AdminState.MAINTENANCE, turn=2)


def test_activating_is_left_to_the_host_itself(
    cloud: Cloud, store: Store, hosts: Hosts, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    node = hosts.find(host.name)
    hosts.drain(node, AdminState.DRAINING, "a fan")
    assert hosts.activate(node) == Admin(turn=2) == hosts.activate(node)
    assert is_shut(cloud.placement, host.provider)
    assert hosts.view(node).state == "up"


def test_a_host_that_placement_does_not_know_is_drained_all_the_same(
    cloud: Cloud, store: Store, hosts: Hosts, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    cloud.placement.delete_provider(host.provider)
    node = hosts.find(host.name)
    hosts.drain(node, AdminState.DRAINING)
    hosts.set(node, zone="north", traits=frozenset({"CUSTOM_SSD"}))
    assert admin(store, host.provider) == Admin(state=AdminState.DRAINING, zone="north", traits=("CUSTOM_SSD",), turn=1)
    assert hosts.view(node).room == {}
    cloud.placement.ensure_provider(host.provider, host.name)


def test_zones_and_traits_are_in_placement_at_once_and_others_stay(
    cloud: Cloud, store: Store, hosts: Hosts, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    node = hosts.find(host.name)
    with_curl = str(uuid.uuid4())
    cloud.placement.set_aggregates(host.provider, {with_curl})
    for _ in range(2):
        hosts.set(node, zone="north", location="rack 3", traits=frozenset({"CUSTOM_SSD"}))
        zones = {zone.name: zone.aggregate for zone in Zones(cloud).all()}
        assert cloud.placement.aggregates(host.provider) == {with_curl, zones["north"]}
        assert cloud.placement.traits(host.provider) == {host.trait, "CUSTOM_SSD"}
    hosts.set(node, zone="south", no_traits=frozenset({"CUSTOM_SSD", "CUSTOM_NEVER"}))
    zones = {zone.name: zone.aggregate for zone in Zones(cloud).all()}
    assert cloud.placement.aggregates(host.provider) == {with_curl, zones["south"]}
    assert cloud.placement.traits(host.provider) == {host.trait}
    assert admin(store, host.provider) == Admin(zone="south", location="rack 3")
    hosts.set(node, zone="")
    assert cloud.placement.aggregates(host.provider) == {with_curl}
    assert admin(store, host.provider) == Admin(location="rack 3")


def test_a_zone_goes_only_when_no_host_is_in_it(
    cloud: Cloud, store: Store, hosts: Hosts, make_host: Callable[..., Any]
) -> None:
    node = hosts.find(make_host().name)
    hosts.set(node, zone="north")
    zones = Zones(cloud)
    assert zones.sizes() == {"north": 1}
    with pytest.raises(Refused, match="--zone ''"):
        zones.remove("north")
    hosts.set(node, zone="")
    zones.remove("north")
    assert zones.all() == []
    with pytest.raises(NotFound):
        zones.remove("north")


def test_a_zone_that_a_host_enters_at_this_moment_is_not_removed(
    cloud: Cloud, hosts: Hosts, make_host: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = hosts.find(make_host().name)
    hosts.set(node, zone="north")
    hosts.set(node, zone="")
    delete = cloud.placement.delete_provider

    def enter_first(provider: str) -> None:
        hosts.set(node, zone="north")
        delete(provider)

    monkeypatch.setattr(cloud.placement, "delete_provider", enter_first)
    with pytest.raises(Conflict, match="in use again"):
        Zones(cloud).remove("north")
    assert [zone.name for zone in Zones(cloud).all()] == ["north"]


def test_a_host_with_a_member_of_a_group_of_zones_stays_in_its_zone(
    store: Store, hosts: Hosts, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    node = hosts.find(host.name)
    hosts.set(node, zone="north")
    launched = Launcher(cloud).launch(make_request())
    found = store.get(keys.instance(launched.uuid), Instance)
    assert found is not None
    group = Group(
        uuid=str(uuid.uuid4()),
        namespace="system",
        name="web",
        policy=Policy.ANTI_AFFINITY,
        scope=Scope.ZONE,
        resource_class="CUSTOM_AAG_1",
        created_at=timestamp(0),
    )
    values = {field: getattr(found.value, field) for field in found.value.__struct_fields__} | {"group": group.uuid}
    store.commit([], [Put(keys.group(group.uuid), group), Put(found.key, Instance(**values))])
    with pytest.raises(Refused, match="group web"):
        hosts.set(node, zone="south")
    hosts.set(node, zone="north", location="rack 3")


@pytest.mark.parametrize("zone", ["south", ""])
def test_a_member_that_is_launched_while_its_host_is_moved_keeps_the_host_in_its_zone(
    cloud: Cloud,
    store: Store,
    hosts: Hosts,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    zone: str,
) -> None:
    host = make_host()
    node = hosts.find(host.name)
    north = f"north-{uuid.uuid4().hex[:8]}"
    hosts.set(node, zone=north, location="rack 3")
    group = Groups(cloud).create("system", "apart", Policy.ANTI_AFFINITY, Scope.ZONE)
    launched: list[str] = []
    commit = cloud.store.commit

    def launch_first(*args: Any) -> int:
        if not launched:
            launched.append(Launcher(make_cloud()).launch(make_request(group=group.uuid)).uuid)
        return commit(*args)

    monkeypatch.setattr(cloud.store, "commit", launch_first)
    with pytest.raises(Refused, match="group apart"):
        hosts.set(node, zone=zone, location="rack 4")
    assert admin(store, host.provider) == Admin(zone=north, location="rack 3")
    (member,) = store.list(keys.members(group.uuid), Member).items
    assert (member.value.instance_uuid, member.value.zone) == (launched[0], north)


def test_a_host_is_named_by_name_uuid_or_the_beginning_of_either(hosts: Hosts, make_host: Callable[..., Any]) -> None:
    first, second = make_host(), make_host()
    for ref in (first.name, first.provider, first.provider.upper(), first.name[:-1], first.provider[:13]):
        assert hosts.find(ref).provider == first.provider
    with pytest.raises(Ambiguous, match="any of 2 hosts"):
        hosts.find("host-")
    for ref in ("nobody", "", second.name + "x"):
        with pytest.raises(NotFound, match="eschedule host list"):
            hosts.find(ref)


@pytest.mark.parametrize(
    "values",
    [
        {"zone": "North"},
        {"zone": "a/b"},
        {"location": "x" * 201},
        {"location": "a\nb"},
        {"traits": frozenset({"SSD"})},
        {"traits": frozenset({"CUSTOM_ssd"})},
        {"no_traits": frozenset({"HW_CPU_X86_AVX"})},
        {"traits": frozenset({"CUSTOM_VIRT_KVM"})},
        {"traits": frozenset({"CUSTOM_A"}), "no_traits": frozenset({"CUSTOM_A"})},
        {"traits": frozenset(f"CUSTOM_{n}" for n in range(51))},
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    store: Store, hosts: Hosts, make_host: Callable[..., Any], values: dict[str, Any]
) -> None:
    host = make_host()
    with pytest.raises(InvalidInput):
        hosts.set(hosts.find(host.name), **values)
    assert store.get(keys.admin(host.provider), Admin) is None
    assert store.list(keys.ZONES, Zone).items == ()


def test_all_hosts_are_read_with_one_question_to_placement(
    cloud: Cloud, hosts: Hosts, make_host: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [make_host() for _ in range(5)]
    asked: list[str] = []
    ask = cloud.placement._transport.ask

    def counted(method: str, path: str, *args: Any) -> Any:
        asked.append(f"{method} {path}")
        return ask(method, path, *args)

    monkeypatch.setattr(cloud.placement._transport, "ask", counted)
    assert {view.node.provider for view in hosts.all()} == {host.provider for host in made}
    assert asked == ["GET /allocation_candidates"]


def test_the_commands_show_what_they_have_done(
    tool: Any, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    launched = Launcher(cloud).launch(make_request())
    done = tool("host", "drain", host.name, "--reason", "a fan", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert f"1 instance is left: {launched.name}" in done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["name"], row["state"], row["why"]) == (host.name, "draining", "a fan")
    done = tool("host", "drain", host.name, "--wait", "--timeout", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "destroy them" in done.stderr
    shown = json.loads(tool("host", "show", host.provider[:8], "-o", "json").stdout)
    assert shown["instances"] == [launched.name]
    assert DISABLED in shown["placement_traits"]
    done = tool("host", "set", host.name, "--zone", "north", "--trait", "CUSTOM_SSD", "-o", "json")
    (row,) = json.loads(done.stdout)
    assert (row["zone"], row["traits"]) == ("north", ["CUSTOM_SSD"])
    assert tool("host", "zones", "-o", "name").stdout == "north\n"
    assert tool("host", "activate", host.name, "-o", "name").stdout == f"{host.name}\n"
    listed = tool("host", "list")
    assert listed.stdout.splitlines()[0].split() == [
        "NAME", "STATE", "ZONE", "LOCATION", "VCPUS", "MEMORY", "MB", "DISK", "GB", "WHY",
    ]  # fmt: skip
    nothing = tool("host", "set", host.name)
    assert nothing.returncode == 2
    assert "give --zone" in nothing.stderr
    unknown = tool("host", "maintain", "nobody", host.name)
    assert unknown.returncode == 1
    assert cloud.store.get(keys.admin(host.provider), Admin).value.state is AdminState.ACTIVE  # type: ignore[union-attr]


# --- placement does not answer ---


@pytest.fixture
def without_placement(settings: Config) -> Iterator[Cloud]:
    """The cloud, with a placement that is down."""
    with Cloud(dataclasses.replace(settings, placement=PlacementSettings(endpoint="http://127.0.0.1:1"))) as opened:
        yield opened


def test_what_is_said_of_a_host_while_placement_is_down_holds_in_etcd_and_the_error_says_so(
    without_placement: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    hosts = Hosts(without_placement)
    with pytest.raises(PlacementUnavailable) as raised:
        hosts.drain(hosts.find(host.name), AdminState.DRAINING, "a fan")
    assert str(raised.value).startswith(f"{host.name} is draining: a fan: no launch lands there any more; placement ")
    assert "its daemon or this command again" in str(raised.value)
    assert admin(store, host.provider).state is AdminState.DRAINING
    with pytest.raises(PlacementUnavailable) as raised:
        hosts.set(hosts.find(host.name), zone="north", traits=frozenset({"CUSTOM_SSD"}))
    assert str(raised.value).startswith(f"it is said of {host.name}; queries for its traits or zone find it once its ")
    assert (admin(store, host.provider).zone, admin(store, host.provider).traits) == ("north", ("CUSTOM_SSD",))


def test_several_hosts_are_all_drained_though_placement_is_down(
    tool: Any, store: Store, make_host: Callable[..., Any]
) -> None:
    first, second = make_host(), make_host()
    document = yaml.safe_load(tool.config.read_text())
    tool.config.write_text(yaml.safe_dump(document | {"placement": {"endpoint": "http://127.0.0.1:1"}}))
    done = tool("host", "drain", first.name, second.name)
    assert done.returncode == 1
    for host in (first, second):
        assert f"{host.name} is draining: no launch lands there any more" in done.stderr
        assert admin(store, host.provider).state is AdminState.DRAINING
    assert done.stderr.count("\n") == 2
    opened = tool("host", "activate", first.name)
    assert opened.returncode == 1
    assert opened.stderr.startswith(f"error: it is said of {first.name}; it cannot be shown; placement at ")
    assert admin(store, first.provider).state is AdminState.ACTIVE
