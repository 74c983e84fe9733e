"""Claims and their release: the writes of placement that must neither be lost nor be done twice.

A claim is one ``PUT /allocations/{consumer}`` that creates the consumer; several are one
``POST /allocations``, all or none. Outcomes:

- *taken*: 204, or the consumers are found to hold just this (an earlier try was written, unanswered);
- *again*: overtaken, or no answer. The same is sent again, a bounded number of times: `Outrun` says that
  others wrote first each time;
- *stop* or *next host*: `ClaimRefused`, with its scope and who refused. See `refusal`.

Threads: the functions hold no state of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from ecompute.cluster.errors import (
    ClaimRefused,
    CloudError,
    Conflict,
    ForeignConsumer,
    InvalidInput,
    NotFound,
    PlacementUnavailable,
)
from ecompute.cluster.placement.documents import (
    OUR_CONSUMERS,
    Allocations,
    ConsumerAllocations,
    Inventories,
    allocations_document,
    checked_uuid,
    consumer_allocations_from,
    decode,
)
from ecompute.cluster.placement.refusal import Room, ask_first, demand_of, refusing, scope_of
from ecompute.cluster.placement.transport import Answer, NoAnswer, Overtaken, Send, Transport

T = TypeVar("T")

_UNEXPLAINED_REFUSALS = 3
"""How often room that is there, and is refused, is believed to have just come free."""

_LOOKS_AT_ALL = (3, 8)
"""After so many times of being overtaken, every consumer of a common claim is looked at."""

_MORE_S_A_CLAIM = 0.25
"""What each claim of a common one adds to its deadline: placement takes some 40 ms for each."""


@dataclass(frozen=True)
class ClaimRequest:
    """What one consumer, which holds nothing yet, is to hold.

    ``allocations`` are a candidate's, and what is claimed beside it (quotas, groups); ``mappings``
    are the candidate's; ``project_id`` is the namespace; ``user_id`` is who claims.
    """

    consumer: str
    allocations: Allocations
    mappings: Mapping[str, list[str]] = field(default_factory=dict)
    project_id: str = ""
    user_id: str = ""
    consumer_type: str = "ECOMPUTE_INSTANCE"

    @property
    def held(self) -> ConsumerAllocations:
        """What the consumer holds once it is taken, but for the generation."""
        return ConsumerAllocations(
            allocations={provider: dict(resources) for provider, resources in self.allocations.items()},
            project_id=self.project_id,
            user_id=self.user_id,
            consumer_type=self.consumer_type,
        )

    def document(self, generation: int | None) -> dict[str, object]:
        """Return it as placement reads it."""
        document: dict[str, object] = {
            "allocations": allocations_document(self.allocations),
            "project_id": self.project_id,
            "user_id": self.user_id,
            "consumer_type": self.consumer_type,
            "consumer_generation": generation,
        }
        return document | {"mappings": dict(self.mappings)} if self.mappings else document


class Usages(msgspec.Struct, frozen=True):
    usages: dict[str, int]


class _Look:
    """Reads for a step, each with tries of its own: what a step has found out is not lost with the next read."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def held_by(self, consumer: str) -> ConsumerAllocations:
        return self._settled(lambda send: held_by(self._transport, send, consumer))

    def room(self, provider: str, held: Allocations) -> Room | None:
        return self._settled(lambda send: _room(self._transport, send, provider, held))

    def generation(self, consumer: str) -> int | None:
        return self._settled(lambda send: _generation(send, consumer))

    def _settled(self, read: Callable[[Send], T]) -> T:
        try:
            return self._transport.settle(read)
        except PlacementUnavailable as error:
            raise NoAnswer(str(error.args[0])) from error


def held_by(transport: Transport, send: Send, consumer: str) -> ConsumerAllocations:
    """Return what ``consumer`` holds; nothing, if placement does not know it."""
    answer = send("GET", f"/allocations/{checked_uuid(consumer)}")
    if answer.status != 200:
        raise transport.unexpected(answer, f"reading what {consumer} holds")
    return transport.read(answer, consumer_allocations_from)


