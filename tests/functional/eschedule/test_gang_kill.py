"""A scheduler killed anywhere on the way of a gang leaves all of it running, or nothing.

The hosts of these tests have no daemon: what one would do for a member is done by `act`, with the
product's own plan.
"""

from __future__ import annotations

import random
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecompute.cluster import keys
from ecompute.cluster.documents import AddressLock, Assignment, Gang, GangState, Instance, Role, State
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.gangs import CANCEL_FAILPOINTS, FAILPOINTS
from ecompute.cluster.store import Delete, Store, present
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from ecompute.cluster.upkeep.duties import Charge
from ecompute.cluster.upkeep.finish import Finisher
from ecompute.cluster.upkeep.gangs import GangUpkeep
from ecompute.instances.plan import Found, Step, plan
from eschedule.cloud.connection import Cloud

COUNT = 14
"""More than one transaction of requests takes."""
BEFORE_THE_COMMIT = [point for point in FAILPOINTS if point != "gang.committed"]


class Upkeep:
    """A lead, whose clock the test turns on, and the hosts."""

    def __init__(self, store: Store, cloud: Cloud, clock: Any, hosts: list[Any]) -> None:
        self._store = store
        self._clock = clock
        self._hosts = hosts
        events = Events(store, LEAD)
        charge = Charge(store, cloud.placement, events, lambda: True, present(keys.INCARNATION), clock)
        self._gangs = GangUpkeep(charge)
        self._audit = Audit(store, cloud.placement, list, clock)
        self._finisher = Finisher(store, cloud.placement, events)

    def act(self) -> list[str]:
        """Let every host do for its assignments what its plan says; return those that would be built."""
        built = []
        for host in self._hosts:
            for item in self._store.list(keys.assignments(host.provider), Assignment).items:
                record = None if item.value.gang is None else self._store.get(keys.gang(item.value.gang), Gang)
                state = None if record is None else record.value.state
                planned = plan(item.value, Found(), None, hold=False, boot_id="", gang=state)
                if Step.REPORT_CREATING in planned.steps:
                    built.append(item.value.uuid)
                elif Step.REPORT_FAILED in planned.steps:
                    host.report(item.value.uuid, State.ERROR, is_gone=True, error=planned.error)
                elif item.value.role is Role.ABSENT:
                    host.report(item.value.uuid, State.DELETED, is_gone=True)
        return built

    def look(self) -> None:
        self._audit.run(is_full=False)
        for is_full in (False, True):
            self._gangs.run(is_full=is_full)
        self.act()
        for item in self._store.list(keys.INSTANCES, Instance).items:
            self._finisher.finish(item.value.uuid)

    def pass_the_grace_period(self, times: int = 1) -> None:
        for _ in range(times):
            self.look()
            self._clock.now_s += GRACE_S + 1
            self.look()


@pytest.fixture
def hosts(make_host: Callable[..., Any]) -> list[Any]:
    return [make_host(vcpus=8) for _ in range(2)]


@pytest.fixture
def upkeep(store: Store, cloud: Cloud, clock: Any, hosts: list[Any]) -> Upkeep:
    return Upkeep(store, cloud, clock, hosts)


@pytest.fixture
def launch(tool: Any, query: str) -> Callable[..., Any]:
    def run(count: int = COUNT, **env: str) -> Any:
        return tool("launch", query, "--name", "web", "--count", str(count), **env)

    return run


@pytest.mark.parametrize("failpoint", BEFORE_THE_COMMIT)
def test_nothing_is_left_of_a_gang_whose_scheduler_was_killed_before_the_commit(
    failpoint: str,
    launch: Callable[..., Any],
    upkeep: Upkeep,
    hosts: list[Any],
    store: Store,
    all_keys: Callable[[], set[str]],
) -> None:
    assert launch(ECOMPUTE_FAILPOINT=failpoint).returncode == -signal.SIGKILL
    claims = sum(len(host.claims()) for host in hosts)
    assert claims == (0 if failpoint in ("gang.begin", "gang.recorded", "gang.intended") else COUNT)
    assert upkeep.act() == [], "nothing begins before the commit"
    upkeep.pass_the_grace_period(3)
    assert [host.claims() for host in hosts] == [{}, {}]
    left = {key for key in all_keys() if not key.startswith((keys.VNIS, f"{keys.NAMES}system/network/"))}
    left -= resting(store, left)
    assert {key for key in left if len(keys.parts(key)) > 2 or not key.startswith(keys.NETWORKS)} == set()


