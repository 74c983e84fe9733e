"""A claim and its release: the writes of placement that must neither be lost nor be done twice.

A claim is one ``PUT /allocations/{consumer}`` that creates the consumer. Its outcomes:

- *taken*: 204, or the consumer is found to hold just this (an earlier try was written, unanswered);
- *again*: overtaken, or no answer. The same is sent again, a bounded number of times;
- *stop* or *next host*: `ClaimRefused`, with its scope. See `refusal`.

Threads: the functions hold no state of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ecompute.cluster.errors import ClaimRefused, CloudError, Conflict, NotFound, Refused
from ecompute.cluster.placement.documents import (
    Allocations,
    ConsumerAllocations,
    Inventories,
    allocations_document,
    checked_uuid,
    consumer_allocations_from,
    decode,
)
from ecompute.cluster.placement.refusal import Room, beside_the_host, scope_of
from ecompute.cluster.placement.transport import Answer, Overtaken, Send, Transport

OUR_CONSUMERS = "ECOMPUTE_"
"""What the types of our consumers begin with; others are reported, never touched."""

_UNEXPLAINED_REFUSALS = 3
"""How often room that is there, and is refused, is believed to have just come free."""


class Usages(msgspec.Struct, frozen=True):
    usages: dict[str, int]


def held_by(transport: Transport, send: Send, consumer: str) -> ConsumerAllocations:
    """Return what ``consumer`` holds; nothing, if placement does not know it."""
    answer = send("GET", f"/allocations/{checked_uuid(consumer)}")
    if answer.status != 200:
        raise transport.unexpected(answer, f"reading what {consumer} holds")
    return transport.read(answer, consumer_allocations_from)


def claim(
    transport: Transport,
    consumer: str,
    allocations: Allocations,
    mappings: Mapping[str, list[str]],
    *,
    project_id: str,
    user_id: str,
    consumer_type: str,
) -> None:
    """Take ``allocations`` for ``consumer``, which holds nothing yet. See `Placement.claim`."""
    wanted = ConsumerAllocations(
        allocations={provider: dict(resources) for provider, resources in allocations.items()},
        project_id=project_id,
        user_id=user_id,
        consumer_type=consumer_type,
    )
    beside = beside_the_host(allocations, mappings)
    document: dict[str, object] = {
        "allocations": allocations_document(allocations),
        "project_id": project_id,
        "user_id": user_id,
        "consumer_type": consumer_type,
    }
    if mappings:
        document["mappings"] = dict(mappings)
    path = f"/allocations/{checked_uuid(consumer)}"
    overtaken = unexplained = 0

    def step(send: Send) -> None:
        nonlocal overtaken, unexplained
        # Placement makes the consumer in a transaction of its own. Killed before the next one, it
        # leaves a consumer that holds nothing, is shown to nobody, and wants generation 0.
        generation = 0 if overtaken and overtaken % 2 == 0 else None
        try:
            answer = send("PUT", path, (), {**document, "consumer_generation": generation})
        except Overtaken:
            held = held_by(transport, send, consumer)
            if held and msgspec.structs.replace(held, generation=None) == wanted:
                return
            if held:
                raise Conflict(
                    f"{consumer} already holds another allocation", hint="release it first, or choose another uuid"
                ) from None
            overtaken += 1
            raise
        if answer.status == 204:
            return
        refusal = _refused(transport, send, answer, allocations, beside, consumer)
        if refusal is None:
            unexplained += 1
            if unexplained < _UNEXPLAINED_REFUSALS:
                raise Overtaken(answer.detail)
            raise ClaimRefused(answer.detail, scope="host")
        raise refusal

    transport.settle(step, unsettled=f"it is not known whether the claim of {consumer} was written")


def _refused(
    transport: Transport, send: Send, answer: Answer, allocations: Allocations, beside: frozenset[str], consumer: str
) -> CloudError | None:
    """Return the error for a claim that was not taken; None when nothing stands against it any more."""
    said = answer.detail or f"placement answers {answer.status}"
    if answer.status == 409 and not beside:
        return ClaimRefused(said, scope="host")
    if answer.status not in (400, 409):
        return transport.unexpected(answer, f"claiming for {consumer}")
    rooms = {provider: _room(transport, send, provider) for provider in allocations}
    if answer.status == 400 and None not in rooms.values():
        return transport.unexpected(answer, f"claiming for {consumer}")
    scope = scope_of(allocations, beside, rooms)
    return None if scope is None else ClaimRefused(said, scope=scope)


def _room(transport: Transport, send: Send, provider: str) -> Room | None:
    """Return what ``provider`` has and gives; None if it is gone."""
    path = f"/resource_providers/{checked_uuid(provider)}"
    answers = [send("GET", f"{path}/inventories"), send("GET", f"{path}/usages")]
    if any(answer.status == 404 for answer in answers):
        return None
    for answer in answers:
        if answer.status != 200:
            raise transport.unexpected(answer, f"reading what provider {provider} has")
    return Room(
        inventories=transport.read(answers[0], lambda body: decode(body, Inventories)).inventories,
        usages=transport.read(answers[1], lambda body: decode(body, Usages)).usages,
    )


def release(transport: Transport, consumer: str) -> bool:
    """Give back all that ``consumer`` holds. See `Placement.release`."""
    was_held = False

    def step(send: Send) -> None:
        nonlocal was_held
        held = held_by(transport, send, consumer)
        if not held:
            return
        if not held.consumer_type.startswith(OUR_CONSUMERS):
            raise Refused(
                f"{consumer} is a consumer of type {held.consumer_type}, which is not ours",
                hint="release it with the tool that claimed it",
            )
        was_held = True
        # Not DELETE, which has no guard: this one is refused if the consumer changed meanwhile.
        document: dict[str, object] = {
            "allocations": {},
            "project_id": held.project_id,
            "user_id": held.user_id,
            "consumer_type": held.consumer_type,
            "consumer_generation": held.generation,
        }
        answer = send("PUT", f"/allocations/{consumer}", (), document)
        if answer.status != 204:
            raise transport.unexpected(answer, f"releasing what {consumer} holds")

    transport.settle(step, unsettled=f"it is not known whether {consumer} was released")
    return was_held


def provider_missing(uuid: str) -> NotFound:
    return NotFound(f"placement has no resource provider {uuid}", hint="start `ecompute run` on that host")
