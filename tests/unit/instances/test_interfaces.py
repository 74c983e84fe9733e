"""Interfaces that a domain lacks, and those that it is not to have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.hypervisor.domain import FoundInterface, TapPlan
from ecompute.instances.interfaces import difference, lan_uuid
from ecompute.network.names import tap_name

UUID = "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0001"


def wanted(number: int, mac: int | None = None) -> TapPlan:
    return TapPlan(f"ect{number}", "ecb000001", f"02:00:00:00:00:{number if mac is None else mac:02x}", 1450)


def found(number: int) -> FoundInterface:
    return FoundInterface(f"02:00:00:00:00:{number:02x}", f"ect{number}", "ecb000001")


numbers = st.frozensets(st.integers(0, 5))


@given(numbers, numbers)
def test_what_is_attached_and_detached_leads_to_what_is_wanted(want: frozenset[int], have: frozenset[int]) -> None:
    differs = difference(UUID, [wanted(n) for n in want], [found(n) for n in have])
    left = {found(n) for n in have} - set(differs.surplus)
    assert {one.tap for one in left} | {one.tap for one in differs.missing} == {f"ect{n}" for n in want}
    assert {one.tap for one in differs.missing} == {f"ect{n}" for n in want - have}
    assert not differs.is_mac_taken


def test_an_interface_of_others_is_left() -> None:
    others = [FoundInterface("52:54:00:00:00:01", "vnet0", "virbr0"), FoundInterface("", "", "")]
    assert difference(UUID, [wanted(1)], [found(1), *others]).surplus == ()


def test_the_interface_on_the_hosts_own_bridge_comes_and_goes_with_the_definition() -> None:
    lan = FoundInterface("02:00:00:00:00:09", tap_name(lan_uuid(UUID, "br0")), "br0")
    assert difference(UUID, [], [lan]).surplus == ()
    moved = FoundInterface(lan.mac, lan.tap, "br1")
    assert difference(UUID, [], [moved]).surplus == (moved,)


def test_a_mac_that_the_domain_still_has_is_taken() -> None:
    assert difference(UUID, [wanted(2, mac=1)], [found(1)]).is_mac_taken
    assert not difference(UUID, [wanted(2), wanted(3, mac=1)], [found(2), found(4)]).is_mac_taken
