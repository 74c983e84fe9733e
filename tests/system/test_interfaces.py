"""Interfaces plugged in and out of a guest that runs, with what is handed to them, on real hosts."""

from __future__ import annotations

import json
from typing import Any

from cloud import Cluster, Guest

from ecompute.cluster import keys


def tool(cluster: Cluster, *args: str) -> Any:
    """Return what the console script prints, as JSON."""
    return json.loads(cluster.eschedule(*args, "-o", "json").stdout)


def below(cluster: Cluster, network: str) -> list[str]:
    """Return the ports and members of a network."""
    return [key for key in cluster.store.keys(keys.network_prefix(network))[0] if "/ports/" in key or "/hosts/" in key]


def taps(guest: Guest) -> int:
    xml: str = guest.host.domain(guest.uuid).XMLDesc()
    return xml.count("<interface type=")


def test_interfaces_are_plugged_in_and_out_while_the_guest_runs(cluster: Cluster) -> None:
    back = tool(cluster, "network", "create", "back", "10.30.0.0/24")
    guest = cluster.launch(host=cluster.hosts[0], name="plugged")
    cluster.wait_booted(guest)
    first = tool(cluster, "interface", "list", guest.uuid)[0]
    added = tool(cluster, "interface", "add", guest.uuid, "-n", "back@10.30.0.9", "--wait")
    assert (added["state"], added["addresses"], taps(guest)) == ("present", ["10.30.0.9"], 2)
    tool(cluster, "network", "route", "back", guest.uuid, "--address", "10.30.0.77")
    assert cluster.show(guest.uuid)["routed"] == ["10.30.0.77"]
    cluster.agree()
    (left,) = tool(cluster, "interface", "remove", guest.uuid, first["uuid"], "--wait")
    assert (left["uuid"], taps(guest)) == (added["uuid"], 1)
    assert below(cluster, first["network_uuid"]) == []
    cluster.agree()
    killed = cluster.eschedule(
        "interface", "remove", guest.uuid, added["uuid"], check=False, failpoint="interface.leaving"
    )
    assert killed.status < 0
    cluster.agree()  # the lead has given back what it had
    assert below(cluster, back["uuid"]) == [] and taps(guest) == 0
    cluster.destroy(guest.uuid)
    cluster.eschedule("network", "delete", "back")
    cluster.agree()
