"""When an instance is to end by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster import keys
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.documents import Instance, Resources, Role, Spec, State
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.expiring import LONGEST_S, expires_at, key_of, moment

NOW_S = 1_800_000_000.25


def instance(expires: str | None, **values: object) -> Instance:
    known: dict[str, object] = {
        "uuid": "u",
        "namespace": "system",
        "name": "web-1",
        "state": State.INITIAL,
        "provider": "p",
        "spec": Spec(resources=Resources(vcpus=1, memory_mb=1, disk_gb=1), image="/i"),
        "created_at": "",
        "expires_at": expires,
    }
    return Instance(**(known | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "after_s"), [("1s", 1), ("30m", 1800), ("2h", 7200), ("7d", 604800), ("1w", 604800), (" 2h ", 7200)]
)
def test_a_duration_counts_from_now(text: str, after_s: int) -> None:
    assert moment(text, NOW_S) == int(NOW_S + after_s)


@pytest.mark.parametrize(
    "text", ["2030-01-31T12:00:00Z", "2030-01-31T13:00:00+01:00", "2030-01-31T12:00Z", "2030-01-31 12:00:00Z"]
)
def test_a_time_is_that_time_wherever_it_was_written(text: str) -> None:
    assert moment(text, NOW_S) == 1_896_091_200


@pytest.mark.parametrize("text", ["0s", "2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z"])
def test_what_is_past_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(InvalidInput, match="not in the future; write a duration like"):
        moment(text, NOW_S)


@pytest.mark.parametrize(
    "text",
    ["", "2", "2 h", "-2h", "1.5h", "2y", "tomorrow", "2030-01-31", "2030-01-31T12:00:00", "9" * 400 + "h", "२h"],
)
def test_what_is_no_time_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(InvalidInput, match="write a duration like"):
        moment(text, NOW_S)


def test_a_thousand_years_are_not_meant() -> None:
    with pytest.raises(InvalidInput, match="more than a hundred years"):
        moment("365000d", NOW_S)


@given(st.text(max_size=40))
def test_whatever_is_written_is_a_time_to_come_or_refused(text: str) -> None:
    try:
        at_s = moment(text, NOW_S)
    except InvalidInput:
        return
    assert NOW_S - 1 < at_s <= NOW_S + LONGEST_S


@given(st.integers(0, int(NOW_S) + LONGEST_S))
def test_the_document_and_the_key_say_the_same_second(seconds: int) -> None:
    assert key_of(instance(expires_at(seconds))) == keys.expiry(seconds, "u")


def test_what_does_not_expire_has_no_key() -> None:
    assert key_of(instance(None)) is None
    assert key_of(instance("by hand: soon")) is None


@given(st.lists(st.integers(0, 10**11), min_size=2))
def test_keys_are_in_the_order_of_their_times(seconds: list[int]) -> None:
    assert sorted(seconds) == [int(keys.parts(key)[1]) for key in sorted(keys.expiry(s, "u") for s in seconds)]


@pytest.mark.parametrize("role", Role)
def test_an_assignment_says_what_its_instance_says(role: Role) -> None:
    wanted = instance(None, generation=3, epoch=2, gang="g")
    order = assignment_of(wanted, role)
    assert (order.role, order.generation, order.epoch, order.gang) == (role, 3, 2, "g")
    assert (order.uuid, order.namespace, order.name, order.spec) == ("u", "system", "web-1", wanted.spec)
