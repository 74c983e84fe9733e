"""Programs that we start end when we say so, and take nobody else with them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ecompute.cluster.errors import StepFailed
from ecompute.dev.processes import Child, free_port, stop_leftover

STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)\n"
)
PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print('ready', child.pid, flush=True)\n"
    "time.sleep(60)\n"
)


def python(tmp_path: Path, code: str) -> Child:
    return Child("python", [sys.executable, "-u", "-c", code], tmp_path / "logs" / "python.log")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ready(child: Child) -> Child:
    return child.start().wait_ready(lambda: "ready" in child.log_tail(), timeout_s=10)


def test_it_runs_in_a_session_of_its_own_and_ends_on_term(tmp_path: Path) -> None:
    with python(tmp_path, "import time; print('ready'); time.sleep(60)") as child:
        ready(child)
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        assert child.is_running
    assert not child.is_running
    assert child.exit_status == -signal.SIGTERM


def test_one_that_ignores_term_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    child = ready(python(tmp_path, STUBBORN))
    began_s = time.monotonic()
    child.stop(term_timeout_s=0.2)
    assert 0.2 <= time.monotonic() - began_s < 3
    assert child.exit_status == -signal.SIGKILL


def test_a_suspended_one_can_be_stopped_and_what_it_started_goes_with_it(tmp_path: Path) -> None:
    child = ready(python(tmp_path, PARENT))
    grandchild = int(child.log_tail().split()[1])
    child.suspend()
    child.stop(term_timeout_s=5)
    assert child.exit_status == -signal.SIGTERM
    deadline = time.monotonic() + 5
    while is_alive(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stopping_after_it_ended_by_itself_is_harmless(tmp_path: Path) -> None:
    child = python(tmp_path, "raise SystemExit(3)").start()
    assert child.wait(10)
    child.stop()
    child.stop()
    child.kill()
    child.suspend()
    assert child.exit_status == 3


def test_it_may_be_started_again_and_the_log_goes_on(tmp_path: Path) -> None:
    child = python(tmp_path, "print('ready')")
    for _ in range(2):
        assert child.start().wait(10)
        child.stop()
    assert child.log_tail().split() == ["ready", "ready"]


def test_one_that_dies_before_it_is_ready_says_why(tmp_path: Path) -> None:
    child = python(tmp_path, "raise SystemExit('no such thing')")
    with pytest.raises(StepFailed, match="python ended with status 1: no such thing"):
        child.start().wait_ready(lambda: False, timeout_s=10)
    child.stop()


def test_one_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with python(tmp_path, "import time; time.sleep(60)") as child, pytest.raises(StepFailed, match="not ready after"):
        child.wait_ready(lambda: False, timeout_s=0.1)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="nowhere"):
        Child("ghost", [tmp_path / "nowhere"], tmp_path / "log").start()


def test_what_a_killed_run_left_running_is_ended_by_the_next(tmp_path: Path) -> None:
    pid_file = tmp_path / "python.pid"
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from ecompute.dev.processes import Child
argv = [sys.executable, "-c", "import time; time.sleep(60)"]
print("ready", Child("left", argv, Path({str(tmp_path)!r}) / "log", pid_file=Path({str(pid_file)!r})).start().pid)
"""
    first = python(tmp_path, code).start()
    assert first.wait(10)
    left = int(first.log_tail().split()[1])
    assert first.exit_status == 0

    assert is_alive(left)
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Child("next", argv, tmp_path / "log", pid_file=pid_file) as child:
        assert not is_alive(left)
        assert child.is_running
    assert not pid_file.exists()


def test_a_pid_file_of_another_process_harms_nobody(tmp_path: Path) -> None:
    pid_file = tmp_path / "python.pid"
    with Child("bystander", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log") as bystander:
        for text in (f"{bystander.pid} 1 some-boot", f"{bystander.pid}", "", "x y z", "999999999 1 boot"):
            pid_file.write_text(text)
            assert not stop_leftover(pid_file)
        assert bystander.is_running


def test_a_free_port_is_free() -> None:
    assert free_port() != 0
