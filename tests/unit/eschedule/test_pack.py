"""Where the members of a gang go."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from eschedule.scheduler.pack import Member, Packing, Room, Way, pack

CLASSES = ("VCPU", "MEMORY_MB")


def room_of(*vcpus: int, used: int = 0) -> dict[tuple[str, str], tuple[int, int]]:
    return {(f"host-{n}", "VCPU"): (capacity, used) for n, capacity in enumerate(vcpus)}


def ways_to(*hosts: str, vcpus: int = 1) -> tuple[Way, ...]:
    return tuple(Way(host, {host: {"VCPU": vcpus}}) for host in hosts)


def hosts_of(packing: Packing) -> list[str]:
    return sorted(way.host for way in packing.placed.values())


def test_members_are_spread_over_the_emptiest_hosts() -> None:
    ways = ways_to("host-0", "host-1", "host-2")
    members = [Member(f"web-{n}", ways) for n in range(3)]
    assert hosts_of(pack(members, room_of(8, 8, 8), seed=1)) == ["host-0", "host-1", "host-2"]


def test_members_are_packed_on_the_fullest_hosts_when_that_is_asked_for() -> None:
    ways = ways_to("host-0", "host-1", "host-2")
    members = [Member(f"web-{n}", ways) for n in range(4)]
    room = room_of(8, 8, 8) | {("host-1", "VCPU"): (8, 2)}
    assert hosts_of(pack(members, room, seed=1, is_packed=True)) == ["host-1"] * 4


def test_nothing_is_placed_where_one_does_not_fit() -> None:
    members = [Member(f"web-{n}", ways_to("host-0", "host-1")) for n in range(5)]
    packing = pack(members, room_of(2, 2), seed=1)
    assert packing.placed == {} and packing.unplaced in {f"web-{n}" for n in range(5)}


def test_members_that_may_not_share_a_host_fill_as_many_hosts_as_there_are() -> None:
    # The greedy choice for the second would leave the third without a host.
    members = [
        Member("a", ways_to("host-0", "host-1"), apart="g"),
        Member("b", ways_to("host-1", "host-2"), apart="g"),
        Member("c", ways_to("host-0"), apart="g"),
    ]
    assert hosts_of(pack(members, room_of(8, 8, 8), seed=1)) == ["host-0", "host-1", "host-2"]


def test_members_that_may_not_share_a_zone_are_each_in_another() -> None:
    zones = {"host-0": "east", "host-1": "east", "host-2": "west"}
    ways = ways_to("host-0", "host-1", "host-2", "host-3")
    members = [Member(name, ways, apart="g", places=zones) for name in "ab"]
    placed = pack(members, room_of(8, 8, 8, 8), seed=3).placed
    assert {zones[way.host] for way in placed.values()} == {"east", "west"}
    three = [Member(name, ways, apart="g", places=zones) for name in "abc"]
    assert pack(three, room_of(8, 8, 8, 8), seed=3).placed == {}, "host-3 is in no zone"


def test_members_that_go_together_are_all_on_the_one_host_that_has_room() -> None:
    ways = ways_to("host-0", "host-1")
    members = [Member(name, ways, together="g") for name in "abc"]
    assert hosts_of(pack(members, room_of(2, 3), seed=1)) == ["host-1"] * 3
    assert pack(members, room_of(2, 2), seed=1).placed == {}


def test_a_host_that_is_wanted_more_is_taken_first() -> None:
    ways = (Way("host-0", {"host-0": {"VCPU": 1}}), Way("host-1", {"host-1": {"VCPU": 1}}, points=2))
    assert hosts_of(pack([Member("a", ways)], room_of(8, 8), seed=1)) == ["host-1"]


def test_what_hosts_share_is_counted_for_all_of_them() -> None:
    ways = tuple(Way(host, {host: {"VCPU": 1}, "pool": {"DISK_GB": 10}}) for host in ("host-0", "host-1"))
    members = [Member(f"web-{n}", ways) for n in range(3)]
    room = room_of(8, 8) | {("pool", "DISK_GB"): (25, 0)}
    assert pack(members, room, seed=1).placed == {}
    assert len(pack(members[:2], room, seed=1).placed) == 2


def test_members_of_a_thousand_hosts_are_placed_without_looking_at_all_of_them_each_time() -> None:
    hosts = [f"host-{n}" for n in range(1000)]
    ways = ways_to(*hosts)
    placed = pack([Member(f"web-{n}", ways) for n in range(200)], room_of(*[8] * 1000), seed=1).placed
    assert len({way.host for way in placed.values()}) == 200


# --- properties ---

HOSTS = st.integers(1, 5)


@st.composite
def gangs(draw: st.DrawFn) -> tuple[list[Member], Room]:
    count = draw(HOSTS)
    hosts = [f"host-{n}" for n in range(count)]
    room = {}
    for host, name in product(hosts, CLASSES):
        capacity = draw(st.integers(1, 6))
        room[host, name] = (capacity, draw(st.integers(0, capacity)))
    shapes = draw(
        st.lists(st.fixed_dictionaries({name: st.integers(1, 3) for name in CLASSES}), min_size=1, max_size=3)
    )
    allowed = [draw(st.lists(st.sampled_from(hosts), min_size=1, unique=True)) for _ in shapes]
    ways = [
        tuple(Way(host, {host: shape}, points=draw(st.sampled_from([0.0, 0.5]))) for host in some)
        for shape, some in zip(shapes, allowed, strict=True)
    ]
    zones = {host: draw(st.sampled_from(["east", "west"])) for host in hosts} if draw(st.booleans()) else {}
    members = []
    for n in range(draw(st.integers(1, 7))):
        apart, together = draw(st.sampled_from([(None, None), (None, None), ("g", None), (None, "t")]))
        members.append(Member(f"web-{n}", draw(st.sampled_from(ways)), apart, together, zones))
    return members, room


def check(members: list[Member], room: Room, packing: Packing) -> None:
    if not packing.placed:
        assert packing.unplaced in {member.name for member in members}
        return
    assert packing.unplaced is None
    assert packing.placed.keys() == {member.name for member in members}
    used: Counter[tuple[str, str]] = Counter()
    for member in members:
        way = packing.placed[member.name]
        assert way in member.ways
        for provider, amounts in way.rows.items():
            for name, amount in amounts.items():
                used[provider, name] += amount
    assert all(room[key][1] + amount <= room[key][0] for key, amount in used.items())
    places = [(m, m.place(packing.placed[m.name].host)) for m in members]
    assert all(place is not None for _, place in places)
    apart = [(m.apart, place) for m, place in places if m.apart is not None]
    assert len(set(apart)) == len(apart)
    for group in {m.together for m, _ in places} - {None}:
        assert len({place for m, place in places if m.together == group}) == 1


@given(gangs(), st.integers(0, 3), st.booleans())
def test_a_packing_is_whole_within_capacity_and_as_its_groups_demand(
    gang: tuple[list[Member], Room], seed: int, is_packed: bool
) -> None:
    members, room = gang
    check(members, room, pack(members, room, seed=seed, is_packed=is_packed))


@given(gangs(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_hosts_and_members_does_not_matter(
    gang: tuple[list[Member], Room], seed: int, rng: random.Random
) -> None:
    members, room = gang
    known: dict[int, tuple[Way, ...]] = {}
    for member in members:
        if id(member.ways) not in known:
            known[id(member.ways)] = tuple(rng.sample(member.ways, len(member.ways)))
    others = [Member(m.name, known[id(m.ways)], m.apart, m.together, m.places) for m in members]
    rng.shuffle(others)
    keys = list(room)
    rng.shuffle(keys)
    assert pack(members, room, seed=seed) == pack(others, {key: room[key] for key in keys}, seed=seed)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 8), st.integers(0, 3))
def test_members_that_ask_for_the_same_are_placed_whenever_they_can_be(
    vcpus: list[int], amount: int, count: int, seed: int
) -> None:
    ways = ways_to(*(f"host-{n}" for n in range(len(vcpus))), vcpus=amount)
    packing = pack([Member(f"web-{n}", ways) for n in range(count)], room_of(*vcpus), seed=seed)
    assert bool(packing.placed) == (sum(capacity // amount for capacity in vcpus) >= count)


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=5), st.integers(0, 3))
def test_members_that_may_not_share_a_host_are_placed_whenever_they_can_be(wanted: list[set[int]], seed: int) -> None:
    members = [Member(f"m-{n}", ways_to(*(f"host-{h}" for h in some)), apart="g") for n, some in enumerate(wanted)]
    packing = pack(members, room_of(*[9] * 5), seed=seed)
    is_possible = any(len(set(choice)) == len(wanted) for choice in product(*wanted))
    assert bool(packing.placed) == is_possible
