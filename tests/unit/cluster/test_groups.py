"""Classes and providers of groups, and which of them nobody owns any more."""

from __future__ import annotations

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster import groups
from ecompute.cluster.documents import Group, Policy
from ecompute.cluster.upkeep.groups import Carrier, ownerless
from eschedule.scheduler.beside import Places

A, B = str(uuid4()), str(uuid4())
APART, TOGETHER = groups.class_of(A, Policy.ANTI_AFFINITY), groups.class_of(B, Policy.AFFINITY)


def group(uuid: str, policy: Policy, place: str | None = None) -> Group:
    resource_class = groups.class_of(uuid, policy)
    return Group(
        uuid=uuid,
        namespace="system",
        name="web",
        policy=policy,
        place=place,
        resource_class=resource_class,
        created_at="",
    )


def test_a_class_tells_its_group() -> None:
    assert (groups.group_of(APART), groups.group_of(TOGETHER)) == (A, B)
    assert not groups.is_together(APART)
    assert groups.is_together(TOGETHER)
    assert groups.class_of(A, Policy.SOFT_AFFINITY) == ""


def test_other_classes_are_no_group_s() -> None:
    assert groups.group_of("VCPU") is None
    assert groups.group_of("CUSTOM_AAG_MINE") is None


def test_apart_one_place_takes_one_and_together_it_takes_all() -> None:
    assert not groups.inventory_of(Policy.ANTI_AFFINITY).takes(1, used=1)
    assert groups.inventory_of(Policy.AFFINITY).takes(1, used=100_000)


def test_what_is_held_or_owned_is_left() -> None:
    carriers = {"p": Carrier("host", {APART: 1}), "q": Carrier("host-2", {APART: 0, "VCPU": 0})}
    assert ownerless(carriers, [A], {}) == {}
    assert ownerless(carriers, [], {}) == {"q": {APART}}


def test_a_class_at_another_place_than_the_group_s_goes() -> None:
    carriers = {"p": Carrier("host", {TOGETHER: 0}), "q": Carrier("host-2", {TOGETHER: 0})}
    assert ownerless(carriers, [B], {B: group(B, Policy.AFFINITY, "host-2")}) == {"p": {TOGETHER}}


PLACES = st.sampled_from("abcd")


@given(st.sampled_from(list(Policy)), st.dictionaries(PLACES, st.integers(1, 5)), PLACES)
def test_likes_are_bounded_and_only_the_soft_and_the_chosen_place_have_any(
    policy: Policy, counts: dict[str, int], place: str
) -> None:
    places = Places(group(A, policy, "a"), counts)
    liked = places.weight(place)
    assert -1 <= liked <= 1
    if policy is Policy.SOFT_AFFINITY:
        assert (liked > 0) == (place in counts)
    elif policy is Policy.SOFT_ANTI_AFFINITY:
        assert (liked < 0) == (place in counts)
    else:
        assert liked == (1 if policy is Policy.AFFINITY and place == "a" else 0)


@given(st.sampled_from(list(Policy)), st.dictionaries(PLACES, st.integers(1, 5)))
def test_only_hard_groups_exclude_anything(policy: Policy, counts: dict[str, int]) -> None:
    places = Places(group(A, policy, "a"), counts)
    assert places.taken == (set(counts) if policy is Policy.ANTI_AFFINITY else set())
    assert (places.chosen is not None) == (policy is Policy.AFFINITY and bool(counts))