def claim(transport: Transport, wanted: ClaimRequest, stop: AbstractSet[str]) -> bool:
    """Take what ``wanted`` says. See `Placement.claim`."""
    path = f"/allocations/{checked_uuid(wanted.consumer)}"
    look = _Look(transport)
    overtaken = 0
    is_new = True
    refused = _Refusals(transport, [wanted.allocations], stop, f"claiming for {wanted.consumer}")

    def step(send: Send) -> None:
        nonlocal overtaken, is_new
        # Placement makes the consumer in a transaction of its own. Killed before the next one, it
        # leaves a consumer that holds nothing, is shown to nobody, and wants generation 0.
        generation = 0 if overtaken and overtaken % 2 == 0 else None
        try:
            answer = send("PUT", path, (), wanted.document(generation))
        except Overtaken:
            held = look.held_by(wanted.consumer)
            if _is_same(held, wanted.held):
                is_new = False
                return
            if held:
                raise _holds_another(wanted.consumer, held) from None
            overtaken += 1
            raise
        if answer.status != 204:
            refused.tell(answer)

    transport.settle(step, unsettled=f"it is not known whether the claim of {wanted.consumer} was written")
    return is_new


def claim_many(transport: Transport, claims: Sequence[ClaimRequest], stop: AbstractSet[str]) -> None:
    """Take all of ``claims`` in one write. See `Placement.claim_many`."""
    consumers = [checked_uuid(one.consumer) for one in claims]
    if not claims or len(set(consumers)) != len(claims):
        raise InvalidInput("a common claim needs consumers, each once", hint="name every consumer once")
    look = _Look(transport)
    generations: dict[str, int | None] = dict.fromkeys(consumers)
    overtaken = 0
    was_silent = False
    refused = _Refusals(transport, [one.allocations for one in claims], stop, f"claiming for {len(claims)} consumers")

    def is_taken(some: Sequence[ClaimRequest]) -> bool:
        held = [look.held_by(one.consumer) for one in some]
        if not any(held):
            return False
        for one, found in zip(some, held, strict=True):
            if not _is_same(found, one.held):
                # It was one write, so that what is held by some alone is not ours.
                others = next((one.consumer, found) for one, found in zip(some, held, strict=True) if found)
                raise _holds_another(one.consumer, found) if found else _holds_another(*others)
        return True

    def step(send: Send) -> None:
        nonlocal overtaken, was_silent
        document = {one.consumer: one.document(generations[one.consumer]) for one in claims}
        try:
            answer = send("POST", "/allocations", (), document)
        except NoAnswer:
            was_silent = True
            raise
        except Overtaken:
            overtaken += 1
            # Mostly it was a host's generation, and nothing of ours is written.
            is_looked_at_all = was_silent or overtaken in _LOOKS_AT_ALL
            if is_taken(claims[:1]) or is_looked_at_all:
                if is_taken(claims):
                    return
                generations.update({consumer: look.generation(consumer) for consumer in consumers})
            was_silent = False
            raise
        if answer.status != 204:
            refused.tell(answer)

    transport.settle(
        step,
        unsettled=f"it is not known whether the claim of {len(claims)} consumers was written",
        more_s=len(claims) * _MORE_S_A_CLAIM,
    )


def _generation(send: Send, consumer: str) -> int | None:
    """Return the generation of a consumer that holds nothing: 0, of one that a killed placement left half made."""
    nothing = {
        "allocations": {},
        "project_id": "system",
        "user_id": "system",
        "consumer_type": "ECOMPUTE_INSTANCE",
        "consumer_generation": 0,
    }
    try:
        answer = send("PUT", f"/allocations/{consumer}", (), nothing)
    except Overtaken:
        return None
    return 0 if answer.status == 204 else None


def replace(
    transport: Transport,
    consumer: str,
    allocations: Allocations,
    expected: ConsumerAllocations,
    stop: AbstractSet[str],
) -> None:
    """Let ``consumer`` hold ``allocations`` and no longer ``expected``. See `Placement.replace`."""
    if not expected.consumer_type.startswith(OUR_CONSUMERS):
        raise _not_ours(consumer, expected)
    wanted = ClaimRequest(
        consumer=consumer,
        allocations=allocations,
        project_id=expected.project_id,
        user_id=expected.user_id,
        consumer_type=expected.consumer_type,
    )
    look = _Look(transport)
    refused = _Refusals(transport, [allocations], stop, f"changing what {consumer} holds")

    def step(send: Send) -> None:
        try:
            answer = send("PUT", f"/allocations/{checked_uuid(consumer)}", (), wanted.document(expected.generation))
        except Overtaken:
            held = look.held_by(consumer)
            if _is_same(held, wanted.held):
                return
            if held != expected:
                raise Conflict(f"what {consumer} holds was changed by somebody else", hint="try again") from None
            raise
        if answer.status != 204:
            refused.tell(answer, held=expected.allocations)

    transport.settle(step, unsettled=f"it is not known whether what {consumer} holds was changed")


def _is_same(held: ConsumerAllocations, wanted: ConsumerAllocations) -> bool:
    return bool(held) and msgspec.structs.replace(held, generation=None) == wanted


