"""A closed host gives nothing new, and what it has is as it was."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.closing import CLASSES, DISABLED, closed, closed_traits, said
from ecompute.cluster.documents import Admin, AdminState
from ecompute.cluster.placement import PRESENCE, Inventory


@st.composite
def _inventory(draw: st.DrawFn) -> Inventory:
    total = draw(st.integers(1, 2**31 - 1))
    return Inventory(total=total, reserved=draw(st.integers(0, total)), allocation_ratio=draw(st.floats(0.5, 16)))


names = st.sampled_from([*sorted(CLASSES), PRESENCE, "CUSTOM_GPU"])
inventories = st.dictionaries(names, _inventory())
traits = st.frozensets(st.sampled_from(["CUSTOM_A", "HW_CPU_X86_AVX", DISABLED]))


@given(inventories)
def test_nothing_that_guests_need_is_left_to_give(found: dict[str, Inventory]) -> None:
    for name in CLASSES & found.keys():
        assert closed(found)[name].capacity == 0


@given(inventories)
def test_all_but_the_reserve_stays(found: dict[str, Inventory]) -> None:
    after = closed(found)
    assert after.keys() == found.keys()
    for name, item in found.items():
        if name in CLASSES:
            item = msgspec.structs.replace(item, reserved=item.total)
        assert after[name] == item


@given(inventories, traits)
def test_closing_is_idempotent(found: dict[str, Inventory], has: frozenset[str]) -> None:
    assert closed(closed(found)) == closed(found)
    assert closed_traits(closed_traits(has)) == closed_traits(has) == has | {DISABLED}


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from([AdminState.ACTIVE, AdminState.DRAINING, AdminState.MAINTENANCE]),
        "lost_since": st.none() | st.just("2026-01-01T00:00:00.000Z"),
        "location": st.text(max_size=3),
    },
)


@given(st.lists(CHANGES))
def test_each_change_of_the_effective_state_is_a_turn_and_no_other_is(changes: list[dict[str, Any]]) -> None:
    admin, turns = Admin(), 0
    for change in changes:
        after = said(admin, **change)
        turns += after.effective is not admin.effective
        admin = after
        assert admin.turn == turns
