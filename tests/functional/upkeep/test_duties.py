"""A lead's duties: done by the one that leads, for as long as it leads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from ecompute.cluster import keys
from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.documents import Incarnation, Instance, Lead, Resources, Spec, State, timestamp
from ecompute.cluster.errors import CompareFailed, Unavailable
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Delete, Put, Store
from ecompute.cluster.upkeep.duties import Charge, Duty, NotLeading
from ecompute.cluster.upkeep.leader import ROLE, Leader
from ecompute.dev.placement import PlacementProcess


@dataclass
class Counted:
    """A duty that counts its terms and calls."""

    charges: list[Charge] = field(default_factory=list)
    calls: int = 0
    raising: Exception | None = None

    def begin(self, charge: Charge) -> Callable[[], None]:
        self.charges.append(charge)
        return self.call

    def call(self) -> None:
        self.calls += 1
        if self.raising is not None:
            raise self.raising

    @property
    def duty(self) -> Duty:
        return Duty("counting", 0.02, self.begin)


@pytest.fixture
def leads(store: Store, placement: PlacementProcess) -> Iterator[Callable[[Counted], Leader]]:
    """Return a maker of leaders that have one duty; they stop with the test."""
    made: list[Leader] = []
    with Placement(PlacementSettings(endpoint=placement.endpoint)) as client:

        def make(counted: Counted) -> Leader:
            leader = Leader(store, client, Events(store, LEAD), holder="a test", duties=[counted.duty])
            made.append(leader)
            leader.start()
            return leader

        yield make
        for leader in made:
            leader.stop()


def test_one_of_two_does_the_duty_and_the_other_when_it_stops(
    leads: Callable[[Counted], Leader], eventually: Callable[..., None]
) -> None:
    first, second = Counted(), Counted()
    leader = leads(first)
    eventually(lambda: first.calls > 2)
    leads(second)
    eventually(lambda: first.calls > 5)
    assert not second.charges
    leader.stop()
    calls = first.calls
    eventually(lambda: second.calls > 2)
    assert first.calls == calls


def test_whose_lead_is_anothers_writes_nothing(
    leads: Callable[[Counted], Leader], store: Store, eventually: Callable[..., None]
) -> None:
    counted = Counted()
    leads(counted)
    eventually(lambda: counted.calls > 0)
    old = counted.charges[0]
    found = store.get(keys.lead(ROLE), Lead)
    assert found is not None
    store.commit([], [Delete(keys.lead(ROLE))])  # as its lease's end would
    incarnation = Put(keys.INCARNATION, Incarnation(id="i", made_by="a test", made_at=timestamp(0)))
    with pytest.raises(CompareFailed):
        store.commit([old.holds], [incarnation])


def test_who_leads_begins_a_new_term_when_somebody_deletes_its_key(
    leads: Callable[[Counted], Leader], store: Store, eventually: Callable[..., None]
) -> None:
    """Its lease would never end, and nothing that it writes would pass."""
    counted = Counted()
    leads(counted)
    eventually(lambda: counted.charges)
    store.commit([], [Delete(keys.lead(ROLE))])
    eventually(lambda: len(counted.charges) > 1)
    store.commit([counted.charges[-1].holds], [])


def test_a_pause_ends_with_the_term(leads: Callable[[Counted], Leader], eventually: Callable[..., None]) -> None:
    counted = Counted()
    leader = leads(counted)
    eventually(lambda: counted.charges)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            counted.charges[0].pause(60)
        except NotLeading as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    leader.stop()
    waiting.join(5)
    assert not waiting.is_alive() and len(raised) == 1


def test_what_a_duty_raises_is_logged_once_and_does_not_end_it(
    leads: Callable[[Counted], Leader], eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted(raising=Unavailable("it does not answer"))
    leads(counted)
    eventually(lambda: counted.calls > 3)
    assert [r.getMessage() for r in caplog.records if "it does not answer" in r.getMessage()] == [
        "counting: it does not answer"
    ]


def test_a_sweep_that_fails_is_made_again_soon(
    link: Any,
    linked_store: Store,
    store: Store,
    placement: PlacementProcess,
    eventually: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    host, uuid = str(uuid4()), str(uuid4())
    spec = Spec(resources=Resources(vcpus=1, memory_mb=64, disk_gb=1), image="http://image/")
    deleting = Instance(
        uuid=uuid,
        namespace="system",
        name="web",
        state=State.DELETING,
        generation=2,
        epoch=1,
        provider=host,
        spec=spec,
        created_at=timestamp(0),
    )
    store.commit([], [Put(keys.instance(uuid), deleting)])  # no report: it is found by a sweep alone
    link.hold_answers_after(keys.INSTANCES.encode())
    with Placement(PlacementSettings(endpoint=placement.endpoint)) as client:
        leader = Leader(linked_store, client, Events(linked_store, LEAD), holder="a test", duties=[])
        leader.start()
        try:
            eventually(lambda: "does not answer" in caplog.text)
            assert not store.keys(keys.HOSTS)[0]
            link.mend()
            eventually(lambda: store.keys(keys.HOSTS)[0] == [keys.assignment(host, uuid)], timeout_s=30)
        finally:
            leader.stop()
