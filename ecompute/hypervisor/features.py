"""CPU features as traits: libvirt's names for them, and those of os-traits.

Pure. A table, because the two names were given by different people at different times; a test holds it
against the os-traits package and against libvirt's own list of features. What has no standard trait is
left out.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Iterable

TRAITS: dict[str, str] = {
    "3dnow": "HW_CPU_X86_3DNOW",
    "abm": "HW_CPU_X86_ABM",
    "aes": "HW_CPU_X86_AESNI",
    "amd-no-ssb": "HW_CPU_X86_AMD_NO_SSB",
    "amd-ssbd": "HW_CPU_X86_AMD_SSBD",
    "amx-bf16": "HW_CPU_X86_AMXBF16",
    "amx-int8": "HW_CPU_X86_AMXINT8",
    "amx-tile": "HW_CPU_X86_AMXTILE",
    "avx": "HW_CPU_X86_AVX",
    "avx2": "HW_CPU_X86_AVX2",
    "avx512-vpopcntdq": "HW_CPU_X86_AVX512VPOPCNTDQ",
    "avx512bitalg": "HW_CPU_X86_AVX512BITALG",
    "avx512bw": "HW_CPU_X86_AVX512BW",
    "avx512cd": "HW_CPU_X86_AVX512CD",
    "avx512dq": "HW_CPU_X86_AVX512DQ",
    "avx512er": "HW_CPU_X86_AVX512ER",
    "avx512f": "HW_CPU_X86_AVX512F",
    "avx512ifma": "HW_CPU_X86_AVX512IFMA",
    "avx512pf": "HW_CPU_X86_AVX512PF",
    "avx512vbmi": "HW_CPU_X86_AVX512VBMI",
    "avx512vbmi2": "HW_CPU_X86_AVX512VBMI2",
    "avx512vl": "HW_CPU_X86_AVX512VL",
    "avx512vnni": "HW_CPU_X86_AVX512VNNI",
    "bmi1": "HW_CPU_X86_BMI",
    "bmi2": "HW_CPU_X86_BMI2",
    "f16c": "HW_CPU_X86_F16C",
    "fma": "HW_CPU_X86_FMA3",
    "fma4": "HW_CPU_X86_FMA4",
    "gfni": "HW_CPU_X86_AVX512GFNI",
    "ibpb": "HW_CPU_X86_AMD_IBPB",
    "md-clear": "HW_CPU_X86_INTEL_MD_CLEAR",
    "mmx": "HW_CPU_X86_MMX",
    "mpx": "HW_CPU_X86_MPX",
    "pcid": "HW_CPU_X86_INTEL_PCID",
    "pclmuldq": "HW_CPU_X86_CLMUL",
    "pdpe1gb": "HW_CPU_X86_PDPE1GB",
    "pni": "HW_CPU_X86_SSE3",
    "rtm": "HW_CPU_X86_TSX",
    "sgx": "HW_CPU_X86_SGX",
    "sha-ni": "HW_CPU_X86_SHA",
    "spec-ctrl": "HW_CPU_X86_INTEL_SPEC_CTRL",
    "ssbd": "HW_CPU_X86_INTEL_SSBD",
    "sse": "HW_CPU_X86_SSE",
    "sse2": "HW_CPU_X86_SSE2",
    "sse4.1": "HW_CPU_X86_SSE41",
    "sse4.2": "HW_CPU_X86_SSE42",
    "sse4a": "HW_CPU_X86_SSE4A",
    "ssse3": "HW_CPU_X86_SSSE3",
    "stibp": "HW_CPU_X86_STIBP",
    "svm": "HW_CPU_X86_AMD_SVM",
    "tbm": "HW_CPU_X86_TBM",
    "vaes": "HW_CPU_X86_AVX512VAES",
    "virt-ssbd": "HW_CPU_X86_AMD_VIRT_SSBD",
    "vmx": "HW_CPU_X86_INTEL_VMX",
    "vpclmulqdq": "HW_CPU_X86_AVX512VPCLMULQDQ",
    "xop": "HW_CPU_X86_XOP",
}
"""By libvirt's name of a feature (its ``cpu_map``)."""

OLDER_NAMES = {"svm": "HW_CPU_X86_SVM", "vmx": "HW_CPU_X86_VMX"}
"""Traits that were renamed and that people still ask for."""

ACCELERATORS = {"kvm": "CUSTOM_VIRT_KVM", "tcg": "CUSTOM_VIRT_QEMU"}


def traits(cpu_features: Iterable[str], accelerator: str) -> frozenset[str]:
    """Return the traits of a host.

    Args:
        cpu_features: libvirt's names of the features that its guests get.
        accelerator: ``kvm`` or ``tcg``.
    """
    names = set(cpu_features)
    standard = {table[name] for table in (TRAITS, OLDER_NAMES) for name in names & table.keys()}
    return frozenset(standard | {ACCELERATORS[accelerator]})
