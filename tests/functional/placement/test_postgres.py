"""The PostgreSQL that the races and the bench start, and placement on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.errors import ClaimRefused, StepFailed
from ecompute.cluster.placement import Inventory, Placement
from ecompute.dev.placement import PlacementProcess
from ecompute.dev.postgres import placement_on_postgres, start_postgres


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory that PostgreSQL's account can reach and a socket's address can name; pytest's is neither."""
    directory = Path(tempfile.mkdtemp(prefix="ec-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def client_of(process: PlacementProcess) -> Placement:
    return Placement(PlacementSettings(endpoint=process.endpoint))


def claim_at_once(client: Placement, host: str, count: int) -> int:
    """Return how many of ``count`` claims of one unit, all at the same time, were taken."""
    begun = threading.Barrier(count)

    def claim(consumer: str) -> bool:
        begun.wait(10)
        try:
            client.claim(consumer, {host: {"VCPU": 1}}, {"": [host]}, project_id="p", user_id="u")
        except ClaimRefused:
            return False
        return True

    with ThreadPoolExecutor(count) as pool:
        return sum(pool.map(claim, [str(uuid.uuid4()) for _ in range(count)]))


def test_placement_on_postgres_serves_several_writers_and_keeps_its_data(short_directory: Path) -> None:
    host = str(uuid.uuid4())
    with placement_on_postgres(short_directory, workers=2, threads=4, is_durable=False) as process:
        with client_of(process) as client:
            client.ensure_provider(host, "host")
            client.set_inventories(host, {"VCPU": Inventory(total=5)})
            assert claim_at_once(client, host, 8) == 5
        log = (short_directory / "placement" / "placement.log").read_text()
        assert "database is locked" not in log
    with placement_on_postgres(short_directory, is_durable=False) as process, client_of(process) as client:
        assert client.usages(host) == {"VCPU": 5}


def test_claims_that_meet_on_one_host_never_exceed_it(short_directory: Path) -> None:
    """Placement's own retries did: see "One try a claim" in placement/README.md."""
    with (
        placement_on_postgres(short_directory, workers=2, threads=4, is_durable=False) as process,
        client_of(process) as client,
    ):
        for _ in range(10):
            host = str(uuid.uuid4())
            client.ensure_provider(host, f"host-{host}")
            client.set_inventories(host, {"VCPU": Inventory(total=5)})
            assert claim_at_once(client, host, 8) == 5
            assert client.usages(host) == {"VCPU": 5}


def test_a_stopped_postgres_leaves_no_process_and_no_port(short_directory: Path) -> None:
    with start_postgres(short_directory / "pg", is_durable=False) as process:
        pid = process.pid
        assert process.is_running
        if os.geteuid() == 0:
            assert Path(f"/proc/{pid}").stat().st_uid != 0
        assert "listen_addresses = ''" in (short_directory / "pg" / "postgresql.conf").read_text()
    assert not process.is_running
    assert not Path(f"/proc/{pid}").exists()
    process.stop()


def test_a_killed_postgres_starts_again_on_its_data(short_directory: Path) -> None:
    process = start_postgres(short_directory / "pg", is_durable=False)
    process.kill()
    with start_postgres(short_directory / "pg", is_durable=False) as again:
        assert again.is_running


def test_a_directory_too_long_for_a_socket_is_told_before_anything_is_made(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    with pytest.raises(StepFailed, match=r"\d+ bytes are more than 107") as raised:
        start_postgres(directory)
    assert raised.value.hint == "choose a shorter directory"
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand it to another account")
def test_a_directory_that_its_account_cannot_reach_is_told(short_directory: Path) -> None:
    closed = short_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StepFailed, match=f"cannot pass through {closed}"):
        start_postgres(closed / "pg")
