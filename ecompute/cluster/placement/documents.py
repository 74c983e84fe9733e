"""What placement answers, as frozen documents, and what can be said about them alone.

The shapes are those of API 1.39 (https://docs.openstack.org/api-ref/placement/), with one layer
taken out: where placement writes ``{provider: {"resources": {class: amount}}}`` there is
``{provider: {class: amount}}`` here.

Pure: no clock, no I/O.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar
from uuid import UUID

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.errors import InvalidInput, one_line

MAX_INT = 2**31 - 1
"""The largest amount that placement can hold."""

OUR_CONSUMERS = "ECOMPUTE_"
"""What the types of our consumers begin with; others are reported, never touched."""

PRESENCE = "CUSTOM_HYPERVISOR"
"""A class of which each host has one, and which nobody claims. One question for it is answered with
capacity, use and traits of every host, full and closed ones included."""

Allocations = Mapping[str, Mapping[str, int]]
"""``{provider uuid: {resource class: amount}}``"""

T = TypeVar("T")

_UUID = re.compile(r"\A[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")


def decode(body: bytes, kind: type[T]) -> T:
    """Return ``body`` as ``kind``; fields that we do not know are passed over.

    Raises:
        msgspec.DecodeError: it is something else.
    """
    return from_json(body, kind)


def checked_uuid(text: str) -> str:
    """Return ``text``, a uuid in the one form that stands in URLs and keys.

    Raises:
        InvalidInput: it is something else; as a part of a URL it could name another thing.
    """
    if not _UUID.match(text):
        raise InvalidInput(f"{one_line(text, 80)!r} is not a uuid", hint=f"write it like {UUID(int=0)}")
    return text


def host_of(allocations: Allocations) -> str:
    """Return the uuid of the provider that serves VCPU: the host, whoever else serves disk or quota.

    Raises:
        InvalidInput: none does, or several do.
    """
    hosts = [provider for provider, resources in allocations.items() if "VCPU" in resources]
    if len(hosts) == 1:
        return hosts[0]
    if not hosts:
        raise InvalidInput("no provider serves VCPU, so there is no host", hint="ask for VCPU, as in resources=VCPU:1")
    raise InvalidInput(
        f"VCPU is served by {len(hosts)} providers, so there is no one host",
        hint="ask for all VCPU in one group",
    )


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A resource provider: a host, or what shares or limits resources beside hosts."""

    uuid: str
    name: str
    generation: int
    parent_provider_uuid: str | None = None
    root_provider_uuid: str | None = None


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one resource class a provider has."""

    total: int
    reserved: int = 0
    """May equal ``total``: nothing more is given then."""
    min_unit: int = 1
    max_unit: int = MAX_INT
    step_size: int = 1
    allocation_ratio: float = 1.0

    @property
    def capacity(self) -> int:
        return int((self.total - self.reserved) * self.allocation_ratio)

    def takes(self, amount: int, *, used: int) -> bool:
        """Whether ``amount`` more would be given where ``used`` is taken."""
        return (
            self.min_unit <= amount <= self.max_unit and amount % self.step_size == 0 and used + amount <= self.capacity
        )

    def is_same(self, other: Inventory) -> bool:
        """Whether both say the same; databases round the ratio to single precision."""
        return msgspec.structs.replace(self, allocation_ratio=1.0) == msgspec.structs.replace(
            other, allocation_ratio=1.0
        ) and math.isclose(self.allocation_ratio, other.allocation_ratio, rel_tol=1e-6)


class Inventories(msgspec.Struct, frozen=True, kw_only=True):
    """All inventories of a provider, and the provider's generation when they were read."""

    generation: int = msgspec.field(name="resource_provider_generation")
    inventories: dict[str, Inventory]

    def is_same(self, wanted: Mapping[str, Inventory]) -> bool:
        return self.inventories.keys() == wanted.keys() and all(
            found.is_same(wanted[name]) for name, found in self.inventories.items()
        )


class ClassUse(msgspec.Struct, frozen=True, kw_only=True):
    capacity: int
    used: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a provider that is part of a candidate, or of its tree."""

    resources: dict[str, ClassUse] = {}
    traits: frozenset[str] = frozenset()
    parent_provider_uuid: str | None = None
    root_provider_uuid: str | None = None

    @property
    def is_host(self) -> bool:
        """Whether it is a host of this cloud, and not what lies below one, or beside."""
        return PRESENCE in self.resources


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve a query."""

    allocations: dict[str, dict[str, int]]
    mappings: dict[str, list[str]]
    """``{group: [provider]}``: which provider serves which group of the query; ``""`` is the unnamed one."""

    @property
    def host(self) -> str:
        return host_of(self.allocations)


class Candidates(msgspec.Struct, frozen=True, kw_only=True):
    """All ways that placement named, in its order."""

    items: tuple[Candidate, ...]
    summaries: dict[str, Summary]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.items)


class ConsumerAllocations(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer holds. Nothing at all: ``generation`` is None and the rest is empty."""

    generation: int | None = None
    allocations: dict[str, dict[str, int]] = {}
    project_id: str = ""
    user_id: str = ""
    consumer_type: str = ""

    def __bool__(self) -> bool:
        return bool(self.allocations)


# --- as they come over the wire ------------------------------------------------------------------


class _Resources(msgspec.Struct):
    resources: dict[str, int]


class _AllocationRequest(msgspec.Struct):
    allocations: dict[str, _Resources]
    mappings: dict[str, list[str]]


class _CandidatesAnswer(msgspec.Struct):
    allocation_requests: list[_AllocationRequest]
    provider_summaries: dict[str, Summary]


class _SummariesAnswer(msgspec.Struct):
    provider_summaries: dict[str, Summary]


class _AllocationsAnswer(msgspec.Struct):
    allocations: dict[str, _Resources]
    consumer_generation: int | None = None
    project_id: str = ""
    user_id: str = ""
    consumer_type: str = ""


def _flat(allocations: Mapping[str, _Resources]) -> dict[str, dict[str, int]]:
    return {key: value.resources for key, value in allocations.items()}


def candidates_from(body: bytes) -> Candidates:
    """Read the answer of ``GET /allocation_candidates``."""
    answer = decode(body, _CandidatesAnswer)
    return Candidates(
        items=tuple(
            Candidate(allocations=_flat(request.allocations), mappings=request.mappings)
            for request in answer.allocation_requests
        ),
        summaries=answer.provider_summaries,
    )


def summaries_from(body: bytes) -> dict[str, Summary]:
    """Read the answer of ``GET /allocation_candidates`` for its providers alone."""
    return decode(body, _SummariesAnswer).provider_summaries


def consumer_allocations_from(body: bytes) -> ConsumerAllocations:
    """Read the answer of ``GET /allocations/{consumer}``."""
    answer = decode(body, _AllocationsAnswer)
    return ConsumerAllocations(
        generation=answer.consumer_generation,
        allocations=_flat(answer.allocations),
        project_id=answer.project_id,
        user_id=answer.user_id,
        consumer_type=answer.consumer_type,
    )


def provider_allocations_from(body: bytes) -> dict[str, dict[str, int]]:
    """Read the answer of ``GET /resource_providers/{uuid}/allocations``: ``{consumer: {class: amount}}``."""
    return _flat(decode(body, _AllocationsAnswer).allocations)


def allocations_document(allocations: Allocations) -> dict[str, dict[str, dict[str, int]]]:
    """Return ``allocations`` as placement writes them."""
    return {provider: {"resources": dict(resources)} for provider, resources in allocations.items()}
