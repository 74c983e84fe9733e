"""Placement's answers, and what is counted on top of them."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import PlacementUnavailable
from ecompute.cluster.placement import Candidate, Candidates, Summary
from ecompute.cluster.placement.documents import ClassUse
from eschedule.scheduler.cache import KEPT, Offer, OfferCache

HOSTS = "abcd"


def answer(*rows: tuple[str, int, int, int]) -> Candidates:
    """Return an answer with a candidate a row: host, capacity, used, amount of VCPU."""
    return Candidates(
        items=tuple(Candidate(allocations={host: {"VCPU": amount}}, mappings={}) for host, _, _, amount in rows),
        summaries={
            host: Summary(resources={"VCPU": ClassUse(capacity=capacity, used=used)})
            for host, capacity, used, _ in rows
        },
    )


@st.composite
def answers(draw: st.DrawFn) -> Candidates:
    rooms = {host: (draw(st.integers(1, 12)), draw(st.integers(0, 12))) for host in HOSTS}
    rows = [
        (host, max(rooms[host]), min(rooms[host]), draw(st.integers(1, 4)))
        for host in draw(st.lists(st.sampled_from(HOSTS), max_size=8))
    ]
    return answer(*rows)


ACTS = st.lists(st.tuples(st.sampled_from(["reserve", "reserve", "give back", "drop"]), st.integers(0, 100)))


@given(answers(), ACTS)
def test_no_more_is_reserved_than_there_is(given_answer: Candidates, acts: list[tuple[str, int]]) -> None:
    offer, held = Offer(given_answer), []
    for act, pick in acts:
        if act == "reserve" and len(given_answer) and offer.reserve(pick % len(given_answer)):
            held.append(pick % len(given_answer))
        elif act == "give back" and held:
            offer.give_back(held.pop(pick % len(held)))
        elif act == "drop":
            offer.drop(HOSTS[pick % 4])
        for index in range(len(given_answer)):
            for capacity, used, amount in offer.room(index):
                assert used <= max(capacity, given_answer.summaries[offer.hosts[index]].resources["VCPU"].used)
                assert index not in offer.open() or used + amount <= capacity


@given(answers(), ACTS)
def test_what_is_given_back_is_there_again(given_answer: Candidates, acts: list[tuple[str, int]]) -> None:
    offer, untouched = Offer(given_answer), Offer(given_answer)
    held = [
        pick % len(given_answer)
        for act, pick in acts
        if act == "reserve" and len(given_answer) and offer.reserve(pick % len(given_answer))
    ]
    for index in held:
        offer.give_back(index)
    assert offer.open() == untouched.open()
    assert [offer.room(i) for i in offer.open()] == [untouched.room(i) for i in offer.open()]


@given(answers(), st.sampled_from(HOSTS))
def test_a_host_that_refused_is_left_out_and_no_other(given_answer: Candidates, host: str) -> None:
    offer = Offer(given_answer)
    before = offer.open()
    offer.drop(host)
    assert offer.open() == [index for index in before if offer.hosts[index] != host]
    assert not any(offer.reserve(index) for index, found in offer.hosts.items() if found == host)


def test_a_class_of_which_nothing_is_said_is_placements_to_refuse() -> None:
    offer = Offer(Candidates(items=answer(("a", 1, 0, 9)).items, summaries={}))
    assert offer.open() == [0]
    assert offer.reserve(0)
    assert offer.room(0) == []


def test_of_many_threads_after_the_last_slot_one_has_it() -> None:
    offer = Offer(answer(("a", 1, 0, 1)))
    barrier = threading.Barrier(8)

    def take(_: int) -> bool:
        barrier.wait()
        return offer.reserve(0)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1


class Questions:
    """Counts what is asked."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked = 0

    def __call__(self) -> Candidates:
        self.asked += 1
        return answer(("a", 8, 0, 1))


@pytest.fixture
def questions() -> Questions:
    return Questions()


@pytest.fixture
def cache(questions: Questions) -> OfferCache:
    return OfferCache(ttl_s=5, clock=lambda: questions.now_s)


def test_an_answer_serves_many_launches_until_it_is_old(cache: OfferCache, questions: Questions) -> None:
    first, is_new = cache.get("q", questions)
    assert is_new
    questions.now_s = 4.9
    assert cache.get("q", questions) == (first, False)
    questions.now_s = 5.0
    assert cache.get("q", questions)[1]
    assert questions.asked == 2


def test_an_answer_that_has_not_served_is_asked_for_again_and_that_one_kept(
    cache: OfferCache, questions: Questions
) -> None:
    first, _ = cache.get("q", questions)
    second, is_new = cache.get("q", questions, newer_than=first)
    assert is_new
    assert second is not first
    assert cache.get("q", questions, newer_than=first) == (second, False), "another thread has asked meanwhile"


def test_a_question_that_fails_is_asked_again(cache: OfferCache, questions: Questions) -> None:
    def fail() -> Candidates:
        raise PlacementUnavailable("down")

    with pytest.raises(PlacementUnavailable):
        cache.get("q", fail)
    assert cache.get("q", questions)[1]


def test_nothing_is_kept_of_a_question_that_failed(cache: OfferCache) -> None:
    class Question:
        """A key that can be watched."""

    def fail() -> Candidates:
        raise PlacementUnavailable("down")

    question = Question()
    kept = weakref.ref(question)
    with pytest.raises(PlacementUnavailable):
        cache.get(question, fail)
    del question
    gc.collect()
    assert kept() is None


def test_threads_that_want_the_same_ask_once(cache: OfferCache, questions: Questions) -> None:
    barrier = threading.Barrier(8)

    def get(_: int) -> Offer:
        barrier.wait()
        return cache.get("q", questions)[0]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(get, range(8))))) == 1
    assert questions.asked == 1


def test_only_so_many_answers_are_kept(cache: OfferCache, questions: Questions) -> None:
    for n in range(KEPT + 1):
        cache.get(n, questions)
    assert not cache.get(KEPT, questions)[1]
    assert cache.get(0, questions)[1]


def test_what_is_forgotten_is_asked_again(cache: OfferCache, questions: Questions) -> None:
    cache.get("q", questions)
    cache.forget()
    assert cache.get("q", questions)[1]
