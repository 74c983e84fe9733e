"""The store: typed documents in etcd, read and written as etcd-compute's rules demand.

Every write is a transaction that compares what was read; lists are range reads, paged, at one
revision; no call is without a deadline; a document that cannot be read is set aside and never takes
the others with it. All reads are linearizable: each also proves that etcd still tells the history
that this process has seen (`ecompute.cluster.store.history`).

A call that gets no answer raises StoreUnavailable. If it was a commit, that error says whether it
may have been written all the same.

Threads: all methods may be called from any. A Store owns gRPC channels and, once there are leases
or watchers, threads: `close` ends them. No process may fork (without exec) while one is open.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from ecompute.cluster import keys
from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import Unreadable
from ecompute.cluster.errors import CloudError, CompareFailed, InvalidInput, NotPermitted
from ecompute.cluster.store import lists
from ecompute.cluster.store.etcd3_loader import rpc
from ecompute.cluster.store.history import History, Mark, Position
from ecompute.cluster.store.lease import Lease, LeaseKeeper, grant_unkept
from ecompute.cluster.store.members import (
    Members,
    Rpc,
    is_not_found,
    not_permitted,
)
from ecompute.cluster.store.transactions import (
    Compare,
    Listing,
    Op,
    Versioned,
    check_size,
    compare_message,
    failures,
    never,
    operation_message,
    question_message,
    range_of,
)
from ecompute.cluster.store.users import Users
from ecompute.cluster.store.watch import SILENCE_LIMIT_S, Watcher

log = logging.getLogger(__name__)

T = TypeVar("T")
Keys = list[str]

_MAX_BLAMED = 3
"""How many keys are named of those that a transaction may not touch."""


@dataclass(frozen=True)
class ClusterStatus:
    """Where etcd stands, and who said so."""

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    endpoint: str


class Store:
    """etcd, as the configuration names it.

    Args:
        settings: endpoints, TLS, user.
        timeout_s: how long one call may take, all its attempts together.
        on_rollback: called once a rollback, with the reason on one line, on the thread whose call
            found it and before that call returns; it must not block for long.

    Raises:
        InvalidInput: a certificate or key cannot be read. (Whether etcd answers is not looked at.)
    """

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        timeout_s: float = 5.0,
        on_rollback: Callable[[str], None] | None = None,
    ) -> None:
        members = Members(settings, timeout_s)
        self._set_up(members, History(), LeaseKeeper(members), [] if on_rollback is None else [on_rollback])

    def _set_up(
        self, members: Members, history: History, leases: LeaseKeeper, on_rollbacks: list[Callable[[str], None]]
    ) -> None:
        """Be a store of these parts; what has them from elsewhere calls this instead of the constructor."""
        self._members = members
        self._history = history
        self._leases = leases
        self._on_rollbacks = on_rollbacks
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []
        self._common: Watcher | None = None

    # --- reading -------------------------------------------------------------------------------

    def get(self, key: str, kind: type[T]) -> Versioned[T] | None:
        """Return the document under ``key``, or None if there is none.

        Raises:
            Unreadable: what lies there is not a ``kind``.
            StoreUnavailable: etcd does not answer.
        """
        answer = self._read(lists.RANGE, rpc.RangeRequest(key=key.encode()))
        return lists.versioned(answer.kvs[0], kind) if answer.kvs else None

    def get_many(self, wanted: Sequence[str], kind: type[T]) -> Listing[T]:
        """Return the documents under the keys ``wanted``, in their order, all at one revision.

        Absent keys are left out.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        return lists.again_if_compacted(lambda: lists.many(self._read, wanted, kind))

    def list(self, prefix: str, kind: type[T], *, limit: int | None = None, revision: int | None = None) -> Listing[T]:
        """Return the documents whose keys begin with ``prefix``, in the order of their keys.

        Args:
            limit: return at most so many keys.
            revision: as of then; None: now.

        Raises:
            InvalidInput: ``revision`` is compacted away, or has not been yet.
            StoreUnavailable: etcd does not answer.
        """

        def read() -> Listing[T]:
            pages = lists.Pages(self._read, revision)
            return lists.listing(pages.pairs(prefix, limit), kind, pages)

        return lists.again_if_compacted(read) if revision is None else read()

    def each(self, prefix: str, kind: type[T]) -> Iterator[Versioned[T]]:
        """Yield what `list` returns, a page in memory at a time, all at one revision; unreadable ones are left out.

        Raises:
            InvalidInput: the revision was compacted away meanwhile; begin anew.
            StoreUnavailable: etcd does not answer.
        """
        for kv in lists.Pages(self._read).pairs(prefix):
            with contextlib.suppress(Unreadable):
                yield lists.versioned(kv, kind)

    def keys(self, prefix: str, limit: int | None = None) -> tuple[Keys, int]:
        """Return the keys that begin with ``prefix``, in order, and the revision they were read at.

        Raises:
            StoreUnavailable: etcd does not answer.
        """

        def read() -> tuple[Keys, int]:
            pages = lists.Pages(self._read)
            found = [lists.key_of(kv) for kv in pages.pairs(prefix, limit, is_keys_only=True)]
            return found, pages.revision

        return lists.again_if_compacted(read)

    def revisions(self, prefix: str) -> dict[str, int]:
        """Return the keys that begin with ``prefix``, and the revision in which each was last written.

        Raises:
            StoreUnavailable: etcd does not answer.
        """

        def read() -> dict[str, int]:
            pages = lists.Pages(self._read)
            return {lists.key_of(kv): kv.mod_revision for kv in pages.pairs(prefix, is_keys_only=True)}

        return lists.again_if_compacted(read)

    def count(self, prefix: str) -> int:
        """Return how many keys begin with ``prefix``; none of them is sent.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        start, end = range_of(prefix)
        answer = self._read(lists.RANGE, rpc.RangeRequest(key=start, range_end=end, count_only=True))
        return int(answer.count)

    def status(self) -> ClusterStatus:
        """Return where etcd stands, from a cheap read that needs a leader.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        # A key that every role may read.
        answer = self._read(lists.RANGE, rpc.RangeRequest(key=keys.INCARNATION.encode(), count_only=True))
        header = answer.header
        return ClusterStatus(
            cluster_id=header.cluster_id,
            member_id=header.member_id,
            revision=header.revision,
            raft_term=header.raft_term,
            endpoint=self._members.current.address,
        )

    # --- writing -------------------------------------------------------------------------------

    def commit(self, compares: Sequence[Compare], operations: Sequence[Op]) -> int:
        """Apply ``operations`` at once if all ``compares`` hold; return the revision they made.

        No key may be written twice by the operations. Without operations it only compares.

        Raises:
            CompareFailed: nothing was written; its text and ``keys`` say which did not hold. Also
                raised, without keys, when a lease of a `Put` has ended.
            InvalidInput: more than 128 comparisons or operations, or etcd does not accept them.
            NotPermitted: our user may not do this; says which key it is about.
            NewerSchema: a document came from a newer writer and must not be rewritten.
            StoreUnavailable: no answer. With ``may_be_written`` the transaction may have been
                applied: read again before trying again.
        """
        check_size(compares, operations)
        request = rpc.TxnRequest(
            compare=[compare_message(compare) for compare in compares],
            success=[operation_message(operation) for operation in operations],
            failure=[question_message(compare) for compare in compares],
        )
        mark = self._history.mark()
        try:
            answer = self._members.call(lists.TXN, request, may_repeat=not operations)
        except NotPermitted as error:
            raise self._blamed(request) or error from error
        except InvalidInput as error:
            if is_not_found(error.__cause__):
                raise CompareFailed("nothing was written: a lease of the transaction has ended") from error
            raise
        self._take_note(mark, answer.header)
        if not answer.succeeded:
            failed = failures(compares, [response.response_range for response in answer.responses])
            reasons = "; ".join(f"{compare.name} is not {compare.says}: {found}" for compare, found in failed)
            raise CompareFailed(f"nothing was written: {reasons}", keys=tuple(compare.name for compare, _ in failed))
        return int(answer.header.revision)

    def lease(self, ttl_s: int, *, on_lost: Callable[[], None]) -> Lease:
        """Return a new lease, which is kept alive until it is revoked, lost, or the store closed.

        Args:
            ttl_s: how long it lives without being kept alive; at least 2.
            on_lost: called once if it is lost, on the thread that keeps leases alive; must not block.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        return self._leases.grant(ttl_s, on_lost)

    def unkept_lease(self, ttl_s: int) -> int:
        """Return the id of a new lease that is kept alive by nobody: what is put with it goes after ``ttl_s``.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        return grant_unkept(self._members, ttl_s)

    @property
    def users(self) -> Users:
        """Etcd's users and roles."""
        return Users(self._members)

    # --- watching ------------------------------------------------------------------------------

    def watcher(self, *, silence_limit_s: float = SILENCE_LIMIT_S) -> Watcher:
        """Return a new watcher, with a thread and a stream of its own once it follows something.

        Args:
            silence_limit_s: after which a stream that does not answer is given up.
        """
        watcher = Watcher(self, self._members, self._history, silence_limit_s=silence_limit_s)
        with self._lock:
            self._watchers = [known for known in self._watchers if not known.is_closed]
            self._watchers.append(watcher)
        return watcher

    def common_watcher(self) -> Watcher:
        """Return the one watcher over which all parts of this store follow."""
        with self._lock:
            if self._common is None or self._common.is_closed:
                self._common = Watcher(self, self._members, self._history, silence_limit_s=SILENCE_LIMIT_S)
                self._watchers.append(self._common)
            return self._common

    # --- the whole -----------------------------------------------------------------------------

    @property
    def highest_revision(self) -> int:
        """The highest revision seen of the history that etcd tells now; 0 before the first answer."""
        position = self._history.position
        return position.revision if position is not None else 0

    @property
    def cluster_id(self) -> int | None:
        """The id of the cluster that answered; None before the first answer."""
        position = self._history.position
        return position.cluster_id if position is not None else None

    def close(self) -> None:
        """End watchers and the keeping of leases (which are not revoked), and close the channels."""
        with self._lock:
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.close()
        self._leases.close()
        self._members.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside --------------------------------------------------------------------------------

    def _blamed(self, refused: Any) -> NotPermitted | None:
        """Return what of a transaction our user may not do: etcd does not say. Writes nothing."""
        blamed: dict[str, str] = {}
        for operation in (*refused.failure, *refused.success):
            verb, key = _verb_and_key(operation)
            if key in blamed or len(blamed) == _MAX_BLAMED:
                continue
            try:
                self._members.call(
                    lists.TXN, rpc.TxnRequest(compare=[never(keys.INCARNATION)], success=[operation]), may_repeat=True
                )
            except NotPermitted:
                blamed[key] = verb
            except CloudError:
                return None
        said = ", ".join(f"{verb} {key}" for key, verb in blamed.items())
        return not_permitted(self._members.who, said, tuple(blamed)) if blamed else None

    def _read(self, pick: Rpc, request: Any) -> Any:
        mark = self._history.mark()
        answer = self._members.call(pick, request, may_repeat=True)
        self._take_note(mark, answer.header)
        return answer

    def _take_note(self, mark: Mark, header: Any) -> None:
        position = Position(header.cluster_id, header.revision, header.raft_term)
        reason = self._history.answered(mark, position)
        if reason is None:
            return
        log.error("%s: a backup was put back, or it is not the etcd that was here before", reason)
        for on_rollback in list(self._on_rollbacks):
            try:
                on_rollback(reason)
            except Exception:
                log.exception("the callback for a rollback failed")


def _verb_and_key(operation: Any) -> tuple[str, str]:
    kind = operation.WhichOneof("request")
    key: str = bytes(getattr(operation, kind).key).decode("utf-8", "replace")
    return ("read" if kind == "request_range" else "write"), key
