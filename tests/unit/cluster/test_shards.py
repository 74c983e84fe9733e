"""Every host is in one shard of each level, and shards are about as large as they are meant to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.shards import (
    LEVELS,
    aggregate,
    aggregates_of,
    all_aggregates,
    level_for,
    shard_of,
    shards,
)

providers = st.uuids().map(str)


@given(providers)
def test_a_host_is_in_one_shard_of_each_level(provider: str) -> None:
    mine = aggregates_of(provider)
    assert len(mine) == len(LEVELS)
    for level in LEVELS:
        assert mine & set(shards(level)) == {aggregate(level, shard_of(provider, level))}
    assert mine <= all_aggregates()


@given(providers, st.sampled_from(list(LEVELS)[1:]))
def test_a_shard_lies_within_one_of_the_level_above(provider: str, level: int) -> None:
    assert shard_of(provider, level) % 2 ** (level - 1) == shard_of(provider, level - 1)


def test_no_two_shards_are_the_same_aggregate() -> None:
    assert len(all_aggregates()) == sum(2**level for level in LEVELS)


def test_a_shard_has_the_uuid_that_it_always_had() -> None:
    """Another would leave hosts of an older version in aggregates that nobody asks for."""
    assert aggregate(1, 0) == "54ef0fc1-6c4a-563c-a7ba-7665adb317a3"
    assert shard_of("00000000-0000-0000-0000-000000000001", 8) == 185


@given(st.integers(0, 100_000))
def test_shards_are_neither_large_nor_small(hosts: int) -> None:
    size = hosts / 2 ** level_for(hosts)
    assert size <= 36 or level_for(hosts) == LEVELS[-1]
    assert size >= 17 or level_for(hosts) == 0


@given(st.integers(0, 100_000))
def test_more_hosts_never_make_larger_shards_of_fewer(hosts: int) -> None:
    assert level_for(hosts) <= level_for(hosts + 1) <= level_for(hosts) + 1


@pytest.mark.parametrize(("hosts", "level"), [(0, 0), (10, 0), (35, 0), (36, 1), (100, 2), (1000, 5), (10**9, 8)])
def test_the_level_fits_the_number_of_hosts(hosts: int, level: int) -> None:
    assert level_for(hosts) == level


@pytest.mark.parametrize(
    "uuids",
    [
        [f"00000000-0000-0000-0000-{n:012x}" for n in range(1000)],
        [f"00000000-0000-0000-{n:04x}-000000000000" for n in range(1000)],
    ],
)
def test_uuids_that_are_alike_are_spread_all_the_same(uuids: list[str]) -> None:
    sizes = [0] * 8
    for provider in uuids:
        sizes[shard_of(provider, 3)] += 1
    assert min(sizes) >= 90 and max(sizes) <= 160


@pytest.mark.parametrize(("level", "number"), [(0, 0), (9, 0), (1, 2), (3, -1)])
def test_there_is_no_other_shard(level: int, number: int) -> None:
    with pytest.raises(ValueError, match="no shard"):
        aggregate(level, number)
