"""Quotas: set under running instances, raced by launches, finished after a death."""

from __future__ import annotations

import dataclasses
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.documents import Instance, Quota, QuotaPhase
from ecompute.cluster.errors import CloudError, InvalidInput, PlacementUnavailable, QuotaExceeded
from ecompute.cluster.store import Store
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.quotas import QUOTAS, QuotaKeeper
from eschedule.cloud.connection import Cloud
from eschedule.cloud.quotas import Quotas
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched

NONE = {"VCPU": None, "MEMORY_MB": None, "DISK_GB": None, "INSTANCES": None}


@pytest.fixture
def namespace() -> str:
    return f"team-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def launch(cloud: Cloud, make_request: Callable[..., Any], namespace: str) -> Callable[..., Launched]:
    def run(**values: Any) -> Launched:
        return Launcher(cloud).launch(make_request(namespace=namespace, **values))

    return run


def quota_of(store: Store, namespace: str) -> Quota:
    found = store.get(keys.quota(namespace), Quota)
    assert found is not None
    return found.value


def claim_of(store: Store, uuid_: str) -> dict[str, dict[str, int]]:
    found = store.get(keys.instance(uuid_), Instance)
    assert found is not None
    return found.value.claim


def row(vcpus: int = 1) -> dict[str, int]:
    return {
        "CUSTOM_QUOTA_VCPU": vcpus,
        "CUSTOM_QUOTA_MEMORY_MB": 64,
        "CUSTOM_QUOTA_DISK_GB": 1,
        "CUSTOM_QUOTA_INSTANCES": 1,
    }


def test_a_launch_is_counted_and_one_too_many_is_refused_with_limit_use_and_what_was_asked(
    cloud: Cloud, store: Store, namespace: str, make_host: Callable[..., Any], launch: Callable[..., Launched]
) -> None:
    hosts = [make_host(), make_host()]
    Quotas(cloud).set(namespace, {"VCPU": 3})
    launched = launch(vcpus=2)
    quota = quota_of(store, namespace)
    assert (quota.phase, quota.limits) == (QuotaPhase.HELD, {"VCPU": 3})
    assert cloud.placement.provider_allocations(quota.provider) == {launched.uuid: row(2)}
    assert claim_of(store, launched.uuid)[quota.provider] == row(2)
    tried: list[str] = []
    with pytest.raises(QuotaExceeded, match=r"2 VCPU asked, 2 of 3 used; .*`eschedule quota show"):
        Launcher(cloud, on_refused=tried.append).launch(make_like(cloud, hosts, namespace, vcpus=2))
    assert tried == [], "no other host is tried"
    assert sum(len(host.claims()) for host in hosts) == 1
    assert store.keys(keys.INTENTS)[0] == []
    view = Quotas(cloud).view(namespace)
    assert (view.limit("VCPU"), view.used["VCPU"], view.used["INSTANCES"], view.limit("INSTANCES")) == (3, 2, 1, None)


def make_like(cloud: Cloud, hosts: list[Any], namespace: str, *, vcpus: int) -> Any:
    from eschedule.scheduler.request import LaunchRequest

    query = f"resources=VCPU:{vcpus},MEMORY_MB:64,DISK_GB:1&required={hosts[0].trait}"
    return LaunchRequest(query=query, image="http://images.example/small.qcow2", namespace=namespace)


def test_of_eight_at_once_no_more_than_the_limit_are_launched(
    cloud: Cloud,
    store: Store,
    namespace: str,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host(vcpus=32), make_host(vcpus=32)]
    Quotas(cloud).set(namespace, {"INSTANCES": 5})
    clouds = [make_cloud() for _ in range(8)]

    def one(n: int) -> Launched | CloudError:
        try:
            return Launcher(clouds[n % 8]).launch(make_request(namespace=namespace))
        except CloudError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(12)))
    launched = {result.uuid for result in results if isinstance(result, Launched)}
    others = [result for result in results if not isinstance(result, Launched)]
    assert all(isinstance(result, QuotaExceeded) for result in others), others
    assert len(launched) == 5
    assert cloud.placement.provider_allocations(quota_of(store, namespace).provider).keys() == launched
    assert {uuid_ for host in hosts for uuid_ in host.claims()} == launched


