"""Claims of several consumers in one write, and changes of what one holds, against a real placement."""

from __future__ import annotations

import sqlite3
import threading
import uuid
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ecompute.cluster.errors import ClaimRefused, CloudError, Conflict, InvalidInput, PlacementUnavailable, Refused
from ecompute.cluster.placement import ClaimRequest, Inventory, Placement
from ecompute.dev.placement import PlacementProcess

MakeProvider = Callable[..., str]
WRITE_FAULTS = ["RESET_UNSENT", "RESET_UNANSWERED", "UNAVAILABLE", "UNAVAILABLE_DONE"]


def new_uuid() -> str:
    return str(uuid.uuid4())


def request(allocations: dict[str, dict[str, int]], consumer: str | None = None) -> ClaimRequest:
    return ClaimRequest(consumer or new_uuid(), allocations, project_id="system", user_id="tester")


def requests(count: int, *providers: str) -> list[ClaimRequest]:
    """One VCPU each, on ``providers`` in turn."""
    return [request({providers[n % len(providers)]: {"VCPU": 1}}) for n in range(count)]


def test_all_of_them_are_taken_in_one_write(client: Placement, make_provider: MakeProvider) -> None:
    first, second = make_provider(VCPU=4), make_provider(VCPU=4)
    wanted = requests(8, first, second)
    client.claim_many(wanted)
    assert client.usages(first) == client.usages(second) == {"VCPU": 4}
    for one in wanted:
        held = client.allocations(one.consumer)
        assert held.allocations == one.allocations
        assert (held.project_id, held.user_id, held.consumer_type) == ("system", "tester", "ECOMPUTE_INSTANCE")


def test_one_too_many_and_none_is_taken(client: Placement, make_provider: MakeProvider) -> None:
    roomy, tight = make_provider(VCPU=100), make_provider(VCPU=3)
    wanted = requests(8, roomy, tight)
    with pytest.raises(ClaimRefused) as caught:
        client.claim_many(wanted)
    assert caught.value.scope == "host"
    assert caught.value.providers == {tight}
    assert client.provider_allocations(roomy) == client.provider_allocations(tight) == {}


def test_a_quota_that_is_too_small_for_all_stops(client: Placement, make_provider: MakeProvider) -> None:
    host, quota = make_provider(VCPU=100), make_provider(CUSTOM_QUOTA_VCPU=3)
    wanted = [request({host: {"VCPU": 1}, quota: {"CUSTOM_QUOTA_VCPU": 1}}) for _ in range(4)]
    with pytest.raises(ClaimRefused) as caught:
        client.claim_many(wanted, stop={quota})
    assert caught.value.scope == "quota"
    assert caught.value.providers == {quota}
    client.claim_many(wanted[:3], stop={quota})
    assert client.usages(quota) == {"CUSTOM_QUOTA_VCPU": 3}


def test_a_host_that_is_gone_is_named(client: Placement, make_provider: MakeProvider) -> None:
    there, gone = make_provider(VCPU=9), make_provider(VCPU=9)
    client.delete_provider(gone)
    with pytest.raises(ClaimRefused) as caught:
        client.claim_many(requests(2, there, gone))
    assert caught.value.providers == {gone}
    assert client.provider_allocations(there) == {}


def test_the_same_again_is_one_claim(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=3)
    wanted = requests(3, host)
    client.claim_many(wanted)
    client.claim_many(wanted)
    assert client.usages(host) == {"VCPU": 3}


@pytest.mark.parametrize("holder", [0, 2])
def test_where_one_consumer_holds_something_nothing_is_written(
    client: Placement, make_provider: MakeProvider, holder: int
) -> None:
    host = make_provider(VCPU=9)
    wanted = requests(3, host)
    client.claim_many([wanted[holder]])
    with pytest.raises(Conflict, match=f"{wanted[holder].consumer} already holds"):
        client.claim_many(wanted)
    assert client.usages(host) == {"VCPU": 1}


@pytest.mark.parametrize("count", [0, 2])
def test_none_or_the_same_consumer_twice_is_bad_input(
    client: Placement, make_provider: MakeProvider, count: int
) -> None:
    host = make_provider(VCPU=9)
    with pytest.raises(InvalidInput, match="each once"):
        client.claim_many([request({host: {"VCPU": 1}}, "00000000-0000-4000-8000-000000000001")] * count)


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_common_claim_survives_one(
    fault: str, proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=5)
    left = [faults[fault]]
    proxy.fault = lambda method, path: left.pop() if method == "POST" and left else None
    wanted = requests(5, host)
    faulty.claim_many(wanted)
    assert client.provider_allocations(host) == {one.consumer: {"VCPU": 1} for one in wanted}


def test_one_request_in_three_fails_and_common_claims_are_taken_once_or_not_at_all(
    proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=20)
    kinds = [faults[name] for name in WRITE_FAULTS]
    lock, counts = threading.Lock(), Counter[tuple[str, str]]()

    def one_in_three(method: str, path: str) -> Any:
        with lock:
            counts[method, path] += 1
            n = counts[method, path] + zlib.crc32(f"{method} {path}".encode())
        return kinds[n // 3 % len(kinds)] if n % 3 == 0 else None

    proxy.fault = one_in_three
    gangs = [requests(4, host) for _ in range(6)]

    def take(gang: list[ClaimRequest]) -> CloudError | None:
        try:
            faulty.claim_many(gang)
        except CloudError as error:
            return error
        return None

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(take, gangs))
    held = client.provider_allocations(host)
    counts_held = [sum(one.consumer in held for one in gang) for gang in gangs]
    assert set(counts_held) <= {0, 4}
    assert sum(counts_held) == 20, "there is room for five of six"
    for result, count in zip(results, counts_held, strict=True):
        assert (count == 4) == (result is None)
        assert result is None or isinstance(result, ClaimRefused)


