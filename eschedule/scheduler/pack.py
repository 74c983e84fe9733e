"""Where the members of a gang go: all of them, or none. Pure: the seed is an argument.

placement decides; this finds a claim that it can grant, from the room that its answers tell. Members
that have the fewest hosts to go to are placed first, each on the best host that has room for it still.
Where one finds none, those that are in its way are moved, and those in theirs, as an augmenting path
does in a matching: members that may not share a host are so placed whenever there are hosts enough.
With room in several classes packing is a hard problem, and a gang that would just fit may be told that
it does not; a gang whose members ask for the same is always placed if it can be.

The result does not depend on the order of hosts, members or ways.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Rows = Mapping[str, Mapping[str, int]]
"""``{provider: {class: amount}}``"""

Room = Mapping[tuple[str, str], tuple[int, int]]
"""``{(provider, class): (capacity, used)}``; what is not in it has no limit that is known."""

JITTER = 0.05
"""What chance adds to a host's points, at most: schedulers that see the same do not all choose the same."""
MOVES_LIMIT = 5_000
"""How often members are moved out of another's way, in all."""


@dataclass(frozen=True)
class Way:
    """One way to serve a member: a candidate."""

    host: str
    rows: Rows
    points: float = 0.0
    """What makes the host better than others, beside how full it is."""
    index: int = 0
    """Of the caller's; of two ways with the same rows the lower one is taken."""


@dataclass(frozen=True)
class Member:
    """One of a gang.

    Args:
        name: tells it from the others.
        ways: how it can be served. Members that ask for the same had better share one tuple.
        apart: members with the same one are each at another place.
        together: members with the same one are all at one place.
        places: ``{host: place}`` where a place is more than a host: its zone. A host without one is
            then no place at all. Empty: each host is one.
    """

    name: str
    ways: tuple[Way, ...]
    apart: str | None = None
    together: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)

    def place(self, host: str) -> str | None:
        return self.places.get(host) if self.places else host


@dataclass(frozen=True)
class Packing:
    """Where each member goes; or, with nothing placed, which one found no place."""

    placed: Mapping[str, Way] = field(default_factory=dict)
    unplaced: str | None = None


def pack(members: Sequence[Member], room: Room, *, seed: int, is_packed: bool = False) -> Packing:
    """Return a place for every one of ``members``, or for none.

    Args:
        room: of every provider of their ways.
        is_packed: the fullest hosts first, instead of the emptiest.
    """
    return _Packer(members, room, seed, is_packed=is_packed).run()


