"""Guests on a bridge of the operator's, booted: by a physical network, and by the second interface that all get."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import outside
import pytest
from cloud import Cluster
from host import Host

from ecompute.cluster.errors import StepFailed
from ecompute.dev.hosts import ip
from ecompute.dev.processes import Child

BRIDGE = "lan0"
ROUTER = "192.168.77.1"
GIVEN = "192.168.77.200"
"""Given out by the operator's own DHCP."""
ASK = f"""#!/bin/sh
echo "seen as $(timeout 20 wget -q -O - http://{ROUTER}:{outside.PORT}/)."
"""


@contextmanager
def operators_network(cluster: Cluster, host: Host, vlan: int | None) -> Iterator[None]:
    """Make the host's bridge, and on it somebody who gives out an address by DHCP and tells who asks."""
    netns = f"{cluster.prefix}h97"  # removed with the hosts' namespaces
    ip("-n", host.netns, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    ip("-n", host.netns, "link", "set", BRIDGE, "up")
    ip("netns", "add", netns)
    ip("-n", netns, "link", "add", "eth0", "type", "veth", "peer", "name", "wall", "netns", host.netns)
    ip("-n", host.netns, "link", "set", "wall", "master", BRIDGE, "up")
    ip("-n", netns, "link", "set", "eth0", "up")
    device = "eth0"
    if vlan is not None:
        device = "tagged"
        ip("-n", netns, "link", "add", "link", "eth0", "name", device, "type", "vlan", "id", str(vlan))
        ip("-n", netns, "link", "set", device, "up")
    ip("-n", netns, "address", "add", f"{ROUTER}/24", "dev", device)
    inside = ["ip", "netns", "exec", netns]
    telling = [*inside, sys.executable, Path(__file__).with_name("teller.py"), str(outside.PORT)]
    teller = Child("a teller", telling, cluster.directory / "teller.log")
    dhcp = Child(
        "the operator's DHCP",
        [*inside, "dnsmasq", "-k", "-p0", "-u", "root", "-i", device, "-z", "--pid-file=", "--dhcp-option=3",
         f"--dhcp-leasefile={cluster.directory}/leases", f"--dhcp-range={GIVEN},{GIVEN},255.255.255.0,1h"],
        cluster.directory / "dhcp.log",
    )  # fmt: skip
    try:
        teller.start().wait_ready(lambda: "listening" in teller.log_tail(), timeout_s=30)
        dhcp.start()
        yield
    finally:
        dhcp.kill()
        teller.kill()


@pytest.fixture(params=[None, 5], ids=["untagged", "vlan"])
def vlan(request: pytest.FixtureRequest) -> int | None:
    tag: int | None = request.param
    if tag is not None:
        place = f"ecv{os.getpid()}"
        ip("netns", "add", place)
        try:
            ip("-n", place, "link", "add", "link", "lo", "name", "tagged", "type", "vlan", "id", str(tag))
        except StepFailed as error:
            pytest.skip(f"this kernel has no VLAN devices: {error}")
        finally:
            ip("netns", "delete", place)
    return tag


@pytest.fixture
def cluster(vlan: int | None, make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    made = make_cluster(hosts=1, start=False, bridge=BRIDGE, bridges={"lan": BRIDGE})
    with operators_network(made, made.hosts[0], vlan):
        made.hosts[0].start()
        yield made


def test_guests_reach_what_is_on_a_bridge_of_the_operators(cluster: Cluster, vlan: int | None) -> None:
    tag = [] if vlan is None else ["--vlan", str(vlan)]
    options = ["192.168.77.0/25", "--physical", "lan", "--gateway", ROUTER, *tag]
    cluster.eschedule("network", "create", "office", *options)
    host = cluster.hosts[0]
    worker = cluster.launch("-n", "office", host=host, name="worker", user_data=ASK)
    guests = [worker.uuid]
    if vlan is None:  # nobody is told of a tag on the second interface
        second = cluster.launch("--configdrive", "none", host=host, name="second", user_data=ASK)
        guests.append(second.uuid)
        said = host.wait_console(second.uuid, f"seen as {GIVEN}.\n")
        assert f"guest: address {second.address}/24\n" in said
        assert f"guest: address {GIVEN}/24\n" in said
        assert "guest: problem" not in said
    assert f"guest: address {worker.address}/25\n" in host.wait_console(worker.uuid, f"seen as {worker.address}.\n")
    cluster.agree()
    cluster.destroy(*guests)
    cluster.eschedule("network", "delete", "office")
    cluster.agree()
