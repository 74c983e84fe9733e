"""A host finds on itself what does not belong together, tells it, and touches none of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cloud import Cluster
from host import wait_for

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, HostAudit
from ecompute.cluster.store import Delete, Put, absent, unchanged

TWO_LOOKS_S = 200.0
"""Ninety seconds and a quarter, on a machine that others load as well."""


def test_what_nobody_asks_for_is_shown_and_left_until_somebody_sees_to_it(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=1)
    host = cluster.hosts[0]
    guest, other = cluster.launch(), cluster.launch()
    assignment = cluster.store.get(keys.assignment(host.provider, guest.uuid), Assignment)
    assert assignment is not None
    host.stop()
    cluster.store.commit([unchanged(assignment)], [Delete(assignment.key)])
    host.run("ip", "link", "add", "ecb00002a", "type", "bridge")
    (host.state / "instances" / "lost+found").mkdir()
    host.start(wait=False)

    def shown() -> dict[str, str]:
        found = cluster.store.get(keys.audit(host.provider), HostAudit)
        return {} if found is None else {finding.subject: finding.what for finding in found.value.findings}

    wanted = {
        guest.uuid: "guest-without-assignment",
        "ecb00002a": "device-without-owner",
        "lost+found": "files-without-instance",
    }
    wait_for(lambda: shown() == wanted, timeout_s=TWO_LOOKS_S, what="two looks have agreed")
    done = cluster.eschedule("audit", "--grace", "1", "-o", "json", check=False)
    assert done.status == 1
    rows = {row["subject"]: row for row in json.loads(done.stdout)}
    assert {subject: rows[subject]["what"] for subject in wanted} == wanted
    assert {tuple(rows[subject]["where"]) for subject in wanted} == {(host.name,)}
    types = {event["type"] for event in _events(cluster, host.name)}
    assert "audit.found" in types
    assert host.domains() == {guest.uuid: True, other.uuid: True}, "it is left alone"
    host.run("ip", "link", "show", "ecb00002a")

    cluster.store.commit([absent(assignment.key)], [Put(assignment.key, assignment.value)])
    host.run("ip", "link", "delete", "ecb00002a")
    (host.state / "instances" / "lost+found").rmdir()
    wait_for(lambda: shown() == {}, timeout_s=TWO_LOOKS_S, what="it is taken back")
    assert "audit.settled" in {event["type"] for event in _events(cluster, host.name)}
    cluster.destroy(guest.uuid, other.uuid)
    cluster.agree()


def _events(cluster: Cluster, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cluster.eschedule("host", "events", host, "-o", "json").stdout)
    return found
