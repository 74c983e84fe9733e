"""The trial of accelerators with a real QEMU, and its monitor."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ecompute.cluster.errors import HypervisorError
from ecompute.hypervisor import accelerator
from ecompute.hypervisor.qmp import Monitor


def test_the_boot_sector_runs_under_tcg() -> None:
    assert 0 < accelerator.measure("tcg", timeout_s=20) < 20


def test_the_trial_ends_in_time_and_says_why() -> None:
    begun = time.monotonic()
    found = accelerator.trial()
    assert time.monotonic() - begun < 2 * accelerator.TIMEOUT_S
    assert found.accelerator in found.seconds
    assert found.accelerator == min(found.seconds, key=lambda name: found.seconds[name])
    assert "\n" not in found.reason
    print(found)


def test_an_accelerator_that_qemu_refuses_says_what_qemu_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accelerator.CPU, "none-such", "max")
    with pytest.raises(HypervisorError, match="none-such"):
        accelerator.measure("none-such", timeout_s=20)


def test_a_guest_that_does_not_get_there_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    standing_still = b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
    monkeypatch.setattr(accelerator, "BOOT_SECTOR", standing_still)
    with pytest.raises(HypervisorError, match="nothing after 1 s"):
        accelerator.measure("tcg", timeout_s=1)


def test_qemu_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "QEMU", "qemu-that-is-not-there")
    with pytest.raises(HypervisorError, match="install"):
        accelerator.trial()


def test_trials_may_run_in_several_threads_and_leave_none_behind() -> None:
    before = set(threading.enumerate())
    threads = [threading.Thread(target=accelerator.measure, args=("tcg",), kwargs={"timeout_s": 30}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(threading.enumerate()) <= before


def test_the_answer_is_remembered_until_the_machine_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "accelerator.json"
    first = accelerator.remembered(path)
    monkeypatch.setattr(accelerator, "QEMU", "qemu-that-is-not-there")
    with pytest.raises(HypervisorError):
        accelerator.remembered(path)  # another QEMU: tried again
    monkeypatch.undo()
    monkeypatch.setattr(accelerator, "trial", lambda: pytest.fail("it was to be remembered"))
    assert accelerator.remembered(path) == first
    assert json.loads(path.read_text())["accelerator"] == first.accelerator


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": []}', "\x00"])
def test_a_damaged_memory_is_made_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accelerator.json"
    path.write_text(text)
    assert accelerator.remembered(path).accelerator in ("kvm", "tcg")
    assert json.loads(path.read_text())["reason"]


def test_a_monitor_answers_and_refuses() -> None:
    ours, its = socket.socketpair()
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-machine", "none"]
    argv += ["-chardev", f"socket,id=m,fd={its.fileno()}", "-mon", "chardev=m,mode=control"]
    with subprocess.Popen(argv, pass_fds=[its.fileno()]) as process:
        its.close()
        try:
            with Monitor(ours, timeout_s=10) as monitor:
                assert monitor.execute("query-status")["running"] is False
                with pytest.raises(HypervisorError, match="no-such-command"):
                    monitor.execute("no-such-command")
                process.kill()
                process.wait()
                with pytest.raises(HypervisorError):
                    monitor.execute("query-status")
        finally:
            process.kill()
            ours.close()


def test_a_monitor_that_never_greets_is_given_up() -> None:
    ours, its = socket.socketpair()
    before = set(threading.enumerate())
    with its, pytest.raises(HypervisorError, match="greeting"):
        Monitor(ours, timeout_s=0.3)
    assert set(threading.enumerate()) <= before
