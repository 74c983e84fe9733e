"""What a transaction is made of: comparisons, operations, and what reads give back.

`unchanged`, `absent`, `present`, `absent_under`, `unwritten_under` and `created_at` say what must still
hold; `Put`, `Delete` and `DeletePrefix` say what is then done, all or nothing. A `Compare` is opaque to callers.

Pure: nothing here talks to etcd. Values are immutable and may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from ecompute.cluster.documents import Document, encode
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.store.etcd3_loader import rpc

T = TypeVar("T")

MAX_OPERATIONS = 128
"""Of etcd (``--max-txn-ops``): comparisons and operations of one transaction, each."""


@dataclass(frozen=True)
class Versioned(Generic[T]):
    """A document as it was read, and where in etcd's history."""

    key: str
    value: T
    mod_revision: int
    create_revision: int
    lease: int
    """The id of the lease that it ends with; 0: none."""


@dataclass(frozen=True)
class Listing(Generic[T]):
    """Documents as they were at one revision, in the order of their keys (or as asked for)."""

    items: tuple[Versioned[T], ...]
    revision: int
    unreadable: tuple[tuple[str, str], ...]
    """Keys whose documents are not of the kind asked for, and why."""


def prefix_end(prefix: bytes) -> bytes:
    r"""Return the first key behind every key that begins with ``prefix``; ``\0`` is etcd's "no end"."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\x00"


def range_of(prefix: str) -> tuple[bytes, bytes]:
    r"""Return the first key and the end of all keys under ``prefix``; the empty one means every key."""
    key = prefix.encode()
    return key or b"\x00", prefix_end(key)


class Field(Enum):
    """What of a key is compared; an absent key has 0 for both."""

    CREATE = "create_revision"
    MOD = "mod_revision"


class Relation(Enum):
    EQUAL = "EQUAL"
    GREATER = "GREATER"
    LESS = "LESS"


@dataclass(frozen=True)
class Compare:
    """One condition of a transaction; made by the functions below."""

    key: bytes
    range_end: bytes
    """Empty: the one key. Otherwise the condition holds for every key of the range, or there is none."""
    field: Field
    relation: Relation
    number: int
    says: str
    """For people: what was to hold."""

    @property
    def name(self) -> str:
        """The key, or the prefix, as the caller gave it."""
        return self.key.decode("utf-8", "replace")

    def holds_for(self, create_revision: int, mod_revision: int) -> bool:
        """Whether a key with these revisions satisfies it (0 and 0: no such key)."""
        value = create_revision if self.field is Field.CREATE else mod_revision
        match self.relation:
            case Relation.EQUAL:
                return value == self.number
            case Relation.GREATER:
                return value > self.number
            case Relation.LESS:
                return value < self.number


def unchanged(read: Versioned[Any]) -> Compare:
    """The key is as it was read: neither written nor deleted since."""
    return Compare(
        read.key.encode(), b"", Field.MOD, Relation.EQUAL, read.mod_revision, f"unchanged since {read.mod_revision}"
    )


def absent(key: str) -> Compare:
    """There is no such key."""
    return Compare(key.encode(), b"", Field.CREATE, Relation.EQUAL, 0, "absent")


def present(key: str) -> Compare:
    """There is such a key, whatever it holds."""
    return Compare(key.encode(), b"", Field.CREATE, Relation.GREATER, 0, "present")


def absent_under(prefix: str) -> Compare:
    """There is no key that begins with ``prefix``."""
    key, range_end = range_of(prefix)
    return Compare(key, range_end, Field.CREATE, Relation.EQUAL, 0, "absent with all below it")


def unwritten_under(prefix: str, revision: int) -> Compare:
    """No key that begins with ``prefix`` was made or changed since ``revision``; some may have been deleted."""
    key, range_end = range_of(prefix)
    says = f"unwritten with all below it since {revision}"
    return Compare(key, range_end, Field.MOD, Relation.LESS, revision + 1, says)


def created_at(key: str, create_revision: int) -> Compare:
    """The key is the one that was created at ``create_revision``; it may have been written since."""
    return Compare(key.encode(), b"", Field.CREATE, Relation.EQUAL, create_revision, f"as created at {create_revision}")


def never(key: str) -> Any:
    """Return the message of a comparison that never holds, of a key that one may read."""
    message = rpc.Compare(key=key.encode(), create_revision=0)
    message.result, message.target = rpc.Compare.LESS, rpc.Compare.CREATE
    return message


@dataclass(frozen=True)
class Put:
    key: str
    document: Document
    lease: int = 0
    """The id of a lease (`Lease.id`): the key goes when the lease ends. 0: it stays."""


@dataclass(frozen=True)
class Delete:
    """Idempotent: an absent key stays absent."""

    key: str


@dataclass(frozen=True)
class DeletePrefix:
    """Deletes every key that begins with ``prefix``, which must not be empty."""

    prefix: str


Op = Put | Delete | DeletePrefix


def compare_message(compare: Compare) -> Any:
    message = rpc.Compare(key=compare.key, range_end=compare.range_end)
    message.result = rpc.Compare.CompareResult.Value(compare.relation.value)
    if compare.field is Field.CREATE:
        message.target, message.create_revision = rpc.Compare.CREATE, compare.number
    else:
        message.target, message.mod_revision = rpc.Compare.MOD, compare.number
    return message


def question_message(compare: Compare) -> Any:
    """Return the read that tells, where a transaction failed, whether it was this comparison."""
    request = rpc.RangeRequest(key=compare.key, range_end=compare.range_end, limit=1, keys_only=True)
    if compare.range_end and compare.field is Field.MOD:  # the one that was written last tells of all
        request.sort_target, request.sort_order = rpc.RangeRequest.MOD, rpc.RangeRequest.DESCEND
    return rpc.RequestOp(request_range=request)


def operation_message(operation: Op) -> Any:
    match operation:
        case Put(key, document, lease):
            request = rpc.PutRequest(key=key.encode(), value=encode(document), lease=lease)
            return rpc.RequestOp(request_put=request)
        case Delete(key):
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))
        case DeletePrefix(prefix):
            if not prefix:
                raise InvalidInput("an empty prefix would delete every key of the cluster")
            start, end = range_of(prefix)
            return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=start, range_end=end))


def check_size(compares: Sequence[Compare], operations: Sequence[Op]) -> None:
    """Raise InvalidInput if etcd would refuse the transaction for its length."""
    for what, count in (("comparisons", len(compares)), ("operations", len(operations))):
        if count > MAX_OPERATIONS:
            raise InvalidInput(
                f"a transaction takes at most {MAX_OPERATIONS} {what}, this one has {count}",
                hint="ask for less at once",
            )


def failures(compares: Sequence[Compare], answers: Sequence[Any]) -> list[tuple[Compare, str]]:
    """Return which of ``compares`` did not hold, by the answers to their questions.

    Args:
        answers: the ``RangeResponse`` of each comparison's `question_message`, in the same order.

    Returns:
        Each with what was found instead, for people.
    """
    found = []
    for compare, answer in zip(compares, answers, strict=True):
        create, mod = (answer.kvs[0].create_revision, answer.kvs[0].mod_revision) if answer.kvs else (0, 0)
        if not compare.holds_for(create, mod):
            found.append((compare, f"written at {mod}, created at {create}" if mod else "gone"))
    return found
