"""Instances that end by themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Event, Expiry, Incarnation, Instance, Role, State
from ecompute.cluster.errors import Conflict, InvalidInput
from ecompute.cluster.events import LEAD, Events
from ecompute.cluster.expiring import key_of, moment
from ecompute.cluster.store import Put, Store, absent, present
from ecompute.cluster.upkeep.duties import Charge, NotLeading
from ecompute.cluster.upkeep.expiry import PAGE, Sweep
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import Instances
from eschedule.scheduler.launch import Launcher


@pytest.fixture
def charge(store: Store, cloud: Cloud) -> Charge:
    return Charge(store, cloud.placement, Events(store, LEAD), lambda: True, present(keys.INCARNATION))


def due(store: Store) -> list[str]:
    return [keys.last(key) for key in store.keys(keys.EXPIRIES)[0]]


def instance_of(store: Store, uuid: str) -> Instance:
    found = store.get(keys.instance(uuid), Instance)
    assert found is not None
    return found.value


def test_the_document_and_the_key_are_written_with_the_request(
    store: Store, cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    launched = Launcher(cloud, now=lambda: 1_900_000_000.5).launch(make_request(expires="2h"))
    instance = instance_of(store, launched.uuid)
    assert instance.expires_at == "2030-03-17T19:46:40.000Z"
    assert store.keys(keys.EXPIRIES)[0] == [f"/expiries/001900007200/{launched.uuid}"] == [key_of(instance)]


def test_what_is_due_is_destroyed_and_what_is_not_stays(
    store: Store, cloud: Cloud, charge: Charge, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    host = make_host()
    soon, late = (Launcher(cloud).launch(make_request(expires=when)).uuid for when in ("1h", "2h"))
    Sweep(charge)()
    assert set(due(store)) == {soon, late}
    Sweep(charge, lambda: time.time() + 3601)()
    assert due(store) == [late]
    assert instance_of(store, soon).state is State.DELETING
    assert (host.assigned(soon).role, host.assigned(late).role) == (Role.ABSENT, Role.RUN)
    event = store.get(keys.event("instance", soon, LEAD, 0), Event)
    assert event is not None
    assert event.value.type == "expired"
    host.report(soon, State.DELETED, is_gone=True)
    Instances(cloud).finish(soon)
    assert store.get(keys.instance(soon), Instance) is None


def test_more_than_a_page_is_swept_in_one_turn(store: Store, charge: Charge) -> None:
    store.commit([], [Put(keys.INCARNATION, Incarnation(id="x", made_by="", made_at=""))])
    for n in range(PAGE + 3):
        store.commit([], [Put(keys.expiry(n, f"u{n}"), Expiry(uuid=f"u{n}"))])
    Sweep(charge)()
    assert due(store) == []


def test_extending_moves_the_time_and_never_takes_it_away(
    store: Store, cloud: Cloud, charge: Charge, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    instances = Instances(cloud)
    launched = Launcher(cloud).launch(make_request(expires="1h"))
    longer = instances.extend(instances.find(launched.uuid, "system"), "7d").value
    assert store.keys(keys.EXPIRIES)[0] == [key_of(longer)] == [keys.expiry(moment("7d", time.time()), launched.uuid)]
    Sweep(charge, lambda: time.time() + 3601)()
    assert instance_of(store, launched.uuid).state is State.INITIAL
    kept = instances.extend(instances.find(launched.uuid, "system"), None).value
    assert kept.expires_at is None
    assert due(store) == []
    assert instances.extend(instances.find(launched.uuid, "system"), "1h").value.expires_at is not None


def test_what_is_being_destroyed_is_not_extended_and_the_past_is_refused(
    cloud: Cloud, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    instances = Instances(cloud)
    found = instances.find(Launcher(cloud).launch(make_request()).uuid, "system")
    with pytest.raises(InvalidInput, match="not in the future"):
        instances.extend(found, "2020-01-01T00:00:00Z")
    instances.destroy(found)
    with pytest.raises(Conflict, match="is being destroyed"):
        instances.extend(found, "2h")


def test_a_key_that_means_nothing_any_more_is_deleted_and_no_instance_with_it(
    store: Store, cloud: Cloud, charge: Charge, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    launched = Launcher(cloud).launch(make_request())
    store.commit([], [Put(keys.expiry(5, name), Expiry(uuid=name)) for name in (launched.uuid, "nobody")])
    Sweep(charge)()
    assert due(store) == []
    assert instance_of(store, launched.uuid).state is State.INITIAL


def test_a_lead_whose_term_has_ended_destroys_nothing(
    store: Store, cloud: Cloud, charge: Charge, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    launched = Launcher(cloud).launch(make_request(expires="1h"))
    later: Callable[[], float] = lambda: time.time() + 3601  # noqa: E731
    with pytest.raises(NotLeading):
        Sweep(replace(charge, is_leading=lambda: False), later)()
    Sweep(replace(charge, holds=absent(keys.INCARNATION)), later)()
    assert instance_of(store, launched.uuid).state is State.INITIAL
    assert due(store) == [launched.uuid]


def test_people_see_it_and_change_it(tool: Any, query: str, store: Store, make_host: Callable[..., Any]) -> None:
    make_host()
    shown = json.loads(tool("launch", query, "--name", "web-1", "--expires", "2h", "--tag", "web", "-o", "json").stdout)
    assert shown["tags"] == ["web"]
    assert shown["expires_at"] == json.loads(tool("show", "web-1", "-o", "json").stdout)["expires_at"]
    done = tool("extend", "web-1", "--never", "-o", "json")
    assert (done.returncode, json.loads(done.stdout)["expires_at"]) == (0, None)
    for words in (["--expires", "soon"], ["--expires", "0h"], [], ["--never", "--expires", "2h"]):
        done = tool("extend", "web-1", *words)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), words
    done = tool("launch", query, "--expires", "2020-01-01T00:00:00Z")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert len(store.keys(keys.INSTANCES)[0]) == 1


def test_one_that_cannot_be_read_keeps_no_other_alive(
    store: Store, cloud: Cloud, charge: Charge, make_host: Callable[..., Any], make_request: Callable[..., Any]
) -> None:
    make_host()
    bad, good = (Launcher(cloud).launch(make_request(expires=when)).uuid for when in ("1h", "2h"))
    store.commit([], [Put(keys.instance(bad), Expiry(uuid=bad))])
    Sweep(charge, lambda: time.time() + 7201)()
    assert instance_of(store, good).state is State.DELETING
    assert due(store) == [bad]