def test_what_runs_already_is_counted_and_nothing_new_fits_below_its_use(
    cloud: Cloud, store: Store, namespace: str, make_host: Callable[..., Any], launch: Callable[..., Launched]
) -> None:
    make_host()
    before = [launch(vcpus=2), launch()]
    view = Quotas(cloud).set(namespace, {"VCPU": 2})
    quota = quota_of(store, namespace)
    assert (view.used["VCPU"], view.used["INSTANCES"], view.phase) == (3, 2, QuotaPhase.HELD)
    held = cloud.placement.provider_allocations(quota.provider)
    assert held == {before[0].uuid: row(2), before[1].uuid: row(1)}
    for one in before:
        assert claim_of(store, one.uuid) == cloud.placement.allocations(one.uuid).allocations
    with pytest.raises(QuotaExceeded, match="1 VCPU asked, 3 of 2 used"):
        launch()
    cloud.placement.release(before[0].uuid)
    launch()


def test_a_limit_of_zero_lets_nothing_in(
    cloud: Cloud, namespace: str, make_host: Callable[..., Any], launch: Callable[..., Launched]
) -> None:
    make_host()
    Quotas(cloud).set(namespace, {"INSTANCES": 0})
    with pytest.raises(QuotaExceeded, match="1 INSTANCES asked, 0 of 0 used"):
        launch()


def test_limits_are_changed_one_by_one(cloud: Cloud, store: Store, namespace: str, make_host: Any) -> None:
    make_host()
    quotas = Quotas(cloud)
    quotas.set(namespace, {"VCPU": 3, "INSTANCES": 4})
    provider = quota_of(store, namespace).provider
    quotas.set(namespace, {"VCPU": None, "DISK_GB": 7})
    quota = quota_of(store, namespace)
    assert (quota.limits, quota.provider) == ({"INSTANCES": 4, "DISK_GB": 7}, provider)
    inventories = cloud.placement.inventories(provider).inventories
    assert inventories["CUSTOM_QUOTA_DISK_GB"].total == 7
    assert inventories["CUSTOM_QUOTA_VCPU"].total == 2**31 - 1
    assert [view.namespace for view in quotas.all() if view.namespace == namespace] == [namespace]


def test_without_limits_neither_rows_nor_provider_are_left(
    cloud: Cloud, store: Store, namespace: str, make_host: Callable[..., Any], launch: Callable[..., Launched]
) -> None:
    make_host()
    Quotas(cloud).set(namespace, {"VCPU": 5})
    provider = quota_of(store, namespace).provider
    launched = launch()
    view = Quotas(cloud).set(namespace, NONE)
    assert view.quota is None
    assert cloud.placement.provider(provider) is None
    assert provider not in claim_of(store, launched.uuid)
    assert provider not in cloud.placement.allocations(launched.uuid).allocations
    assert launch().uuid


