"""What is being done: which life of the data this is, intents, leads, questions to hosts, events."""

from __future__ import annotations

from ecompute.cluster.documents.base import Document


class Incarnation(Document, frozen=True, kw_only=True):
    """Which life of the data this is. Made once, by the first host; changed only by a restore."""

    id: str
    made_by: str
    made_at: str


class Intent(Document, frozen=True, kw_only=True):
    """``/intents/<consumer>``: written before the claim it announces, deleted by its request."""

    consumer: str
    kind: str
    namespace: str
    writer: str
    made_at: str


class Lead(Document, frozen=True, kw_only=True):
    """``/lead/<role>``: leased. Who creates it leads until the lease ends."""

    holder: str
    since: str


class Operation(Document, frozen=True, kw_only=True):
    """``/operations/<provider>/<uuid>``: leased; asked by a tool, answered in place by the host."""

    kind: str
    instance_uuid: str = ""
    """Nothing, where it is about none."""
    limit_bytes: int = 65536
    answer: str | None = None
    error: str | None = None


class Event(Document, frozen=True, kw_only=True):
    """``/events/<writer>/<kind>/<uuid>/<n mod 32>``: written in the transaction of the change."""

    n: int
    at: str
    writer: str
    type: str
    """Short and stable, for programs: ``created``, ``step.failed``, ``claimed``."""
    message: str
    seconds: float | None = None
    """How long it took, where that means something."""
