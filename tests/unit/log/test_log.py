"""The log: one line a record, times in UTC, and no secrets."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster import log
from ecompute.cluster.errors import StoreUnavailable

logger = logging.getLogger("ecompute.tests.log")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's, which `configure` would close
    out = io.StringIO()
    log.configure("info", out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)


def rendered(message: str, **facts: object) -> str:
    record = logging.LogRecord("ecompute.x", logging.INFO, "x.py", 1, message, None, None)
    record.created = 1769850914.1142
    vars(record).update(log.context(**facts))
    return log.LineFormatter().format(record)


def test_a_record_is_one_line_with_time_level_name_text_and_facts() -> None:
    line = rendered("built it", instance="0d5e", seconds=1.23456, note='said "hi"', empty="", none=None, n=3)
    assert line == (
        "2026-01-31T09:15:14.114Z info ecompute.x built it "
        'instance=0d5e seconds=1.235 note="said \\"hi\\"" empty="" n=3'
    )


def test_records_below_the_level_are_left_out(stream: io.StringIO) -> None:
    logger.debug("no")
    logger.info("yes %d", 1)
    logging.getLogger("urllib3.connectionpool").info("no")
    assert re.fullmatch(r"\S+Z info ecompute\.tests\.log yes 1\n", stream.getvalue())


def test_an_error_that_was_foreseen_says_what_it_was_and_its_cause(stream: io.StringIO) -> None:
    try:
        try:
            raise OSError("refused")
        except OSError as cause:
            raise StoreUnavailable("etcd does not answer", hint="start it") from cause
    except StoreUnavailable:
        logger.exception("cannot go on")
    assert stream.getvalue().endswith(
        'cannot go on error="StoreUnavailable: etcd does not answer; start it" cause="OSError: refused"\n'
    )


def test_an_error_that_nobody_foresaw_says_where_it_came_from_on_the_same_line(stream: io.StringIO) -> None:
    try:
        _ = {}["x"]  # type: ignore[var-annotated]
    except KeyError:
        logger.exception("failed")
    [line] = stream.getvalue().splitlines()
    assert "error=\"KeyError: 'x'\"" in line
    assert 'at="test_log.py:' in line


@pytest.mark.parametrize(
    "text",
    [
        "fetching http://me:hunter2@host/image",
        "fetching https://host/image?X-Signature=hunter2&a=b",
        "sent {'x-auth-token': 'hunter2'}",
        "sent Authorization: Bearer hunter2",
        "password=hunter2",
        "x" * 1990 + " http://me:hunter2hunter2hunter2@host/",
    ],
)
def test_secrets_in_a_text_are_replaced(text: str) -> None:
    assert "hunter2" not in rendered(text)
    assert "hunter2" not in rendered("text", error=text)


def test_facts_whose_name_is_a_secrets_are_replaced() -> None:
    line = rendered("x", user_data="hunter2", etcd_password="hunter2", token="hunter2", image="http://host/a?b=hunter2")
    assert "hunter2" not in line
    assert "image=http://host/a?***" in line


def test_ordinary_addresses_are_left_alone() -> None:
    text = "cannot reach http://10.0.0.1:8080/resource_providers since 12:00, 3 tokens left for a@b"
    assert rendered(text).endswith(text)


@given(st.text(), st.text())
def test_whatever_is_logged_is_one_line(message: str, value: str) -> None:
    assert rendered(message.replace("%", "%%"), value=value).isprintable()
