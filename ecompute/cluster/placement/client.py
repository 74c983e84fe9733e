"""`Placement`: candidates and claims, beside providers (`providers`).

Nothing is remembered between calls: each reads what it decides on. Writes carry the generation
that was read; when somebody else wrote meanwhile, they read again (see `transport`).

Threads: all methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Self

import msgspec

from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import claiming
from ecompute.cluster.placement.claiming import ClaimRequest
from ecompute.cluster.placement.documents import (
    Allocations,
    Candidates,
    ConsumerAllocations,
    candidates_from,
    decode,
)
from ecompute.cluster.placement.providers import Providers, Traits
from ecompute.cluster.placement.query import CandidatesQuery, candidates_query
from ecompute.cluster.placement.transport import MICROVERSION, Transport
from ecompute.cluster.placement.turns import Turns

if TYPE_CHECKING:
    from types import TracebackType

    from ecompute.cluster.config import PlacementSettings


class _Version(msgspec.Struct, frozen=True):
    max_version: str = ""
    min_version: str = ""


class _Versions(msgspec.Struct, frozen=True):
    versions: list[_Version]


class Placement(Providers):
    """The placement service at one endpoint.

    Args:
        settings: where it is, and how we show who we are.
        timeout_s: how long one call may take, all its tries together.

    Raises:
        InvalidInput: the token cannot be read.

    Every method raises `PlacementUnavailable` when there is no answer, saying where and since when;
    `Refused` when the token or the version is not accepted; and `Conflict` when others wrote first
    each time.
    """

    def __init__(self, settings: PlacementSettings, *, timeout_s: float = 10.0) -> None:
        self._set_up(Transport(settings, timeout_s=timeout_s), Turns())

    def _set_up(self, transport: Transport, turns: Turns) -> None:
        """Be a client of these parts; what has them from elsewhere calls this instead of the constructor."""
        self._transport = transport
        self._turns = turns
        self.endpoint = transport.endpoint

    def close(self) -> None:
        """Close the pooled connections. A later call opens new ones."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """See that it answers, speaks our version and takes our token.

        Raises:
            PlacementUnavailable: it does not answer, or something else does.
            Refused: it is too old, or does not take the token.
        """
        answer = self._transport.ask("GET", "/")
        if answer.status != 200:
            raise self._transport.not_placement(f"its root answers {answer.status}")
        versions = self._transport.read(answer, lambda body: decode(body, _Versions)).versions
        if not any(_number(v.min_version) <= _number(MICROVERSION) <= _number(v.max_version) for v in versions):
            found = ", ".join(f"{v.min_version} to {v.max_version}" for v in versions)
            raise self._transport.too_old(f"it speaks {found or 'none that it names'}")
        # The root needs no token; this does, and is the smallest answer there is.
        self._read("/traits", Traits, "reading traits", [("name", "in:COMPUTE_STATUS_DISABLED")])

    # --- claims --------------------------------------------------------------------------------

    def candidates(self, query: str | CandidatesQuery, *, limit: int) -> Candidates:
        """Return at most ``limit`` ways to serve ``query``, fewer if it says so itself.

        Raises:
            InvalidInput: the query cannot be meant, or placement refuses it (its words are given).
        """
        asked = query if isinstance(query, CandidatesQuery) else candidates_query(query)
        limit = limit if asked.limit is None else min(limit, asked.limit)
        answer = self._transport.ask("GET", "/allocation_candidates", [*asked.parameters, ("limit", str(limit))])
        if answer.status == 400:
            raise InvalidInput(answer.detail or "placement refuses the query", hint="correct the query")
        self._expect(answer, "asking for candidates")
        return self._transport.read(answer, candidates_from)

    def allocations(self, consumer: str) -> ConsumerAllocations:
        """Return what ``consumer`` holds; false, and empty, when that is nothing."""
        return self._transport.settle(lambda send: claiming.held_by(self._transport, send, consumer))

    def claim(
        self,
        consumer: str,
        allocations: Allocations,
        mappings: Mapping[str, list[str]] | None = None,
        *,
        project_id: str,
        user_id: str,
        consumer_type: str = "ECOMPUTE_INSTANCE",
        stop: AbstractSet[str] = frozenset(),
    ) -> bool:
        """Take ``allocations`` for ``consumer``, all or none; return whether this was written now.

        False: it held just this already, by an earlier try that went unanswered, or else by somebody's.

        Args:
            consumer: the uuid of what will use them.
            allocations: a candidate's, and what is claimed beside it (quotas, groups).
            mappings: the candidate's.
            project_id: the namespace.
            user_id: who claims.
            consumer_type: begins with ``ECOMPUTE_``.
            stop: the providers whose refusal no other host can mend.

        Raises:
            ClaimRefused: there is no room. Its scope says whether another host may have some, and
                its providers who refused.
            Outrun: others wrote first each time. It holds nothing; another host may do.
            Conflict: the consumer holds something else.
            ForeignConsumer: what it holds is another tool's.
            PlacementUnavailable: it is not known whether the claim was written.
            InvalidInput: placement cannot make sense of it.
        """
        wanted = ClaimRequest(consumer, allocations, mappings or {}, project_id, user_id, consumer_type)
        with self._turns.taken(allocations):
            return claiming.claim(self._transport, wanted, stop)

    def claim_many(self, claims: Sequence[ClaimRequest], *, stop: AbstractSet[str] = frozenset()) -> None:
        """Take all of ``claims`` in one write: all or none.

        Args:
            claims: of consumers that hold nothing yet, or just this.
            stop: the providers whose refusal no other hosts can mend.

        Raises:
            ClaimRefused: there is no room for all of them. Its providers are those without room for
                their part; they may be none, when room came free meanwhile.
            Outrun: others wrote first each time. None holds anything; other hosts may do.
            Conflict: a consumer holds something else.
            ForeignConsumer: what it holds is another tool's.
            PlacementUnavailable: it is not known whether the claims were written.
            InvalidInput: placement cannot make sense of them, or a consumer is named twice.
        """
        with self._turns.taken(provider for claim in claims for provider in claim.allocations):
            claiming.claim_many(self._transport, claims, stop)

    def replace(
        self,
        consumer: str,
        allocations: Allocations,
        expected: ConsumerAllocations,
        *,
        stop: AbstractSet[str] = frozenset(),
    ) -> None:
        """Let ``consumer`` hold ``allocations`` if it still holds ``expected``, of that generation; all or none.

        Args:
            allocations: everything that it is to hold.
            expected: what was read.
            stop: as for `claim`.

        Raises:
            ClaimRefused: there is no room.
            Conflict: the consumer was changed by somebody else: read again.
            ForeignConsumer: it is another tool's.
            PlacementUnavailable: it is not known whether it was written.
        """
        claiming.replace(self._transport, consumer, allocations, expected, stop)

    def release(self, consumer: str, guard: Callable[[], object] = lambda: None) -> bool:
        """Give back all that ``consumer`` holds; return whether it was anything. Idempotent.

        Args:
            guard: called right before each write; what it raises ends the release.

        Raises:
            ForeignConsumer: it is another tool's.
            PlacementUnavailable: it is not known whether it was released.
        """
        return claiming.release(self._transport, consumer, guard)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in version.split("."))