def test_a_gang_whose_scheduler_was_killed_after_the_commit_runs_whole(
    launch: Callable[..., Any], upkeep: Upkeep, hosts: list[Any], store: Store
) -> None:
    assert launch(ECOMPUTE_FAILPOINT="gang.committed").returncode == -signal.SIGKILL
    upkeep.pass_the_grace_period(2)
    assert len(upkeep.act()) == COUNT
    assert sum(len(host.claims()) for host in hosts) == COUNT
    (gang,) = store.list(keys.GANGS, Gang).items
    assert gang.value.state is GangState.COMMITTED


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_gang_whose_scheduler_was_killed_in_bad_weather_is_there_whole_or_not_at_all(
    failpoint: str,
    tool: Any,
    launch: Callable[..., Any],
    proxy: Any,
    faults: Any,
    upkeep: Upkeep,
    hosts: list[Any],
    store: Store,
) -> None:
    """One request in three to placement fails, and may have been done all the same."""
    document = yaml.safe_load(tool.config.read_text())
    tool.config.write_text(yaml.safe_dump(document | {"placement": {"endpoint": proxy.endpoint}}))
    rng = random.Random(zlib.crc32(failpoint.encode()))
    ways = [faults.RESET_UNSENT, faults.RESET_UNANSWERED, faults.UNAVAILABLE, faults.UNAVAILABLE_DONE]
    proxy.fault = lambda method, path: rng.choice(ways) if rng.random() < 1 / 3 else None
    ends = {launch(4, ECOMPUTE_FAILPOINT=failpoint).returncode for _ in range(3)}
    assert -signal.SIGKILL in ends <= {-signal.SIGKILL, 1}
    upkeep.pass_the_grace_period(3)
    records = [item.value for item in store.list(keys.GANGS, Gang).items]
    assert bool(records) == (failpoint == "gang.committed")
    assert {record.state for record in records} <= {GangState.COMMITTED}
    members = sorted(uuid for record in records for uuid in record.members)
    assert sorted(item.value.uuid for item in store.list(keys.INSTANCES, Instance).items) == members
    assert sorted(consumer for host in hosts for consumer in host.claims()) == members
    assert store.keys(keys.INTENTS)[0] == []


@pytest.mark.parametrize("failpoint", CANCEL_FAILPOINTS)
def test_a_taking_back_that_was_killed_is_finished_by_the_lead(
    failpoint: str,
    tool: Any,
    query: str,
    upkeep: Upkeep,
    hosts: list[Any],
    store: Store,
    all_keys: Callable[[], set[str]],
) -> None:
    # Stopped before the commit, it finds its hosts draining when it goes on.
    process = tool.start(
        "launch", query, "--name", "web", "--count", str(COUNT), ECOMPUTE_FAILPOINT=f"gang.uncommitted:stop {failpoint}"
    )
    wait_until_stopped(process.pid)
    for host in hosts:
        host.drain()
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (gang,) = store.list(keys.GANGS, Gang).items
    assert gang.value.state is GangState.CANCELLED
    upkeep.pass_the_grace_period(3)
    assert [host.claims() for host in hosts] == [{}, {}]
    assert not store.keys(keys.INSTANCES)[0]
    assert not store.keys(keys.GANGS)[0]
    assert not store.keys(keys.INTENTS)[0]


def test_a_scheduler_that_slept_past_the_grace_period_commits_nothing(
    tool: Any, query: str, upkeep: Upkeep, hosts: list[Any], store: Store
) -> None:
    process = tool.start("launch", query, "--name", "web", "--count", "3", ECOMPUTE_FAILPOINT="gang.uncommitted:stop")
    wait_until_stopped(process.pid)
    upkeep.pass_the_grace_period(3)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "took too long" in said
    assert [host.claims() for host in hosts] == [{}, {}]
    assert not store.keys(keys.INSTANCES)[0]


def test_the_record_of_a_gang_goes_with_its_last_member(
    launch: Callable[..., Any], tool: Any, upkeep: Upkeep, store: Store
) -> None:
    assert launch(2).returncode == 0
    upkeep.pass_the_grace_period(2)
    assert store.keys(keys.GANGS)[0]
    for name in ("web-1", "web-2"):
        assert tool("destroy", name, "--no-wait").returncode == 0
    upkeep.pass_the_grace_period(2)
    assert not store.keys(keys.INSTANCES)[0]
    assert not store.keys(keys.GANGS)[0]


def test_members_whose_record_somebody_deleted_are_given_up_unless_they_run(
    launch: Callable[..., Any], upkeep: Upkeep, hosts: list[Any], store: Store
) -> None:
    assert launch(2).returncode == 0
    (record,) = store.keys(keys.GANGS)[0]
    store.commit([], [Delete(record)])
    assert upkeep.act() == [], "without a record nothing begins"
    upkeep.pass_the_grace_period(3)
    assert not store.keys(keys.INSTANCES)[0]
    assert [host.claims() for host in hosts] == [{}, {}]


def resting(store: Store, found: set[str]) -> set[str]:
    """Return the locks of addresses that were given up, which etcd ends some minutes later."""
    locks = store.get_many([key for key in found if "/addresses/" in key], AddressLock).items
    return {lock.key for lock in locks if lock.value.is_resting and lock.lease}


def wait_until_stopped(pid: int) -> None:
    import time

    deadline = time.monotonic() + 30
    while " T " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "it was never stopped"
        time.sleep(0.02)
