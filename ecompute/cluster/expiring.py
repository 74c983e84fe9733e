"""When an instance is to end by itself: said by people, kept in its document and under a key. Pure.

The key, ``/expiries/<seconds since 1970>/<uuid>``, begins with the time, so that whoever sweeps reads
what is due and nothing else. It is written, moved and deleted in the transaction that writes the
instance; the two always say the same whole second.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance, timestamp
from ecompute.cluster.errors import InvalidInput, one_line

HOW = "write a duration like 30m, 2h or 7d, or a time like 2030-01-31T12:00:00Z"
LONGEST_S = 100 * 366 * 86400
"""Further ahead than this nobody means."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,12})([smhdw])", re.ASCII)


def moment(text: str, now_s: float) -> int:
    """Return when that is, in whole seconds since 1970.

    Args:
        text: a duration from now (``2h``), or a time (RFC 3339, section 5.6).
        now_s: seconds since 1970.

    Raises:
        InvalidInput: it is neither, in the past, or further ahead than anyone means.
    """
    duration = _DURATION.fullmatch(text.strip())
    at_s = now_s + int(duration[1]) * _UNITS[duration[2]] if duration else _time(text.strip())
    if at_s <= now_s:
        raise InvalidInput(f"it would expire at {one_line(text, 80)!r}, which is not in the future", hint=HOW)
    if at_s - now_s > LONGEST_S:
        raise InvalidInput(f"it would expire in {one_line(text, 80)!r}, in more than a hundred years", hint=HOW)
    return int(at_s)


def expires_at(seconds: int) -> str:
    """Return ``seconds`` since 1970 as `Instance.expires_at` has them."""
    return timestamp(seconds)


def key_of(instance: Instance) -> str | None:
    """Return the key of ``instance`` under ``/expiries``; None: it does not expire, or says no time."""
    if instance.expires_at is None:
        return None
    try:
        return keys.expiry(int(_time(instance.expires_at)), instance.uuid)
    except InvalidInput:
        return None


def _time(text: str) -> float:
    try:
        parsed = datetime.fromisoformat(text)
        if len(text) < len("2030-01-31T12:00Z") or parsed.tzinfo is None:
            raise ValueError(text)
        return parsed.astimezone(UTC).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{one_line(text, 80)!r} is no time at which to expire", hint=HOW) from error
