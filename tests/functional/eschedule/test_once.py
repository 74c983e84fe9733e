"""A launch that is repeated with the same uuid or key is one instance."""

from __future__ import annotations

import random
import signal
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.chosen import Chosen
from ecompute.cluster.claims import FAILPOINTS, Claims
from ecompute.cluster.documents import IdempotencyKey, Instance, Intent, State, UsedUuid
from ecompute.cluster.errors import Conflict, ForeignConsumer, InvalidInput, NoRoom
from ecompute.cluster.placement import ClaimRequest
from ecompute.cluster.store import DeletePrefix, Put, Store
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler import once
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.launched import Launched
from eschedule.scheduler.once import Once
from eschedule.scheduler.request import check
from eschedule.scheduler.takeover import take_over


@pytest.fixture
def chosen() -> str:
    return str(uuid.uuid4())


def used(store: Store, uuid_: str) -> UsedUuid | None:
    found = store.get(keys.used_uuid(uuid_), UsedUuid)
    return None if found is None else found.value


@pytest.mark.parametrize("by", ["uuid", "key"])
def test_a_repeated_launch_is_the_same_instance(
    by: str, store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    host = make_host()
    request = make_request(**({"uuid": chosen} if by == "uuid" else {"idempotency_key": "build-4711"}), name="web-1")
    first, second = (Launcher(cloud).launch(request) for _ in range(2))
    assert second.uuid == first.uuid
    assert (first.is_repeated, second.is_repeated) == (False, True)
    assert second.addresses == first.addresses
    assert host.claims().keys() == {first.uuid}
    found = used(store, first.uuid)
    assert found is not None
    assert (found.is_launched, found.is_spent) == (True, False)
    if by == "uuid":
        assert first.uuid == chosen


def test_the_same_uuid_with_another_request_is_an_error(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    make_host()
    Launcher(cloud).launch(make_request(uuid=chosen))
    for other in ({"vcpus": 2}, {"name": "x"}, {"expires": "2h"}, {"tags": ("db",)}, {"namespace": "team-1"}):
        with pytest.raises(Conflict, match=f"uuid {chosen} was used for another request; choose another one"):
            Launcher(cloud).launch(make_request(uuid=chosen, **other))


def test_a_uuid_that_is_in_use_is_refused(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    make_host()
    taken = Launcher(cloud).launch(make_request()).uuid
    before = all_keys()
    with pytest.raises(Conflict, match=f"{taken} is in use; choose another uuid"):
        Launcher(cloud).launch(make_request(uuid=taken))
    assert all_keys() == before


def test_of_eight_launches_with_one_key_one_launches_and_all_have_it(
    make_cloud: Callable[[], Cloud], make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    request = make_request(idempotency_key="one")
    clouds = [make_cloud() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        launched = list(pool.map(lambda cloud: Launcher(cloud).launch(request), clouds))
    assert len({one.uuid for one in launched}) == 1
    assert sum(not one.is_repeated for one in launched) == 1
    assert host.claims().keys() == {launched[0].uuid}


def test_without_room_nothing_is_used_up(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
    chosen: str,
) -> None:
    make_host(vcpus=1)
    for request in (make_request(vcpus=2, uuid=chosen), make_request(vcpus=2, idempotency_key="one")):
        with pytest.raises(NoRoom):
            Launcher(cloud).launch(request)
    assert all_keys() == set()


def test_what_was_claimed_and_given_up_spends_the_uuid_and_frees_the_key(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    host = make_host()

    def drain(text: str) -> None:
        if text.startswith("telling"):
            host.drain()

    for request in (make_request(uuid=chosen), make_request(idempotency_key="one")):
        with pytest.raises(NoRoom):
            Launcher(cloud, on_step=drain).launch(request)
        store.commit([], [Put(keys.admin(host.provider), structs.replace(_admin(store, host), state="active"))])
    assert host.claims() == {}
    with pytest.raises(Conflict, match="was given up before it was launched; uuids are not used twice"):
        Launcher(cloud).launch(make_request(uuid=chosen))
    launched = Launcher(cloud).launch(make_request(idempotency_key="one"))
    assert host.claims().keys() == {launched.uuid}


def _admin(store: Store, host: Any) -> Any:
    from ecompute.cluster.documents import Admin

    found = store.get(keys.admin(host.provider), Admin)
    assert found is not None
    return found.value


def test_what_was_destroyed_is_not_launched_again(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    request = make_request(idempotency_key="one")
    launched = Launcher(cloud).launch(request)
    instances = Instances(cloud)
    instances.destroy(instances.find(launched.uuid, "system"))
    again = Launcher(cloud).launch(request)
    assert (again.uuid, again.is_repeated) == (launched.uuid, True), "as it is: on its way out"
    host.report(launched.uuid, State.DELETED, is_gone=True)
    instances.finish(launched.uuid)
    found = used(store, launched.uuid)
    assert found is not None
    assert found.is_spent
    with pytest.raises(Conflict, match="what key one stands for was launched, and destroyed"):
        Launcher(cloud).launch(request)


def test_a_uuid_and_a_key_are_not_both_given(cloud: Cloud, make_request: Callable[..., Any], chosen: str) -> None:
    with pytest.raises(InvalidInput, match="give one of both"):
        Launcher(cloud).launch(make_request(uuid=chosen, idempotency_key="one"))


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_launch_killed_anywhere_can_be_repeated_by_its_key(
    failpoint: str,
    tool: Any,
    query: str,
    store: Store,
    cloud: Cloud,
    clock: Any,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
) -> None:
    host = make_host()
    done = tool("launch", query, "--idempotency-key", "one", "--name", "web-1", ECOMPUTE_FAILPOINT=failpoint)
    assert done.returncode == -signal.SIGKILL
    before = store.get(keys.idempotency("system", "one"), IdempotencyKey)
    audit = Audit(store, cloud.placement, list, clock)
    for seconds in (0, GRACE_S + 1):
        clock.now_s += seconds
        audit.run(is_full=False)
    done = tool("launch", query, "--idempotency-key", "one", "--name", "web-1", "-o", "json")
    assert done.returncode == 0, done.stderr
    (instance,) = (item.value for item in store.list(keys.INSTANCES, Instance).items)
    assert host.claims().keys() == {instance.uuid}
    if failpoint == "claim.requested":
        assert before is not None
        assert instance.uuid == before.value.uuid
        assert "was launched before" in done.stderr
    elif before is not None:
        spent = used(store, before.value.uuid)
        assert instance.uuid != before.value.uuid
        assert spent is not None
        assert (spent.is_spent, spent.is_launched) == (True, False)
    assert store.keys(keys.INTENTS)[0] == []


def test_a_launch_that_is_under_way_is_waited_for(
    make_cloud: Callable[[], Cloud], make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    make_host()
    request = make_request(uuid=chosen)
    found: list[Launched] = []
    pool = ThreadPoolExecutor(1)
    other = Launcher(make_cloud())
    waiting: list[Any] = []

    def step(text: str) -> None:
        if text.startswith("telling") and not waiting:
            waiting.append(pool.submit(lambda: found.append(other.launch(request))))

    launched = Launcher(make_cloud(), on_step=step).launch(request)
    waiting[0].result(timeout=30)
    pool.shutdown()
    assert (found[0].uuid, found[0].is_repeated) == (launched.uuid, True)


def test_a_claim_that_somebody_else_has_under_the_uuid_is_left_to_the_audit(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    """etcd was emptied, and a client repeats the launch of a guest that runs."""
    host = make_host()
    rows = {host.provider: {"VCPU": 2, "MEMORY_MB": 64, "DISK_GB": 1}}
    cloud.placement.claim(chosen, rows, project_id="system", user_id="me")
    with pytest.raises(Conflict, match="already holds another allocation"):
        Launcher(cloud).launch(make_request(uuid=chosen))
    assert host.claims() == {chosen: rows[host.provider]}


def test_the_claim_of_a_guest_that_etcd_has_forgotten_is_never_given_back_for_a_repeated_launch(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    """etcd was emptied, the launch is repeated as it was, and its host notices and goes on hold meanwhile."""
    host = make_host()
    request = make_request(uuid=chosen)
    Launcher(cloud).launch(request)
    held = host.claims()
    store.commit([], [DeletePrefix(prefix) for prefix in (keys.INSTANCES, keys.HOSTS, keys.UUIDS, keys.NAMES)])

    def step(text: str) -> None:
        if text.startswith("telling"):
            host.node(hold="etcd was put back")

    with pytest.raises(Conflict, match="whether it was asked before is not known"):
        Launcher(cloud, on_step=step).launch(request)
    assert host.claims() == held
    assert store.count(keys.intent(chosen)), "it is the audit's"


def test_a_claim_that_another_tool_has_under_the_uuid_is_left_and_the_launch_given_up_at_once(
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
    chosen: str,
) -> None:
    host = make_host()
    rows = {host.provider: {"VCPU": 2, "MEMORY_MB": 64, "DISK_GB": 1}}
    foreign = ClaimRequest(chosen, rows, project_id="p", user_id="u", consumer_type="INSTANCE")
    cloud.placement.claim_many([foreign])
    with pytest.raises(ForeignConsumer, match="of type INSTANCE, which is not ours; choose another uuid"):
        Launcher(cloud).launch(make_request(uuid=chosen))
    assert all_keys() == set()
    held = cloud.placement.allocations(chosen)
    assert (held.allocations, held.consumer_type) == (rows, "INSTANCE")
    nothing = {
        "allocations": {},
        "project_id": held.project_id,
        "user_id": held.user_id,
        "consumer_type": held.consumer_type,
        "consumer_generation": held.generation,
    }
    cloud.placement._transport.ask("PUT", f"/allocations/{chosen}", document=nothing)


# --- a launch that died, and who repeats it ---


@pytest.mark.parametrize("failpoint", ["claim.intended", "claim.claimed"])
def test_a_launch_that_was_killed_is_taken_over_by_who_repeats_it_with_its_key(
    failpoint: str,
    tool: Any,
    query: str,
    store: Store,
    cloud: Cloud,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(once, "WAIT_S", 0.5)
    host = make_host()
    asked = ("launch", query, "--idempotency-key", "one", "--name", "web-1")
    assert tool(*asked, ECOMPUTE_FAILPOINT=failpoint).returncode == -signal.SIGKILL
    before = store.get(keys.idempotency("system", "one"), IdempotencyKey)
    assert before is not None
    said: list[str] = []
    launched = Launcher(cloud, on_step=said.append).launch(make_request(idempotency_key="one", name="web-1"))
    assert "the same launch has shown no sign of life, and is given up" in said
    assert launched.uuid != before.value.uuid
    assert host.claims().keys() == {launched.uuid}
    assert store.keys(keys.INTENTS)[0] == []
    spent = used(store, before.value.uuid)
    assert spent is not None
    assert (spent.is_spent, spent.is_launched) == (True, False)


def test_a_launch_that_was_taken_over_while_it_slept_is_refused(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()

    def sleep(text: str) -> None:
        if text.startswith("telling"):
            (key,) = store.keys(keys.INTENTS)[0]
            intent = store.get(key, Intent)
            assert intent is not None
            take_over(cloud, intent.value.consumer, intent.mod_revision)

    with pytest.raises(Conflict, match="this launch took too long and was given up for dead"):
        Launcher(cloud, on_step=sleep).launch(make_request(idempotency_key="one"))
    assert host.claims() == {}
    assert store.keys(keys.INSTANCES)[0] == []


@pytest.mark.parametrize("by", ["uuid", "key"])
def test_a_launch_that_shows_signs_of_life_is_waited_for_and_not_taken_over(
    by: str, store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any], chosen: str
) -> None:
    make_host()
    request = check(make_request(**({"uuid": chosen} if by == "uuid" else {"idempotency_key": "one"})))
    clock_s = [0.0]
    taken: list[tuple[str, int]] = []
    waiting = Once(
        store,
        rng=random.Random(1),
        now=lambda: 0.0,
        take_over=lambda *what: taken.append(what),
        clock=lambda: clock_s[0],
    )
    begun = waiting.look(request)
    assert isinstance(begun, Chosen)
    claim = Claims(store, cloud.placement, writer="a test", clock=lambda: clock_s[0]).begin(
        begun.used.uuid, namespace="system", chosen=begun
    )

    def live(text: str) -> None:
        clock_s[0] += 20
        claim.refresh()

    with pytest.raises(Conflict, match="has been under way for 100 s; repeat it in two minutes"):
        waiting.look(request, live)
    assert taken == []
    claim.give_up()
