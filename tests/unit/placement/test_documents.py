"""What is read out of placement's answers."""

from __future__ import annotations

import struct
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import Inventory, host_of
from ecompute.cluster.placement.documents import candidates_from, checked_uuid, consumer_allocations_from

ANSWER = b"""{
  "allocation_requests": [
    {"allocations": {"nfs": {"resources": {"DISK_GB": 1}}, "host": {"resources": {"VCPU": 1}}},
     "mappings": {"": ["host", "nfs"]}, "unknown": 1}],
  "provider_summaries": {
    "host": {"resources": {"VCPU": {"capacity": 4, "used": 1}}, "traits": ["HW_CPU_X86_AVX"],
             "parent_provider_uuid": null, "root_provider_uuid": "host"}}
}"""


def test_candidates_keep_placement_s_order_and_lose_one_layer() -> None:
    candidates = candidates_from(ANSWER)
    (candidate,) = candidates
    assert len(candidates) == 1
    assert candidate.allocations == {"nfs": {"DISK_GB": 1}, "host": {"VCPU": 1}}
    assert candidate.mappings == {"": ["host", "nfs"]}
    summary = candidates.summaries["host"]
    assert (summary.resources["VCPU"].capacity, summary.resources["VCPU"].used) == (4, 1)
    assert summary.traits == {"HW_CPU_X86_AVX"}


def test_the_host_is_who_serves_vcpu_not_who_comes_first() -> None:
    (candidate,) = candidates_from(ANSWER)
    assert candidate.host == "host"


def test_without_vcpu_there_is_no_host() -> None:
    with pytest.raises(InvalidInput, match="no provider serves VCPU"):
        host_of({"nfs": {"DISK_GB": 1}})


def test_with_vcpu_on_two_providers_there_is_no_one_host() -> None:
    with pytest.raises(InvalidInput, match="2 providers"):
        host_of({"a": {"VCPU": 1}, "b": {"VCPU": 1}})


def test_a_consumer_that_holds_nothing_is_false() -> None:
    nothing = consumer_allocations_from(b'{"allocations": {}}')
    assert not nothing
    assert nothing.generation is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"allocations": 3}', b"{}", b"\xff"])
def test_what_is_not_an_answer_is_not_taken_for_an_empty_one(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        consumer_allocations_from(body)


@given(st.floats(0.01, 100))
def test_a_ratio_stored_in_single_precision_is_the_same_ratio(ratio: float) -> None:
    (stored,) = struct.unpack("f", struct.pack("f", ratio))
    assert Inventory(total=1, allocation_ratio=ratio).is_same(Inventory(total=1, allocation_ratio=stored))
    assert not Inventory(total=1, allocation_ratio=ratio).is_same(Inventory(total=2, allocation_ratio=ratio))


def test_checking_a_query_loads_no_http_library() -> None:
    program = (
        "import sys; from ecompute.cluster.placement import candidates_query, host_of; "
        "candidates_query('resources=VCPU:1'); "
        "print(*sorted({'requests', 'urllib3', 'http.client', 'ssl'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("text", ["", "..", "../traits", "a" * 36, "3F1C5E0A-6A1E-4F0E-9B1D-0D6A5B0C1A2B", "x\n"])
def test_what_is_not_a_uuid_stands_in_no_url(text: str) -> None:
    with pytest.raises(InvalidInput, match="not a uuid"):
        checked_uuid(text)


def test_a_uuid_stays_as_it_is() -> None:
    assert checked_uuid("3f1c5e0a-6a1e-4f0e-9b1d-0d6a5b0c1a2b") == "3f1c5e0a-6a1e-4f0e-9b1d-0d6a5b0c1a2b"
