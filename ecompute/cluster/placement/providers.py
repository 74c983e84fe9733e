"""Providers of placement: what they have, can do, and belong to. The half of `Placement` that is about them.

A ``set_…`` makes all of one kind what it is given; a ``change_…`` makes it of what was read. Both write
with the generation that was read, nothing that is so already, and read again when somebody else wrote
meanwhile (see `transport`).

Threads: all methods may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeVar
from urllib.parse import quote

import msgspec

from ecompute.cluster.closing import closed, closed_traits
from ecompute.cluster.errors import Conflict, Refused
from ecompute.cluster.placement.claiming import Usages, provider_missing
from ecompute.cluster.placement.documents import (
    PRESENCE,
    Inventories,
    Inventory,
    Provider,
    Summary,
    checked_uuid,
    decode,
    provider_allocations_from,
    summaries_from,
)
from ecompute.cluster.placement.transport import Answer, Send, Transport
from ecompute.cluster.shards import level_for, shards

HOSTS_A_REQUEST = 800
"""Of which `Placement.hosts` asks at once. An answer of more may be cut: ``max_allocation_candidates``
of placement's configuration is at least 1,000, and each host is one candidate."""

T = TypeVar("T")


class _Providers(msgspec.Struct, frozen=True):
    resource_providers: list[Provider]


class Traits(msgspec.Struct, frozen=True):
    traits: frozenset[str]
    resource_provider_generation: int = 0


class _Class(msgspec.Struct, frozen=True):
    name: str


class _Classes(msgspec.Struct, frozen=True):
    resource_classes: list[_Class]


class _Aggregates(msgspec.Struct, frozen=True):
    aggregates: frozenset[str]
    resource_provider_generation: int


