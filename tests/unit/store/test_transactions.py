"""What comparisons and operations become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import SCHEMA, Name
from ecompute.cluster.errors import InvalidInput, NewerSchema
from ecompute.cluster.store import (
    Delete,
    DeletePrefix,
    Put,
    Versioned,
    absent,
    absent_under,
    created_at,
    present,
    unchanged,
    unwritten_under,
)
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.transactions import (
    check_size,
    compare_message,
    operation_message,
    prefix_end,
    range_of,
)


@given(st.binary(min_size=1), st.binary())
def test_a_range_holds_exactly_the_keys_with_its_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    is_inside = key >= prefix and (end == b"\x00" or key < end)
    assert is_inside == key.startswith(prefix) or end == b"\x00"
    assert prefix + key >= prefix
    assert end == b"\x00" or prefix + key < end


def test_the_empty_prefix_is_every_key() -> None:
    assert range_of("") == (b"\x00", b"\x00")
    assert range_of("/a/") == (b"/a/", b"/a0")


@pytest.mark.parametrize(
    ("compare", "holds_for", "fails_for"),
    [
        (unchanged(Versioned("k", 0, 9, 5, 0)), (5, 9), (5, 10)),
        (absent("k"), (0, 0), (5, 9)),
        (present("k"), (5, 9), (0, 0)),
        (absent_under("k"), (0, 0), (5, 9)),
        (unwritten_under("k", 9), (5, 9), (5, 10)),
        (created_at("k", 5), (5, 9), (6, 9)),
    ],
)
def test_a_comparison_holds_for_what_it_says(compare, holds_for: tuple[int, int], fails_for: tuple[int, int]) -> None:
    assert compare.holds_for(*holds_for)
    assert not compare.holds_for(*fails_for)
    assert compare_message(compare).key == b"k"


def test_only_a_range_comparison_has_a_range() -> None:
    assert compare_message(absent_under("/a/")).range_end == b"/a0"
    assert compare_message(absent("/a/")).range_end == b""
    assert compare_message(present("/a")).result == rpc.Compare.GREATER
    assert compare_message(unwritten_under("/a/", 9)).result == rpc.Compare.LESS


def test_operations_become_the_requests_they_name() -> None:
    put = operation_message(Put("/a", Name(uuid="u", name="n"), lease=7)).request_put
    assert (put.key, put.lease) == (b"/a", 7)
    assert b'"uuid":"u"' in put.value
    assert operation_message(Delete("/a")).request_delete_range.range_end == b""
    assert operation_message(DeletePrefix("/a/")).request_delete_range.range_end == b"/a0"


def test_a_document_of_a_newer_schema_is_not_written() -> None:
    with pytest.raises(NewerSchema):
        operation_message(Put("/a", Name(schema=SCHEMA + 1, uuid="u", name="n")))


def test_the_limit_is_etcds() -> None:
    check_size([absent("/a")] * 128, [Delete("/a")] * 128)
    with pytest.raises(InvalidInput, match="129"):
        check_size([absent("/a")] * 129, [])
