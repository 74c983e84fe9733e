"""etcd or placement is down: said in one line (which, where, since when) within a deadline; daemons wait."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cloud import Cluster, Host, wait_for

DEADLINE_S = 20.0
"""Of the tool: the store's 5 s, the placement client's, the start of the program, and a busy machine."""


def refused(cluster: Cluster, *commands: list[str], service: str, endpoint: str) -> None:
    """Run all at once, and check what each says."""
    began = time.monotonic()
    with ThreadPoolExecutor(len(commands)) as pool:
        results = list(pool.map(lambda command: cluster.eschedule(*command, check=False), commands))
    assert time.monotonic() - began < DEADLINE_S
    for result in results:
        said = result.stderr or result.stdout.splitlines()[-1] + "\n"
        assert result.status == 1, result
        assert said.count("\n") == 1, result
        assert service in said, said
        assert endpoint in said, said
        assert re.search(r"since \d", said), said


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_the_tool_says_that_etcd_is_down(cluster: Cluster, how: str) -> None:
    guest = cluster.launch_idle()
    _take_down(cluster.etcd, how)
    try:
        commands = ["list"], ["launch", cluster.query()], [cluster.query()], [guest.uuid], ["destroy", guest.uuid]
        refused(cluster, *commands, service="etcd", endpoint=cluster.etcd.endpoint)
    finally:
        _bring_up(cluster.etcd, how)
    cluster.agree(timeout_s=60)  # and all go on
    cluster.destroy(guest.uuid)
    cluster.agree()


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_the_tool_says_that_placement_is_down(cluster: Cluster, how: str) -> None:
    guest = cluster.launch_idle()
    _take_down(cluster.placement, how)
    endpoint = cluster.placement.endpoint.removeprefix("http://")
    try:
        commands = ["launch", cluster.query()], [cluster.query()], ["hosts"]
        refused(cluster, *commands, service="placement", endpoint=endpoint)
        assert guest.uuid in cluster.eschedule("list", "-o", "json").stdout, "for that it is not needed"
    finally:
        _bring_up(cluster.placement, how)
    cluster.agree(timeout_s=60)
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_destroy_while_placement_is_down_is_finished_when_it_is_back(cluster: Cluster) -> None:
    guest = cluster.launch_idle()
    cluster.placement.stop()
    try:
        result = cluster.eschedule("destroy", guest.uuid, check=False)
        assert result.status == 1
        assert "placement" in result.stderr
        wait_for(lambda: guest.uuid not in guest.host.domains(), what="its host has removed it all the same")
    finally:
        cluster.placement.start()
    wait_for(lambda: not cluster.instances(), timeout_s=60, what="the lead finishes it")
    cluster.agree()


def test_daemons_started_while_etcd_is_down_wait_and_go_on(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=1, start=False)
    (host,) = cluster.hosts
    cluster.etcd.stop()
    host.start(wait=False)
    line = _waiting(host, "etcd")
    assert cluster.etcd.endpoint in line
    assert re.search(r"since \d", line), line
    assert host.is_running
    cluster.etcd.start()
    wait_for(lambda: "the host is open" in host.log, timeout_s=60, what="the host is open")
    guest = cluster.launch_idle()
    cluster.agree()
    # And one that runs: what is asked for afterwards is done, what runs goes on.
    cluster.etcd.stop()
    cluster.etcd.start()
    second = cluster.launch_idle()
    cluster.agree(timeout_s=60)
    cluster.destroy(guest.uuid, second.uuid)
    cluster.agree()


def test_daemons_started_while_placement_is_down_wait_and_go_on(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=1, start=False)
    (host,) = cluster.hosts
    cluster.placement.stop()
    host.start(wait=False)
    line = _waiting(host, "placement")
    assert cluster.placement.endpoint.removeprefix("http://") in line
    assert re.search(r"since \d", line), line
    cluster.placement.start()
    wait_for(lambda: "the host is open" in host.log, timeout_s=90, what="the host is open")
    guest = cluster.launch_idle()
    cluster.agree()
    cluster.destroy(guest.uuid)
    cluster.agree()


def test_a_daemon_that_waits_for_etcd_can_be_stopped(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(hosts=1, start=False)
    (host,) = cluster.hosts
    cluster.etcd.stop()
    host.start(wait=False)
    _waiting(host, "etcd")
    began = time.monotonic()
    assert host.stop() == 0
    assert time.monotonic() - began < DEADLINE_S


def _waiting(host: Host, service: str) -> str:
    """Wait until the daemon says that it waits for ``service``; return the line."""

    def find() -> str | None:
        lines = [line for line in host.log.splitlines() if service in line and " warning " in line]
        return lines[0] if lines else None

    return wait_for(find, timeout_s=60, what=f"the daemon waits for {service}")


def _take_down(service: object, how: str) -> None:
    service.stop() if how == "stopped" else service.suspend()  # type: ignore[attr-defined]


def _bring_up(service: object, how: str) -> None:
    service.start() if how == "stopped" else service.resume()  # type: ignore[attr-defined]
