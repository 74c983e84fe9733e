"""The table of CPU features against the lists of those who named them."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import os_traits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.hypervisor.features import ACCELERATORS, OLDER_NAMES, TRAITS, traits

LIBVIRT_FEATURES = Path("/usr/share/libvirt/cpu_map/x86_features.xml")


def test_each_trait_is_known_to_os_traits() -> None:
    known = set(os_traits.get_traits())
    assert {*TRAITS.values(), *OLDER_NAMES.values()} <= known


@pytest.mark.skipif(not LIBVIRT_FEATURES.exists(), reason="libvirt's list of CPU features is not on this machine")
def test_each_feature_is_known_to_libvirt() -> None:
    known = {feature.get("name") for feature in ET.parse(LIBVIRT_FEATURES).getroot().iter("feature")}
    assert set(TRAITS) <= known


def test_only_traits_of_whole_machines_have_no_feature() -> None:
    # Their support is more than a CPU feature (firmware, kernel), or nobody has it any more.
    without = {"AMD_SEV", "AMD_SEV_ES", "AMD_SEV_SNP", "INTEL_TDX", "ASF"}
    all_of_x86 = {trait for trait in os_traits.get_traits() if trait.startswith("HW_CPU_X86_")}
    ours = {*TRAITS.values(), *OLDER_NAMES.values()}
    assert all_of_x86 - ours <= {f"HW_CPU_X86_{name}" for name in without}


def test_features_become_traits_and_the_accelerator_one_of_ours() -> None:
    assert traits({"sse4.2", "fpu", "svm"}, "tcg") == {
        "HW_CPU_X86_SSE42",
        "HW_CPU_X86_AMD_SVM",
        "HW_CPU_X86_SVM",
        "CUSTOM_VIRT_QEMU",
    }
    assert traits((), "kvm") == {"CUSTOM_VIRT_KVM"}


@given(names=st.sets(st.sampled_from(sorted(TRAITS)) | st.text()), accelerator=st.sampled_from(sorted(ACCELERATORS)))
def test_more_features_never_mean_fewer_traits(names: set[str], accelerator: str) -> None:
    assert traits((), accelerator) <= traits(names, accelerator) <= traits(names | set(TRAITS), accelerator)
