"""What `./dev test` runs pytest with: whatever tests leave running is named, ended, and fails the run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).parents[2]
LIMIT_S = 240
"""Two seconds are enough, on an idle machine."""

PROGRAM = "import sys; from run import main; sys.exit(main(sys.argv[1:], patience_s=0.5))"


@contextlib.contextmanager
def started(directory: Path, body: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    (directory / "test_it.py").write_text(body)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(directory: Path, body: str, *options: str) -> tuple[int, str, str]:
    """Return its status, and what it said and complained of."""
    with started(directory, body, *options) as process:
        said, errors = process.communicate(timeout=LIMIT_S)
        return process.returncode, said, errors


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_green_run_that_leaves_nothing_is_green(tmp_path: Path) -> None:
    status, said, errors = run(tmp_path, "def test_nothing(): pass\n")
    assert (status, errors) == (0, "")
    assert said.splitlines()[-1].startswith("1 passed in ")


def test_the_status_of_a_red_run_is_pytests(tmp_path: Path) -> None:
    status, said, _ = run(tmp_path, "def test_nothing(): assert False\n")
    assert status == 1
    assert "1 failed" in said


def test_a_service_that_a_test_leaves_in_the_background_is_ended_and_fails_the_run(tmp_path: Path) -> None:
    body = (
        "import subprocess\n"
        "def test_it():\n"
        "    subprocess.run('setsid sleep 3600 >/dev/null 2>&1 & echo $! >left', shell=True, check=True)\n"
    )
    status, said, errors = run(tmp_path, body)
    pid = int((tmp_path / "left").read_text())
    assert status == 1
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
        "    time.sleep(3600)\n"
    )
    with started(tmp_path, body) as process:
        eventually((tmp_path / "begun").exists, timeout_s=LIMIT_S)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert "told to end: pytest is interrupted" in errors
    assert (tmp_path / "stopped").exists()


def test_a_test_that_hangs_takes_its_worker_with_it_once_and_the_others_are_run(tmp_path: Path) -> None:
    conftest = (TESTS / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(conftest.replace("HEED_S = 60.0", "HEED_S = 1.0"))
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 600\n")
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")
    body = (
        "import signal, subprocess, time, pytest\n"
        "def test_before(): pass\n"
        "@pytest.mark.timeout(1)\n"
        "def test_it():\n"
        "    subprocess.Popen(['sleep', '3600'], start_new_session=True)\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "    time.sleep(3600)\n"
        "def test_after(): pass\n"
    )
    status, said, errors = run(tmp_path, body, "-n", "2")
    assert status == 1
    assert said.count("FAILED test_it.py::test_it") == 1
    assert "crashed while running 'test_it.py::test_it'" in said
    assert "1 failed, 3 passed" in said
    assert 'test_it.py", line 7 in test_it' in errors, "where it hangs"
    assert "left behind by pytest, and killed: " in errors
