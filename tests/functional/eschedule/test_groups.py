"""Groups: kept by placement in the claim, whoever races for a place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from ecompute.cluster import groups, keys
from ecompute.cluster.documents import Admin, Group, Incarnation, Instance, Member, Policy, Scope, State, Zone
from ecompute.cluster.errors import CloudError, Conflict, InvalidInput, NoRoom, NotFound, Refused
from ecompute.cluster.store import Delete, Put, Store, unchanged
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.groups import GROUPS
from eschedule.cloud.connection import Cloud
from eschedule.cloud.groups import Groups
from eschedule.cloud.instances import Instances
from eschedule.cloud.quotas import Quotas
from eschedule.scheduler import beside, facts
from eschedule.scheduler.beside import Beside, BesideChanged
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched

TOTALS = {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1}


@pytest.fixture
def make_group(cloud: Cloud, make_host: Any) -> Callable[..., Group]:
    def make(policy: Policy, scope: Scope = Scope.HOST) -> Group:
        return Groups(cloud).create("system", f"group-{uuid4().hex[:8]}", policy, scope)

    return make


@pytest.fixture
def in_zone(store: Store) -> Callable[..., str]:
    """Put hosts into a new zone; return its name."""

    def run(*hosts: Any) -> str:
        name = f"zone-{uuid4().hex[:8]}"
        zone = Zone(name=name, aggregate=str(uuid4()), provider=str(uuid4()), created_at="")
        store.commit([], [Put(keys.zone(name), zone)])
        for host in hosts:
            store.commit([], [Put(keys.admin(host.provider), Admin(zone=name))])
        return name

    return run


@pytest.fixture(autouse=True)
def tidy(store: Store, cloud: Cloud, make_host: Any) -> Any:
    """Take the children of hosts away again, which hosts could not go before."""
    yield
    for key in store.keys(keys.NODES)[0]:
        child = groups.provider_of_host(keys.last(key))
        if cloud.placement.provider(child) is not None:
            for consumer in cloud.placement.provider_allocations(child):
                cloud.placement.release(consumer)
            cloud.placement.delete_provider(child)


@pytest.fixture
def turn(store: Store, cloud: Cloud) -> Callable[[], None]:
    """Let the lead's duty have two turns of one term."""

    def run() -> None:
        incarnation = store.get(keys.INCARNATION, Incarnation)
        assert incarnation is not None
        charge = Charge(
            store=store,
            placement=cloud.placement,
            events=cloud.events,
            is_leading=lambda: True,
            holds=unchanged(incarnation),
        )
        call = GROUPS.begin(charge)
        call()
        call()

    return run


def launch_all(
    make_cloud: Callable[[], Cloud], requests: list[Any], *, at_once: int
) -> tuple[list[Launched], list[CloudError]]:
    clouds = [make_cloud() for _ in range(at_once)]

    def one(n: int) -> Launched | CloudError:
        try:
            return Launcher(clouds[n % at_once]).launch(requests[n])
        except CloudError as error:
            return error

    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(one, range(len(requests))))
    return (
        [result for result in results if isinstance(result, Launched)],
        [result for result in results if not isinstance(result, Launched)],
    )


def members_of(store: Store, group: Group) -> dict[str, Member]:
    return {item.value.instance_uuid: item.value for item in store.list(keys.members(group.uuid), Member).items}


# --- apart ---------------------------------------------------------------------------------------


def test_of_ten_racing_for_four_hosts_four_run_each_on_its_own(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
) -> None:
    hosts = [make_host() for _ in range(4)]
    group = make_group(Policy.ANTI_AFFINITY)
    launched, refused = launch_all(make_cloud, [make_request(group=group.name) for _ in range(10)], at_once=8)
    assert Counter(one.provider for one in launched) == {host.provider: 1 for host in hosts}
    assert all(isinstance(error, NoRoom) for error in refused), refused
    assert {uuid for host in hosts for uuid in host.claims()} == {one.uuid for one in launched}
    assert members_of(store, group).keys() == {one.uuid for one in launched}
    assert store.keys(keys.INTENTS)[0] == []


