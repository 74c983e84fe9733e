"""Which host a launch takes, by what it wishes; and that an old answer starts nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Copy, Event, Instance, Tagged
from ecompute.cluster.errors import InvalidInput, NoRoom, NotFound
from ecompute.cluster.shards import aggregates_of
from ecompute.cluster.store import Put, Store
from eschedule.cloud.connection import Cloud
from eschedule.scheduler.launch import Launcher

IMAGE = "http://images.example/small.qcow2"


def close(cloud: Cloud, host: Any) -> None:
    """Do in placement what draining does, as far as a claim meets it."""
    import msgspec

    cloud.placement.change_inventories(
        host.provider,
        lambda found: {
            name: msgspec.structs.replace(inventory, reserved=inventory.total) for name, inventory in found.items()
        },
    )


@pytest.mark.parametrize("is_reserved", [True, False], ids=["refused at the claim", "refused at the request"])
def test_an_answer_older_than_the_draining_of_every_host_starts_nothing(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    is_reserved: bool,
) -> None:
    hosts = [make_host() for _ in range(3)]
    refused: list[str] = []
    launcher = Launcher(cloud, on_refused=refused.append)
    first = launcher.launch(make_request())  # its answer, and what it read of the hosts, are kept
    for host in hosts:
        if is_reserved:
            close(cloud, host)
        host.drain()
    with pytest.raises(NoRoom):
        launcher.launch(make_request())
    assert len(refused) >= 3
    assert {uuid_ for host in hosts for uuid_ in host.claims()} == {first.uuid}
    assert [keys.last(key) for key in store.keys(keys.HOSTS)[0]] == [first.uuid]
    assert store.keys(keys.INTENTS)[0] == []


def test_what_is_claimed_is_counted_and_a_full_cloud_is_asked_anew(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    hosts = [make_host(vcpus=2), make_host(vcpus=2)]
    refused: list[str] = []
    launcher = Launcher(cloud, on_refused=refused.append)
    launched = [launcher.launch(make_request()) for _ in range(4)]
    assert refused == [], "the answer that is kept knows what was claimed since"
    with pytest.raises(NoRoom):
        launcher.launch(make_request())
    cloud.placement.release(launched[0].uuid)
    assert launcher.launch(make_request()).provider == launched[0].provider, "and a new answer what came free"
    assert all(len(host.claims()) == 2 for host in hosts)


def test_a_named_host_is_taken_or_none(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    small, large = make_host(vcpus=1), make_host(vcpus=8)
    assert Launcher(cloud).launch(make_request(host=small.name)).provider == small.provider
    with pytest.raises(NoRoom, match=f"{small.name} cannot take it: VCPU: 1 of 1 used, 1 asked; ask for less"):
        Launcher(cloud).launch(make_request(host=small.name))
    with pytest.raises(NoRoom, match="VCPU: at most 8 at once, 64 asked"):
        Launcher(cloud).launch(make_request(host=large.provider, vcpus=64))
    large.drain()
    with pytest.raises(NoRoom, match=rf"nothing new starts there: {large.name} is draining: a test"):
        Launcher(cloud).launch(make_request(host=large.name))
    with pytest.raises(NotFound, match="there is no host 'nowhere'; see `eschedule hosts`"):
        Launcher(cloud).launch(make_request(host="nowhere"))
    assert large.claims() == {}


def test_a_named_host_lacks_the_trait_that_is_asked_for(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    query = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&required=HW_CPU_X86_AVX512F"
    with pytest.raises(NoRoom, match=f"{host.name} cannot take it: lacks trait HW_CPU_X86_AVX512F; ask for less"):
        Launcher(cloud).launch(make_request(query=query, host=host.name))


def test_packed_instances_fill_one_host_and_spread_ones_do_not(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    hosts = [make_host(vcpus=4) for _ in range(2)]
    for host in hosts:
        Launcher(cloud).launch(make_request(host=host.name))
    full = Launcher(cloud).launch(make_request(vcpus=2, host=hosts[0].name)).provider
    choices = Launcher(cloud).choices(make_request(is_packed=True))
    assert max(choices, key=lambda choice: choice.ranked.points).ranked.provider == full
    choices = Launcher(cloud).choices(make_request())
    assert max(choices, key=lambda choice: choice.ranked.points).ranked.provider == hosts[1].provider


def test_reasons_name_image_network_and_tags_and_a_launch_keeps_its_own(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    near, far = make_host(), make_host()
    db = Launcher(cloud).launch(make_request(host=near.name, tags=("db", "blue")))
    copy = Copy(url=IMAGE, sha256="0", size_bytes=1)
    store.commit([], [Put(keys.copy(near.provider, IMAGE), copy)])
    tagged = store.get(keys.tag("system", "db", db.uuid), Tagged)
    assert tagged is not None
    assert tagged.value.provider == near.provider
    request = make_request(affinities=(("db", 100), ("blue", -10)))
    choices = {choice.host: choice.ranked for choice in Launcher(cloud).choices(request)}
    texts = [reason.text for reason in choices[near.name].reasons]
    assert texts[1:] == [
        "it holds the image",
        "it is on the network",
        "1 with tag db there, wanted by 100",
        "1 with tag blue there, wanted by -10",
    ]
    assert len(choices[far.name].reasons) == 1
    launched = Launcher(cloud).launch(request)
    event = store.get(keys.event("instance", launched.uuid, "eschedule", 0), Event)
    assert event is not None
    assert all(str(reason) in event.value.message for reason in launched.reasons)


def test_a_dry_run_claims_and_writes_nothing(
    tool: Any, query: str, make_host: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    hosts = {make_host().name for _ in range(2)}
    done = tool("launch", query, "--dry-run", "--uuid", str(uuid.uuid4()), "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)
    assert {row["host"] for row in rows} == hosts
    assert [row["place"] for row in rows] == [1, 2]
    assert all(row["reasons"] for row in rows)
    assert all_keys() == set()
    done = tool("launch", query, "--dry-run", "--affinity", "db=50", "--pack")
    assert done.stdout.split()[:2] == ["PLACE", "HOST"]


def test_one_shard_is_asked_first_and_then_the_whole_cloud(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if there were hosts for two shards, of which one holds the host.
    monkeypatch.setattr("eschedule.scheduler.offers.level_for", lambda hosts: 1)
    host = make_host()
    cloud.placement.set_aggregates(host.provider, aggregates_of(host.provider))
    asked: list[str] = []
    ask = cloud.placement.candidates

    def candidates(question: Any, *, limit: int) -> Any:
        asked.append(question.text)
        return ask(question, limit=limit)

    monkeypatch.setattr(cloud.placement, "candidates", candidates)
    for _ in range(8):
        asked.clear()
        assert Launcher(cloud).launch(make_request()).provider == host.provider
        assert len(asked) in (1, 2)
        assert "member_of=" in asked[0]
        assert len(asked) == 1 or "member_of=" not in asked[1]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("resources=VCPU:1,MEMORY_MB:1,DISK_GB:1,VPCU:1", "No such resource class VPCU; did you mean"),
        ("resources=VCPU:1,MEMORY_MB:1,DISK_GB:1&required=HW_CPU_X86_AVX22", "did you mean HW_CPU_X86_AVX2"),
        (
            "resources=VCPU:1,MEMORY_MB:1,DISK_GB:1&member_of=5f0c3a86-8f0f-4b67-9d5e-7f3a0a8d3c11",
            "no host is in aggregate",
        ),
        ("resources=VCPU:0,MEMORY_MB:1,DISK_GB:1", "VCPU is zero"),
        ("resources=VCPU:-1,MEMORY_MB:1,DISK_GB:1", "not an amount of VCPU"),
        ("resources=VCPU:1.5,MEMORY_MB:1,DISK_GB:1", "not an amount of VCPU"),
        (f"resources=VCPU:{2**31},MEMORY_MB:1,DISK_GB:1", "more VCPU than can be"),
        ("resources=VCPU:1,MEMORY_MB:1,DISK_GB:1&required=COMPUTE_STATUS_DISABLED", "hosts that take nothing new"),
    ],
)
def test_what_is_not_known_is_named_with_what_may_be_meant(
    query: str,
    says: str,
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
) -> None:
    make_host()
    with pytest.raises(InvalidInput, match=says):
        Launcher(cloud).launch(make_request(query=query))
    assert all_keys() == set()


@pytest.mark.parametrize(
    "bad",
    [
        {"tags": ("a b",)},
        {"tags": ("a/b",)},
        {"affinities": (("db", 101),)},
        {"affinities": (("db", 0),)},
        {"affinities": (("db", 1), ("db", 2))},
        {"uuid": "4711"},
        {"uuid": str(uuid.UUID(int=0))},
        {"idempotency_key": "a/b"},
        {"idempotency_key": ""},
        {"expires": "yesterday"},
        {"expires": "2020-01-01T00:00:00Z"},
        {"expires": "0s"},
    ],
    ids=str,
)
def test_a_bad_wish_claims_nothing(
    bad: dict[str, Any],
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
) -> None:
    host = make_host()
    with pytest.raises(InvalidInput) as raised:
        Launcher(cloud).launch(make_request(**bad))
    assert raised.value.hint
    assert (host.claims(), all_keys()) == ({}, set())


def test_a_warm_launch_asks_placement_once_and_etcd_little(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_host()
    launcher = Launcher(cloud)
    for _ in range(2):
        launcher.launch(make_request())  # the first makes the network, and does not know who is on it
    sent: list[str] = []
    once, call = cloud.placement._transport._once, cloud.store._members.call

    def to_placement(method: str, path: str, *args: Any) -> Any:
        sent.append(f"{method} {path.split('/')[1]}")
        return once(method, path, *args)

    def to_etcd(pick: Any, request: Any, **values: Any) -> Any:
        sent.append(type(request).__name__)
        return call(pick, request, **values)

    monkeypatch.setattr(cloud.placement._transport, "_once", to_placement)
    monkeypatch.setattr(cloud.store._members, "call", to_etcd)
    launched = launcher.launch(make_request())
    assert [name for name in sent if name.startswith("TxnRequest")] == ["TxnRequest"] * 2
    assert [name for name in sent if " " in name] == ["PUT allocations"]
    assert len(sent) <= 5, sent
    assert store.get(keys.instance(launched.uuid), Instance) is not None
