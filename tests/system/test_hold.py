"""Etcd emptied, replaced or put back under running guests: the hosts hold, and say so.

Nothing is built, nothing removed, no guest so much as restarted, whatever the strange data ask for,
until an operator has put the right data there and taken them for the host's own (`ecompute adopt`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cloud import Cluster, Guest
from host import Host, wait_for
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.asking import PRESENCE, ask
from ecompute.cluster.documents import Assignment, Node, Operation, Role, Seen
from ecompute.cluster.errors import StoreUnavailable
from ecompute.cluster.store import Put


class Backups:
    """What an operator does with etcd's data: save, empty, replace, put back."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._etcd = cluster.etcd
        self._data = cluster.directory / "etcd" / "data"
        self._directory = directory

    def save(self, name: str) -> Path:
        path = self._directory / f"{name}.db"
        self._etcdctl("snapshot", "save", path)
        return path

    def empty(self) -> None:
        self._etcdctl("del", "", "--prefix")

    def replace(self) -> None:
        """Start another etcd, without data, in the place of this one."""
        self._etcd.kill()
        shutil.rmtree(self._data)
        self._data.mkdir(mode=0o700)
        self._etcd.start()

    def put_back(self, path: Path) -> None:
        self._etcd.kill()
        shutil.rmtree(self._data)
        peer = next(part for part in self._etcd.child.argv if part.startswith("default=")).removeprefix("default=")
        identity = ["--name", "default", "--initial-cluster", f"default={peer}", "--initial-advertise-peer-urls", peer]
        self._etcdctl("snapshot", "restore", path, "--data-dir", self._data, *identity)
        self._etcd.start()

    def _etcdctl(self, *arguments: str | Path) -> None:
        done = subprocess.run(
            ["etcdctl", "--endpoints", self._etcd.endpoint, *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("loss", [Backups.empty, Backups.replace], ids=["emptied", "replaced"])
def test_hosts_hold_when_etcd_has_lost_its_data(
    make_cluster: Callable[..., Cluster], tmp_path: Path, loss: Callable[[Backups], None]
) -> None:
    cluster = make_cluster(hosts=1)
    (host,) = cluster.hosts
    guests = [cluster.launch_idle(), cluster.launch_idle()]
    assignment = _assignment(cluster, guests[0])
    cluster.agree()
    backups = Backups(cluster, tmp_path)
    newest, before = backups.save("newest"), _picture(host)
    loss(backups)
    _wait_held(cluster, host, "has lost its data|went back")
    # Strange data may ask for anything.
    stranger, doomed = structs.replace(assignment, uuid=str(uuid4())), structs.replace(assignment, role=Role.ABSENT)
    cluster.store.commit([], [Put(keys.assignment(host.provider, one.uuid), one) for one in (stranger, doomed)])
    uuids = [guest.uuid for guest in guests] + [stranger.uuid]
    _wait_looked_at(cluster, host, uuids)
    assert _picture(host) == before
    reports = cluster.store.list(keys.seen_by(host.provider), Seen).items
    assert {report.value.uuid for report in reports if not report.value.is_assigned} >= {guests[1].uuid}
    assert not any(report.value.is_gone for report in reports)
    _expect_refusal(cluster)
    host.restart(wait=False)
    _wait_held(cluster, host, "has lost its data|went back")
    _wait_looked_at(cluster, host, uuids)
    assert _picture(host) == before
    _expect_refusal(cluster)
    _end_hold(cluster, backups, newest)
    cluster.agree(timeout_s=60)
    assert _picture(host) == before
    cluster.destroy(*(guest.uuid for guest in guests))
    cluster.agree()


def test_hosts_hold_when_etcd_was_put_back_to_an_older_state(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(hosts=2)
    first, second = cluster.hosts
    backups = Backups(cluster, tmp_path)
    kept, destroyed = cluster.launch_idle(host=first), cluster.launch_idle(host=first)
    cluster.agree()
    older = backups.save("older")
    cluster.destroy(destroyed.uuid)
    created = cluster.launch_idle(host=second)  # its host was no member of the network before
    cluster.agree()
    newest, before = backups.save("newest"), [_picture(host) for host in cluster.hosts]
    backups.put_back(older)
    uuids = [guest.uuid for guest in (kept, destroyed, created)]
    for host in cluster.hosts:
        _wait_held(cluster, host, "to an older state|went back")
        _wait_looked_at(cluster, host, uuids)
    assert [_picture(host) for host in cluster.hosts] == before
    _expect_refusal(cluster)
    for host in cluster.hosts:
        host.restart(wait=False)
    for host in cluster.hosts:
        _wait_held(cluster, host, "to an older state|went back")
        _wait_looked_at(cluster, host, uuids)
    assert [_picture(host) for host in cluster.hosts] == before
    _expect_refusal(cluster)
    _end_hold(cluster, backups, newest)
    cluster.agree(timeout_s=60)
    assert [_picture(host) for host in cluster.hosts] == before
    cluster.destroy(kept.uuid, created.uuid)
    cluster.agree()


def test_a_host_that_was_down_meanwhile_holds_when_it_starts(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(hosts=1)
    (host,) = cluster.hosts
    backups = Backups(cluster, tmp_path)
    guest = cluster.launch_idle()
    cluster.agree()
    older = backups.save("older")
    cluster.destroy(guest.uuid)
    cluster.agree()
    host.stop()
    before = _picture(host)
    backups.put_back(older)  # it wants the guest that was destroyed
    host.start(wait=False)
    _wait_held(cluster, host, "to an older state")
    _wait_looked_at(cluster, host, [guest.uuid])
    assert _picture(host) == before
    # Taken for the host's own all the same: what was removed is not built again, blank.
    refused = _run_adopt(host)
    assert refused.returncode == 1, "a daemon that runs would write its own over it"
    assert "another ecompute runs" in refused.stderr
    host.stop()
    _adopt(host)
    host.start()
    wait_for(lambda: cluster.show(guest.uuid)["state"] == "error", timeout_s=30, what="the guest is in error")
    assert "was removed from this host" in cluster.show(guest.uuid)["error"]
    cluster.agree()
    cluster.destroy(guest.uuid)
    cluster.agree()


def _assignment(cluster: Cluster, guest: Guest) -> Assignment:
    found = cluster.store.get(keys.assignment(guest.host.provider, guest.uuid), Assignment)
    assert found is not None
    return found.value


def _picture(host: Host) -> dict[str, Any]:
    """All that a hold must leave as it is: guests, their processes and files, devices, memory."""
    return {
        "domains": host.domains(),
        "processes": host.guest_pids(),
        "files": sorted(str(path) for path in (host.state / "instances").rglob("*")),
        "memory": {path.name: path.read_text() for path in (host.state / "memory" / "instances").iterdir()},
        "links": sorted(link["ifname"] for link in json.loads(host.run("ip", "-j", "link").stdout)),
        "entries": sorted(line for line in host.run("bridge", "fdb", "show").stdout.splitlines() if " dst " in line),
        "filter": host.run("nft", "-s", "list", "ruleset").stdout,
    }


def _wait_held(cluster: Cluster, host: Host, reasons: str) -> None:
    """Wait until the host says everywhere that it holds, and for one of ``reasons``, parted by ``|``."""

    def is_held() -> bool:
        try:
            node = cluster.store.get(keys.node(host.provider), Node)
        except StoreUnavailable:
            return False
        return node is not None and any(reason in (node.value.hold or "") for reason in reasons.split("|"))

    wait_for(is_held, timeout_s=30, what=f"{host.name} holds")
    shown = {one["uuid"]: one for one in json.loads(cluster.eschedule("hosts", "-o", "json").stdout)}
    assert shown[host.provider]["state"] == "hold"
    assert any(reason in shown[host.provider]["hold"] for reason in reasons.split("|"))
    assert any(f"on hold: {line}" in host.log for line in [shown[host.provider]["hold"]]), host.log[-2000:]
    inventory = cluster.claims.inventories(host.provider).inventories["VCPU"]
    wait_for(lambda: _is_closed(cluster, host), what=f"placement sends nothing to {host.name}: {inventory}")


def _is_closed(cluster: Cluster, host: Host) -> bool:
    inventory = cluster.claims.inventories(host.provider).inventories["VCPU"]
    return inventory.reserved == inventory.total


def _wait_looked_at(cluster: Cluster, host: Host, uuids: list[str]) -> None:
    """Wait until the host has gone through each instance, in its own lane, from now on."""
    for uuid in uuids:
        question = Operation(kind=PRESENCE, instance_uuid=uuid)

        def answer(question: Operation = question) -> str | None:
            answered = ask(cluster.store, host.provider, question, timeout_s=5)
            return answered.answer if answered is not None else None

        assert wait_for(answer, what=f"{host.name} has looked at {uuid}") == "something", "on hold it knows nothing"


def _expect_refusal(cluster: Cluster) -> None:
    status, stdout, stderr = cluster.eschedule("launch", cluster.query(), check=False)
    assert (status, stdout) == (1, "")
    assert re.fullmatch(r"error: .*(on hold|its data was lost).*\n", stderr), f"it does not say why: {stderr}"
    status, stdout, stderr = cluster.eschedule(cluster.query(), check=False)
    assert status == 1
    assert "NOTIFIED" not in stdout
    assert stderr.startswith("error: etcd holds no cloud") or stdout.endswith("FAIL: no allocation available\n")


def _end_hold(cluster: Cluster, backups: Backups, newest: Path) -> None:
    for host in cluster.hosts:
        host.stop()
    backups.put_back(newest)
    for host in cluster.hosts:
        _adopt(host)
        host.start()


def _run_adopt(host: Host) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ecompute", "--config", str(host.directory / "compute.yaml"), "adopt", "--yes"],
        capture_output=True,
        text=True,
        timeout=60,
    )


def _adopt(host: Host) -> None:
    done = _run_adopt(host)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("adopted incarnation "), done.stdout
