"""Errors end as one line and an exit status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidConfig, InvalidInput, NotFound
from ecompute.cluster.terminal import DEBUG, guarded, printable, say, usage_error


def raises(error: BaseException) -> int:
    def command() -> int:
        raise error

    return guarded(command)


@pytest.mark.parametrize("status", [0, 1, 130])
def test_the_status_of_a_command_is_the_processs(status: int) -> None:
    assert guarded(lambda: status) == status


def test_a_command_that_returns_nothing_is_done() -> None:
    assert guarded(lambda: None) == 0


@pytest.mark.parametrize(("error", "status"), [(NotFound, 1), (InvalidInput, 2)])
def test_an_error_of_ours_is_its_text_and_its_hint(
    error: type[NotFound], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raises(error("no such\nthing \x1b[2J", hint="look again")) == status
    assert capsys.readouterr() == ("", "error: no such thing [2J; look again\n")


def test_a_bad_configuration_is_a_line_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert raises(InvalidConfig("a.yaml", ["line 1: one", "line 2: two\x1b"])) == 2
    assert capsys.readouterr().err == "error: a.yaml: line 1: one\nerror: a.yaml: line 2: two\n"


def test_what_nobody_foresaw_is_one_line_and_says_how_to_report_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEBUG, raising=False)
    assert raises(ZeroDivisionError("division by zero")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ZeroDivisionError, which nobody foresaw: division by zero; ")
    assert said.count("\n") == 1
    monkeypatch.setenv(DEBUG, "1")
    assert raises(ZeroDivisionError()) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert raises(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_an_exit_is_what_it_says() -> None:
    with pytest.raises(SystemExit) as raised:
        raises(SystemExit(141))
    assert raised.value.code == 141


def test_the_parsers_complaint_becomes_one_line() -> None:
    assert str(usage_error("No such option '--foo'.\n", "eschedule list ")) == (
        "no such option '--foo'; see `eschedule list --help`"
    )
    assert str(usage_error("", "eschedule")) == "; see `eschedule --help`"


@given(st.text())
def test_printable_is_printable_and_of_the_same_length(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)
    assert all(c.isprintable() or c == "\n" for c in printable(text, keep="\n"))


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb\x1b[2J\x9b")
    assert capsys.readouterr().err == "a b [2J\n"
