"""Lists: many keys and their documents, page by page, all at one revision.

The first page settles the revision of all. A page that is too large for one answer is asked for again at half the
size; a list that compaction overtakes begins anew; a document that cannot be read is set aside.

Threads: each list is of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ecompute.cluster.documents import Unreadable, decode
from ecompute.cluster.errors import CloudError, InvalidInput
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.members import Rpc, is_compacted, is_too_large
from ecompute.cluster.store.transactions import MAX_OPERATIONS, Listing, Versioned, range_of

T = TypeVar("T")
Read = Callable[[Rpc, Any], Any]
"""Sends a request that may be sent again, and returns its answer."""

RANGE: Rpc = lambda member: member.client.kvstub.Range  # noqa: E731  (a name makes the calls readable)
TXN: Rpc = lambda member: member.client.kvstub.Txn  # noqa: E731

_PAGE = 500
"""Keys a page of a list: some MiB for documents of the usual size."""
_ATTEMPTS = 3
"""How often a list is begun when compaction overtakes it."""


class Pages:
    """One list. ``revision`` is the one that all of it is read at; 0 until the first page has settled it."""

    def __init__(self, read: Read, revision: int | None = None) -> None:
        self._read = read
        self.revision = revision or 0

    def pairs(self, prefix: str, limit: int | None = None, *, is_keys_only: bool = False) -> Iterator[Any]:
        """Yield the key-value pairs under ``prefix``."""
        start, end = range_of(prefix)
        size, left = _PAGE, limit
        while left is None or left > 0:
            request = rpc.RangeRequest(
                key=start,
                range_end=end,
                revision=self.revision,
                limit=size if left is None else min(size, left),
                keys_only=is_keys_only,
            )
            try:
                answer = self._read(RANGE, request)
            except CloudError as error:
                if not is_too_large(error.__cause__) or size == 1:
                    raise
                size //= 2
                continue
            self._begin(answer)
            yield from answer.kvs
            if not answer.more:
                return
            start = answer.kvs[-1].key + b"\x00"
            left = None if left is None else left - len(answer.kvs)
        if limit is not None and limit <= 0:
            self._begin(self._read(RANGE, rpc.RangeRequest(key=start, range_end=end, count_only=True)))

    def among(self, wanted: Sequence[str]) -> Iterator[Any]:
        """Yield the key-value pairs of the keys ``wanted``, in their order, without those that are absent."""
        for start in range(0, len(wanted), MAX_OPERATIONS):
            ranges = [
                rpc.RangeRequest(key=key.encode(), revision=self.revision)
                for key in wanted[start : start + MAX_OPERATIONS]
            ]
            answer = self._read(TXN, rpc.TxnRequest(success=[rpc.RequestOp(request_range=one) for one in ranges]))
            self._begin(answer)
            for response in answer.responses:
                yield from response.response_range.kvs

    def _begin(self, answer: Any) -> None:
        self.revision = self.revision or answer.header.revision


def many(read: Read, wanted: Sequence[str], kind: type[T]) -> Listing[T]:
    """Return the documents under the keys ``wanted``."""
    pages = Pages(read)
    return listing(pages.among(wanted), kind, pages)


def listing(pairs: Iterable[Any], kind: type[T], pages: Pages) -> Listing[T]:
    """Return the documents of ``pairs``, which are those of ``pages``."""
    items: list[Versioned[T]] = []
    unreadable: list[tuple[str, str]] = []
    for kv in pairs:
        try:
            items.append(versioned(kv, kind))
        except Unreadable as error:
            unreadable.append((key_of(kv), str(error)))
    return Listing(tuple(items), pages.revision, tuple(unreadable))


def again_if_compacted(read: Callable[[], T]) -> T:
    """Return what ``read`` does; called again where its revision was compacted away meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return read()
        except InvalidInput as error:
            if not is_compacted(error.__cause__):
                raise
    return read()


def key_of(kv: Any) -> str:
    """Return the key of a pair. One that is not UTF-8 is nobody's of ours; it must not break a list."""
    return str(kv.key.decode("utf-8", "backslashreplace"))


def versioned(kv: Any, kind: type[T]) -> Versioned[T]:
    """Return the document of a pair.

    Raises:
        Unreadable: it is not a ``kind``.
    """
    key = key_of(kv)
    return Versioned(key, decode(kv.value, kind, key), kv.mod_revision, kv.create_revision, kv.lease)
