"""The lead marks hosts lost and back, with the real etcd and the real placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED, said
from ecompute.cluster.documents import Admin, AdminState
from ecompute.cluster.errors import ClaimRefused, NoRoom
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.placement import Placement
from ecompute.cluster.saying import close, say
from ecompute.cluster.store import Store
from ecompute.cluster.upkeep.duties import Charge, NotLeading
from ecompute.cluster.upkeep.lead import Election
from ecompute.cluster.upkeep.lost import LOST_AFTER_S, Watch
from eschedule.cloud.connection import Cloud
from eschedule.cloud.hosts import Hosts
from eschedule.scheduler.launch import Launcher


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def election(store: Store) -> Iterator[Election]:
    election = Election(store, "upkeep", "a test")
    assert election.campaign()
    yield election
    election.resign()


@pytest.fixture
def make_charge(cloud: Cloud, election: Election) -> Callable[[], Charge]:
    def make() -> Charge:
        term = election.term
        assert term is not None
        return Charge(
            store=cloud.store,
            placement=cloud.placement,
            events=Events(cloud.store, LEAD),
            is_leading=lambda: election.term == term,
            holds=term.holds(),
            clock=Clock(),
        )

    return make


def look_until_lost(watch: Watch, charge: Charge) -> None:
    """Look for as long as a silent host needs to be lost."""
    watch.look()
    for _ in range(6):
        charge.clock.now_s += LOST_AFTER_S / 6  # type: ignore[attr-defined]
        watch.look()


def admin(store: Store, provider: str) -> Admin:
    found = store.get(keys.admin(provider), Admin)
    return Admin() if found is None else found.value


def is_in_answers(placement: Placement, provider: str) -> bool:
    query = f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&in_tree={provider}&required=!{DISABLED}"
    return bool(placement.candidates(query, limit=1))


def test_a_silent_host_is_lost_and_takes_nothing_from_old_answers(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge]
) -> None:
    silent, heard = make_host(), make_host()
    answer = cloud.placement.candidates(f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&in_tree={silent.provider}", limit=1)
    silent.sleep()
    charge = make_charge()
    watch = Watch(charge)
    watch.look()
    assert admin(store, silent.provider) == Admin()
    look_until_lost(watch, charge)
    assert admin(store, silent.provider).effective is AdminState.LOST
    assert store.get(keys.admin(heard.provider), Admin) is None
    assert not is_in_answers(cloud.placement, silent.provider)
    assert is_in_answers(cloud.placement, heard.provider)
    with pytest.raises(ClaimRefused):
        cloud.placement.claim(
            "11111111-1111-4111-8111-111111111111",
            answer.items[0].allocations,
            answer.items[0].mappings,
            project_id="system",
            user_id="system",
        )


def test_a_request_from_before_the_loss_is_refused(
    cloud: Cloud,
    store: Store,
    make_host: Callable[..., Any],
    make_charge: Callable[[], Charge],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
) -> None:
    host = make_host()
    charge = make_charge()
    steps: list[str] = []

    def lose_it(step: str) -> None:
        if step.startswith("telling") and not steps:
            steps.append(step)
            host.sleep()
            look_until_lost(Watch(charge), charge)

    with pytest.raises(NoRoom):
        Launcher(cloud, on_step=lose_it).launch(make_request())
    assert steps
    assert not host.claims()
    assert not {key for key in all_keys() if key.startswith((keys.HOSTS, keys.INSTANCES))}


def test_a_host_that_is_back_is_what_operators_said_before(
    store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge]
) -> None:
    drained, other = make_host(), make_host()
    say(store, drained.provider, lambda now: said(now, state=AdminState.DRAINING, reason="a fan"))
    for host in (drained, other):
        host.sleep()
    charge = make_charge()
    watch = Watch(charge)
    look_until_lost(watch, charge)
    assert {admin(store, host.provider).effective for host in (drained, other)} == {AdminState.LOST}
    for host in (drained, other):
        host.wake()
    watch.look()
    assert admin(store, drained.provider) == Admin(state=AdminState.DRAINING, reason="a fan", turn=3)
    assert admin(store, other.provider) == Admin(turn=2)


def test_a_host_that_was_stopped_in_order_is_closed_and_never_lost(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge]
) -> None:
    host = make_host()
    host.node(stopped="2026-01-01T00:00:00.000Z")
    host.sleep()
    charge = make_charge()
    watch = Watch(charge)
    look_until_lost(watch, charge)
    assert admin(store, host.provider) == Admin()
    assert not is_in_answers(cloud.placement, host.provider), "it could not close itself"
    view = Hosts(cloud).view(Hosts(cloud).find(host.name))
    assert (view.state, view.standing) == ("stopped", "stopped")
    # It starts, says so, and dies.
    host.node()
    look_until_lost(watch, charge)
    assert admin(store, host.provider).effective is AdminState.LOST


def test_a_host_that_counts_as_lost_and_was_stopped_in_order_is_lost_no_more(
    store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge]
) -> None:
    host = make_host()
    host.sleep()
    charge = make_charge()
    watch = Watch(charge)
    look_until_lost(watch, charge)
    assert admin(store, host.provider).effective is AdminState.LOST
    host.node(stopped="2026-01-01T00:00:00.000Z")
    watch.look()
    assert admin(store, host.provider) == Admin(turn=2)


def test_a_request_to_a_host_that_is_stopped_meanwhile_is_refused(
    make_host: Callable[..., Any], cloud: Cloud, make_request: Callable[..., Any]
) -> None:
    host = make_host()

    def stop_it(step: str) -> None:
        if step.startswith("telling"):
            host.node(stopped="2026-01-01T00:00:00.000Z")

    with pytest.raises(NoRoom):
        Launcher(cloud, on_step=stop_it).launch(make_request())
    assert not host.claims()


def test_the_next_lead_closes_what_one_that_died_had_only_marked(
    cloud: Cloud, store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge]
) -> None:
    host = make_host()
    host.sleep()
    say(store, host.provider, lambda now: said(now, lost_since="2026-01-01T00:00:00.000Z"))
    assert is_in_answers(cloud.placement, host.provider)
    Watch(make_charge()).look()
    assert not is_in_answers(cloud.placement, host.provider)


def test_who_leads_no_more_marks_nothing(
    store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge], election: Election
) -> None:
    host = make_host()
    host.sleep()
    charge = make_charge()
    watch = Watch(charge)
    watch.look()
    election.resign()
    with pytest.raises(NotLeading):
        look_until_lost(watch, charge)
    assert store.get(keys.admin(host.provider), Admin) is None


def test_time_in_which_nobody_looked_does_not_count(
    store: Store, make_host: Callable[..., Any], make_charge: Callable[[], Charge]
) -> None:
    host = make_host()
    host.sleep()
    charge = make_charge()
    watch = Watch(charge)
    watch.look()
    charge.clock.now_s += 10 * LOST_AFTER_S  # type: ignore[attr-defined]
    watch.look()
    assert store.get(keys.admin(host.provider), Admin) is None


def test_a_close_that_comes_too_late_has_the_host_look_again(
    cloud: Cloud, store: Store, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    say(store, host.provider, lambda now: said(now, location="rack 7"))
    before = store.get(keys.admin(host.provider), Admin)
    assert close(store, cloud.placement, host.provider)
    after = store.get(keys.admin(host.provider), Admin)
    assert before is not None and after is not None
    assert after.value == before.value
    assert after.mod_revision > before.mod_revision
