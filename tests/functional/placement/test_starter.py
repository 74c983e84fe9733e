"""The placement service that the embedded cloud starts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.errors import Refused, StepFailed
from ecompute.cluster.placement import Inventory, Placement
from ecompute.dev.placement import PlacementProcess, start_placement

DEPLOYMENT = Path(__file__).parents[3] / "placement"


def client_of(process: PlacementProcess) -> Placement:
    return Placement(PlacementSettings(endpoint=process.endpoint))


def test_a_restart_keeps_port_and_data_and_leaves_nothing_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, directory = tmp_path / "home", tmp_path / "with a space"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 4")
    process = start_placement(directory)
    try:
        endpoint, host = process.endpoint, str(uuid.uuid4())
        with client_of(process) as client:
            client.ensure_provider(host, "host")
        made = (directory / "tables-made-by").stat().st_mtime_ns
        process.stop()
        process.stop()
        assert not process.is_running
        process = start_placement(directory, port=process.port)
        assert process.endpoint == endpoint
        with client_of(process) as client:
            assert client.provider(host) is not None
        assert (directory / "tables-made-by").stat().st_mtime_ns == made, "tables are made once"
        assert list(home.iterdir()) == []
    finally:
        process.kill()


def test_a_service_that_a_killed_run_left_behind_is_ended(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys; from ecompute.dev.placement import start_placement; "
        "process = start_placement(pathlib.Path(sys.argv[1])); print(process.pid, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    left = int(result.stdout)
    assert is_alive(left)
    process = start_placement(tmp_path)
    try:
        deadline = time.monotonic() + 10
        while is_alive(left):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with client_of(process) as client:
            client.check()
    finally:
        process.stop()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_process_that_only_has_the_number_of_a_former_run_is_left_alone(tmp_path: Path) -> None:
    from ecompute.dev.placement import _end_former

    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        (tmp_path / "placement.pid").write_text(str(bystander.pid))
        _end_former(tmp_path)
        assert bystander.poll() is None
        bystander.kill()


def test_a_port_that_is_taken_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StepFailed, match=f"{port}.*in use"):
            start_placement(tmp_path, port=port)


def test_the_deployment_s_configuration_and_policy_are_taken_by_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `placement/` ships, on SQLite: its options are known and its policy is in force."""
    text = (DEPLOYMENT / "placement.conf").read_text()
    text, count = re.subn(r"(?m)^connection = .*", "connection = {connection}", text)
    assert count == 1
    monkeypatch.setattr("ecompute.dev.placement._PLACEMENT_CONF", text)
    (tmp_path / "policy.yaml").write_text((DEPLOYMENT / "policy.yaml").read_text())
    process = start_placement(tmp_path)
    try:
        with client_of(process) as client:
            client.check()
            host, consumer = str(uuid.uuid4()), str(uuid.uuid4())
            client.ensure_provider(host, "host")
            client.set_inventories(host, {"VCPU": Inventory(total=1)})
            (candidate,) = client.candidates("resources=VCPU:1", limit=1)
            client.claim(consumer, candidate.allocations, candidate.mappings, project_id="system", user_id="u")
            with pytest.raises(Refused, match="does not allow"):
                client._transport.ask("DELETE", f"/allocations/{consumer}")
            assert client.release(consumer)
    finally:
        process.stop()


def test_the_deployment_holds_no_python() -> None:
    assert [path.name for path in DEPLOYMENT.rglob("*.py")] == []
    assert os.access(DEPLOYMENT / "README.md", os.R_OK)
