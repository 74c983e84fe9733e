"""Which queries can be meant, and what is said of those that cannot."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import MAX_INT, candidates_query

A = "3f1c5e0a-6a1e-4f0e-9b1d-0d6a5b0c1a2b"
B = "9b1d3f1c-6a1e-4f0e-9b1d-0d6a5b0c1a2b"


def test_the_old_grammar_s_query_is_understood() -> None:
    query = candidates_query("resources=VCPU:1,DISK_GB:1,MEMORY_MB:256")
    assert query.groups == {"": {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 256}}
    assert query.totals == {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 256}
    assert query.text == "resources=DISK_GB:1,MEMORY_MB:256,VCPU:1"
    assert query.limit is None


def test_groups_keep_their_amounts_apart_and_totals_add_them() -> None:
    query = candidates_query("resources=VCPU:1&resources_A=VCPU:2,DISK_GB:1&resources9=DISK_GB:4&group_policy=isolate")
    assert query.groups == {"": {"VCPU": 1}, "_A": {"VCPU": 2, "DISK_GB": 1}, "9": {"DISK_GB": 4}}
    assert query.totals == {"VCPU": 3, "DISK_GB": 5}


@pytest.mark.parametrize(
    "rest",
    [
        "required=HW_CPU_X86_AVX,!CUSTOM_OLD",
        "required=in:HW_CPU_X86_AVX,HW_CPU_X86_AVX2&required=!COMPUTE_STATUS_DISABLED",
        f"member_of={A}",
        f"member_of=!{A}",
        f"member_of=in:{A},{B}&member_of=!in:{A},{B}",
        f"in_tree={A}",
        "root_required=CUSTOM_A,!CUSTOM_B",
        "resources_N=SRIOV_NET_VF:1&required_N=CUSTOM_X",
        "resources_N=SRIOV_NET_VF:1&required_M=CUSTOM_X&same_subtree=_N,_M",
        "group_policy=none",
    ],
)
def test_what_placement_s_grammar_has_passes(rest: str) -> None:
    query = candidates_query(f"resources=VCPU:1&{rest}")
    assert set(query.text.split("&")) == {"resources=VCPU:1", *rest.split("&")}


def test_the_limit_is_taken_out() -> None:
    query = candidates_query("resources=VCPU:1&limit=7")
    assert query.limit == 7
    assert "limit" not in query.text


def test_order_does_not_matter() -> None:
    one = candidates_query("resources=VCPU:1,DISK_GB:2&required=A,B")
    assert one == candidates_query("required=A,B&resources=DISK_GB:2,VCPU:1")
    assert hash(one) == hash(candidates_query("required=A,B&resources=DISK_GB:2,VCPU:1"))


def test_percent_encoded_text_is_the_same_query() -> None:
    assert candidates_query("resources=VCPU%3A1%2CDISK_GB%3A1") == candidates_query("resources=VCPU:1,DISK_GB:1")


def test_uuids_may_be_written_in_capitals() -> None:
    assert candidates_query(f"resources=VCPU:1&in_tree={A.upper()}") == candidates_query(
        f"resources=VCPU:1&in_tree={A}"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("resources", "no '='"),
        ("resources=", "CLASS:AMOUNT"),
        ("resources=VCPU", "CLASS:AMOUNT"),
        ("resources=VCPU:1,", "CLASS:AMOUNT"),
        ("resources=VCPU:1:2", "not an amount of VCPU"),
        ("resources=VCPU:", "not an amount of VCPU"),
        ("resources=VCPU:0", "VCPU is zero"),
        ("resources=VCPU:00", "VCPU is zero"),
        ("resources=VCPU:-1", "not an amount"),
        ("resources=VCPU:+1", "not an amount"),
        ("resources=VCPU:1.5", "not an amount"),
        ("resources=VCPU:1e3", "not an amount"),
        ("resources=VCPU:1_0", "not an amount"),
        ("resources=VCPU: 1", "not an amount"),
        ("resources=VCPU:\uff11", "not an amount"),
        ("resources=VCPU:2147483648", "more VCPU than can be"),
        ("resources=VCPU:" + "9" * 3000, "more VCPU than can be"),
        ("resources=VCPU:1,VCPU:2", "given twice"),
        ("resources=VCPU:1&resources=DISK_GB:1", "given twice"),
        ("resources=VCPU:1&limit=1&limit=2", "given twice"),
        ("resources=vcpu:1", "did you mean VCPU?"),
        ("resources=MEMORY-MB:1", "did you mean MEMORY_MB?"),
        ("resources=Hauptspeicher:1", "capitals, digits"),
        ("resources=:1", "not the name of a resource class"),
        ("resouces=VCPU:1", "did you mean resources?"),
        ("colour=red", "not a parameter"),
        ("required=HW_CPU_X86_AVX", "asks for no resources"),
        ("resources=VCPU:1&required_A=CUSTOM_B", "no resources_A"),
        (f"resources=VCPU:1&member_of_A={A}", "no resources_A"),
        ("resources=VCPU:1&required=", "not the name of a trait"),
        ("resources=VCPU:1&required=avx", "not the name of a trait"),
        ("resources=VCPU:1&required=in:A,!B", "not the name of a trait"),
        ("resources=VCPU:1&root_required=in:A,B", "not the name of a trait"),
        ("resources=VCPU:1&member_of=zone", "not a uuid"),
        (f"resources=VCPU:1&member_of={A},{B}", "need 'in:'"),
        ("resources=VCPU:1&in_tree=host1", "not a uuid"),
        ("resources=VCPU:1&limit=0", "limit is zero"),
        ("resources=VCPU:1&limit=all", "not an amount of limit"),
        ("resources=VCPU:1&group_policy=any", "none or isolate"),
        ("resources_A=VCPU:1&resources_B=VCPU:1", "needs group_policy"),
        ("resources=VCPU:1&same_subtree=_Q", "same_subtree names group"),
        ("resources=VCPU:1\x00", "control character"),
        ("resources=VCPU:1%00", "control character"),
        ("resources=VCPU:1%0aX-Header: 1", "control character"),
        ("resources=VCPU:1%", "not well encoded"),
        ("resources=VCPU:%ff", "not well encoded"),
        ("resources=VCPU:1\udcff", "not well encoded"),
        ("resources=VCPU:1&&limit=1", "empty part"),
        ("resources=VCPU:1&required=" + "A" * 4000, "characters long"),
    ],
)
def test_what_cannot_be_meant_is_told_on_one_line_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        candidates_query(text)
    assert said in str(caught.value)
    assert caught.value.hint
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_the_largest_amount_passes() -> None:
    assert candidates_query(f"resources=VCPU:{MAX_INT}").totals == {"VCPU": MAX_INT}


classes = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,10}\Z")
resources = st.dictionaries(classes, st.integers(1, MAX_INT), min_size=1, max_size=4)


@given(st.dictionaries(st.from_regex(r"\A[a-zA-Z0-9_-]{0,6}\Z"), resources, min_size=1, max_size=4), st.randoms())
def test_a_query_written_again_is_the_same_query(groups: dict[str, dict[str, int]], chance: object) -> None:
    parts = [f"resources{s}=" + ",".join(f"{c}:{n}" for c, n in r.items()) for s, r in groups.items()]
    parts.append("group_policy=none")
    chance.shuffle(parts)  # type: ignore[attr-defined]
    query = candidates_query("&".join(parts))
    assert query.groups == groups
    assert candidates_query(query.text) == query
    assert candidates_query(quote(query.text, safe="&=")) == query


@given(st.text())
def test_any_text_is_a_query_or_bad_input(text: str) -> None:
    try:
        query = candidates_query(text)
    except InvalidInput as error:
        assert str(error).isprintable()
    else:
        assert candidates_query(query.text).groups == query.groups


@given(st.text(alphabet="VCPU:1,=&resourcequird_in!%0A-", max_size=60))
def test_text_near_a_query_is_a_query_or_bad_input(rest: str) -> None:
    try:
        query = candidates_query(f"resources=VCPU:1{rest}")
    except InvalidInput as error:
        assert str(error).isprintable()
    else:
        assert all(amount > 0 for amount in query.totals.values())