def _holds_another(consumer: str, held: ConsumerAllocations) -> CloudError:
    if not held.consumer_type.startswith(OUR_CONSUMERS):
        return _not_ours(consumer, held, hint="choose another uuid")
    return Conflict(f"{consumer} already holds another allocation", hint="release it first, or choose another uuid")


class _Refusals:
    """Tells what the refusals of one operation mean."""

    def __init__(self, transport: Transport, claims: Sequence[Allocations], stop: AbstractSet[str], tried: str) -> None:
        self._transport = transport
        self._look = _Look(transport)
        self._demand = demand_of(claims)
        self._stop = stop
        self._tried = tried
        self._unexplained = 0

    def tell(self, answer: Answer, held: Allocations | None = None) -> None:
        """Raise what an answer that is not 204 means.

        Args:
            held: what the consumer holds already, and would give back.

        Raises:
            ClaimRefused: there is no room.
            Overtaken: nothing stands against it any more.
            CloudError: it is something else.
        """
        said = answer.detail or f"placement answers {answer.status}"
        if answer.status not in (400, 409):
            raise self._transport.unexpected(answer, self._tried)
        if answer.status == 409 and len(self._demand) == 1 and not self._stop & self._demand.keys():
            raise ClaimRefused(said, scope="host", providers=frozenset(self._demand))
        found = self._refusing(said, held or {}, is_any_gone=answer.status == 400)
        scope = scope_of(found, self._stop)
        if scope is not None:
            raise ClaimRefused(said, scope=scope, providers=found)
        if answer.status == 400:
            raise self._transport.unexpected(answer, self._tried)
        self._unexplained += 1
        if self._unexplained < _UNEXPLAINED_REFUSALS:
            raise Overtaken(said)
        raise ClaimRefused(said, scope="host")

    def _refusing(self, said: str, held: Allocations, *, is_any_gone: bool) -> frozenset[str]:
        """Return who refuses: of those that placement names and those that stop, and else of all."""
        order = ask_first(self._demand, self._stop, said)
        likely = [provider for provider in order if provider in said or provider in self._stop]
        for providers in (likely, order[len(likely) :]):
            rooms = {provider: self._look.room(provider, held) for provider in providers}
            found = frozenset(provider for provider, room in rooms.items() if room is None)
            found = found if is_any_gone else refusing(self._demand, rooms)
            if found:
                return found
        return frozenset()


def _room(transport: Transport, send: Send, provider: str, held: Allocations) -> Room | None:
    """Return what ``provider`` has and gives, without what is ``held`` already; None if it is gone."""
    path = f"/resource_providers/{checked_uuid(provider)}"
    answers = [send("GET", f"{path}/inventories"), send("GET", f"{path}/usages")]
    if any(answer.status == 404 for answer in answers):
        return None
    for answer in answers:
        if answer.status != 200:
            raise transport.unexpected(answer, f"reading what provider {provider} has")
    usages = transport.read(answers[1], lambda body: decode(body, Usages)).usages
    own = held.get(provider, {})
    return Room(
        inventories=transport.read(answers[0], lambda body: decode(body, Inventories)).inventories,
        usages={name: used - own.get(name, 0) for name, used in usages.items()},
    )


def release(transport: Transport, consumer: str, guard: Callable[[], object]) -> bool:
    """Give back all that ``consumer`` holds. See `Placement.release`."""
    was_held = False

    def step(send: Send) -> None:
        nonlocal was_held
        held = held_by(transport, send, consumer)
        if not held:
            return
        if not held.consumer_type.startswith(OUR_CONSUMERS):
            raise _not_ours(consumer, held)
        was_held = True
        # Not DELETE, which has no guard: this one is refused if the consumer changed meanwhile.
        document: dict[str, object] = {
            "allocations": {},
            "project_id": held.project_id,
            "user_id": held.user_id,
            "consumer_type": held.consumer_type,
            "consumer_generation": held.generation,
        }
        guard()
        answer = send("PUT", f"/allocations/{consumer}", (), document)
        if answer.status != 204:
            raise transport.unexpected(answer, f"releasing what {consumer} holds")

    transport.settle(step, unsettled=f"it is not known whether {consumer} was released")
    return was_held


def _not_ours(
    consumer: str, held: ConsumerAllocations, hint: str = "release it with the tool that claimed it"
) -> ForeignConsumer:
    return ForeignConsumer(f"{consumer} is a consumer of type {held.consumer_type}, which is not ours", hint=hint)


def provider_missing(uuid: str) -> NotFound:
    return NotFound(f"placement has no resource provider {uuid}", hint="start `ecompute run` on that host")
