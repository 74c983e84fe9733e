"""What every command of ours owes a terminal: printable text, and an error as one line.

A person sees no traceback: `guarded` is the boundary at which errors end, and the only place that
turns them into text and an exit status.

====== ===========================================================
status meaning
====== ===========================================================
0      done
1      it failed; the line says what to do
2      what was asked cannot be meant
130    interrupted (128 + SIGINT)
141    whoever read the output has gone (128 + SIGPIPE)
====== ===========================================================

With ``ECOMPUTE_DEBUG`` set the traceback is shown as well.

Called on the main thread. Loads nothing heavy: ``--help`` passes through here.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ecompute.cluster.errors import CloudError, InvalidConfig, InvalidInput, one_line

INTERRUPTED = 130
OUTPUT_CLOSED = 141

DEBUG = "ECOMPUTE_DEBUG"


class OutputFailed(CloudError):
    """Standard output cannot be written."""

    code = "output.failed"


def printable(text: object, *, keep: str = "") -> str:
    """Return ``text`` with every character that could command a terminal replaced by U+FFFD.

    Args:
        keep: control characters that may stay, such as a newline.
    """
    return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in str(text))


def put(text: str, *, end: str = "\n") -> None:
    """Write ``text`` to standard output, now.

    Raises:
        SystemExit: nobody reads it any more.
        OutputFailed: it cannot be written.
    """
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        raise SystemExit(OUTPUT_CLOSED) from None
    except OSError as error:
        _abandon_stdout()
        raise OutputFailed(
            f"standard output cannot be written: {error.strerror}",
            hint="what was asked may have been done all the same",
        ) from error


def say(text: object) -> None:
    """Write one line to standard error: progress, advice, an error."""
    with contextlib.suppress(OSError):  # there may be no one left to tell
        print(one_line(text, 2000), file=sys.stderr, flush=True)  # noqa: T201


def guarded(command: Callable[[], object]) -> int:
    """Run ``command`` and return the exit status: what it returns, or what its error says."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except InvalidConfig as error:
        for problem in error.problems:
            say(f"error: {error.path}: {problem}")
        return error.exit_status
    except CloudError as error:
        _trace()
        say(f"error: {error}")
        return error.exit_status
    except Exception as error:  # noqa: BLE001 - the boundary: what nobody foresaw is one line as well
        _trace()
        say(
            f"error: {type(error).__name__}, which nobody foresaw: {error or 'no text'}; "
            f"please report it with what {DEBUG}=1 shows"
        )
        return 1


def leave(status: int) -> NoReturn:
    """End this process now, for a command that has said all it has to say.

    gRPC's threads may still be in a call to a server that is slow to answer; the interpreter's own
    end would wait for them, once in a while for ever.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it: nothing is left to say
            if stream is not None:  # closed by whoever started us
                stream.flush()
    os._exit(status)


def usage_error(text: str, command: str) -> InvalidInput:
    """Return what the command line's parser found wrong with the arguments, as an error of ours.

    Args:
        command: as typed, without its arguments: ``eschedule launch``.
    """
    flat = one_line(text).rstrip(".")
    return InvalidInput(flat[:1].lower() + flat[1:], hint=f"see `{command.strip()} --help`")


def _trace() -> None:
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exc()


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, instead of failing once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
