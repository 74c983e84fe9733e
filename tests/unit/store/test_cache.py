"""The cache of a watch: whatever is missed, the changes told add up to what is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.store.cache import Cache, Change
from ecompute.cluster.store.transactions import Listing, Versioned

KEYS = st.sampled_from("abcd")
ACTS = st.lists(st.tuples(KEYS, st.sampled_from(["put", "delete"]), st.booleans()), max_size=40)
"""Key, act, and whether a gap ends with it (then it is seen by a list, and so is all before it)."""


def item(key: str, value: str, mod: int, create: int) -> Versioned[str]:
    return Versioned(key, value, mod, create, 0)


def apply(known: dict[str, Versioned[str]], changes: list[Change[str]]) -> None:
    for change in changes:
        if change.is_relist:
            assert (change.key, change.before, change.after) == ("", None, None)
            continue
        assert known.get(change.key) == change.before
        if change.after is None:
            known.pop(change.key, None)
        else:
            # a key made anew is never told as one that was merely written
            assert change.before is None or change.before.create_revision == change.after.create_revision
            known[change.key] = change.after


@given(ACTS, st.integers(0, 5))
def test_the_changes_told_add_up_to_the_truth_over_any_gaps(acts, gap: int) -> None:
    truth: dict[str, Versioned[str]] = {}
    told: dict[str, Versioned[str]] = {}
    cache: Cache[str] = Cache()
    apply(told, cache.relist(Listing((), 1, ())))
    is_blind = False
    for n, (key, act, ends_gap) in enumerate(acts):
        revision = n + 2
        if act == "put":
            created = truth[key].create_revision if key in truth else revision
            truth[key] = item(key, str(revision), revision, created)
        else:
            truth.pop(key, None)
        if not is_blind and n % (gap + 1) == gap:
            is_blind = True
        if is_blind:
            if ends_gap:
                apply(told, cache.relist(Listing(tuple(truth.values()), revision, ())))
                is_blind = False
        elif act == "put":
            apply(told, [cache.put(truth[key])])
        else:
            apply(told, [cache.delete(key)])
    apply(told, cache.relist(Listing(tuple(truth.values()), len(acts) + 2, ())))
    assert told == truth == cache.items


def test_a_list_that_shows_nothing_new_tells_only_of_itself() -> None:
    cache: Cache[str] = Cache()
    listing = Listing((item("a", "1", 2, 2),), 2, (("bad", "why"),))
    assert [change.key for change in cache.relist(listing)] == ["a", "bad", ""]
    assert [change.key for change in cache.relist(listing)] == [""]


def test_a_document_that_became_unreadable_in_a_gap_keeps_its_last_value() -> None:
    cache: Cache[str] = Cache()
    cache.relist(Listing((item("a", "1", 2, 2),), 2, ()))
    changes = cache.relist(Listing((), 3, (("a", "why"),)))
    assert [(change.key, change.before, change.after) for change in changes[:-1]] == [
        ("a", item("a", "1", 2, 2), item("a", "1", 2, 2))
    ]
    assert cache.items == {"a": item("a", "1", 2, 2)}
    cache.delete("a")
    assert (cache.items, cache.unreadable) == ({}, {})
