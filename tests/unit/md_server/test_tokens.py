"""Tokens of sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from md_server import tokens

KEY = b"k" * 32


def test_a_token_is_its_guests_until_it_ends() -> None:
    token = tokens.issue(KEY, "a", ttl_s=60, now_s=40.9)
    assert tokens.is_valid(KEY, token, "a", now_s=99.9)
    assert not tokens.is_valid(KEY, token, "a", now_s=100.0)
    assert not tokens.is_valid(KEY, token, "b", now_s=41)
    assert not tokens.is_valid(b"l" * 32, token, "a", now_s=41)


def test_a_later_end_cannot_be_written_into_it() -> None:
    early, late = (tokens.issue(KEY, "a", ttl_s=ttl_s, now_s=0) for ttl_s in (60, 20000))
    assert not tokens.is_valid(KEY, late[:12] + early[12:], "a", now_s=0)


@given(st.text(max_size=80))
def test_anything_else_is_no_token(text: str) -> None:
    assert not tokens.is_valid(KEY, text, "a", now_s=0)


@pytest.mark.parametrize("place", range(0, 52, 3))
def test_no_letter_of_it_may_be_another(place: int) -> None:
    token = tokens.issue(KEY, "a", ttl_s=60, now_s=0)
    changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
    assert not tokens.is_valid(KEY, changed, "a", now_s=0)
