"""Limits as rows and totals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster import quotas
from ecompute.cluster.documents import Quota, QuotaPhase
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import MAX_INT

PROVIDER = "0f6e4a02-9d0c-4b57-8f6a-6c1d1a3d94b7"
TOTALS = {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 3}
ROWS = {
    "CUSTOM_QUOTA_VCPU": 2,
    "CUSTOM_QUOTA_MEMORY_MB": 512,
    "CUSTOM_QUOTA_DISK_GB": 3,
    "CUSTOM_QUOTA_INSTANCES": 1,
}


def quota(limits: dict[str, int], phase: QuotaPhase = QuotaPhase.HELD) -> Quota:
    return Quota(namespace="team-a", provider=PROVIDER, phase=phase, limits=limits)


def test_an_instance_is_counted_by_what_it_asks_for_and_as_one() -> None:
    assert quotas.rows(TOTALS) == ROWS
    assert quotas.rows({**TOTALS, "CUSTOM_FPGA": 4}) == ROWS


@given(st.dictionaries(st.sampled_from(sorted(quotas.CLASSES)), st.integers(0, MAX_INT)), st.integers(1, MAX_INT))
def test_just_what_is_within_the_limit_is_given(limits: dict[str, int], amount: int) -> None:
    given_ = quotas.inventories(quota(limits))
    assert given_.keys() == set(quotas.CLASSES.values())
    for name, ours in quotas.CLASSES.items():
        assert given_[ours].takes(amount, used=0) == (amount <= limits.get(name, MAX_INT))


@given(st.dictionaries(st.sampled_from(sorted(quotas.CLASSES)), st.integers(0, MAX_INT)))
def test_while_it_counts_nothing_is_refused(limits: dict[str, int]) -> None:
    for inventory in quotas.inventories(quota(limits, QuotaPhase.COUNTING)).values():
        assert inventory.takes(MAX_INT, used=0)


@pytest.mark.parametrize("namespace", ["system", "team-a", "a", "quota-x", "a-1234567"])
def test_the_namespace_is_read_from_the_provider_s_name(namespace: str) -> None:
    assert quotas.namespace_of(quotas.provider_name(namespace, PROVIDER)) == namespace


@pytest.mark.parametrize("name", ["host-1", "quota-", "quota-x", "quota--12345678", "node-quota-a-12345678"])
def test_the_name_of_another_thing_has_none(name: str) -> None:
    assert quotas.namespace_of(name) is None


@pytest.mark.parametrize("limit", [-1, 2**31])
def test_what_cannot_be_a_limit_is_refused_with_what_can(limit: int) -> None:
    with pytest.raises(InvalidInput, match="from 0 to 2147483647"):
        quotas.checked_limit("VCPU", limit)
