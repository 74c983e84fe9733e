"""The old grammar beside the new one: which command a first word means."""

from __future__ import annotations

import uuid

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidInput
from eschedule.cli import classic as old
from eschedule.cli.main import CLASSIC_LAUNCH, COMMANDS, classic, cli


def resolve(*args: str) -> click.Command | None:
    with click.Context(cli, info_name="eschedule") as context:
        return cli.resolve_command(context, list(args))[1]


@pytest.mark.parametrize(
    "query", ["a=b", "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256", "resources=VCPU:1&required=X", "="]
)
def test_what_has_an_equals_sign_is_a_query(query: str) -> None:
    assert classic(query) == CLASSIC_LAUNCH
    assert resolve(query) is old.launch
    assert resolve(query, "http://images.example/a.qcow2") is old.launch


def test_a_whole_uuid_asks_for_the_address() -> None:
    some = str(uuid.uuid4())
    assert resolve(some) is old.address
    assert resolve(some.upper()) is old.address


@pytest.mark.parametrize(
    "word", ["0d5e7c1a", "0d5e7c1a6f5b4c0e9d585b8f2d3f9c11", "{0d5e7c1a-6f5b-4c0e-9d58-5b8f2d3f9c11}"]
)
def test_other_ways_to_write_a_uuid_do_not(word: str) -> None:
    assert classic(word) is None


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_itself(name: str) -> None:
    assert classic(name) is None
    assert resolve(name) is not None


def test_destroy_is_one_command_for_both_grammars() -> None:
    assert resolve("destroy", str(uuid.uuid4())) is resolve("destroy", "web-1")


def test_everything_else_is_no_command_and_says_what_was_meant() -> None:
    with pytest.raises(InvalidInput, match=r"there is no command 'lst'; did you mean `eschedule list`\?"):
        resolve("lst")
    with pytest.raises(InvalidInput, match="there is no command 'web-1'; see `eschedule --help`"):
        resolve("web-1")


@given(st.text(min_size=1))
def test_any_first_word_means_one_thing_or_is_refused(word: str) -> None:
    if word.startswith("-"):
        return
    try:
        assert resolve(word) is not None
    except InvalidInput as error:
        assert "=" not in word
        assert str(error).isprintable()
