"""The host's identity: made once, kept whatever happens, and what of the provider is the daemon's."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.closing import DISABLED
from ecompute.cluster.config import Config
from ecompute.cluster.errors import StorageError
from ecompute.cluster.shards import aggregates_of, all_aggregates
from ecompute.registrar import IDENTITY_FILE, Said, identity, merge_aggregates, merge_traits

OURS = ["HW_CPU_X86_AVX", "HW_CPU_X86_NEW", "CUSTOM_VIRT_KVM", "CUSTOM_VIRT_QEMU"]
OTHERS = ["CUSTOM_RACK_1", "COMPUTE_STATUS_DISABLED", "MISC_SHARES_VIA_AGGREGATE"]
UUIDS = st.sampled_from([f"5a4cbd31-2cf8-4b7b-a1a9-00000000000{n}" for n in range(6)])
TRAITS = st.frozensets(st.sampled_from([*OURS, *OTHERS]))


def test_the_uuid_is_kept_across_restarts_without_being_told(tmp_path: Path) -> None:
    first = identity(Config(), tmp_path / "state")
    assert str(uuid.UUID(first)) == first
    assert identity(Config(), tmp_path / "state") == first
    assert [path.name for path in (tmp_path / "state").iterdir()] == [IDENTITY_FILE]


def test_the_configured_uuid_comes_first_and_leaves_the_file_alone(tmp_path: Path) -> None:
    kept = identity(Config(), tmp_path)
    told = "5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee"
    assert identity(Config(uuid=told), tmp_path) == told
    assert identity(Config(), tmp_path) == kept


def test_many_starts_at_once_agree_on_one_uuid(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(identity(Config(), tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [IDENTITY_FILE]


@pytest.mark.parametrize("content", [b"", b"none\n", b"\xff\xff", b"5a4cbd31-2cf8-4b7b-a1a9"])
def test_a_damaged_file_is_an_error_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    # A new uuid would orphan the provider, and with it every guest's allocation.
    (tmp_path / IDENTITY_FILE).write_bytes(content)
    with pytest.raises(StorageError, match="does not hold a uuid"):
        identity(Config(), tmp_path)
    assert (tmp_path / IDENTITY_FILE).read_bytes() == content


def test_a_state_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be kept"):
        identity(Config(), tmp_path / "file" / "state")


@given(TRAITS, TRAITS, TRAITS, TRAITS, st.booleans())
def test_the_traits_of_others_stay_and_ours_are_what_was_given(
    found: frozenset[str], given_: frozenset[str], known: frozenset[str], former: frozenset[str], is_hidden: bool
) -> None:
    merged = merge_traits(found, given_, known, former=former, is_hidden=is_hidden)
    assert (DISABLED in merged) is is_hidden
    takeable = given_ & (known | {t for t in given_ if t.startswith("CUSTOM_")}) - {DISABLED}
    assert (merged - {DISABLED}) & frozenset(OTHERS) == ((found - former - {DISABLED}) | takeable) & frozenset(OTHERS)
    assert merged & frozenset(OURS) <= given_
    assert all(trait.startswith("CUSTOM_") or trait in known | {DISABLED} for trait in merged - found)
    assert merge_traits(merged, given_, known, former=former, is_hidden=is_hidden) == merged


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
