"""Who refuses a claim."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.placement import Inventory
from ecompute.cluster.placement.refusal import Room, Scope, ask_first, demand_of, refusing, scope_of


def room(total: int, used: int, name: str = "VCPU") -> Room:
    return Room(inventories={name: Inventory(total=total)}, usages={name: used})


CLAIM = {"host": {"VCPU": 1}, "quota": {"CUSTOM_QUOTA": 1}}
STOP = frozenset({"quota"})
FREE_QUOTA = room(9, 0, "CUSTOM_QUOTA")
SPENT_QUOTA = room(9, 9, "CUSTOM_QUOTA")


def scope(claim: dict[str, dict[str, int]], stop: frozenset[str], rooms: dict[str, Room | None]) -> Scope | None:
    return scope_of(refusing(demand_of([claim]), rooms), stop)


def test_a_spent_quota_stops_whatever_the_host_says() -> None:
    assert scope(CLAIM, STOP, {"host": room(1, 0), "quota": SPENT_QUOTA}) == "quota"
    assert scope(CLAIM, STOP, {"host": room(1, 1), "quota": SPENT_QUOTA}) == "quota"


def test_a_full_host_sends_to_the_next_one() -> None:
    assert scope(CLAIM, STOP, {"host": room(1, 1), "quota": FREE_QUOTA}) == "host"


def test_what_does_not_stop_sends_to_the_next_host_whoever_it_is() -> None:
    assert scope(CLAIM, frozenset(), {"host": room(1, 0), "quota": SPENT_QUOTA}) == "host"


def test_when_nobody_refuses_any_more_it_may_be_sent_again() -> None:
    assert scope(CLAIM, STOP, {"host": room(1, 0), "quota": FREE_QUOTA}) is None


def test_a_provider_that_is_gone_refuses() -> None:
    assert scope(CLAIM, STOP, {"host": None, "quota": FREE_QUOTA}) == "host"
    assert scope(CLAIM, STOP, {"host": room(1, 0), "quota": None}) == "quota"


def test_a_class_that_the_provider_has_not_got_is_refused() -> None:
    assert scope({"host": {"VGPU": 1}}, frozenset(), {"host": room(1, 0)}) == "host"


def test_several_claims_are_refused_by_whom_they_are_too_much_for_together() -> None:
    demand = demand_of([{"a": {"VCPU": 2}, "b": {"VCPU": 1}}, {"a": {"VCPU": 2}}])
    assert demand == {"a": {"VCPU": [2, 2]}, "b": {"VCPU": [1]}}
    assert refusing(demand, {"a": room(4, 0), "b": room(1, 0)}) == frozenset()
    assert refusing(demand, {"a": room(3, 0), "b": room(1, 0)}) == {"a"}


def test_a_unit_is_of_one_claim_and_not_of_the_sum() -> None:
    small = Room(inventories={"VCPU": Inventory(total=8, max_unit=2, step_size=2)}, usages={})
    assert small.takes({"VCPU": [2, 2, 2]})
    assert not small.takes({"VCPU": [4]})
    assert not small.takes({"VCPU": [1, 1]})


def test_who_is_named_and_who_stops_is_looked_at_first() -> None:
    demand = demand_of([{"a": {"VCPU": 1}, "b": {"VCPU": 1}, "c": {"VCPU": 1}}])
    assert ask_first(demand, frozenset(), "no room on provider b") == ["b", "a", "c"]
    assert ask_first(demand, frozenset({"c"}), "no room on provider b") == ["b", "c", "a"]


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
    found: dict[str, tuple[int, int]], stop: frozenset[str]
) -> None:
    claim = {provider: {"VCPU": 1} for provider in found}
    said = scope(claim, stop, {provider: room(*numbers) for provider, numbers in found.items()})
    full = {provider for provider, (total, used) in found.items() if used + 1 > total}
    assert (said is not None) == bool(full)
    assert (said == "quota") == bool(full & stop)
