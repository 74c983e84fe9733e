"""Claims of one process that write the same provider, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ecompute.cluster.placement.turns import Turns


def test_of_those_who_write_one_provider_one_is_at_work() -> None:
    turns = Turns()
    at_work: list[int] = []
    most = 0

    def write(number: int) -> None:
        nonlocal most
        with turns.taken({"quota", f"host-{number}"}, patience_s=30):
            at_work.append(number)
            most = max(most, len(at_work))
            threading.Event().wait(0.002)
            at_work.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert most == 1


def test_those_who_share_nothing_do_not_wait() -> None:
    turns = Turns()
    with turns.taken({"a", "b"}), turns.taken({"c"}, patience_s=0):
        pass


def test_one_who_waits_too_long_goes_on_and_takes_no_other_s_turn(eventually: Callable[..., None]) -> None:
    turns = Turns()
    with turns.taken({"a"}):
        with turns.taken({"a", "b"}, patience_s=0):
            pass
        waited = threading.Thread(target=lambda: turns.taken({"a"}, patience_s=30).__enter__())
        waited.start()
        waited.join(0.05)
        assert waited.is_alive(), "the turn at a is still the first one's"
    eventually(lambda: not waited.is_alive())


def test_a_turn_ends_with_its_block_whatever_happens_in_it() -> None:
    turns = Turns()
    try:
        with turns.taken({"a"}):
            raise RuntimeError
    except RuntimeError:
        pass
    with turns.taken({"a"}, patience_s=30):
        pass