def test_a_launch_overtaken_by_the_first_limit_claims_again_with_rows(
    cloud: Cloud, store: Store, namespace: str, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    left = [True]

    def step(text: str) -> None:
        if text.startswith("telling") and left:
            left.clear()
            Quotas(cloud).set(namespace, {"VCPU": 5})

    launched = Launcher(cloud, on_step=step).launch(make_request(namespace=namespace))
    assert not left
    quota = quota_of(store, namespace)
    assert cloud.placement.provider_allocations(quota.provider) == {launched.uuid: row()}
    assert claim_of(store, launched.uuid)[quota.provider] == row()


def test_a_launch_overtaken_by_the_end_of_the_quota_claims_again_without_rows(
    cloud: Cloud, store: Store, namespace: str, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    Quotas(cloud).set(namespace, {"VCPU": 5})
    left = [True]

    def step(text: str) -> None:
        if text.startswith("telling") and left:
            left.clear()
            Quotas(cloud).set(namespace, NONE)

    launched = Launcher(cloud, on_step=step).launch(make_request(namespace=namespace))
    assert not left
    assert cloud.placement.allocations(launched.uuid).allocations.keys() == {launched.provider}


class Died(BaseException):
    """Stands for kill -9."""


def dies_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    def reach(name: str) -> None:
        if name == point:
            raise Died

    monkeypatch.setattr("ecompute.cluster.upkeep.quotas.reach", reach)
    monkeypatch.setattr("eschedule.cloud.quotas.reach", reach)


POINTS = ["quota.made", "quota.written", "quota.row", "quota.counted", "quota.limited", "quota.held"]


@pytest.fixture
def lead(store: Store, cloud: Cloud) -> Callable[[], None]:
    """Let the lead's duty take so many turns that it has looked at everything twice."""
    from ecompute.cluster.documents import Incarnation
    from ecompute.cluster.store import unchanged

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
        turn = QUOTAS.begin(charge)
        for _ in range(11):
            turn()

    return run


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("finisher", ["set", "lead"])
def test_a_set_that_dies_anywhere_is_finished_by_the_next_or_by_the_lead(
    cloud: Cloud,
    store: Store,
    namespace: str,
    make_host: Callable[..., Any],
    launch: Callable[..., Launched],
    monkeypatch: pytest.MonkeyPatch,
    lead: Callable[[], None],
    point: str,
    finisher: str,
) -> None:
    make_host()
    before = {launch().uuid, launch().uuid}
    with monkeypatch.context() as patched:
        dies_at(patched, point)
        with pytest.raises(Died):
            Quotas(cloud).set(namespace, {"INSTANCES": 3})
    if finisher == "set":
        Quotas(cloud).set(namespace, {"INSTANCES": 3})
    lead()
    found = store.get(keys.quota(namespace), Quota)
    made = [p.uuid for p in cloud.placement.providers() if p.name.startswith(f"quota-{namespace}-")]
    if found is None:
        assert point == "quota.made"
        assert made == []
        return
    assert made == [found.value.provider]
    assert found.value.phase is QuotaPhase.HELD
    assert cloud.placement.provider_allocations(found.value.provider).keys() == before
    launch()
    with pytest.raises(QuotaExceeded):
        launch()


def test_a_removal_that_died_is_finished_by_the_lead(
    cloud: Cloud,
    store: Store,
    namespace: str,
    make_host: Callable[..., Any],
    launch: Callable[..., Launched],
    monkeypatch: pytest.MonkeyPatch,
    lead: Callable[[], None],
) -> None:
    make_host()
    Quotas(cloud).set(namespace, {"INSTANCES": 3})
    provider = quota_of(store, namespace).provider
    launched = launch()
    with monkeypatch.context() as patched:
        patched.setattr(QuotaKeeper, "remove", lambda *_: (_ for _ in ()).throw(Died()))
        with pytest.raises(Died):
            Quotas(cloud).set(namespace, NONE)
    assert launched.uuid in cloud.placement.provider_allocations(provider)
    lead()
    assert cloud.placement.provider(provider) is None
    assert cloud.placement.allocations(launched.uuid).allocations.keys() == {launched.provider}
    assert claim_of(store, launched.uuid).keys() == {launched.provider}


def test_a_quota_that_placement_has_lost_is_made_again(
    cloud: Cloud, store: Store, namespace: str, make_host: Any, lead: Callable[[], None]
) -> None:
    make_host()
    Quotas(cloud).set(namespace, {"INSTANCES": 3})
    provider = quota_of(store, namespace).provider
    cloud.placement.delete_provider(provider)
    lead()
    assert cloud.placement.inventories(provider).inventories["CUSTOM_QUOTA_INSTANCES"].total == 3


def test_launches_while_the_first_limit_is_set_are_all_counted(
    cloud: Cloud,
    store: Store,
    namespace: str,
    make_cloud: Callable[[], Cloud],
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host(vcpus=64), make_host(vcpus=64)]
    clouds = [make_cloud() for _ in range(4)]

    def one(n: int) -> Launched | CloudError:
        try:
            return Launcher(clouds[n % 4]).launch(make_request(namespace=namespace))
        except CloudError as error:
            return error

    with ThreadPoolExecutor(5) as pool:
        launching = [pool.submit(one, n) for n in range(16)]
        setting = pool.submit(Quotas(cloud).set, namespace, {"INSTANCES": 10})
        setting.result()
        results = [future.result() for future in launching]
    launched = {result.uuid for result in results if isinstance(result, Launched)}
    assert {uuid_ for host in hosts for uuid_ in host.claims()} == launched
    quota = quota_of(store, namespace)
    assert quota.phase is QuotaPhase.HELD
    assert cloud.placement.provider_allocations(quota.provider).keys() == launched
    for uuid_ in launched:
        assert quota.provider in claim_of(store, uuid_)


@pytest.mark.parametrize("limit", [-1, 2**31])
def test_what_cannot_be_a_limit_changes_nothing(cloud: Cloud, store: Store, namespace: str, limit: int) -> None:
    with pytest.raises(InvalidInput):
        Quotas(cloud).set(namespace, {"VCPU": limit})
    assert store.get(keys.quota(namespace), Quota) is None


def test_the_commands_show_what_is_set(tool: Any, namespace: str, make_host: Any) -> None:
    make_host()
    assert tool("quota", "show", namespace).returncode == 0
    done = tool("quota", "set", namespace, "--vcpus", "5", "--instances", "0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split() == ["vcpus", "0", "5"]
    assert tool("quota", "show", namespace, "-o", "csv").stdout == (
        "resource,used,limit\nvcpus,0,5\nmemory_mb,0,\ndisk_gb,0,\ninstances,0,0\n"
    )
    assert namespace in tool("quota", "list", "-o", "name").stdout
    assert tool("quota", "set", namespace, "--vcpus", "none", "--instances", "none").returncode == 0
    assert "has no limit" in tool("quota", "show", namespace).stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--vcpus", "-1"), "is no limit"),
        (("--vcpus", "1.5"), "is no limit"),
        (("--vcpus", "2147483648"), "from 0 to 2147483647"),
        (("--vcpus", "many"), "or none"),
        ((), "no limit is given"),
        (("a b", "--vcpus", "1"), "cannot be a namespace's name"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(tool: Any, store: Store, args: tuple[str, ...], said: str) -> None:
    done = tool("quota", "set", *args)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert store.keys(keys.QUOTAS)[0] == []


def test_one_request_in_three_to_placement_fails_and_the_quota_is_kept_and_exact(
    settings: Any,
    cloud: Cloud,
    store: Store,
    proxy: Any,
    faults: Any,
    namespace: str,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    hosts = [make_host(vcpus=32), make_host(vcpus=32)]
    Quotas(cloud).set(namespace, {"INSTANCES": 6})
    kinds = [faults[name] for name in ("RESET_UNSENT", "RESET_UNANSWERED", "UNAVAILABLE", "UNAVAILABLE_DONE")]
    lock, counts = threading.Lock(), Counter[tuple[str, str]]()

    def one_in_three(method: str, path: str) -> Any:
        with lock:
            counts[method, path] += 1
            n = counts[method, path] + zlib.crc32(f"{method} {path}".encode())
        return kinds[n // 3 % len(kinds)] if n % 3 == 0 else None

    proxy.fault = one_in_three
    with Cloud(dataclasses.replace(settings, placement=PlacementSettings(endpoint=proxy.endpoint))) as faulty:

        def one(_: int) -> Launched | CloudError:
            try:
                return Launcher(faulty).launch(make_request(namespace=namespace))
            except CloudError as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(one, range(9)))
    launched = {result.uuid for result in results if isinstance(result, Launched)}
    assert launched
    assert len(launched) <= 6
    held = set(cloud.placement.provider_allocations(quota_of(store, namespace).provider))
    assert len(held) <= 6
    left = held - launched
    assert {uuid_ for host in hosts for uuid_ in host.claims()} == held
    # What was not settled has its intent, by which the audit finds it.
    assert left <= {keys.last(key) for key in store.keys(keys.INTENTS)[0]}


def test_what_is_said_of_limits_while_placement_is_down_is_told_as_far_as_it_went(
    settings: Any, cloud: Cloud, store: Store, make_host: Callable[..., Any], namespace: str
) -> None:
    make_host()
    other = f"{namespace}-2"
    Quotas(cloud).set(namespace, {"VCPU": 4})
    with Cloud(dataclasses.replace(settings, placement=PlacementSettings(endpoint="http://127.0.0.1:1"))) as away:
        quotas = Quotas(away)
        with pytest.raises(PlacementUnavailable, match=f"^namespace {other} still has no limit; say it again when"):
            quotas.set(other, {"VCPU": 1})
        assert store.get(keys.quota(other), Quota) is None
        with pytest.raises(
            PlacementUnavailable, match=f"^the limits of {namespace} are written; they hold once the lead"
        ):
            quotas.set(namespace, {"VCPU": 2})
        assert quota_of(store, namespace).limits == {"VCPU": 2}
        with pytest.raises(
            PlacementUnavailable, match=f"^namespace {namespace} has no limit any more; what counted them"
        ):
            quotas.set(namespace, {"VCPU": None})
        assert store.get(keys.quota(namespace), Quota) is None
