"""What every document is: frozen, JSON, of a schema."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.errors import CloudError, NewerSchema

SCHEMA = 1
"""The newest schema that this code reads and writes."""

DEFAULT_NAMESPACE = "system"

T = TypeVar("T")


def timestamp(seconds: float) -> str:
    """Return ``seconds`` since 1970 as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Unreadable(CloudError):
    """What lies under a key is not the document that belongs there."""

    code = "document.unreadable"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA


def encode(document: Document) -> bytes:
    """Return ``document`` as JSON.

    Raises:
        NewerSchema: it was read from a newer writer; writing it back would lose its new fields.
    """
    if document.schema > SCHEMA:
        raise NewerSchema(
            f"a {type(document).__name__} of schema {document.schema} cannot be rewritten by schema {SCHEMA}",
            hint="upgrade this host",
        )
    return msgspec.json.encode(document)


def decode(data: bytes, kind: type[T], key: str = "") -> T:
    """Return the document that ``data`` holds.

    Raises:
        Unreadable: it is not JSON, or not of that kind.
    """
    try:
        return from_json(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"{key or kind.__name__} is not a {kind.__name__}: {error}") from error
