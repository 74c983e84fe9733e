"""What follows from measured times; the measuring itself is among the functional tests."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ecompute.hypervisor.accelerator import BOOT_SECTOR, choose, remembered

SECONDS = st.floats(0.001, 100)


@given(tcg=SECONDS, kvm=SECONDS)
def test_kvm_is_taken_only_if_it_is_faster(tcg: float, kvm: float) -> None:
    assert choose({"tcg": tcg, "kvm": kvm}).accelerator == ("kvm" if kvm < tcg else "tcg")


@given(tcg=SECONDS)
def test_without_a_time_for_kvm_it_is_tcg_and_says_why(tcg: float) -> None:
    found = choose({"tcg": tcg}, "it aborts")
    assert found.accelerator == "tcg"
    assert "it aborts" in found.reason


def test_the_boot_sector_is_one() -> None:
    assert len(BOOT_SECTOR) == 512
    assert BOOT_SECTOR.endswith(b"\x55\xaa")


def test_a_configured_accelerator_is_taken_untried(tmp_path: Path) -> None:
    found = remembered(tmp_path / "accelerator.json", "kvm")
    assert (found.accelerator, found.reason) == ("kvm", "set in the configuration")
    assert not list(tmp_path.iterdir())
