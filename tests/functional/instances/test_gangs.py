"""A host follows the record of a gang for as long as somebody on it waits for it."""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Gang, GangState
from ecompute.cluster.store import Delete, Put, Store
from ecompute.instances.gangs import Gangs

WAIT_S = 10.0


def record(gang: str, state: GangState) -> Put:
    document = Gang(uuid=gang, namespace="system", members=("a", "b"), state=state, writer="a test", made_at="")
    return Put(keys.gang(gang), document)


class Woken:
    """Who was woken, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __call__(self, instance_uuid: str) -> None:
        self._queue.put(instance_uuid)

    def wait_for(self, *wanted: str) -> None:
        """Wait until every one of ``wanted`` was woken."""
        missing, deadline = set(wanted), time.monotonic() + WAIT_S
        while missing:
            missing.discard(self._queue.get(timeout=max(0.01, deadline - time.monotonic())))

    def forget(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def gangs(store: Store, woken: Woken) -> Iterator[Gangs]:
    watcher = store.watcher()
    yield Gangs(store, watcher, woken)
    watcher.close()


def wait_followed(gangs: Gangs, gang: str) -> None:
    """Wait until its record was listed, which wakes those who have come by then, and is watched."""
    assert gangs._follows[gang].wait_ready(WAIT_S)


def test_all_who_wait_are_woken_by_the_commit_and_the_record_is_followed_no_more(
    store: Store, gangs: Gangs, woken: Woken
) -> None:
    gang = str(uuid.uuid4())
    store.commit([], [record(gang, GangState.WRITING)])
    assert [gangs.state(gang, name) for name in "ab"] == [GangState.WRITING] * 2
    assert gangs.followed == {gang}
    woken.wait_for("a")  # by the first list: it may have come between the read and the following
    wait_followed(gangs, gang)
    assert [gangs.state(gang, name) for name in "ab"] == [GangState.WRITING] * 2
    woken.forget()
    store.commit([], [record(gang, GangState.COMMITTED)])
    woken.wait_for("a", "b")
    assert [gangs.state(gang, name) for name in "ab"] == [GangState.COMMITTED] * 2
    assert gangs.followed == frozenset()


def test_a_record_that_is_not_there_yet_is_waited_for(store: Store, gangs: Gangs, woken: Woken) -> None:
    gang = str(uuid.uuid4())
    assert gangs.state(gang, "a") is None
    woken.wait_for("a")
    wait_followed(gangs, gang)
    woken.forget()
    store.commit([], [record(gang, GangState.CANCELLED)])
    woken.wait_for("a")
    assert gangs.state(gang, "a") is GangState.CANCELLED


def test_a_committed_gang_is_not_followed_at_all(store: Store, gangs: Gangs) -> None:
    gang = str(uuid.uuid4())
    store.commit([], [record(gang, GangState.COMMITTED)])
    assert gangs.state(gang, "a") is GangState.COMMITTED
    assert gangs.followed == frozenset()


def test_who_leaves_is_woken_no_more_and_the_others_are(store: Store, gangs: Gangs, woken: Woken) -> None:
    gang = str(uuid.uuid4())
    store.commit([], [record(gang, GangState.WRITING)])
    for name in "ab":
        gangs.state(gang, name)
    wait_followed(gangs, gang)
    gangs.leave("a")
    gangs.leave("a")
    woken.forget()
    store.commit([], [Delete(keys.gang(gang))])
    woken.wait_for("b")
    assert gangs.followed == {gang}
    gangs.leave("b")
    assert gangs.followed == frozenset()
