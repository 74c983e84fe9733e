"""Claims of one process that write the same provider, one after the other."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from ecompute.cluster.placement.turns import Turns

LONG_S = 60.0


def test_of_those_who_write_one_provider_one_is_at_work() -> None:
    turns = Turns()
    at_work: list[int] = []
    most = 0

    def write(number: int) -> None:
        nonlocal most
        with turns.taken({"quota", f"host-{number}"}, patience_s=LONG_S):
            at_work.append(number)
            most = max(most, len(at_work))
            threading.Event().wait(0.002)
            at_work.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert most == 1


def test_those_who_share_nothing_do_not_wait() -> None:
    turns = Turns()
    began = time.monotonic()
    with turns.taken({"a", "b"}), turns.taken({"c"}, patience_s=LONG_S):
        assert time.monotonic() - began < LONG_S


def test_one_who_waits_too_long_goes_on_and_takes_no_other_s_turn() -> None:
    turns = Turns()
    has_turn = threading.Event()

    def wait() -> None:
        with turns.taken({"a"}, patience_s=LONG_S):
            has_turn.set()

    waiter = threading.Thread(target=wait)
    with turns.taken({"a"}):
        with turns.taken({"a", "b"}, patience_s=0):
            assert turns._busy == {"a", "b"}
        assert turns._busy == {"a"}, "the turn at a is still the first one's"
        waiter.start()
        assert not has_turn.wait(0.05)
    assert has_turn.wait(LONG_S / 2), "it goes on when the turn is over, not when its patience is"
    waiter.join()


def test_a_turn_ends_with_its_block_whatever_happens_in_it() -> None:
    turns = Turns()
    try:
        with turns.taken({"a"}):
            raise RuntimeError
    except RuntimeError:
        pass
    with turns.taken({"a"}, patience_s=LONG_S):
        pass
