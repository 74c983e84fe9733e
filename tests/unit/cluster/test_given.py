"""What a provider's traits and aggregates become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.closing import DISABLED
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.given import Said, merge_aggregates, merge_traits, physical_of, physnet_trait
from ecompute.cluster.shards import aggregates_of, all_aggregates

OURS = ["HW_CPU_X86_AVX", "HW_CPU_X86_NEW", "CUSTOM_PHYSNET_LAN", "CUSTOM_VIRT_KVM", "CUSTOM_VIRT_QEMU"]
OTHERS = ["CUSTOM_RACK_1", "COMPUTE_STATUS_DISABLED", "MISC_SHARES_VIA_AGGREGATE"]
UUIDS = st.sampled_from([f"5a4cbd31-2cf8-4b7b-a1a9-00000000000{n}" for n in range(6)])
TRAITS = st.frozensets(st.sampled_from([*OURS, *OTHERS]))


@given(TRAITS, TRAITS, TRAITS, TRAITS, st.booleans())
def test_the_traits_of_others_stay_and_ours_are_what_was_given(
    found: frozenset[str], given_: frozenset[str], known: frozenset[str], former: frozenset[str], is_hidden: bool
) -> None:
    said = Said(former_traits=former)
    merged = merge_traits(found, given_, known, said=said, is_hidden=is_hidden)
    assert (DISABLED in merged) is is_hidden
    takeable = given_ & (known | {t for t in given_ if t.startswith("CUSTOM_")}) - {DISABLED}
    assert (merged - {DISABLED}) & frozenset(OTHERS) == ((found - former - {DISABLED}) | takeable) & frozenset(OTHERS)
    assert merged & frozenset(OURS) <= given_
    assert all(trait.startswith("CUSTOM_") or trait in known | {DISABLED} for trait in merged - found)
    assert merge_traits(merged, given_, known, said=said, is_hidden=is_hidden) == merged


@given(st.uuids().map(str), st.frozensets(UUIDS), st.frozensets(UUIDS), UUIDS | st.none())
def test_the_aggregates_of_others_stay_and_a_host_is_in_its_shards_and_one_zone(
    provider: str, found: frozenset[str], zones: frozenset[str], zone: str | None
) -> None:
    said = Said(zone=zone, zones=zones | ({zone} if zone else set()))
    moved_from = aggregates_of("00000000-0000-0000-0000-000000000000")
    merged = merge_aggregates(found | moved_from, provider, said)
    assert merged & all_aggregates() == aggregates_of(provider)
    assert merged & said.zones == ({zone} if zone else set())
    assert merged - all_aggregates() - said.zones == found - said.zones
    assert merge_aggregates(merged, provider, said) == merged


@given(st.frozensets(st.sampled_from([*OURS, "CUSTOM_SSD"])), st.booleans(), st.booleans())
def test_what_the_tool_writes_the_host_leaves_as_it_is(
    measured: frozenset[str], has_ssd: bool, is_hidden: bool
) -> None:
    before = merge_traits({"CUSTOM_RACK_1"}, measured, set(OURS), said=Said(), is_hidden=is_hidden)
    ssd = frozenset({"CUSTOM_SSD"})
    said = Said(traits=ssd) if has_ssd else Said(former_traits=ssd - measured)
    told = said.with_traits(before)
    assert merge_traits(told, measured, set(OURS), said=said, is_hidden=is_hidden) == told


@pytest.mark.parametrize(("name", "trait"), [("lan", "CUSTOM_PHYSNET_LAN"), ("rack-2", "CUSTOM_PHYSNET_RACK_2")])
def test_a_physical_network_has_one_trait_and_the_trait_one_name(name: str, trait: str) -> None:
    assert physnet_trait(name) == trait
    assert physical_of(trait) == name
    assert physical_of("HW_CPU_X86_AVX") is None


@pytest.mark.parametrize("name", ["", "LAN", "a_b", "a--b", "-a", "a-", "a b", "ä", "a" * 64, "a-" * 31 + "\n"])
def test_a_name_that_no_trait_can_say_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be the name of a physical network"):
        physnet_trait(name)
