"""`Placement`: providers and their inventories, candidates, claims.

Nothing is remembered between calls: each reads what it decides on. Writes carry the generation
that was read; when somebody else wrote meanwhile, they read again (see `transport`).

Threads: all methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote

import msgspec

from ecompute.cluster.errors import Conflict, InvalidInput, Refused
from ecompute.cluster.placement import claiming
from ecompute.cluster.placement.claiming import ClaimRequest, Usages, provider_missing
from ecompute.cluster.placement.documents import (
    Allocations,
    Candidates,
    ConsumerAllocations,
    Inventories,
    Inventory,
    Provider,
    candidates_from,
    checked_uuid,
    decode,
    provider_allocations_from,
)
from ecompute.cluster.placement.query import CandidatesQuery, candidates_query
from ecompute.cluster.placement.transport import MICROVERSION, Answer, Send, Transport

if TYPE_CHECKING:
    from types import TracebackType

    from ecompute.cluster.config import PlacementSettings

T = TypeVar("T")


class _Providers(msgspec.Struct, frozen=True):
    resource_providers: list[Provider]


class _Traits(msgspec.Struct, frozen=True):
    traits: frozenset[str]
    resource_provider_generation: int = 0


class _Version(msgspec.Struct, frozen=True):
    max_version: str = ""
    min_version: str = ""


class _Versions(msgspec.Struct, frozen=True):
    versions: list[_Version]


class Placement:
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
        self._transport = Transport(settings, timeout_s=timeout_s)
        self.endpoint = self._transport.endpoint

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
        self._read("/traits", _Traits, "reading traits", [("name", "in:COMPUTE_STATUS_DISABLED")])

    # --- providers -----------------------------------------------------------------------------

    def provider(self, uuid: str) -> Provider | None:
        """Return the provider of that uuid, or None."""
        return self._transport.settle(lambda send: self._provider(send, uuid))

    def provider_by_name(self, name: str) -> Provider | None:
        """Return the provider of that name (names are unique), or None."""
        found = self.providers(name=name)
        return found[0] if found else None

    def providers(self, **filters: str) -> list[Provider]:
        """Return the providers that match all ``filters``: name, uuid, member_of, resources, in_tree, required."""
        return self._read("/resource_providers", _Providers, "listing providers", filters.items()).resource_providers

    def ensure_provider(self, uuid: str, name: str) -> Provider:
        """Return the provider of that uuid, made if it was absent, renamed if it was called otherwise.

        Raises:
            Conflict: another provider has that name.
        """

        def step(send: Send) -> Provider:
            found = self._provider(send, uuid)
            if found is not None and found.name == name:
                return found
            if found is None:
                answer = send("POST", "/resource_providers", (), {"uuid": uuid, "name": name})
            else:
                # Without its parent it would be made a root.
                document = {"name": name, "parent_provider_uuid": found.parent_provider_uuid}
                answer = send("PUT", f"/resource_providers/{checked_uuid(uuid)}", (), document)
            if answer.status == 200:
                return self._transport.read(answer, lambda body: decode(body, Provider))
            if answer.status == 409 and found is None and (made := self._provider(send, uuid)) and made.name == name:
                return made  # an earlier try of ours was written, unanswered
            if answer.status == 409:
                raise Conflict(
                    f"placement already has a provider named {name}, and it is not {uuid}",
                    hint="set `uuid` to that provider's, or another `name`, in compute.yaml",
                )
            raise self._transport.unexpected(answer, f"registering provider {name} ({uuid})")

        return self._transport.settle(step)

    def delete_provider(self, uuid: str) -> None:
        """Remove the provider; nothing happens if there is none.

        Raises:
            Refused: it serves allocations, or has children.
        """
        answer = self._transport.ask("DELETE", f"/resource_providers/{checked_uuid(uuid)}")
        if answer.status == 409:
            raise Refused(f"provider {uuid} cannot be removed: {answer.detail}", hint="destroy its instances first")
        if answer.status not in (204, 404):
            raise self._transport.unexpected(answer, f"removing provider {uuid}")

    def inventories(self, uuid: str) -> Inventories:
        """Return what the provider has.

        Raises:
            NotFound: there is no such provider.
        """
        return self._transport.settle(lambda send: self._inventories(send, uuid))

    def set_inventories(self, uuid: str, inventories: Mapping[str, Inventory]) -> bool:
        """Make ``inventories`` all that the provider has; return whether anything was written.

        Classes that begin with ``CUSTOM_`` are made when they are absent.

        Raises:
            NotFound: there is no such provider.
            Refused: a class that is to go serves allocations.
            InvalidInput: placement does not take them; says why.
        """

        def step(send: Send) -> bool:
            found = self._inventories(send, uuid)
            if found.is_same(inventories):
                return False
            for name in inventories.keys() - found.inventories.keys():
                if name.startswith("CUSTOM_"):
                    self._expect(
                        send("PUT", f"/resource_classes/{quote(name, safe='')}"), f"making resource class {name}"
                    )
            document = {"resource_provider_generation": found.generation, "inventories": inventories}
            answer = send("PUT", f"/resource_providers/{checked_uuid(uuid)}/inventories", (), document)
            if answer.status == 409:
                raise Refused(
                    f"the inventory of provider {uuid} cannot be written: {answer.detail}",
                    hint="a class that serves allocations stays until they are released",
                )
            self._expect(answer, f"writing the inventory of provider {uuid}")
            return True

        return self._transport.settle(step)

    def known_traits(self) -> frozenset[str]:
        """Return the names of all standard traits of this placement: others must begin with ``CUSTOM_``."""
        known = self._read("/traits", _Traits, "listing traits").traits
        return frozenset(name for name in known if not name.startswith("CUSTOM_"))

    def traits(self, uuid: str) -> frozenset[str]:
        """Return the traits of the provider.

        Raises:
            NotFound: there is no such provider.
        """
        return self._transport.settle(lambda send: self._traits(send, uuid)).traits

    def set_traits(self, uuid: str, traits: AbstractSet[str]) -> bool:
        """Make ``traits`` all that the provider has; return whether anything was written.

        Traits that begin with ``CUSTOM_`` are made when they are absent.

        Raises:
            NotFound: there is no such provider.
            InvalidInput: placement does not know one of them.
        """

        def step(send: Send) -> bool:
            found = self._traits(send, uuid)
            if found.traits == traits:
                return False
            for name in traits - found.traits:
                if name.startswith("CUSTOM_"):
                    self._expect(send("PUT", f"/traits/{quote(name, safe='')}"), f"making trait {name}")
            document = {"resource_provider_generation": found.resource_provider_generation, "traits": sorted(traits)}
            answer = send("PUT", f"/resource_providers/{checked_uuid(uuid)}/traits", (), document)
            self._expect(answer, f"writing the traits of provider {uuid}")
            return True

        return self._transport.settle(step)

    def usages(self, uuid: str) -> dict[str, int]:
        """Return how much of each class of the provider is taken.

        Raises:
            NotFound: there is no such provider.
        """
        return self._of_provider(uuid, "usages", lambda body: decode(body, Usages)).usages

    def provider_allocations(self, uuid: str) -> dict[str, dict[str, int]]:
        """Return what each consumer holds of this provider: ``{consumer: {class: amount}}``.

        Placement tells neither whose they are nor of what type: `allocations` does, one at a time.

        Raises:
            NotFound: there is no such provider.
        """
        return self._of_provider(uuid, "allocations", provider_allocations_from)

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
    ) -> None:
        """Take ``allocations`` for ``consumer``, all or none. It holds nothing yet, or just this.

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
            Conflict: the consumer holds something else; or others wrote first each time, and it
                holds nothing.
            PlacementUnavailable: it is not known whether the claim was written.
            InvalidInput: placement cannot make sense of it.
        """
        wanted = ClaimRequest(consumer, allocations, mappings or {}, project_id, user_id, consumer_type)
        claiming.claim(self._transport, wanted, stop)

    def claim_many(self, claims: Sequence[ClaimRequest], *, stop: AbstractSet[str] = frozenset()) -> None:
        """Take all of ``claims`` in one write: all or none.

        Args:
            claims: of consumers that hold nothing yet, or just this.
            stop: the providers whose refusal no other hosts can mend.

        Raises:
            ClaimRefused: there is no room for all of them. Its providers are those without room for
                their part; they may be none, when room came free meanwhile.
            Conflict: a consumer holds something else; or others wrote first each time, and none
                holds anything.
            PlacementUnavailable: it is not known whether the claims were written.
            InvalidInput: placement cannot make sense of them, or a consumer is named twice.
        """
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
            Refused: the consumer is not one of ours.
            PlacementUnavailable: it is not known whether it was written.
        """
        claiming.replace(self._transport, consumer, allocations, expected, stop)

    def release(self, consumer: str) -> bool:
        """Give back all that ``consumer`` holds; return whether it was anything. Idempotent.

        Raises:
            Refused: the consumer is not one of ours.
            PlacementUnavailable: it is not known whether it was released.
        """
        return claiming.release(self._transport, consumer)

    # --- requests ------------------------------------------------------------------------------

    def _expect(self, answer: Answer, tried: str) -> None:
        if answer.status >= 300:
            raise self._transport.unexpected(answer, tried)

    def _read(self, path: str, kind: type[T], tried: str, parameters: Iterable[tuple[str, str]] = ()) -> T:
        answer = self._transport.ask("GET", path, list(parameters))
        self._expect(answer, tried)
        return self._transport.read(answer, lambda body: decode(body, kind))

    def _of_provider(self, uuid: str, what: str, reader: Callable[[bytes], T], send: Send | None = None) -> T:
        answer = (send or self._transport.ask)("GET", f"/resource_providers/{checked_uuid(uuid)}/{what}")
        if answer.status == 404:
            raise provider_missing(uuid)
        self._expect(answer, f"reading the {what} of provider {uuid}")
        return self._transport.read(answer, reader)

    def _provider(self, send: Send, uuid: str) -> Provider | None:
        answer = send("GET", f"/resource_providers/{checked_uuid(uuid)}")
        if answer.status == 404:
            return None
        self._expect(answer, f"reading provider {uuid}")
        return self._transport.read(answer, lambda body: decode(body, Provider))

    def _inventories(self, send: Send, uuid: str) -> Inventories:
        return self._of_provider(uuid, "inventories", lambda body: decode(body, Inventories), send)

    def _traits(self, send: Send, uuid: str) -> _Traits:
        return self._of_provider(uuid, "traits", lambda body: decode(body, _Traits), send)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in version.split("."))
