"""How `ecompute` hands sockets to the metadata service: one message a question, one an answer.

A Unix socket of kind SEQPACKET; each message is JSON, and the question `Serve` carries the listening sockets
beside it (SCM_RIGHTS). Either end may die at any time: what the other has is asked for, never assumed.

Only data and its encoding; any thread may use it.
"""

from __future__ import annotations

import msgspec

from ecompute.cluster.decoding import from_json

LIMIT_BYTES = 1 << 17
"""The longest message: a list of some three thousand networks."""
SOCKETS_LIMIT = 2
"""One for each family."""


SOCKET = "socket"
"""In the service's directory."""


class List(msgspec.Struct, frozen=True, tag="list"):
    """Which networks are served?"""


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Serve a network with the sockets that come along, in place of those that it was served with."""

    vni: int
    mark: str
    """Tells these sockets from others; given back by `List`."""


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """Close the sockets of a network; there may be none."""

    vni: int


class End(msgspec.Struct, frozen=True, tag="end"):
    """End, unless a network is served."""


Question = List | Serve | Leave | End


class Answer(msgspec.Struct, frozen=True):
    networks: dict[int, str]
    """VNI → mark, after the question was done."""
    version: str = ""
    """Of the package whose code answers; the first ones did not say."""


def encode(message: Question | Answer) -> bytes:
    return msgspec.json.encode(message)


def decode_question(data: bytes) -> Question:
    """Return the question.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return from_json(data, Question)  # type: ignore[arg-type] # a union is no class, and as good


def decode_answer(data: bytes) -> Answer:
    """Return the answer.

    Raises:
        msgspec.DecodeError: it is none.
    """
    return from_json(data, Answer)
