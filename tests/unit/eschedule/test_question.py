"""What is always added to a query, and what narrows it."""

from __future__ import annotations

import pytest

from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import CandidatesQuery, candidates_query
from eschedule.scheduler import asked as conditions
from eschedule.scheduler.question import (
    LIMIT,
    LIMIT_OF_GROUPS,
    aggregates_of,
    for_launch,
    host_group,
    in_shard,
    limit_of,
    on_host,
    requiring,
)

PLAIN = "resources=VCPU:1,MEMORY_MB:1,DISK_GB:1"
GROUPS = "resources_CPU=VCPU:1,MEMORY_MB:1&resources_DISK=DISK_GB:1&group_policy=none"
MIXED = "resources=DISK_GB:1&resources_CPU=VCPU:1,MEMORY_MB:1"
TWICE = "resources_A=VCPU:1&resources_B=VCPU:1,MEMORY_MB:1,DISK_GB:1&group_policy=none"
AGGREGATE = "11111111-1111-1111-1111-111111111111"


def asked(text: str) -> CandidatesQuery:
    return for_launch(candidates_query(text))


def values(query: CandidatesQuery, name: str) -> list[str]:
    return [value for found, value in query.parameters if found == name]


def test_disabled_hosts_are_excluded() -> None:
    assert values(asked(PLAIN), "required") == ["!COMPUTE_STATUS_DISABLED"]


def test_what_the_user_requires_is_required_besides() -> None:
    found = asked(f"{PLAIN}&required=HW_CPU_X86_AVX2,!CUSTOM_OLD&required=in:CUSTOM_A,CUSTOM_B")
    assert values(found, "required") == [
        "!COMPUTE_STATUS_DISABLED",
        "HW_CPU_X86_AVX2,!CUSTOM_OLD",
        "in:CUSTOM_A,CUSTOM_B",
    ]


@pytest.mark.parametrize("query", [GROUPS, MIXED, f"{GROUPS}&required_CPU=CUSTOM_A"])
def test_granular_groups_stay_as_they_were_written(query: str) -> None:
    before, after = candidates_query(query), asked(query)
    assert values(after, "root_required") == ["!COMPUTE_STATUS_DISABLED"]
    assert set(after.parameters) - set(before.parameters) == {("root_required", "!COMPUTE_STATUS_DISABLED")}
    assert after.groups == before.groups


def test_what_the_user_requires_of_the_root_is_kept() -> None:
    found = asked(f"{GROUPS}&root_required=CUSTOM_A,!CUSTOM_B")
    assert values(found, "root_required") == ["CUSTOM_A,!CUSTOM_B,!COMPUTE_STATUS_DISABLED"]


@pytest.mark.parametrize("said", [f"{PLAIN}&required=!COMPUTE_STATUS_DISABLED", f"{GROUPS}&root_required=!CUSTOM_A"])
def test_it_is_added_once(said: str) -> None:
    once = asked(said)
    assert for_launch(once) == once


@pytest.mark.parametrize("said", ["required=COMPUTE_STATUS_DISABLED", "root_required=COMPUTE_STATUS_DISABLED"])
def test_disabled_hosts_cannot_be_asked_for(said: str) -> None:
    with pytest.raises(InvalidInput, match="hosts that take nothing new; leave COMPUTE_STATUS_DISABLED out"):
        asked(f"{PLAIN}&{said}")


@pytest.mark.parametrize(("query", "group"), [(PLAIN, ""), (GROUPS, "_CPU"), (MIXED, "_CPU"), (TWICE, None)])
def test_the_group_that_serves_vcpu_is_the_host(query: str, group: str | None) -> None:
    assert host_group(candidates_query(query)) == group


@pytest.mark.parametrize(("query", "name"), [(PLAIN, "member_of"), (GROUPS, "member_of_CPU")])
def test_a_shard_narrows_the_group_of_the_host(query: str, name: str) -> None:
    narrowed = in_shard(asked(query), AGGREGATE)
    assert narrowed is not None
    assert values(narrowed, name) == [AGGREGATE]
    candidates_query(narrowed.text)


def test_the_users_own_aggregates_hold_besides_a_shard() -> None:
    own = "22222222-2222-2222-2222-222222222222"
    narrowed = in_shard(asked(f"{PLAIN}&member_of=in:{own},{AGGREGATE}&member_of=!{own}"), AGGREGATE)
    assert narrowed is not None
    assert sorted(values(narrowed, "member_of")) == sorted([AGGREGATE, f"in:{own},{AGGREGATE}", f"!{own}"])
    assert aggregates_of(narrowed) == [AGGREGATE, own, AGGREGATE]


@pytest.mark.parametrize("query", [TWICE, f"{PLAIN}&in_tree={AGGREGATE}"])
def test_what_cannot_be_narrowed_asks_no_shard(query: str) -> None:
    assert in_shard(asked(query), AGGREGATE) is None


def test_one_host_is_one_tree() -> None:
    narrowed = on_host(asked(GROUPS), AGGREGATE)
    assert narrowed is not None
    assert values(narrowed, "in_tree_CPU") == [AGGREGATE]
    assert on_host(asked(TWICE), AGGREGATE) is None


def test_a_host_and_a_tree_are_said_in_one_way() -> None:
    with pytest.raises(InvalidInput, match="one of the two ways"):
        on_host(asked(f"{PLAIN}&in_tree={AGGREGATE}"), AGGREGATE)


def test_more_is_asked_for_where_a_host_is_many_candidates() -> None:
    assert (limit_of(asked(PLAIN)), limit_of(asked(GROUPS))) == (LIMIT, LIMIT_OF_GROUPS)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("resources=VCPU:1", "required=CUSTOM_A&required=CUSTOM_B&resources=VCPU:1"),
        ("resources=VCPU:1&required=CUSTOM_A", "required=CUSTOM_A&required=CUSTOM_B&resources=VCPU:1"),
        ("resources=VCPU:1&limit=3", "required=CUSTOM_A&required=CUSTOM_B&resources=VCPU:1&limit=3"),
        ("resources_A=VCPU:1", "resources_A=VCPU:1&root_required=CUSTOM_A,CUSTOM_B"),
        (
            "resources_A=VCPU:1&root_required=!CUSTOM_X,CUSTOM_B",
            "resources_A=VCPU:1&root_required=!CUSTOM_X,CUSTOM_B,CUSTOM_A",
        ),
    ],
)
def test_what_networks_ask_of_a_host_stands_in_the_query(query: str, wanted: str) -> None:
    made = requiring(query, {"CUSTOM_B", "CUSTOM_A"})
    assert made == wanted
    assert {"CUSTOM_A", "CUSTOM_B"} <= conditions.asked(candidates_query(made)).traits
    assert requiring(made, {"CUSTOM_B", "CUSTOM_A"}) == made
    assert requiring(query, set()) == query
