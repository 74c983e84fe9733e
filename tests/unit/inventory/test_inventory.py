"""What a host offers: measured, shared, reserved."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.closing import CLASSES
from ecompute.cluster.config import InventorySettings, RatioSettings, ReservedSettings
from ecompute.cluster.placement import MAX_INT, Inventory
from ecompute.inventory import Measured, inventory, measure, shortfalls

MACHINE = Measured(vcpus=8, memory_mb=16000, disk_gb=100)
AMOUNTS = st.integers(0, 10**6)
SHARES = st.none() | st.integers(1, 10**6)
RATIOS = st.floats(0.001, 1000)
SETTINGS = st.builds(
    InventorySettings,
    vcpus=SHARES,
    memory_mb=SHARES,
    disk_gb=SHARES,
    reserved=st.builds(ReservedSettings, vcpus=AMOUNTS, memory_mb=AMOUNTS, disk_gb=AMOUNTS),
    ratios=st.builds(RatioSettings, vcpus=RATIOS, memory=RATIOS, disk=RATIOS),
)
MEASURED = st.builds(Measured, vcpus=st.integers(1, 4096), memory_mb=AMOUNTS, disk_gb=AMOUNTS)


def test_a_host_offers_what_it_has_less_half_a_gigabyte() -> None:
    assert inventory(MACHINE, InventorySettings()) == {
        "VCPU": Inventory(total=8, max_unit=8),
        "MEMORY_MB": Inventory(total=16000, reserved=512, max_unit=16000),
        "DISK_GB": Inventory(total=100, max_unit=100),
    }


def test_shares_reserves_and_ratios_are_what_was_configured() -> None:
    settings = InventorySettings(
        vcpus=4,
        memory_mb=8000,
        disk_gb=50,
        reserved=ReservedSettings(vcpus=1, memory_mb=1000, disk_gb=5),
        ratios=RatioSettings(vcpus=4.0, memory=1.5, disk=2.0),
    )
    assert inventory(MACHINE, settings) == {
        "VCPU": Inventory(total=4, reserved=1, max_unit=4, allocation_ratio=4.0),
        "MEMORY_MB": Inventory(total=8000, reserved=1000, max_unit=8000, allocation_ratio=1.5),
        "DISK_GB": Inventory(total=50, reserved=5, max_unit=50, allocation_ratio=2.0),
    }
    assert shortfalls(MACHINE, settings) == []


def test_a_share_larger_than_the_machine_is_the_machine_and_says_so() -> None:
    settings = InventorySettings(vcpus=99)
    assert inventory(MACHINE, settings)["VCPU"].total == 8
    assert shortfalls(MACHINE, settings) == ["inventory.vcpus is 99, and the machine has 8: 8 is what is offered"]


def test_a_host_without_disk_offers_none_and_says_so() -> None:
    measured = Measured(vcpus=1, memory_mb=1024, disk_gb=0)
    assert inventory(measured, InventorySettings()).keys() == {"VCPU", "MEMORY_MB"}
    assert shortfalls(measured, InventorySettings()) == ["there is no DISK_GB to offer"]


def test_a_host_whose_memory_is_all_reserved_says_so() -> None:
    measured = Measured(vcpus=1, memory_mb=256, disk_gb=1)
    assert inventory(measured, InventorySettings())["MEMORY_MB"].capacity == 0
    assert shortfalls(measured, InventorySettings()) == [
        "inventory.reserved.memory_mb is 512 of 256: nothing is left for guests"
    ]


@given(MEASURED, SETTINGS)
def test_placement_takes_whatever_is_offered(measured: Measured, settings: InventorySettings) -> None:
    offered = inventory(measured, settings)
    assert offered.keys() <= CLASSES
    for item in offered.values():
        assert 0 <= item.reserved <= item.total
        assert 1 <= item.min_unit <= item.max_unit == item.total <= MAX_INT
        assert item.allocation_ratio > 0


def test_this_machine_has_something_of_everything(tmp_path: Path) -> None:
    measured = measure(tmp_path)
    assert measured.vcpus >= 1
    assert measured.memory_mb >= 256


def test_a_directory_that_is_not_made_yet_is_measured_by_its_parent(tmp_path: Path) -> None:
    assert measure(tmp_path / "not" / "made") == measure(tmp_path)


def test_measuring_twice_gives_the_same(tmp_path: Path) -> None:
    # What is written to placement only when it differs must not differ with every page that is used.
    before = measure(tmp_path)
    (tmp_path / "file").write_bytes(b"x" * (1 << 20))
    assert measure(tmp_path) == before


@pytest.mark.parametrize("path", ["/", "relative/and/absent"])
def test_every_directory_can_be_measured(path: str) -> None:
    assert measure(Path(path)).vcpus >= 1
