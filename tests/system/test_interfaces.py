"""Guests told by DHCP and metadata alone, and interfaces plugged in and out of guests that run, on real hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cloud import Cluster, Guest, wait_for

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Power, Resources, Role, Seen, Spec, State
from ecompute.hypervisor.domain import ASSET_TAG
from ecompute.instances.plan import Found, Phase, Record, plan


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


# --- told by DHCP and metadata ---------------------------------------------------------------------

PATIENCE_S = 240.0
"""For what a guest does: it takes seconds on an idle machine."""

WATCH = """#!/bin/sh
echo tag $(cat /sys/class/dmi/id/chassis_asset_tag)
while :; do
    told=$(timeout 5 wget -q -O - http://169.254.169.254/openstack/latest/network_data.json |
        grep -o ethernet_mac_address | wc -l)
    now="$(cat /sys/class/net/eth*/address | tr '\\n' ' ')told $told"
    [ "$now" = "$before" ] || echo "has $now."
    before=$now
    sleep 1
done
"""
"""Says which interfaces the guest has, and of how many the metadata service tells, whenever that changes."""


@pytest.fixture
def network(cluster: Cluster) -> Iterator[Callable[[str, str], str]]:
    """Make networks, which are taken away at the end."""
    made: list[str] = []

    def make(name: str, cidr: str) -> str:
        made.append(tool(cluster, "network", "create", name, cidr)["uuid"])
        return name

    yield make
    for uuid in made:
        cluster.eschedule("network", "delete", uuid)


def wait_has(guest: Guest, *macs: str) -> None:
    """Wait until the guest says that it has just these interfaces, and that the metadata service tells of them."""
    wanted = {*macs}, f"told {len(macs)}"

    def last() -> tuple[set[str], str]:
        said = re.findall(r"^has (.*)(told \d+)\.$", guest.host.console(guest.uuid), re.MULTILINE)
        return ({*said[-1][0].split()}, said[-1][1]) if said else (set(), "")

    wait_for(lambda: last() == wanted, timeout_s=PATIENCE_S, what=f"it has {wanted}")


def wait_taps(guest: Guest, count: int) -> None:
    """A guest is without a device a little before its host is."""
    wait_for(lambda: taps(guest) == count, timeout_s=PATIENCE_S, what=f"its host has {count} taps of it")


def test_guests_without_openstacks_drive_boot_by_dhcp_and_metadata_alone(
    cluster: Cluster, network: Callable[[str, str], str], tmp_path: Path
) -> None:
    network("web", "10.40.0.0/24")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me@here"
    (tmp_path / "key.pub").write_text(key + "\n")
    guests = {
        kind: cluster.launch(
            *("--configdrive", kind, "-n", "web", "--ssh-key", tmp_path / "key.pub"),
            host=host, name=f"by-{kind}", user_data=WATCH,
        )
        for kind, host in zip(("none", "nocloud"), cluster.hosts, strict=True)
    }  # fmt: skip
    for kind, guest in guests.items():
        said = guest.host.wait_console(guest.uuid, "guest: booted\n", timeout_s=PATIENCE_S)
        for line in (
            "no config drive",
            f"name by-{kind}",
            f"uuid {guest.uuid}",
            "project system",
            f"address {guest.address}/24",
            "gateway 10.40.0.1",
            "nameserver 10.40.0.1",
            f"key {key}",
        ):
            assert f"guest: {line}\n" in said
        assert "guest: problem" not in said
        (only,) = tool(cluster, "interface", "list", guest.uuid)
        wait_has(guest, only["mac"])
        assert f"tag {ASSET_TAG}\n" in guest.host.console(guest.uuid)
        disks = re.findall(r"<target dev='(vd.)'", guest.host.domain(guest.uuid).XMLDesc())
        assert disks == (["vda"] if kind == "none" else ["vda", "vdb"])
    drive = guests["nocloud"].host.files(guests["nocloud"].uuid) / "config.iso"
    assert b"cidata" in drive.read_bytes()[16 * 2048 : 17 * 2048]
    cluster.agree()
    cluster.destroy(*(guest.uuid for guest in guests.values()))
    cluster.agree()


# --- killed meanwhile ------------------------------------------------------------------------------


UUID = "6f2f3a0c-5ad1-4a7c-9c53-0f5d8f1d0001"
SPEC = Spec(resources=Resources(vcpus=1, memory_mb=96, disk_gb=1), image="/image")


def _points(**found: bool) -> list[str]:
    """Return the points at the steps by which a guest that runs gets other interfaces."""
    wanted = Assignment(uuid=UUID, namespace="system", name="web", role=Role.RUN, generation=2, epoch=1, spec=SPEC)
    record = Record(uuid=UUID, epoch=1, phase=Phase.RUNNING, power=Power.ON, boot_id="boot")
    there = Found(domain=Power.ON, has_disk=True, has_config_drive=True, is_to_tell=True, **found)
    reported = Seen(uuid=UUID, epoch=1, generation=1, state=State.CREATED, power=Power.ON, reported_at="")
    steps = plan(wanted, there, record, hold=False, boot_id="boot", reported=reported).steps
    return [f"{step}.{side}" for step in steps for side in ("before", "after")]


PLUGGED = _points(is_to_attach=True)
UNPLUGGED = _points(is_to_detach=True, has_network=True)


def test_the_plans_have_the_steps_that_are_killed_at() -> None:
    assert [point for point in PLUGGED if point.endswith("before")] == [
        f"{step}.before" for step in ("tell", "join-network", "attach", "report")
    ]
    assert [point for point in UNPLUGGED if point.endswith("before")] == [
        f"{step}.before" for step in ("tell", "detach", "leave-others", "report")
    ]


def test_a_daemon_that_was_killed_goes_on_with_the_interface_of_a_guest_that_runs(
    cluster: Cluster, network: Callable[[str, str], str]
) -> None:
    network("front", "10.41.0.0/24")
    backs = [network(f"back-{number}", "10.42.0.0/24") for number in range(len(cluster.hosts))]
    guests = [cluster.launch("-n", "front", host=host, user_data=WATCH) for host in cluster.hosts]
    pairs = list(zip(PLUGGED, UNPLUGGED, strict=True))
    shares = [pairs[number :: len(guests)] for number in range(len(guests))]

    def change(guest: Guest, back: str, share: list[tuple[str, str]]) -> None:
        (first,) = tool(cluster, "interface", "list", guest.uuid)
        wait_has(guest, first["mac"])  # who is not up yet lets go of nothing
        for plugged, unplugged in share:
            guest.host.kill()
            added = tool(cluster, "interface", "add", guest.uuid, "-n", back)
            guest.host.die_at(plugged)
            guest.host.start()
            wait_has(guest, first["mac"], added["mac"])
            wait_taps(guest, 2)
            guest.host.kill()
            cluster.eschedule("interface", "remove", guest.uuid, added["uuid"])
            guest.host.die_at(unplugged)
            guest.host.start()
            wait_has(guest, first["mac"])
            wait_taps(guest, 1)

    with ThreadPoolExecutor(len(guests)) as pool:
        for done in [pool.submit(change, *some) for some in zip(guests, backs, shares, strict=True)]:
            done.result()
    cluster.agree(timeout_s=60)
    cluster.destroy(*(guest.uuid for guest in guests))
    cluster.agree()
