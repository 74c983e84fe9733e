"""``ecompute fleet``, for real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ecompute.cluster import keys
from ecompute.cluster.config import Config
from ecompute.cluster.documents import Alive, Node
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store

TIMEOUT_S = 60.0


@pytest.fixture
def start(config: Config, store: Store, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    host, _, port = config.etcd.endpoints[0].rpartition(":")
    path = tmp_path / "compute.yaml"
    path.write_text(
        yaml.safe_dump(
            {"etcd": {"host": host, "port": int(port)}, "placement": {"endpoint": config.placement.endpoint}}
        )
    )
    made: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "ecompute", "--config", str(path), "fleet", *arguments]
        process = subprocess.Popen(
            [*argv, "--directory", str(tmp_path / "fleet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("ECOMPUTE_")},
        )
        made.append(process)
        return process

    yield run
    for process in made:
        process.kill()
        process.communicate()
    with Placement(config.placement) as placement:
        for identity in tmp_path.glob("fleet/*/provider-uuid"):
            with contextlib.suppress(Exception):
                placement.delete_provider(identity.read_text().strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_its_hosts_are_up_and_reserves_them_at_its_end(
    start: Callable[..., subprocess.Popen[str]], store: Store, config: Config, number: int
) -> None:
    process = start("--hosts", "3", "--prefix", f"told-{number}", "--vcpus", "4")
    assert process.stdout is not None
    assert any("3 hosts are up" in line for line in process.stdout)
    nodes = [item.value for item in store.list(keys.NODES, Node).items]
    assert sorted(node.name for node in nodes) == [f"told-{number}-{n}" for n in (1, 2, 3)]
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert out.rstrip().endswith("stopped")
    assert store.list(keys.ALIVE, Alive).items == ()
    with Placement(config.placement) as placement:
        for node in nodes:
            vcpus = placement.inventories(node.provider).inventories["VCPU"]
            assert vcpus.reserved == vcpus.total == 4


@pytest.mark.parametrize(
    "arguments",
    [(), ("--hosts", "0"), ("--hosts", "1000000"), ("--hosts", "x"), ("--hosts", "1", "--failure-rate", "1.5")],
)
def test_a_fleet_that_cannot_be_is_refused_on_one_line(
    start: Callable[..., subprocess.Popen[str]], store: Store, arguments: tuple[str, ...]
) -> None:
    process = start(*arguments)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert out == ""
    assert len(err.strip().splitlines()) <= 2, err
    assert store.list(keys.NODES, Node).items == ()
