"""JSON to types, the one way to decode: safe from several threads, from the first time on.

msgspec prepares a type when it is first decoded. Two threads that are the first to do so at once, for
the same type or for one that lies in the other, end the process with SIGSEGV (seen with 0.22: the second finds
the first one's preparation half done). So types are prepared here, by one thread at a time.

Threads: any.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_preparing = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def from_json(data: bytes, kind: type[T]) -> T:
    """Return ``data`` as ``kind``; fields that it does not know are passed over.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: it is something else.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _preparing:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    decoded: T = decoder.decode(data)
    return decoded
