"""Which host is asked first."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from eschedule.scheduler.rank import TOP, Ranked, Wishes, free_share, rank, weigh

SEEDS = st.integers(0, 2**64 - 1)


@st.composite
def lists(draw: st.DrawFn) -> list[Ranked]:
    return [
        Ranked(
            index=index,
            provider=draw(st.sampled_from("abcdefgh")),
            free_share=draw(st.floats(0, 1)),
            is_alive=draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 60)))
    ]


@given(lists(), SEEDS)
def test_every_candidate_is_tried_once(candidates: list[Ranked], seed: int) -> None:
    assert sorted(rank(candidates, seed), key=lambda c: c.index) == candidates


@given(lists(), SEEDS, st.randoms())
def test_the_order_of_the_question_does_not_matter(candidates: list[Ranked], seed: int, rng: random.Random) -> None:
    shuffled = list(candidates)
    rng.shuffle(shuffled)
    assert rank(shuffled, seed) == rank(candidates, seed)


@given(lists(), SEEDS)
def test_the_seed_decides_alone(candidates: list[Ranked], seed: int) -> None:
    assert rank(candidates, seed) == rank(candidates, seed)


@given(lists(), SEEDS)
def test_hosts_that_answer_come_first(candidates: list[Ranked], seed: int) -> None:
    answers = [c.is_alive for c in rank(candidates, seed)]
    assert answers == sorted(answers, reverse=True)


@given(lists(), SEEDS)
def test_behind_those_that_were_drawn_the_emptier_come_first(candidates: list[Ranked], seed: int) -> None:
    alive = [c for c in rank(candidates, seed) if c.is_alive]
    rest = [c.free_share for c in alive[TOP:]]
    assert rest == sorted(rest, reverse=True)


@given(lists(), SEEDS)
def test_what_is_given_is_left_as_it_was(candidates: list[Ranked], seed: int) -> None:
    before = list(candidates)
    rank(candidates, seed)
    assert candidates == before


def test_equal_candidates_are_all_tried() -> None:
    twins = [Ranked(index=0, provider="a", free_share=0.5, is_alive=True)] * 3
    assert rank(twins, 1) == twins


def test_a_thousand_schedulers_do_not_all_take_the_same_host_and_prefer_the_emptier() -> None:
    candidates = [Ranked(index=i, provider=str(i), free_share=i / 10, is_alive=True) for i in range(4)]
    first = [rank(candidates, seed)[0].index for seed in range(1000)]
    counts = [first.count(i) for i in range(4)]
    assert all(count > 20 for count in counts)
    assert counts == sorted(counts)


def test_the_scarcest_class_says_how_free_a_host_is() -> None:
    assert free_share([(8, 0, 1), (1000, 900, 100), (100, 0, 1)]) == 0
    assert free_share([(8, 4, 2), (1000, 0, 100)]) == 0.25


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**6), st.integers(1, 10**6))))
def test_a_share_is_a_share(room: list[tuple[float, int, int]]) -> None:
    assert 0 <= free_share(room) <= 1


PROVIDERS = st.frozensets(st.sampled_from("abcdefgh"))
BY_PROVIDER = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9))
WISHES = st.builds(
    Wishes,
    is_packed=st.booleans(),
    image_holders=PROVIDERS,
    networks=st.just(9),
    on_networks=BY_PROVIDER,
    affinities=st.dictionaries(st.sampled_from(["db", "web"]), st.integers(-100, 100)).map(lambda d: tuple(d.items())),
    tagged=st.dictionaries(st.sampled_from(["db", "web"]), BY_PROVIDER),
    group=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-1, 1)),
    load=st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1)),
)


@given(lists(), WISHES, SEEDS, st.randoms())
def test_wishes_refuse_nobody_and_do_not_mind_the_order(
    candidates: list[Ranked], wishes: Wishes, seed: int, rng: random.Random
) -> None:
    weighed = [weigh(candidate, wishes) for candidate in candidates]
    shuffled = list(weighed)
    rng.shuffle(shuffled)
    assert rank(shuffled, seed) == rank(weighed, seed)
    assert sorted(one.index for one in rank(weighed, seed)) == [one.index for one in candidates]


@given(lists(), WISHES)
def test_the_points_are_the_sum_of_the_reasons(candidates: list[Ranked], wishes: Wishes) -> None:
    for candidate in candidates:
        weighed = weigh(candidate, wishes)
        assert weighed.points == sum(reason.points for reason in weighed.reasons)
        assert weighed.reasons, "there is always one: how full it is"
        assert all(str(reason).isprintable() for reason in weighed.reasons)


@given(st.integers(1, 100), st.integers(0, 50))
def test_more_of_what_is_wanted_near_draws_more_and_away_less(weight: int, there: int) -> None:
    def points(count: int, by: int) -> float:
        wishes = Wishes(affinities=(("db", by),), tagged={"db": {"a": count}})
        return weigh(Ranked(index=0, provider="a", free_share=0.5, is_alive=True), wishes).points

    assert points(there + 1, weight) > points(there, weight)
    assert points(there + 1, -weight) < points(there, -weight)


def test_the_fullest_comes_first_where_instances_are_packed() -> None:
    wishes = Wishes(is_packed=True)
    candidates = [weigh(Ranked(index=i, provider=str(i), free_share=i / 10, is_alive=True), wishes) for i in range(4)]
    first = [rank(candidates, seed)[0].index for seed in range(1000)]
    counts = [first.count(i) for i in range(4)]
    assert counts == sorted(counts, reverse=True)
    assert all(count > 20 for count in counts)


def test_a_host_a_whole_point_ahead_is_nearly_always_first() -> None:
    wishes = Wishes(affinities=(("db", 100),), tagged={"db": {"3": 1}})
    candidates = [weigh(Ranked(index=i, provider=str(i), free_share=0.5, is_alive=True), wishes) for i in range(8)]
    first = [rank(candidates, seed)[0].index for seed in range(1000)]
    assert first.count(3) > 900


def test_who_is_on_all_networks_of_an_instance_comes_before_who_is_on_some() -> None:
    wishes = Wishes(networks=2, on_networks={"a": 2, "b": 1})
    here = [weigh(Ranked(n, name, 0.5, is_alive=True), wishes) for n, name in enumerate("abc")]
    assert [round(one.points, 3) for one in here] == [0.6, 0.55, 0.5]
    assert [one.reasons[1].text for one in here[:2]] == ["it is on 2 of its 2 networks", "it is on 1 of its 2 networks"]
    alone = weigh(Ranked(0, "a", 0.5, is_alive=True), Wishes(networks=1, on_networks={"a": 1}))
    assert alone.reasons[1].text == "it is on the network"
