"""Session tokens, as EC2's second version of the service has them: asked for with PUT, sent with each question.

A token says until when it holds and of which instance it is, sealed with a key that lives as long as the service:
nothing is kept of it, and after a new start clients ask for another, as they do when one has run out.

Pure; any thread may call it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct

LONGEST_S = 21600
"""Six hours, as with EC2."""


def issue(key: bytes, instance_uuid: str, *, ttl_s: int, now_s: float) -> str:
    """Return a token of the instance that holds for ``ttl_s`` seconds from ``now_s`` (any clock that only rises)."""
    end = struct.pack(">Q", int(now_s) + ttl_s)
    return base64.urlsafe_b64encode(end + _seal(key, instance_uuid, end)).decode("ascii")


def is_valid(key: bytes, token: str, instance_uuid: str, *, now_s: float) -> bool:
    """Whether ``token`` was issued to this instance and still holds."""
    try:
        data = base64.urlsafe_b64decode(token.encode("ascii"))
    except (binascii.Error, ValueError):
        return False
    end, seal = data[:8], data[8:]
    if len(end) != 8 or not hmac.compare_digest(seal, _seal(key, instance_uuid, end)):
        return False
    (ends_at,) = struct.unpack(">Q", end)
    return bool(now_s < ends_at)


def _seal(key: bytes, instance_uuid: str, end: bytes) -> bytes:
    return hmac.digest(key, instance_uuid.encode() + end, "sha256")
