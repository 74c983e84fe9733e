"""Claims against a real placement."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ecompute.cluster.errors import ClaimRefused, Conflict, InvalidInput, Refused
from ecompute.cluster.placement import Candidate, Inventory, Placement
from ecompute.dev.placement import PlacementProcess

MakeProvider = Callable[..., str]


def new_uuid() -> str:
    return str(uuid.uuid4())


def candidate_on(client: Placement, provider: str, resources: str) -> Candidate:
    (candidate,) = client.candidates(f"resources={resources}&in_tree={provider}", limit=5)
    return candidate


def claim(client: Placement, consumer: str, candidate: Candidate) -> None:
    client.claim(consumer, candidate.allocations, candidate.mappings, project_id="system", user_id="tester")


def test_a_claim_is_held_as_it_was_asked_for(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=4, MEMORY_MB=1024, DISK_GB=10)
    candidate = candidate_on(client, host, "VCPU:1,MEMORY_MB:256,DISK_GB:2")
    assert candidate.host == host
    consumer = new_uuid()
    claim(client, consumer, candidate)
    held = client.allocations(consumer)
    assert held.allocations == {host: {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 2}}
    assert (held.project_id, held.user_id, held.consumer_type) == ("system", "tester", "ECOMPUTE_INSTANCE")
    assert client.usages(host) == {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 2}
    assert client.provider_allocations(host) == {consumer: held.allocations[host]}


def test_release_gives_everything_back_and_is_idempotent(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    claim(client, consumer, candidate_on(client, host, "VCPU:1"))
    assert client.release(consumer) is True
    assert client.release(consumer) is False
    assert not client.allocations(consumer)
    assert client.allocations(consumer).generation is None
    assert client.usages(host) == {"VCPU": 0}


def test_nothing_is_released_against_the_guard(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    claim(client, consumer, candidate_on(client, host, "VCPU:1"))

    def refuse() -> None:
        raise Conflict("too late")

    with pytest.raises(Conflict, match="too late"):
        client.release(consumer, refuse)
    assert client.allocations(consumer)
    assert client.release(consumer)
    assert client.release(consumer, refuse) is False, "and nothing is nothing to guard"


def test_release_of_an_unknown_consumer_does_nothing(client: Placement) -> None:
    assert client.release(new_uuid()) is False


def test_a_consumer_that_is_not_ours_is_not_released(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    foreign = {"project_id": "p", "user_id": "u", "consumer_type": "INSTANCE"}
    client.claim(consumer, {host: {"VCPU": 1}}, **foreign)
    with pytest.raises(Refused, match="not ours"):
        client.release(consumer)
    assert client.allocations(consumer)
    assert client._transport.ask("DELETE", f"/allocations/{consumer}").status == 204


def test_the_same_claim_twice_is_one_claim(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    consumer = new_uuid()
    candidate = candidate_on(client, host, "VCPU:1")
    claim(client, consumer, candidate)
    claim(client, consumer, candidate)
    assert client.usages(host) == {"VCPU": 1}


def test_a_consumer_that_holds_something_else_is_not_overwritten(
    client: Placement, make_provider: MakeProvider
) -> None:
    first, second = make_provider(VCPU=1), make_provider(VCPU=1)
    consumer = new_uuid()
    claim(client, consumer, candidate_on(client, first, "VCPU:1"))
    with pytest.raises(Conflict, match="already holds"):
        claim(client, consumer, candidate_on(client, second, "VCPU:1"))
    assert client.allocations(consumer).allocations == {first: {"VCPU": 1}}


def test_a_full_host_refuses_for_itself(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    candidate = candidate_on(client, host, "VCPU:1")
    claim(client, new_uuid(), candidate)
    with pytest.raises(ClaimRefused) as caught:
        claim(client, new_uuid(), candidate)
    assert caught.value.scope == "host"
    assert "VCPU" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spent_quota_refuses_for_every_host(client: Placement, make_provider: MakeProvider) -> None:
    host, quota = make_provider(VCPU=8), make_provider(CUSTOM_QUOTA_VCPU=2)
    candidate = candidate_on(client, host, "VCPU:2")
    allocations = {**candidate.allocations, quota: {"CUSTOM_QUOTA_VCPU": 2}}
    client.claim(new_uuid(), allocations, candidate.mappings, project_id="system", user_id="tester")
    stop = frozenset({quota})
    with pytest.raises(ClaimRefused) as caught:
        client.claim(new_uuid(), allocations, candidate.mappings, project_id="system", user_id="tester", stop=stop)
    assert caught.value.scope == "quota"
    assert caught.value.providers == {quota}
    assert client.usages(host) == {"VCPU": 2}


def test_a_full_host_beside_a_free_quota_refuses_for_itself(client: Placement, make_provider: MakeProvider) -> None:
    host, quota = make_provider(VCPU=2), make_provider(CUSTOM_QUOTA_VCPU=20)
    candidate = candidate_on(client, host, "VCPU:2")
    allocations = {**candidate.allocations, quota: {"CUSTOM_QUOTA_VCPU": 2}}
    client.claim(new_uuid(), allocations, candidate.mappings, project_id="system", user_id="tester")
    stop = frozenset({quota})
    with pytest.raises(ClaimRefused) as caught:
        client.claim(new_uuid(), allocations, candidate.mappings, project_id="system", user_id="tester", stop=stop)
    assert caught.value.scope == "host"
    assert caught.value.providers == {host}
    assert client.usages(quota) == {"CUSTOM_QUOTA_VCPU": 2}


def test_a_host_that_is_gone_refuses_for_itself(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    candidate = candidate_on(client, host, "VCPU:1")
    client.delete_provider(host)
    with pytest.raises(ClaimRefused) as caught:
        claim(client, new_uuid(), candidate)
    assert caught.value.scope == "host"


def test_a_host_that_reserves_all_refuses_a_claim_from_an_old_answer(
    client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=4)
    candidate = candidate_on(client, host, "VCPU:1")
    client.set_inventories(host, {"VCPU": Inventory(total=4, reserved=4)})
    with pytest.raises(ClaimRefused) as caught:
        claim(client, new_uuid(), candidate)
    assert caught.value.scope == "host"
    assert list(client.candidates(f"resources=VCPU:1&in_tree={host}", limit=5)) == []


def test_a_class_that_does_not_exist_is_bad_input(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=1)
    with pytest.raises(InvalidInput, match="NO_SUCH"):
        client.claim(new_uuid(), {host: {"NO_SUCH": 1}}, {}, project_id="system", user_id="tester")


def test_sixteen_at_once_for_the_last_slot_give_it_to_exactly_one(
    placement: PlacementProcess, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=1)
    candidate = candidate_on(client, host, "VCPU:1")
    consumers = [new_uuid() for _ in range(16)]

    def try_to_claim(consumer: str) -> str | None:
        try:
            claim(client, consumer, candidate)
        except ClaimRefused as error:
            assert error.scope == "host"
            return None
        return consumer

    with ThreadPoolExecutor(16) as pool:
        taken = [consumer for consumer in pool.map(try_to_claim, consumers) if consumer is not None]
    assert len(taken) == 1
    assert client.provider_allocations(host) == {taken[0]: {"VCPU": 1}}


def test_sixteen_at_once_for_sixteen_slots_all_get_one(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=16)
    candidate = candidate_on(client, host, "VCPU:1")
    consumers = [new_uuid() for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda consumer: claim(client, consumer, candidate), consumers))
    assert client.provider_allocations(host) == {consumer: {"VCPU": 1} for consumer in consumers}


def test_a_consumer_left_half_made_by_a_killed_placement_can_be_claimed(
    placement: PlacementProcess, client: Placement, make_provider: MakeProvider
) -> None:
    host = make_provider(VCPU=2)
    candidate = candidate_on(client, host, "VCPU:1")
    claim(client, new_uuid(), candidate)  # so that the project and the user exist
    consumer = new_uuid()
    with sqlite3.connect(placement.directory / "placement.sqlite") as database:
        database.execute(
            "INSERT INTO consumers (uuid, project_id, user_id, generation, consumer_type_id)"
            " SELECT ?, project_id, user_id, 0, consumer_type_id FROM consumers LIMIT 1",
            (consumer,),
        )
    database.close()
    assert not client.allocations(consumer)
    claim(client, consumer, candidate)
    assert client.allocations(consumer).allocations == {host: {"VCPU": 1}}


def test_the_user_s_limit_counts_when_it_is_the_smaller(client: Placement, make_provider: MakeProvider) -> None:
    for _ in range(3):
        make_provider(CUSTOM_FEW=1)
    assert len(client.candidates("resources=CUSTOM_FEW:1", limit=10)) == 3
    assert len(client.candidates("resources=CUSTOM_FEW:1&limit=2", limit=10)) == 2
    assert len(client.candidates("resources=CUSTOM_FEW:1&limit=10", limit=1)) == 1


def test_granular_groups_say_which_provider_serves_them(client: Placement, make_provider: MakeProvider) -> None:
    host = make_provider(VCPU=4, DISK_GB=10)
    query = f"resources_A=VCPU:1&resources_B=DISK_GB:1&group_policy=none&in_tree_A={host}&in_tree_B={host}"
    (candidate,) = client.candidates(query, limit=5)
    assert candidate.mappings == {"_A": [host], "_B": [host]}
    claim(client, new_uuid(), candidate)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("resources=NO_SUCH_CLASS:1", "NO_SUCH_CLASS"),
        ("resources=VCPU:1&required=NO_SUCH_TRAIT", "NO_SUCH_TRAIT"),
        ("resources=VCPU:1&required=HW_CPU_X86_AVX,!HW_CPU_X86_AVX", "HW_CPU_X86_AVX"),
    ],
)
def test_what_placement_refuses_is_told_in_its_words_on_one_line(client: Placement, query: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.candidates(query, limit=5)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