class _Packer:
    def __init__(self, members: Sequence[Member], room: Room, seed: int, *, is_packed: bool) -> None:
        self._members = {member.name: member for member in sorted(members, key=lambda m: m.name)}
        self._room = room
        self._is_packed = is_packed
        hosts = sorted({way.host for member in members for way in member.ways})
        rng = random.Random(seed)  # noqa: S311 - spreads load, guards nothing
        self._chance = {host: rng.uniform(0, JITTER) for host in hosts}
        self._added: dict[tuple[str, str], int] = {}
        self._placed: dict[str, Way] = {}
        self._on: dict[str, set[str]] = {host: set() for host in hosts}
        self._at: dict[tuple[str, str], str] = {}
        """``(apart, place)`` to the member there."""
        self._moves = 0
        self._queues = _Queues(self)

    def run(self) -> Packing:
        for members in self._sets():
            stuck = self._place_set(members)
            if stuck is not None:
                return Packing(unplaced=stuck)
        return Packing(placed=dict(self._placed))

    # --- order ---------------------------------------------------------------------------------

    def _sets(self) -> list[list[Member]]:
        """Return members that go together, and then the others one by one, the hardest to place first."""
        together: dict[str, list[Member]] = {}
        for member in self._members.values():
            if member.together is not None:
                together.setdefault(member.together, []).append(member)
        alone = [member for member in self._members.values() if member.together is None]
        hardness = {id(m.ways): (len({w.host for w in m.ways}), -self._share(m)) for m in self._members.values()}
        alone.sort(key=lambda m: (m.apart is None, *hardness[id(m.ways)], m.name))
        return [
            *(sorted(some, key=lambda m: (-self._share(m), m.name)) for _, some in sorted(together.items())),
            *([member] for member in alone),
        ]

    def _share(self, member: Member) -> float:
        """Return the largest share of a host that it takes, wherever it is."""
        return max(
            (
                amount / self._room[provider, name][0]
                for way in member.ways
                for provider, amounts in way.rows.items()
                for name, amount in amounts.items()
                if self._room.get((provider, name), (0, 0))[0] > 0
            ),
            default=0.0,
        )

    # --- placing -------------------------------------------------------------------------------

    def _place_set(self, members: list[Member]) -> str | None:
        """Place all of ``members``; return the name of one that finds no place."""
        first = members[0]
        if first.together is None:
            return None if self._place(first) or self._augment(first, set()) else first.name
        places = {place for way in first.ways if (place := first.place(way.host)) is not None}
        best = {
            place: max(self.points(way) for way in first.ways if first.place(way.host) == place) for place in places
        }
        for place in sorted(places, key=lambda place: (-best[place], place)):
            if all(self._place(member, place) for member in members):
                return None
            for member in members:
                self._take_away(member.name)
        return first.name

    def _place(self, member: Member, place: str | None = None) -> bool:
        way = self._queues.best(member, place)
        if way is None:
            return False
        self._put(member, way)
        return True

    def _augment(self, member: Member, visited: set[str]) -> bool:
        """Place ``member`` by moving others out of its way, each host being tried once."""
        for way in sorted(member.ways, key=self._order):
            place = member.place(way.host)
            if way.host in visited or place is None:
                continue
            for others in self._in_the_way(member, way, place):
                self._moves += 1
                if self._moves > MOVES_LIMIT:
                    return False
                ways = {name: self._placed[name] for name in others}
                for name in others:
                    self._take_away(name)
                if not self._fits(way):
                    self._restore(ways)
                    continue
                self._put(member, way)
                visited.add(way.host)
                if all(self._move(self._members[name], way.host, visited) for name in others):
                    return True
                for name in others:
                    self._take_away(name)
                self._take_away(member.name)
                self._restore(ways)
        return False

    def _move(self, member: Member, away_from: str, visited: set[str]) -> bool:
        for way in sorted(member.ways, key=self._order):
            if way.host != away_from and self.is_free(member, way):
                self._put(member, way)
                return True
        return self._augment(member, visited)

    def _in_the_way(self, member: Member, way: Way, place: str) -> list[list[str]]:
        """Return whom one could move so that ``member`` may go ``way``: each a list of names."""
        mate = None if member.apart is None else self._at.get((member.apart, place))
        if mate is not None:
            return [[mate]] if self._members[mate].together is None else []
        movable = [name for name in sorted(self._on[way.host]) if self._members[name].together is None]
        return [[name] for name in movable]

    def _restore(self, ways: Mapping[str, Way]) -> None:
        for name, way in ways.items():
            self._put(self._members[name], way)

    # --- what is where -------------------------------------------------------------------------

    def is_free(self, member: Member, way: Way) -> bool:
        """Whether ``member`` may go ``way`` as things are."""
        place = member.place(way.host)
        if place is None or (member.apart is not None and (member.apart, place) in self._at):
            return False
        return self._fits(way)

    def _fits(self, way: Way) -> bool:
        for provider, amounts in way.rows.items():
            for name, amount in amounts.items():
                known = self._room.get((provider, name))
                if known is not None and known[1] + self._added.get((provider, name), 0) + amount > known[0]:
                    return False
        return True

    def points(self, way: Way) -> float:
        """Return how good a way is now: more is better."""
        shares = [
            (known[0] - known[1] - self._added.get((provider, name), 0) - amount) / known[0]
            for provider, amounts in way.rows.items()
            for name, amount in amounts.items()
            if (known := self._room.get((provider, name))) is not None and known[0] > 0
        ]
        share = min(shares, default=0.0)
        return way.points + (1 - share if self._is_packed else share) + self._chance[way.host]

    def _order(self, way: Way) -> tuple[float, str, object]:
        return (-self.points(way), way.host, rows_key(way))

    def _put(self, member: Member, way: Way) -> None:
        self._placed[member.name] = way
        self._on[way.host].add(member.name)
        if member.apart is not None:
            place = member.place(way.host)
            assert place is not None
            self._at[member.apart, place] = member.name
        self._add(way, 1)

    def _take_away(self, name: str) -> None:
        way = self._placed.pop(name, None)
        if way is None:
            return
        member = self._members[name]
        self._on[way.host].discard(name)
        if member.apart is not None:
            place = member.place(way.host)
            if place is not None and self._at.get((member.apart, place)) == name:
                del self._at[member.apart, place]
        self._add(way, -1)

    def _add(self, way: Way, times: int) -> None:
        for provider, amounts in way.rows.items():
            for name, amount in amounts.items():
                self._added[provider, name] = self._added.get((provider, name), 0) + times * amount
        self._queues.changed(way)


class _Queues:
    """The ways of members, best first: one queue for all members that share their ways.

    What is put on a host changes the points of every way that takes from the same providers. They are
    put into the queue again then, and an entry whose points are no longer the way's is passed over.
    """

    def __init__(self, packer: _Packer) -> None:
        self._packer = packer
        self._ways: dict[int, tuple[Way, ...]] = {}
        self._heaps: dict[int, list[tuple[float, str, object, int]]] = {}
        self._users: dict[str, dict[int, set[int]]] = {}
        """``{provider: {queue: ways}}``"""

    def best(self, member: Member, place: str | None) -> Way | None:
        """Return the best way that is free for ``member``, at ``place`` alone if that is given."""
        number = id(member.ways)
        heap = self._heaps.get(number)
        if heap is None:
            heap = self._make(number, member.ways)
        aside, found = [], None
        while heap:
            entry = heapq.heappop(heap)
            way = member.ways[entry[3]]
            if -entry[0] != self._packer.points(way):
                continue
            aside.append(entry)
            if (place is None or member.place(way.host) == place) and self._packer.is_free(member, way):
                found = way
                break
        for entry in aside:
            heapq.heappush(heap, entry)
        return found

    def changed(self, way: Way) -> None:
        """Queue everything again that shares a provider with ``way``."""
        for provider in way.rows:
            for number, indices in self._users.get(provider, {}).items():
                for index in indices:
                    heapq.heappush(self._heaps[number], self._entry(self._ways[number], index))

    def _make(self, number: int, ways: tuple[Way, ...]) -> list[tuple[float, str, object, int]]:
        self._ways[number] = ways
        heap = self._heaps[number] = [self._entry(ways, index) for index in range(len(ways))]
        heapq.heapify(heap)
        for index, way in enumerate(ways):
            for provider in way.rows:
                self._users.setdefault(provider, {}).setdefault(number, set()).add(index)
        return heap

    def _entry(self, ways: tuple[Way, ...], index: int) -> tuple[float, str, object, int]:
        way = ways[index]
        return (-self._packer.points(way), way.host, rows_key(way), index)


def rows_key(way: Way) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    """Return what orders two ways to the same host, whatever order they came in."""
    return tuple(sorted((provider, tuple(sorted(amounts.items()))) for provider, amounts in way.rows.items()))
