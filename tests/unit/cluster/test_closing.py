"""A closed host gives nothing new, and what it has is as it was."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.closing import CLASSES, DISABLED, bar_of, closed, closed_traits, said
from ecompute.cluster.documents import Admin, AdminState, Node
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


def node(**values: Any) -> Node:
    return Node(
        provider="p",
        name="host",
        underlay="192.0.2.1",
        underlay_mtu=1500,
        accelerator="tcg",
        hypervisor="none",
        version="0",
        reported_at="",
        **values,
    )


@given(
    st.none() | st.builds(Admin, state=st.sampled_from(list(AdminState)[:3]), lost_since=st.none() | st.just("2026"))
)
def test_a_host_takes_something_new_if_it_is_active_or_nobody_says_anything_and_it_is_on_no_hold(
    admin: Admin | None,
) -> None:
    assert (bar_of(node(), admin) is None) == (admin is None or admin.effective is AdminState.ACTIVE)
    assert bar_of(node(hold="etcd was emptied"), admin) is not None
    assert bar_of(None, admin) is not None


def test_what_keeps_new_instances_off_a_host_is_said_in_a_word_and_in_words() -> None:
    held = bar_of(node(hold="etcd was emptied"), Admin(lost_since="2026"))
    assert held is not None
    assert (held.word, held.says) == ("hold", "is on hold: etcd was emptied")
    lost = bar_of(node(), Admin(state=AdminState.DRAINING, reason="a new disk", lost_since="2026"))
    assert lost is not None
    assert (lost.word, lost.says) == ("lost", "is lost since 2026: a new disk")
    drained = bar_of(node(), Admin(state=AdminState.DRAINING, reason="a new disk"))
    assert drained is not None
    assert (drained.word, drained.says) == ("draining", "is draining: a new disk")
    unknown = bar_of(None, None)
    assert unknown is not None
    assert unknown.says == "has never registered in etcd"
