"""etcd and placement fail in the middle of a launch."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.claims import Claims
from ecompute.cluster.config import Config, EtcdSettings, PlacementSettings
from ecompute.cluster.documents import Alive, Incarnation, Instance, Intent, Node
from ecompute.cluster.errors import CompareFailed, Conflict, Outrun, PlacementUnavailable, StoreUnavailable
from ecompute.cluster.store import Delete, Put, Store, unchanged
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.placement import PlacementProcess
from eschedule.cloud.connection import Cloud
from eschedule.scheduler.launch import Launcher

REQUEST = b'"state":"initial"'
"""Stands in the transaction of a request, and in nothing that is sent before it."""


def is_claim(method: str, path: str) -> bool:
    return method == "PUT" and path.startswith("/allocations/")


def nothing_is_left(store: Store) -> bool:
    return not any(store.keys(prefix)[0] for prefix in (keys.INTENTS, keys.INSTANCES, keys.HOSTS, keys.SECRETS))


@pytest.fixture
def faulty_cloud(settings: Config, proxy: Any, store: Store) -> Iterator[Cloud]:
    """The cloud, with placement behind a proxy that fails on demand."""
    with Cloud(dataclasses.replace(settings, placement=PlacementSettings(endpoint=proxy.endpoint))) as opened:
        yield opened


@pytest.fixture
def linked_cloud(settings: Config, link: Any, store: Store) -> Iterator[Cloud]:
    """The cloud, with etcd behind a link that can fall silent."""
    linked = dataclasses.replace(settings, etcd=EtcdSettings(endpoints=(link.endpoint,)))
    with Cloud(linked, store_timeout_s=2) as opened:
        yield opened


@pytest.mark.parametrize("fault", ["RESET_UNSENT", "RESET_UNANSWERED", "UNAVAILABLE", "UNAVAILABLE_DONE"])
def test_a_claim_whose_answer_is_lost_once_is_taken_once(
    faulty_cloud: Cloud,
    proxy: Any,
    faults: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    fault: str,
) -> None:
    host = make_host()
    left = [faults[fault]]
    proxy.fault = lambda method, path: left.pop() if is_claim(method, path) and left else None
    launched = Launcher(faulty_cloud).launch(make_request())
    assert not left
    assert host.claims() == {launched.uuid: {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1}}


def test_one_claim_in_three_reset_and_nothing_is_claimed_twice(
    faulty_cloud: Cloud,
    proxy: Any,
    faults: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host(vcpus=6)
    count = [0]

    def fault(method: str, path: str) -> Any:
        count[0] += 1
        return (None, None, faults.RESET_UNANSWERED)[count[0] % 3]

    proxy.fault = fault
    launched = [Launcher(faulty_cloud).launch(make_request()) for _ in range(6)]
    assert host.claims().keys() == {one.uuid for one in launched}
    assert store.keys(keys.INTENTS)[0] == []


def test_a_claim_overtaken_at_every_try_on_one_host_is_taken_on_the_next(
    faulty_cloud: Cloud,
    proxy: Any,
    faults: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = {host.name: host for host in (make_host(), make_host())}
    asked: list[str] = []

    def note(step: str) -> None:
        asked.extend(name for name in hosts if step == f"claiming room on {name}")

    proxy.fault = lambda method, path: faults.OVERTAKEN if is_claim(method, path) and asked == asked[:1] else None
    launched = Launcher(faulty_cloud, on_step=note).launch(make_request())
    assert len(asked) == 2
    assert asked[0] != asked[1] == launched.host
    assert [name for name, host in hosts.items() if host.claims()] == [launched.host]


def test_a_claim_overtaken_at_every_try_wherever_it_is_tried_says_so_and_leaves_nothing(
    faulty_cloud: Cloud,
    proxy: Any,
    faults: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    proxy.fault = lambda method, path: faults.OVERTAKEN if is_claim(method, path) else None
    with pytest.raises(Outrun, match="somebody else wrote first"):
        Launcher(faulty_cloud).launch(make_request(uuid=str(uuid.uuid4())))
    assert nothing_is_left(store)
    assert host.claims() == {}


def test_placement_that_never_answers_a_claim_leaves_it_to_the_audit_and_says_so(
    faulty_cloud: Cloud,
    proxy: Any,
    faults: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    proxy.fault = lambda method, path: faults.RESET_UNANSWERED if "/allocations/" in path else None
    with pytest.raises(PlacementUnavailable) as raised:
        Launcher(faulty_cloud).launch(make_request())
    (key,) = store.keys(keys.INTENTS)[0]
    assert f"`eschedule doctor {keys.last(key)}`" in str(raised.value)
    assert host.claims().keys() == {keys.last(key)}, "it was written, and the audit will find it by its intent"


def test_placement_down_before_the_claim_leaves_nothing(
    settings: Config, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    away = dataclasses.replace(settings, placement=PlacementSettings(endpoint="http://127.0.0.1:1"))
    with Cloud(away) as cloud, pytest.raises(PlacementUnavailable, match="does not answer since"):
        Launcher(cloud).launch(make_request())
    assert nothing_is_left(store)


def test_etcd_down_after_the_claim_leaves_it_to_the_audit(
    tmp_path: Path,
    settings: Config,
    placement: PlacementProcess,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    store: Store,
) -> None:
    host = make_host()
    with start_etcd(tmp_path / "own", is_durable=False) as own:
        copy(store, own)
        with Cloud(
            dataclasses.replace(settings, etcd=EtcdSettings(endpoints=(own.endpoint,))), store_timeout_s=1
        ) as cloud:

            def kill(text: str) -> None:
                if text.startswith("telling"):
                    own.kill()

            with pytest.raises(StoreUnavailable, match="eschedule doctor"):
                Launcher(cloud, on_step=kill).launch(make_request())
            own.start()
            (consumer,) = host.claims()
            intent = cloud.store.get(keys.intent(consumer), Intent)
            assert intent is not None
            assert cloud.store.get(keys.instance(consumer), Instance) is None


def copy(source: Store, target: EtcdProcess) -> None:
    """Put what a scheduler needs into another etcd."""
    with Store(EtcdSettings(endpoints=(target.endpoint,))) as store:
        for prefix, kind in ((keys.NODES, Node), (keys.ALIVE, Alive), (keys.INCARNATION, Incarnation)):
            for item in source.list(prefix, kind).items:
                store.commit([], [Put(item.key, item.value)])


def test_a_request_whose_answer_is_lost_is_looked_for_and_found(
    linked_cloud: Cloud,
    link: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    Launcher(linked_cloud).launch(make_request())  # the network is made, and everything loaded
    steps: list[str] = []

    def step(text: str) -> None:
        steps.append(text)
        if text.startswith("telling"):
            link.hold_answers_after(REQUEST)
        elif text.startswith("asking etcd"):
            link.mend()

    launched = Launcher(linked_cloud, on_step=step).launch(make_request(name="web-1"))
    assert steps[-1] == "asking etcd what became of it"
    instance = store.get(keys.instance(launched.uuid), Instance)
    assert instance is not None
    assert instance.value.spec.interfaces[0].addresses == launched.addresses
    assert len(store.keys(keys.named("system", "instance", "web-1"))[0]) == 1
    assert launched.uuid in host.claims()
    assert store.keys(keys.INTENTS)[0] == []


def test_a_request_that_was_lost_on_its_way_is_sent_again(
    linked_cloud: Cloud,
    link: Any,
    store: Store,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    first = Launcher(linked_cloud).launch(make_request())
    steps: list[str] = []

    def step(text: str) -> None:
        if text.startswith("telling") and "asking etcd what became of it" not in steps:
            link.hold_answers_after(REQUEST, is_lost=True)
        elif text.startswith("asking etcd"):
            link.cut()
            link.mend()
        steps.append(text)

    launched = Launcher(linked_cloud, on_step=step).launch(make_request(name="web-1"))
    assert steps[-3:] == [f"telling {host.name}", "asking etcd what became of it", f"telling {host.name}"]
    assert host.claims().keys() == {first.uuid, launched.uuid}
    assert len(store.keys(keys.named("system", "instance", "web-1"))[0]) == 1
    assert store.keys(keys.INTENTS)[0] == []


def begin(cloud: Cloud, host: Any) -> Any:
    """Return a claim that holds room on ``host``."""
    claim = Claims(cloud.store, cloud.placement, writer="me@here").begin(str(uuid.uuid4()), namespace="system")
    claim.take({host.provider: {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1}}, {"": [host.provider]})
    return claim


def test_giving_up_after_a_request_that_was_written_keeps_the_claim(
    linked_cloud: Cloud, link: Any, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    claim = begin(linked_cloud, host)
    link.hold_answers_after(REQUEST)
    instance = Launcher(cloud).launch(make_request())
    document = cloud.store.get(keys.instance(instance.uuid), Instance)
    assert document is not None
    with pytest.raises(StoreUnavailable) as raised:
        claim.request(
            [],
            [Put(keys.instance(claim.consumer), structs.replace(document.value, uuid=claim.consumer))],
        )
    assert raised.value.may_be_written
    link.mend()
    assert not claim.give_up()
    assert claim.consumer in host.claims()


def test_giving_up_without_a_request_returns_intent_and_claim(
    cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    claim = begin(cloud, host)
    assert claim.give_up()
    assert claim.give_up(), "idempotent"
    assert (host.claims(), store.keys(keys.INTENTS)[0]) == ({}, [])


def test_a_request_cannot_be_written_once_its_outcome_was_settled(
    cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    claim = begin(cloud, host)
    before = store.get(keys.intent(claim.consumer), Intent)
    assert before is not None
    assert not claim.settle()
    with pytest.raises(CompareFailed):  # one that is still on its way compares this
        store.commit([unchanged(before)], [Delete(before.key)])
    assert not claim.is_void()
    claim.request([], [])
    assert store.keys(keys.INTENTS)[0] == []
    assert claim.is_void()


def test_a_claim_in_doubt_is_neither_released_nor_given_up(
    linked_cloud: Cloud, link: Any, cloud: Cloud, make_host: Callable[..., Any]
) -> None:
    """Whether it was written is not known, and an etcd that was put back meanwhile would not show it."""
    host = make_host()
    claim = begin(linked_cloud, host)
    link.hold_answers_after(b"/marked")
    with pytest.raises(StoreUnavailable):
        claim.request([], [Put("/marked", Incarnation(id="1", made_by="me", made_at=""))])
    link.mend()
    assert claim.is_in_doubt
    with pytest.raises(Conflict, match="not known"):
        claim.release()
    assert not claim.give_up()
    assert claim.consumer in host.claims()