@pytest.mark.parametrize("policy", [Policy.ANTI_AFFINITY, Policy.SOFT_ANTI_AFFINITY, Policy.AFFINITY])
def test_launches_into_one_group_read_its_members_once(
    policy: Policy,
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = [make_host() for _ in range(4)]
    group = make_group(policy)
    read: list[int] = []
    real = facts.members

    def counted(store: Store, uuid: str, *, limit: int | None = None) -> list[Member]:
        found = real(store, uuid, limit=limit)
        read.append(len(found))
        return found

    monkeypatch.setattr(facts, "members", counted)
    monkeypatch.setattr(beside, "members", counted)
    launcher = Launcher(cloud)
    launcher._facts._clock = clock  # which stands still: what is known is kept for seconds
    launched = [launcher.launch(make_request(group=group.name)) for _ in hosts]
    places = Counter(one.provider for one in launched)
    assert sorted(places.values()) == ([4] if policy is Policy.AFFINITY else [1, 1, 1, 1])
    assert sum(read) <= (4 if policy is Policy.AFFINITY else 0), "it counts on its own what it launches"


def test_a_place_that_a_member_has_left_is_taken_by_the_next(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    host = make_host()
    group = make_group(Policy.ANTI_AFFINITY)
    launcher, instances = Launcher(cloud), Instances(cloud)
    first = launcher.launch(make_request(group=group.name))
    with pytest.raises(NoRoom, match=f"group {group.name} keeps its members apart, and has one in 1 host"):
        launcher.launch(make_request(group=group.name))
    instances.destroy(instances.find(first.uuid, "system"))
    host.report(first.uuid, State.DELETED, is_gone=True)
    instances.finish(first.uuid)
    assert launcher.launch(make_request(group=group.name)).provider == host.provider


def test_fewer_than_there_are_hosts_all_run_apart(
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
) -> None:
    for _ in range(6):
        make_host()
    group = make_group(Policy.ANTI_AFFINITY)
    launched, refused = launch_all(make_cloud, [make_request(group=group.uuid) for _ in range(4)], at_once=4)
    assert refused == []
    assert len({one.provider for one in launched}) == 4


def test_two_groups_do_not_stand_in_each_other_s_way(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    host = make_host()
    for group in (make_group(Policy.ANTI_AFFINITY), make_group(Policy.ANTI_AFFINITY)):
        assert Launcher(cloud).launch(make_request(group=group.name)).provider == host.provider
        with pytest.raises(NoRoom, match=f"group {group.name} keeps its members apart, and has one in 1 host; see"):
            Launcher(cloud).launch(make_request(group=group.name))
    assert Launcher(cloud).launch(make_request()).provider == host.provider


def test_in_zones_no_two_are_in_one_zone_and_none_is_in_no_zone(
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
    in_zone: Callable[..., str],
) -> None:
    zones = {}
    for _ in range(2):
        pair = [make_host(), make_host()]
        zones |= dict.fromkeys((host.provider for host in pair), in_zone(*pair))
    make_host()
    group = make_group(Policy.ANTI_AFFINITY, Scope.ZONE)
    launched, refused = launch_all(make_cloud, [make_request(group=group.name) for _ in range(6)], at_once=6)
    assert sorted(zones[one.provider] for one in launched) == sorted(set(zones.values()))
    assert all(isinstance(error, NoRoom) for error in refused), refused


def test_a_place_is_free_again_when_its_member_is_gone(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
) -> None:
    host = make_host()
    group = make_group(Policy.ANTI_AFFINITY)
    launched = Launcher(cloud).launch(make_request(group=group.name, tags=("blue",), expires="2h"))
    assert store.keys(keys.TAGS)[0] and store.keys(keys.EXPIRIES)[0]
    destroy(cloud, host, launched.uuid)
    assert members_of(store, group) == {}
    assert store.keys(keys.TAGS)[0] == store.keys(keys.EXPIRIES)[0] == []
    assert Launcher(cloud).launch(make_request(group=group.name)).provider == host.provider


def destroy(cloud: Cloud, host: Any, uuid: str) -> None:
    instances = Instances(cloud)
    instances.destroy(instances.find(uuid, "system"))
    host.report(uuid, State.DELETED, is_gone=True)
    instances.finish(uuid)


# --- together ------------------------------------------------------------------------------------


def test_of_eight_racing_to_be_the_first_all_end_on_one_host(
    store: Store,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
) -> None:
    for _ in range(4):
        make_host(vcpus=32)
    group = make_group(Policy.AFFINITY)
    launched, refused = launch_all(make_cloud, [make_request(group=group.name) for _ in range(8)], at_once=8)
    assert refused == []
    assert len(launched) == 8
    assert len({one.provider for one in launched}) == 1
    found = store.get(keys.group(group.uuid), Group)
    assert found is not None and found.value.place == launched[0].provider


def test_who_lost_the_race_finds_the_chosen_host_though_it_was_not_among_its_offers(
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eschedule.scheduler.question.LIMIT", 1)
    for _ in range(6):
        make_host()
    group = make_group(Policy.AFFINITY)
    launched, refused = launch_all(make_cloud, [make_request(group=group.name) for _ in range(6)], at_once=6)
    assert refused == []
    assert len({one.provider for one in launched}) == 1


def test_a_group_of_zones_where_no_host_is_in_one_says_so(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    make_host()
    group = make_group(Policy.ANTI_AFFINITY, Scope.ZONE)
    with pytest.raises(NoRoom, match=f"group {group.name} is of zones, and no host is in a zone"):
        Launcher(cloud).launch(make_request(group=group.name))


def test_in_zones_all_end_in_one_zone(
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
    in_zone: Callable[..., str],
) -> None:
    zones = {}
    for _ in range(2):
        pair = [make_host(vcpus=4), make_host(vcpus=4)]
        zones |= dict.fromkeys((host.provider for host in pair), in_zone(*pair))
    group = make_group(Policy.AFFINITY, Scope.ZONE)
    launched, refused = launch_all(make_cloud, [make_request(group=group.name) for _ in range(6)], at_once=6)
    assert refused == []
    assert len({zones[one.provider] for one in launched}) == 1
    assert len({one.provider for one in launched}) == 2, "one host has no room for all"


def test_where_the_chosen_host_is_full_there_is_no_room(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    make_host(vcpus=1), make_host(vcpus=1)
    group = make_group(Policy.AFFINITY)
    first = Launcher(cloud).launch(make_request(group=group.name))
    with pytest.raises(NoRoom, match=f"keeps its members together, and they are at {first.provider}"):
        Launcher(cloud).launch(make_request(group=group.name))


def test_an_emptied_group_may_go_elsewhere(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
    turn: Callable[[], None],
) -> None:
    hosts = {host.provider: host for host in (make_host(vcpus=1), make_host(vcpus=1))}
    group = make_group(Policy.AFFINITY)
    first = Launcher(cloud).launch(make_request(group=group.name))
    destroy(cloud, hosts[first.provider], first.uuid)
    Launcher(cloud).launch(make_request(host=first.host))  # it is full now
    second = Launcher(cloud).launch(make_request(group=group.name))
    assert second.provider != first.provider
    turn()
    held = groups.provider_of_host(second.provider)
    assert group.resource_class in cloud.placement.inventories(held).inventories


def test_a_first_member_overtaken_by_another_begins_again(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    one, other = make_host(), make_host()
    group = make_group(Policy.AFFINITY)
    slow, fast = (Beside.read(cloud, namespace="system", group_ref=group.name, totals=TOTALS) for _ in range(2))
    fast.prepare(one.provider, None)
    with pytest.raises(BesideChanged):
        slow.prepare(other.provider, None)
    again = Beside.read(cloud, namespace="system", group_ref=group.name, totals=TOTALS)
    assert again.only is None, "nobody is there yet"
    assert again.weight(one.provider, None) == 1
    assert again.prepare(one.provider, None).allocations == fast.prepare(one.provider, None).allocations


# --- wishes --------------------------------------------------------------------------------------


def test_the_soft_ones_are_launched_even_where_they_cannot_be_met(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    host = make_host()
    for policy in (Policy.SOFT_ANTI_AFFINITY, Policy.SOFT_AFFINITY):
        group = make_group(policy)
        for _ in range(2):
            assert Launcher(cloud).launch(make_request(group=group.name)).provider == host.provider
        assert cloud.placement.provider(groups.provider_of_host(host.provider)) is None, "no class is needed"


def test_what_members_are_at_is_liked_or_not(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], make_group: Callable[..., Group]
) -> None:
    host, other = make_host(), make_host()
    for policy, liked in ((Policy.SOFT_ANTI_AFFINITY, -1.0), (Policy.SOFT_AFFINITY, 1.0)):
        group = make_group(policy)
        Launcher(cloud).launch(make_request(group=group.name, host=host.name))
        beside = Beside.read(cloud, namespace="system", group_ref=group.name, totals=TOTALS)
        assert (beside.weight(host.provider, None), beside.weight(other.provider, None)) == (liked, 0)


# --- with a quota --------------------------------------------------------------------------------


def test_a_quota_stops_and_a_group_sends_to_the_next_host(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    for _ in range(3):
        make_host()
    namespace = f"team-{uuid4().hex[:8]}"
    group = Groups(cloud).create(namespace, "web", Policy.ANTI_AFFINITY, Scope.HOST)
    Quotas(cloud).set(namespace, {"INSTANCES": 2})
    launched = [Launcher(cloud).launch(make_request(namespace=namespace, group="web")) for _ in range(2)]
    assert len({one.provider for one in launched}) == 2
    with pytest.raises(CloudError) as caught:
        Launcher(cloud).launch(make_request(namespace=namespace, group="web"))
    assert caught.value.code == "quota.exceeded"
    found = store.get(keys.instance(launched[0].uuid), Instance)
    assert found is not None
    assert found.value.group == group.uuid
    assert found.value.claim == cloud.placement.allocations(launched[0].uuid).allocations
    assert len(found.value.claim) == 3


# --- making and deleting -------------------------------------------------------------------------


def test_a_group_with_members_is_not_deleted_and_one_without_leaves_nothing(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
    turn: Callable[[], None],
) -> None:
    host = make_host()
    register_presence(cloud, host)
    group = make_group(Policy.ANTI_AFFINITY)
    launched = Launcher(cloud).launch(make_request(group=group.name))
    with pytest.raises(Refused, match=f"has 1 member, {launched.uuid}"):
        Groups(cloud).delete(group.name, "system")
    destroy(cloud, host, launched.uuid)
    turn()
    child = groups.provider_of_host(host.provider)
    assert cloud.placement.provider(child) is not None, "it has an owner still"
    Groups(cloud).delete(group.name, "system")
    assert store.keys(keys.group(group.uuid))[0] == []
    turn()
    turn()
    assert cloud.placement.provider(child) is None
    assert group.resource_class not in cloud.placement.classes("CUSTOM_AAG_")


def register_presence(cloud: Cloud, host: Any) -> None:
    from ecompute.cluster.placement.documents import PRESENCE, Inventory

    cloud.placement.change_inventories(host.provider, lambda found: {**found, PRESENCE: Inventory(total=1)})


def test_a_launch_overtaken_by_the_deletion_of_its_group_leaves_nothing(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
) -> None:
    host = make_host()
    group = make_group(Policy.ANTI_AFFINITY)

    def step(text: str) -> None:
        if text.startswith("telling"):
            Groups(cloud).delete(group.name, "system")

    with pytest.raises(NotFound, match="there is no group"):
        Launcher(cloud, on_step=step).launch(make_request(group=group.name))
    assert host.claims() == {}
    assert store.keys(keys.INTENTS)[0] == store.keys(keys.INSTANCES)[0] == []


def test_names_are_unique_in_a_namespace_and_checked(cloud: Cloud, make_host: Any) -> None:
    make_host()
    name = f"web-{uuid4().hex[:8]}"
    made = Groups(cloud).create("system", name, Policy.AFFINITY, Scope.HOST)
    with pytest.raises(Conflict, match="already"):
        Groups(cloud).create("system", name, Policy.AFFINITY, Scope.HOST)
    Groups(cloud).create("other", name, Policy.AFFINITY, Scope.HOST)
    assert Groups(cloud).find(made.uuid, "system").value == made
    with pytest.raises(NotFound):
        Groups(cloud).find(made.uuid, "other")
    for bad in ("", "a b", "a/b", "-a", "a" * 64, made.uuid):
        with pytest.raises(InvalidInput, match="cannot be a group's name"):
            Groups(cloud).create("system", bad, Policy.AFFINITY, Scope.HOST)


def test_a_launch_into_a_group_that_is_not_there_claims_nothing(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    with pytest.raises(NotFound, match="there is no group 'nobody' in namespace system; see `eschedule group list`"):
        Launcher(cloud).launch(make_request(group="nobody"))
    assert host.claims() == {}
    assert store.keys(keys.INTENTS)[0] == []


def test_the_commands_make_show_and_delete(tool: Any, store: Store, make_host: Any) -> None:
    make_host()
    name = f"web-{uuid4().hex[:8]}"
    done = tool("group", "create", name, "--policy", "soft-affinity", "--scope", "zone", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert name in tool("group", "list", "-o", "name").stdout.split()
    assert "soft-affinity" in tool("group", "show", name).stdout
    assert tool("group", "delete", name).returncode == 0
    again = tool("group", "delete", name)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    store.commit([], [Delete(keys.ADMIN + "none")])


def test_a_group_is_shown_with_its_members_by_name(
    tool: Any,
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    make_group: Callable[..., Group],
) -> None:
    host = make_host()
    group = make_group(Policy.AFFINITY)
    launched = [Launcher(cloud).launch(make_request(group=group.name, name=f"web-{n}")) for n in (1, 2)]
    members = [{"name": one.name, "uuid": one.uuid, "host": host.name, "zone": None} for one in launched]
    shown = json.loads(tool("group", "show", group.name, "-o", "json").stdout)
    assert shown["members"] == sorted(members, key=lambda member: str(member["uuid"]))
    assert shown["place"] == host.provider
    head, _, table = tool("group", "show", group.name).stdout.partition("\n\n")
    assert f"place       {host.name}\n" in head
    assert head.endswith("members     2")
    lines = table.splitlines()
    assert lines[0].split() == ["NAME", "UUID", "HOST", "ZONE"]
    assert sorted(line.split() for line in lines[1:]) == [[one.name, one.uuid, host.name, "-"] for one in launched]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("create", "web"), "--policy"),
        (("create", "web", "--policy", "near"), "near"),
        (("create", "a b", "--policy", "affinity"), "cannot be a group's name"),
        (("create", "web", "--policy", "affinity", "--scope", "rack"), "rack"),
        (("show",), "GROUP"),
    ],
)
def test_bad_input_is_one_line(tool: Any, store: Store, args: tuple[str, ...], said: str) -> None:
    done = tool("group", *args)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
