"""The log: one line a record, on standard error.

::

    2026-01-31T09:15:02.114Z warning ecompute.daemon waiting for etcd: … instance=0d5e… seconds=1.5

Modules write with the standard library (``logging.getLogger(__name__)``); `configure` decides once a
process what becomes of it. Facts for programs are given beside the text, ``extra=context(instance=…)``,
and follow it as ``key=value``. A record never spans lines, whoever wrote what is in it, and secrets
do not get through: what `shown` knows for one is replaced, in texts, values and errors alike. An
error that nobody foresaw brings the places that it came through, on the same line.

Threads: any, after `configure`.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import PurePath
from typing import Literal, TextIO

from ecompute.cluster.documents import timestamp
from ecompute.cluster.errors import CloudError, one_line

Level = Literal["debug", "info", "warning", "error"]

HIDDEN = "***"
TEXT_LIMIT = 2000
VALUE_LIMIT = 300
LONGEST = 1 << 16
FRAMES = 6

_CONTEXT = "context"
_SECRET_NAME = re.compile(r"passw|token|secret|user_?data|credential|private_?key|authorization", re.IGNORECASE)
_IN_TEXT = (
    # A user, and perhaps a password, in a URL.
    (re.compile(r"(?<=://)[^/\s@'\"]+@"), HIDDEN + "@"),
    # What follows a URL's path: signatures and tokens travel there.
    (re.compile(r"(https?://[^\s?'\"]+\?)[^\s'\"]+"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)\b((?:x-auth-token|password|authorization)['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic)\s+)?[^\s'\",;]+"
        ),
        rf"\1{HIDDEN}",
    ),
)


def configure(level: Level = "info", stream: TextIO | None = None) -> None:
    """Send all records of at least ``level`` to ``stream`` (standard error). May be called again."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Libraries tell every connection and every request; what goes wrong there reaches us as an error.
    for library in ("urllib3", "grpc", "asyncio", "qemu", "pyroute2"):
        logging.getLogger(library).setLevel(logging.WARNING)


def context(**values: object) -> Mapping[str, Mapping[str, object]]:
    """Return ``values`` as ``extra`` of a record; one that is None is left out."""
    return {_CONTEXT: values}


def shown(text: object, limit: int = TEXT_LIMIT) -> str:
    """Return ``text`` on one line, with what may be a secret replaced."""
    flat = one_line(text, LONGEST)
    # Before it is cut, which could leave half a secret that no pattern knows.
    for pattern, replacement in _IN_TEXT:
        flat = pattern.sub(replacement, flat)
    return one_line(flat, limit)


class LineFormatter(logging.Formatter):
    """Renders a record; the time is UTC, to the millisecond."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{timestamp(record.created)} {record.levelname.lower()} {record.name} {shown(record.getMessage())}"
        facts = getattr(record, _CONTEXT, None)
        if isinstance(facts, Mapping):
            line += "".join(f" {key}={_value(key, value)}" for key, value in facts.items() if value is not None)
        error = record.exc_info[1] if record.exc_info else None
        return line if error is None else line + _failure(error)


def _value(key: str, value: object) -> str:
    if _SECRET_NAME.search(key):
        return HIDDEN
    text = f"{value:.3f}" if isinstance(value, float) else shown(value, VALUE_LIMIT)
    if text and not re.search(r"[\s=\"\\]", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _failure(error: BaseException) -> str:
    rendered = f" error={_value('error', f'{type(error).__name__}: {error}')}"
    if error.__cause__ is not None:
        rendered += f" cause={_value('cause', f'{type(error.__cause__).__name__}: {error.__cause__}')}"
    if isinstance(error, CloudError):
        return rendered
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    places = " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return rendered + (f" at={_value('at', places)}" if places else "")
