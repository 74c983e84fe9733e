"""What a duty does for many objects: what is wrong with one is not in the others' way."""

from __future__ import annotations

import pytest

from ecompute.cluster.errors import CloudError, Conflict, Unavailable
from ecompute.cluster.upkeep.duties import MAX_TOLD, EachAlone, NotLeading


def fail(error: CloudError) -> str:
    raise error


def test_what_is_wrong_with_one_is_logged_once_as_long_as_it_says_the_same(caplog: pytest.LogCaptureFixture) -> None:
    each = EachAlone()
    for error in ("a", "a", "b"):
        assert each("one could not be done", fail, Conflict(error)) is None
    assert each("two could not be done", str, 2) == "2"
    assert [record.getMessage() for record in caplog.records] == [
        "one could not be done: a",
        "one could not be done: b",
    ]
    assert each("one could not be done", str, 1) == "1"
    each("one could not be done", fail, Conflict("b"))
    assert len(caplog.records) == 3, "it was well in between"


@pytest.mark.parametrize("error", [NotLeading("it ended"), Unavailable("it does not answer")])
def test_what_concerns_all_passes(error: CloudError) -> None:
    with pytest.raises(type(error)):
        EachAlone()("one could not be done", fail, error)


def test_what_was_logged_is_not_remembered_without_end(caplog: pytest.LogCaptureFixture) -> None:
    each = EachAlone()
    for n in range(MAX_TOLD + 1):
        each(f"{n} could not be done", fail, Conflict("a"))
    each("0 could not be done", fail, Conflict("a"))
    assert len(caplog.records) == MAX_TOLD + 2