def test_without_any_answer_a_common_claim_says_that_its_outcome_is_not_known(
    proxy: Any, faults: Any, faulty: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=2)
    proxy.fault = lambda method, path: faults["UNAVAILABLE"]
    with pytest.raises(PlacementUnavailable, match="not known whether the claim of 2 consumers"):
        faulty.claim_many(requests(2, host))


def test_consumers_left_half_made_by_a_killed_placement_can_be_claimed(
    placement: PlacementProcess, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=9)
    client.claim_many(requests(1, host))  # so that the project and the user exist
    wanted = requests(3, host)
    with sqlite3.connect(placement.directory / "placement.sqlite") as database:
        for one in wanted[1:]:
            database.execute(
                "INSERT INTO consumers (uuid, project_id, user_id, generation, consumer_type_id)"
                " SELECT ?, project_id, user_id, 0, consumer_type_id FROM consumers LIMIT 1",
                (one.consumer,),
            )
    database.close()
    client.claim_many(wanted)
    assert client.usages(host) == {"VCPU": 4}


def test_eight_common_claims_at_once_never_take_more_than_there_is(
    client: Placement, make_provider: MakeProvider
) -> None:
    first, second = make_provider(VCPU=6), make_provider(VCPU=6)
    gangs = [requests(4, first, second) for _ in range(8)]

    def take(gang: list[ClaimRequest]) -> bool:
        try:
            client.claim_many(gang)
        except ClaimRefused as error:
            assert error.scope == "host"
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, gangs))
    assert sum(taken) == 3
    assert client.usages(first) == client.usages(second) == {"VCPU": 6}


# --- changing what one holds ---------------------------------------------------------------------


def claimed(client: Placement, allocations: dict[str, dict[str, int]]) -> str:
    one = request(allocations)
    client.claim_many([one])
    return one.consumer


def test_rows_are_added_to_what_a_consumer_holds(client: Placement, make_provider: MakeProvider) -> None:
    host, quota = make_provider(VCPU=2), make_provider(CUSTOM_QUOTA_VCPU=9)
    consumer = claimed(client, {host: {"VCPU": 2}})
    held = client.allocations(consumer)
    more = {**held.allocations, quota: {"CUSTOM_QUOTA_VCPU": 2}}
    client.replace(consumer, more, held)
    assert client.allocations(consumer).allocations == more
    assert client.usages(host) == {"VCPU": 2}


def test_a_consumer_that_was_changed_since_is_left_as_it_is(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=4)
    consumer = claimed(client, {host: {"VCPU": 1}})
    held = client.allocations(consumer)
    client.replace(consumer, {host: {"VCPU": 2}}, held)
    with pytest.raises(Conflict, match="changed by somebody else"):
        client.replace(consumer, {host: {"VCPU": 3}}, held)
    client.release(consumer)
    with pytest.raises(Conflict):
        client.replace(consumer, {host: {"VCPU": 3}}, held)
    assert not client.allocations(consumer)


def test_a_change_that_finds_no_room_leaves_what_was(client: Placement, make_provider: MakeProvider) -> None:
    host, quota = make_provider(VCPU=4), make_provider(CUSTOM_QUOTA_VCPU=3)
    consumer = claimed(client, {host: {"VCPU": 4}})
    held = client.allocations(consumer)
    with pytest.raises(ClaimRefused) as caught:
        client.replace(consumer, {**held.allocations, quota: {"CUSTOM_QUOTA_VCPU": 4}}, held, stop={quota})
    assert (caught.value.scope, caught.value.providers) == ("quota", {quota})
    assert client.allocations(consumer) == held


def test_what_a_consumer_holds_may_shrink_where_the_limit_is_below_its_use(
    client: Placement, make_provider: MakeProvider
) -> None:
    quota = make_provider(CUSTOM_QUOTA_VCPU=9)
    consumer = claimed(client, {quota: {"CUSTOM_QUOTA_VCPU": 8}})
    client.set_inventories(quota, {"CUSTOM_QUOTA_VCPU": Inventory(total=2)})
    client.replace(consumer, {quota: {"CUSTOM_QUOTA_VCPU": 5}}, client.allocations(consumer))
    assert client.usages(quota) == {"CUSTOM_QUOTA_VCPU": 5}


def test_what_is_not_ours_is_not_changed(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=2)
    consumer = new_uuid()
    client.claim(consumer, {host: {"VCPU": 1}}, project_id="p", user_id="u", consumer_type="INSTANCE")
    held = client.allocations(consumer)
    with pytest.raises(Refused, match="not ours"):
        client.replace(consumer, {host: {"VCPU": 2}}, held)
    assert client._transport.ask("DELETE", f"/allocations/{consumer}").status == 204


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_change_survives_one(
    fault: str, proxy: Any, faults: Any, faulty: Placement, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=5)
    consumer = claimed(client, {host: {"VCPU": 1}})
    held = client.allocations(consumer)
    left = [faults[fault]]
    proxy.fault = lambda method, path: left.pop() if method == "PUT" and left else None
    faulty.replace(consumer, {host: {"VCPU": 2}}, held)
    assert client.allocations(consumer).allocations == {host: {"VCPU": 2}}
