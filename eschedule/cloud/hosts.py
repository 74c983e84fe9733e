"""The hosts of the cloud: what etcd and placement say of each, and what operators say of them.

Reading all hosts costs three ranges of keys and one question to placement, however many they are.

An operator's word goes to ``/admin/<provider>`` first, and then to placement: a request compares the
first, a claim the second. If the tool dies between the two, the host does the rest, as soon as it
runs; the same command again does both again. See `ecompute.cluster.saying`. Only the host opens
itself, so that `activate` writes nothing to placement.

Safe from several threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED, bar_of, said
from ecompute.cluster.documents import Admin, AdminState, Alive, Assignment, Event, Node
from ecompute.cluster.errors import Ambiguous, InvalidInput, NotFound, some_of
from ecompute.cluster.events import HOST, read
from ecompute.cluster.given import OUR_TRAITS, Said
from ecompute.cluster.placement import Summary
from ecompute.cluster.saying import close, say
from eschedule.cloud.connection import Cloud
from eschedule.cloud.half_done import half_done
from eschedule.cloud.zones import Zones, check_zone

TEXT_LIMIT = 200
TRAITS_LIMIT = 50
_TRAIT = re.compile(r"CUSTOM_[A-Z0-9_]{1,248}")


@dataclass(frozen=True)
class Room:
    """Of one resource class: what may be claimed in all when the host is open, and what is."""

    capacity: int
    used: int


@dataclass(frozen=True)
class HostView:
    """One host.

    Its ``room`` is by resource class, and its ``traits`` are those in placement; both are empty while
    placement does not know it.
    """

    node: Node
    is_alive: bool
    admin: Admin
    room: dict[str, Room]
    traits: frozenset[str]

    @property
    def state(self) -> str:
        """One word, the worst that is known."""
        bar = bar_of(self.node, self.admin)
        if bar is not None:
            return bar.word
        return "up" if self.is_alive else "down"

    @property
    def standing(self) -> str:
        """As `state`, in the words of operators: active is what takes new instances."""
        if self.state == "up":
            return "active" if self.node.closed is None else "closed"
        return self.state

    @property
    def why(self) -> str | None:
        """Why it takes nothing new, where anybody says so."""
        return self.node.hold or self.admin.reason or self.node.closed


class Hosts:
    """All hosts that have ever registered."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    # --- reading -------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        """Return {provider: host name}."""
        return {item.value.provider: item.value.name for item in self._cloud.store.list(keys.NODES, Node).items}

    def name(self, provider: str) -> str:
        """Return the host's name; its provider's uuid, where it has never registered."""
        found = self._cloud.store.get(keys.node(provider), Node)
        return provider if found is None else found.value.name

    def names_of(self, providers: Iterable[str]) -> dict[str, str]:
        """Return {provider: host name} of those of ``providers`` that have ever registered."""
        wanted = [keys.node(provider) for provider in sorted(providers) if keys.is_uuid(provider)]
        return {item.value.provider: item.value.name for item in self._cloud.store.get_many(wanted, Node).items}

    def all(self) -> list[HostView]:
        """Return every host that has ever registered, by name."""
        store = self._cloud.store
        nodes = [item.value for item in store.list(keys.NODES, Node).items]
        alive = {keys.last(key) for key in store.keys(keys.ALIVE)[0]}
        admins = {keys.last(item.key): item.value for item in store.list(keys.ADMIN, Admin).items}
        known = self._cloud.placement.hosts(count=len(nodes)) if nodes else {}
        return [
            _view(node, node.provider in alive, admins.get(node.provider), known.get(node.provider))
            for node in sorted(nodes, key=lambda node: (node.name, node.provider))
        ]

    def find(self, ref: str) -> Node:
        """Return the host that ``ref`` names: its name, its uuid, or the beginning of either.

        Raises:
            NotFound: none, with what to do.
            Ambiguous: several, which are named.
        """
        nodes = [item.value for item in self._cloud.store.list(keys.NODES, Node).items]
        wanted = ref.lower()
        named = [node for node in nodes if node.name == ref or node.provider == wanted]
        begun = [node for node in nodes if ref and (node.name.startswith(ref) or node.provider.startswith(wanted))]
        for found in (named, begun):
            if len(found) > 1:
                some = some_of(sorted(f"{node.name} ({node.provider})" for node in found))
                raise Ambiguous(f"{ref[:80]!r} may be any of {len(found)} hosts: {some}", hint="give more of it")
            if found:
                return found[0]
        raise NotFound(f"there is no host {ref[:80]!r}", hint="see `eschedule host list`")

    def view(self, node: Node) -> HostView:
        """Return what is known of one host."""
        store, placement = self._cloud.store, self._cloud.placement
        admin = store.get(keys.admin(node.provider), Admin)
        is_alive = store.get(keys.alive(node.provider), Alive) is not None
        return _view(
            node,
            is_alive,
            None if admin is None else admin.value,
            placement.hosts(in_tree=node.provider).get(node.provider),
        )

    def instances(self, node: Node) -> list[str]:
        """Return the names of the instances on a host, those that it is removing too."""
        found = self._cloud.store.list(keys.assignments(node.provider), Assignment).items
        return sorted(item.value.name for item in found)

    def events(self, node: Node) -> list[Event]:
        """Return what was recorded of a host, oldest first."""
        return read(self._cloud.store, HOST, node.provider, node.provider)

    # --- what operators say --------------------------------------------------------------------

    def drain(self, node: Node, state: AdminState, reason: str = "") -> Admin:
        """Let a host take no new instances; those that it has go on. Idempotent.

        Args:
            state: draining or maintenance.
            reason: for people; "" leaves that of before, if the state was the same.

        Raises:
            InvalidInput: the reason cannot be one.
            PlacementUnavailable: no launch lands there any more; placement will be told by the host's daemon.
        """
        check_text("reason", reason)
        if state is AdminState.ACTIVE:
            raise InvalidInput("a host is not drained by being active", hint="say draining or maintenance")

        def change(admin: Admin) -> Admin:
            is_same = admin.state is state
            return said(admin, state=state, reason=reason or (admin.reason if is_same else ""))

        _, after = say(self._cloud.store, node.provider, change)
        bar = bar_of(node, after)
        with half_done(
            f"{node.name} {'is closed' if bar is None else bar.says}: no launch lands there any more",
            "placement still offers it, until its daemon or this command again has told it",
        ):
            close(self._cloud.store, self._cloud.placement, node.provider)
        return after

    def activate(self, node: Node) -> Admin:
        """Let a host open itself again. Idempotent."""
        return say(self._cloud.store, node.provider, lambda admin: said(admin, state=AdminState.ACTIVE, reason=""))[1]

    def set(
        self,
        node: Node,
        *,
        zone: str | None = None,
        location: str | None = None,
        traits: frozenset[str] = frozenset(),
        no_traits: frozenset[str] = frozenset(),
    ) -> Admin:
        """Say where a host is and what operators give it. Idempotent.

        Args:
            zone: made if there is none of that name; "": it is in none; None: as it was.
            location: for people; None: as it was.
            traits: ``CUSTOM_`` traits to give it.
            no_traits: to take from it.

        Raises:
            InvalidInput: one of them cannot be meant.
            Refused: an instance there belongs to a group whose places are zones.
            PlacementUnavailable: it is said; placement will be told by the host's daemon.
        """
        if zone:
            check_zone(zone)
        if location is not None:
            check_text("location", location)
        for trait in traits | no_traits:
            check_trait(trait)
        if both := traits & no_traits:
            raise InvalidInput(f"{', '.join(sorted(both))} is given and taken away", hint="say one of the two")
        zones = Zones(self._cloud)

        def change(admin: Admin) -> Admin:
            return structs.replace(
                admin,
                zone=admin.zone if zone is None else zone or None,
                location=admin.location if location is None else location,
                traits=_traits(admin, traits, no_traits),
            )

        _, after = say(
            self._cloud.store, node.provider, change, beside=lambda before, after: zones.move(node, before, after)
        )
        with half_done(
            f"it is said of {node.name}",
            "queries for its traits or zone find it once its daemon, or this command again, has told placement",
        ):
            self._apply(node, zones, zone, traits, no_traits)
        return after

    def _apply(
        self, node: Node, zones: Zones, zone: str | None, traits: frozenset[str], no_traits: frozenset[str]
    ) -> None:
        """Have placement as it was said, at once: the host may be dead."""
        placement = self._cloud.placement
        try:
            if traits or no_traits:
                placement.change_traits(node.provider, Said(traits=traits, former_traits=no_traits).with_traits)
            if zone is not None:
                known = {found.name: found.aggregate for found in zones.all()}
                moved = Said(zone=known.get(zone), zones=frozenset(known.values()))
                placement.change_aggregates(node.provider, moved.with_zone)
        except NotFound:
            pass  # it registers with what was said


def check_text(what: str, text: str) -> str:
    if len(text) > TEXT_LIMIT or not text.isprintable():
        raise InvalidInput(
            f"the {what} is longer than {TEXT_LIMIT} characters, or has one that cannot be printed",
            hint="say it in a line",
        )
    return text


def check_trait(trait: str) -> str:
    if not _TRAIT.fullmatch(trait):
        raise InvalidInput(
            f"{trait[:80]!r} cannot be a trait that operators give",
            hint="write it like CUSTOM_SSD: capitals, digits and _",
        )
    for ours in OUR_TRAITS:
        if trait.startswith(ours):
            raise InvalidInput(
                f"{trait[:80]} is the host's own to say", hint=f"choose one that does not begin with {ours}"
            )
    return trait


def _traits(admin: Admin, given: frozenset[str], taken: frozenset[str]) -> tuple[str, ...]:
    traits = (frozenset(admin.traits) | given) - taken
    if len(traits) > TRAITS_LIMIT:
        raise InvalidInput(f"{len(traits)} traits are too many", hint=f"at most {TRAITS_LIMIT}")
    return tuple(sorted(traits))


def _view(node: Node, is_alive: bool, admin: Admin | None, known: Summary | None) -> HostView:
    if known is None:
        return HostView(node, is_alive, admin or Admin(), {}, frozenset())
    is_closed = DISABLED in known.traits
    room = {
        name: Room(node.inventory[name].capacity if is_closed and name in node.inventory else use.capacity, use.used)
        for name, use in known.resources.items()
    }
    return HostView(node, is_alive, admin or Admin(), room, known.traits)
