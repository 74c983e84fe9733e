"""What `./dev test` runs pytest with: whatever tests leave running is named, ended, and fails the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[2]
PROGRAM = "import sys; from run import main; sys.exit(main(sys.argv[1:], patience_s=0.5))"


def start(directory: Path, body: str) -> subprocess.Popen[str]:
    (directory / "test_it.py").write_text(body)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-q", "-p", "no:cacheprovider", "test_it.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_green_run_that_leaves_nothing_is_green(tmp_path: Path) -> None:
    done = start(tmp_path, "def test_nothing(): pass\n")
    said, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (0, "")
    assert said.splitlines()[-1].startswith("1 passed in ")


def test_the_status_of_a_red_run_is_pytests(tmp_path: Path) -> None:
    done = start(tmp_path, "def test_nothing(): assert False\n")
    assert "1 failed" in done.communicate(timeout=60)[0]
    assert done.returncode == 1


def test_a_service_that_a_test_leaves_in_the_background_is_ended_and_fails_the_run(tmp_path: Path) -> None:
    body = (
        "import subprocess\n"
        "def test_it():\n"
        "    subprocess.run('setsid sleep 3600 >/dev/null 2>&1 & echo $! >left', shell=True, check=True)\n"
    )
    done = start(tmp_path, body)
    said, errors = done.communicate(timeout=60)
    pid = int((tmp_path / "left").read_text())
    assert done.returncode == 1
    assert "1 passed" in said
    assert f"left behind by pytest, and killed: {pid} sleep 3600" in errors
    assert not is_there(pid)


def test_a_run_that_is_told_to_end_stops_its_tests_in_order(tmp_path: Path, eventually: Callable[..., None]) -> None:
    body = (
        "import pathlib, time, pytest\n"
        "@pytest.fixture\n"
        "def service():\n"
        "    yield\n"
        "    pathlib.Path('stopped').touch()\n"
        "def test_it(service):\n"
        "    pathlib.Path('begun').touch()\n"
        "    time.sleep(60)\n"
    )
    done = start(tmp_path, body)
    eventually((tmp_path / "begun").exists, timeout_s=60)
    began = time.monotonic()
    done.send_signal(signal.SIGTERM)
    _, errors = done.communicate(timeout=60)
    assert time.monotonic() - began < 50
    assert done.returncode != 0
    assert "told to end: pytest is interrupted" in errors
    assert (tmp_path / "stopped").exists()
