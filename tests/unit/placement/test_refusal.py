"""Who refuses a claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.placement import Inventory
from ecompute.cluster.placement.refusal import Room, beside_the_host, scope_of


def room(total: int, used: int, name: str = "VCPU") -> Room:
    return Room(inventories={name: Inventory(total=total)}, usages={name: used})


CLAIM = {"host": {"VCPU": 1}, "quota": {"CUSTOM_QUOTA": 1}}
MAPPINGS = {"": ["host"]}
BESIDE = frozenset({"quota"})
FREE_QUOTA = room(9, 0, "CUSTOM_QUOTA")
SPENT_QUOTA = room(9, 9, "CUSTOM_QUOTA")


def test_what_the_candidate_does_not_name_is_beside_the_host() -> None:
    assert beside_the_host(CLAIM, MAPPINGS) == {"quota"}


def test_a_child_and_a_sharing_provider_are_not_beside_the_host() -> None:
    claim = {"host": {"VCPU": 1}, "numa": {"MEMORY_MB": 1}, "nfs": {"DISK_GB": 1}}
    assert beside_the_host(claim, {"": ["host", "nfs"], "_A": ["numa"]}) == frozenset()


def test_without_mappings_the_provider_of_vcpu_is_the_host() -> None:
    assert beside_the_host(CLAIM, {}) == {"quota"}
    assert beside_the_host({"host": {"VCPU": 1}}, {}) == frozenset()
    assert beside_the_host({"disk": {"DISK_GB": 1}}, {}) == frozenset()


def test_a_spent_quota_stops_whatever_the_host_says() -> None:
    assert scope_of(CLAIM, BESIDE, {"host": room(1, 0), "quota": SPENT_QUOTA}) == "quota"
    assert scope_of(CLAIM, BESIDE, {"host": room(1, 1), "quota": SPENT_QUOTA}) == "quota"


def test_a_full_host_sends_to_the_next_one() -> None:
    assert scope_of(CLAIM, BESIDE, {"host": room(1, 1), "quota": FREE_QUOTA}) == "host"


def test_when_nobody_refuses_any_more_it_may_be_sent_again() -> None:
    assert scope_of(CLAIM, BESIDE, {"host": room(1, 0), "quota": FREE_QUOTA}) is None


def test_a_provider_that_is_gone_refuses() -> None:
    assert scope_of(CLAIM, BESIDE, {"host": None, "quota": FREE_QUOTA}) == "host"
    assert scope_of(CLAIM, BESIDE, {"host": room(1, 0), "quota": None}) == "quota"


def test_a_class_that_the_provider_has_not_got_is_refused() -> None:
    assert scope_of({"host": {"VGPU": 1}}, frozenset(), {"host": room(1, 0)}) == "host"


def test_min_max_and_step_count() -> None:
    inventory = Inventory(total=100, min_unit=2, max_unit=10, step_size=2)
    assert inventory.takes(2, used=0)
    assert not inventory.takes(1, used=0)
    assert not inventory.takes(3, used=0)
    assert not inventory.takes(12, used=0)


def test_capacity_is_what_is_not_reserved_times_the_ratio() -> None:
    assert Inventory(total=10, reserved=2, allocation_ratio=1.5).capacity == 12
    assert Inventory(total=10, reserved=10).capacity == 0


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 4), st.integers(0, 4)), min_size=1),
    st.frozensets(st.sampled_from("abcdef")),
)
def test_somebody_refuses_exactly_when_somebody_has_no_room(
    found: dict[str, tuple[int, int]], beside: frozenset[str]
) -> None:
    claim = {provider: {"VCPU": 1} for provider in found}
    scope = scope_of(claim, beside, {provider: room(*numbers) for provider, numbers in found.items()})
    full = {provider for provider, (total, used) in found.items() if used + 1 > total}
    assert (scope is not None) == bool(full)
    assert (scope == "quota") == bool(full & beside)
