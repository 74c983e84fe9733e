"""The progress line."""

from __future__ import annotations

import io
import os
import pty

from eschedule.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(written: str) -> str:
    """Return what a terminal shows of one line that was written with carriage returns."""
    cells: list[str] = []
    at = 0
    for c in written:
        if c == "\r":
            at = 0
            continue
        cells[at : at + 1] = [c]
        at += 1
    return "".join(cells).rstrip()


def test_the_line_says_the_step_and_how_long_it_has_taken() -> None:
    terminal, now = Terminal(), [10.0]
    progress = Progress(terminal, clock=lambda: now[0])
    now[0] = 13.4
    progress.step("claiming room on host-1")
    assert on_screen(terminal.getvalue()) == "claiming room on host-1 (3 s)"


def test_a_shorter_step_leaves_nothing_of_the_longer_one() -> None:
    terminal = Terminal()
    progress = Progress(terminal, clock=lambda: 0)
    progress.step("a long step that is over")
    progress.step("short")
    assert on_screen(terminal.getvalue()) == "short (0 s)"


def test_the_line_is_gone_at_the_end() -> None:
    terminal = Terminal()
    with Progress(terminal, clock=lambda: 0) as progress:
        progress.step("working")
    assert on_screen(terminal.getvalue()) == ""


def test_nothing_is_written_where_there_is_no_terminal() -> None:
    file = io.StringIO()
    with Progress(file) as progress:
        progress.step("working")
    assert file.getvalue() == ""


def test_what_a_host_says_stays_one_line_and_within_the_width() -> None:
    terminal = Terminal()
    Progress(terminal, clock=lambda: 0).step("it is creating: \x1b[2J\n" + "x" * 500)
    written = terminal.getvalue().removeprefix("\r")
    assert written.isprintable()
    assert len(written) < 80
    assert written.endswith("… (0 s)")


def test_the_width_is_the_terminals() -> None:
    master, slave = pty.openpty()
    try:
        import termios

        termios.tcsetwinsize(slave, (24, 40))
        with os.fdopen(os.dup(slave), "w") as stream:
            Progress(stream, clock=lambda: 0).step("x" * 500)
        assert len(os.read(master, 4096).decode().strip("\r")) == 39
    finally:
        os.close(master)
        os.close(slave)


def test_a_terminal_that_has_gone_does_not_end_the_work() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with Progress(Gone()) as progress:
        progress.step("working")
        progress.step("still working")