class Providers:
    """What can be read and written of providers. See `Placement`, which is one."""

    _transport: Transport

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

    def ensure_provider(self, uuid: str, name: str, *, parent: str | None = None) -> Provider:
        """Return the provider of that uuid, made if it was absent, renamed if it was called otherwise.

        Args:
            parent: below which it is made; None: it is a root. One that is there stays where it is.

        Raises:
            Conflict: another provider has that name.
            InvalidInput: there is no such parent.
        """

        def step(send: Send) -> Provider:
            found = self._provider(send, uuid)
            if found is not None and found.name == name:
                return found
            if found is None:
                made_of = {"uuid": uuid, "name": name} | ({"parent_provider_uuid": parent} if parent else {})
                answer = send("POST", "/resource_providers", (), made_of)
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
        return self.change_inventories(uuid, lambda found: inventories)

    def change_inventories(
        self, uuid: str, change: Callable[[Mapping[str, Inventory]], Mapping[str, Inventory]]
    ) -> bool:
        """Make what ``change`` makes of the provider's inventories all that it has.

        Args:
            change: called with what was read, and once more where somebody else wrote meanwhile.

        Returns and raises as `set_inventories`.
        """

        def step(send: Send) -> bool:
            found = self._inventories(send, uuid)
            inventories = change(found.inventories)
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

    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the names of all resource classes and of all traits, custom ones among them."""
        classes = self._read("/resource_classes", _Classes, "listing resource classes").resource_classes
        return frozenset(each.name for each in classes), self._read("/traits", Traits, "listing traits").traits

    def classes(self, prefix: str) -> list[str]:
        """Return the names of the resource classes that begin with ``prefix``."""
        found = self._read("/resource_classes", _Classes, "listing resource classes").resource_classes
        return sorted(one.name for one in found if one.name.startswith(prefix))

    def delete_class(self, name: str) -> None:
        """Remove a resource class of ours; nothing happens if there is none.

        Raises:
            Refused: a provider has it.
        """
        answer = self._transport.ask("DELETE", f"/resource_classes/{quote(name, safe='')}")
        if answer.status == 409:
            raise Refused(f"resource class {name} cannot be removed: {answer.detail}", hint="a provider has it")
        if answer.status not in (204, 404):
            raise self._transport.unexpected(answer, f"removing resource class {name}")

    def known_traits(self) -> frozenset[str]:
        """Return the names of all standard traits of this placement: others must begin with ``CUSTOM_``."""
        known = self._read("/traits", Traits, "listing traits").traits
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
        return self.change_traits(uuid, lambda found: traits)

    def change_traits(self, uuid: str, change: Callable[[frozenset[str]], AbstractSet[str]]) -> bool:
        """Make what ``change`` makes of the provider's traits all that it has; as `change_inventories`.

        Returns and raises as `set_traits`.
        """

        def step(send: Send) -> bool:
            found = self._traits(send, uuid)
            traits = change(found.traits)
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

    def aggregates(self, uuid: str) -> frozenset[str]:
        """Return the aggregates of which the provider is a member.

        Raises:
            NotFound: there is no such provider.
        """
        return self._transport.settle(lambda send: self._aggregates(send, uuid)).aggregates

    def set_aggregates(self, uuid: str, aggregates: AbstractSet[str]) -> bool:
        """Make the provider a member of ``aggregates`` and of no others; return whether anything was written.

        An aggregate is there as soon as it has a member.

        Raises:
            NotFound: there is no such provider.
            InvalidInput: one of them is not a uuid.
        """
        return self.change_aggregates(uuid, lambda found: aggregates)

    def change_aggregates(self, uuid: str, change: Callable[[frozenset[str]], AbstractSet[str]]) -> bool:
        """Make the provider a member of what ``change`` makes of its aggregates; as `change_inventories`.

        Returns and raises as `set_aggregates`.
        """

        def step(send: Send) -> bool:
            found = self._aggregates(send, uuid)
            aggregates = sorted(checked_uuid(aggregate) for aggregate in change(found.aggregates))
            if found.aggregates == set(aggregates):
                return False
            document = {
                "resource_provider_generation": found.resource_provider_generation,
                "aggregates": aggregates,
            }
            answer = send("PUT", f"/resource_providers/{checked_uuid(uuid)}/aggregates", (), document)
            self._expect(answer, f"writing the aggregates of provider {uuid}")
            return True

        return self._transport.settle(step)

    def close_host(self, uuid: str) -> bool:
        """Keep everything new off a host, as `ecompute.cluster.closing` tells; return whether anything was written.

        Idempotent. What its guests hold stays theirs.

        Raises:
            NotFound: there is no such provider.
        """
        has_written = self.change_traits(uuid, closed_traits)
        return self.change_inventories(uuid, closed) or has_written

    def hosts(self, *, count: int = 0, member_of: str | None = None, in_tree: str | None = None) -> dict[str, Summary]:
        """Return what is known of every host, by its provider, full and closed ones included.

        A host is what has the class `documents.PRESENCE`. One request tells capacity, use and traits of
        all of them; beyond `HOSTS_A_REQUEST`, one request a shard.

        Args:
            count: how many there are, about (placement cuts an answer that is too long).
            member_of: only those in this aggregate.
            in_tree: only the one to whose tree this provider belongs.
        """
        found = self.trees(count=count, member_of=member_of, in_tree=in_tree)
        return {uuid: summary for uuid, summary in found.items() if summary.is_host}

    def trees(self, *, count: int = 0, member_of: str | None = None, in_tree: str | None = None) -> dict[str, Summary]:
        """Return what `hosts` does, and beside it the other providers of the hosts' trees."""
        level = level_for(count, size=HOSTS_A_REQUEST // 2) if count > HOSTS_A_REQUEST else 0
        narrower = [
            (name, checked_uuid(uuid)) for name, uuid in (("member_of", member_of), ("in_tree", in_tree)) if uuid
        ]
        found: dict[str, Summary] = {}
        for shard in shards(level) if level else (None,):
            asked = [("resources", f"{PRESENCE}:1"), *narrower, *([("member_of", shard)] if shard else [])]
            answer = self._transport.ask("GET", "/allocation_candidates", asked)
            if answer.status == 400 and PRESENCE in answer.detail:
                return {}  # no host has ever registered, and so there is no such class
            self._expect(answer, "reading what hosts have")
            found |= self._transport.read(answer, summaries_from)
        return found

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

    def _aggregates(self, send: Send, uuid: str) -> _Aggregates:
        return self._of_provider(uuid, "aggregates", lambda body: decode(body, _Aggregates), send)

    def _traits(self, send: Send, uuid: str) -> Traits:
        return self._of_provider(uuid, "traits", lambda body: decode(body, Traits), send)
