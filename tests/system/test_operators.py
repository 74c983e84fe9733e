"""Operators drain hosts and bring them back; a host that is not heard of is lost, and comes back by itself."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from cloud import Cluster
from host import Host, wait_for

from ecompute.cluster import keys
from ecompute.cluster.closing import DISABLED, closed
from ecompute.cluster.documents import Admin, AdminState
from ecompute.cluster.errors import ClaimRefused
from ecompute.cluster.placement import Candidate
from ecompute.cluster.shards import aggregates_of
from ecompute.cluster.upkeep.lost import LOST_AFTER_S
from ecompute.heartbeat import TTL_S


def test_a_drained_host_takes_nothing_from_old_answers_and_keeps_its_guests(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch_idle(host=host)
    pids = host.guest_pids()
    old = _answer(cluster, host)
    done = cluster.eschedule("host", "drain", host.name, "--reason", "a fan is failing")
    assert f"1 instance is left: {guest.name}" in done.stderr
    assert _is_closed(cluster, host), "the tool closes it, whatever its daemon does"
    _cannot_be_claimed(cluster, old)
    assert cluster.eschedule("launch", cluster.query(host), check=False).status == 1
    host.restart(wait=False)  # what operators said outlives the daemon
    wait_for(lambda: "takes no new instances: it is draining" in host.log, what="it has gone through everything")
    assert _is_closed(cluster, host)
    assert host.guest_pids() == pids
    assert _row(cluster, host)["state"] == "draining"
    other = cluster.launch_idle()
    assert other.host is not host
    cluster.eschedule("host", "activate", host.name)
    wait_for(lambda: not _is_closed(cluster, host), what="it opens itself")
    again = cluster.launch_idle(host=host)
    assert host.guest_pids()[guest.uuid] == pids[guest.uuid]
    cluster.destroy(guest.uuid, other.uuid, again.uuid)
    cluster.agree()


def test_a_host_that_is_drained_while_its_daemon_is_down_comes_back_drained(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    host.kill()
    cluster.eschedule("host", "maintain", host.name)
    assert _is_closed(cluster, host)
    said = len(host.log)
    host.start(wait=False)
    wait_for(lambda: "takes no new instances" in host.log[said:] or _is_heard(cluster, host), what="it runs")
    cluster.eschedule("host", "activate", host.name)
    wait_for(lambda: not _is_closed(cluster, host), what="it opens itself")
    cluster.agree()


def test_where_a_host_is_and_what_operators_gave_it_are_in_placement(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    before = cluster.claims.traits(host.provider)
    cluster.claims.change_traits(host.provider, lambda found: found | {"CUSTOM_CURL"})
    cluster.eschedule("host", "set", host.name, "--zone", "north", "--location", "rack 3", "--trait", "CUSTOM_SSD")
    (zone,) = json.loads(cluster.eschedule("host", "zones", "-o", "json").stdout)
    for _ in range(2):
        host.restart()
        assert cluster.claims.aggregates(host.provider) == aggregates_of(host.provider) | {zone["aggregate"]}
        assert cluster.claims.traits(host.provider) == before | {"CUSTOM_SSD", "CUSTOM_CURL"}
    guest = cluster.launch_idle("--name", "in-north", host=None)
    host.kill()
    cluster.eschedule("host", "set", host.name, "--zone", "", "--no-trait", "CUSTOM_SSD")
    host.start()
    assert cluster.claims.aggregates(host.provider) == aggregates_of(host.provider)
    assert cluster.claims.traits(host.provider) == before | {"CUSTOM_CURL"}
    cluster.eschedule("host", "zones", "--remove", "north")
    cluster.claims.change_traits(host.provider, lambda found: found - {"CUSTOM_CURL"})
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_host_whose_daemon_was_killed_is_lost_and_is_back_by_itself(cluster: Cluster) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch_idle(host=host)
    pids = host.guest_pids()
    old = _answer(cluster, host)
    host.kill()
    timeout_s = TTL_S + LOST_AFTER_S + 60
    wait_for(lambda: _state(cluster, host) is AdminState.LOST, timeout_s=timeout_s, what="the lead finds it lost")
    wait_for(lambda: _is_closed(cluster, host), what="the lead closes it")
    _cannot_be_claimed(cluster, old)
    assert _row(cluster, host)["state"] == "lost"
    assert host.guest_pids() == pids, "that a host is silent does not say that its guests are off"
    host.start(wait=False)
    wait_for(lambda: _state(cluster, host) is AdminState.ACTIVE, timeout_s=60, what="the lead finds it back")
    wait_for(lambda: not _is_closed(cluster, host), what="it opens itself")
    again = cluster.launch_idle(host=host)
    assert host.guest_pids()[guest.uuid] == pids[guest.uuid]
    cluster.destroy(guest.uuid, again.uuid)
    cluster.agree()


def _answer(cluster: Cluster, host: Host) -> Candidate:
    return cluster.claims.candidates(cluster.query(host), limit=1).items[0]


def _cannot_be_claimed(cluster: Cluster, candidate: Candidate) -> None:
    with pytest.raises(ClaimRefused):
        cluster.claims.claim(
            str(uuid4()), candidate.allocations, candidate.mappings, project_id="system", user_id="system"
        )


def _is_closed(cluster: Cluster, host: Host) -> bool:
    found = cluster.claims.inventories(host.provider).inventories
    return closed(found) == found and DISABLED in cluster.claims.traits(host.provider)


def _is_heard(cluster: Cluster, host: Host) -> bool:
    return bool(cluster.store.keys(keys.alive(host.provider))[0])


def _state(cluster: Cluster, host: Host) -> AdminState:
    found = cluster.store.get(keys.admin(host.provider), Admin)
    return AdminState.ACTIVE if found is None else found.value.effective


def _row(cluster: Cluster, host: Host) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(cluster.eschedule("host", "show", host.name, "-o", "json").stdout)
    return shown
