"""Completion by real shells, where they are installed. Names of instances are in tests/functional/eschedule."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eschedule.cli.main import COMMANDS
from eschedule.cli.output import FORMATS

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "eschedule", "completion", shell], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A directory for PATH with ``eschedule`` in it, for environments that have not installed it."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "eschedule").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m eschedule "$@"\n')
    (directory / "eschedule").chmod(0o755)
    return directory


def bash_completes(tool: Path, *words: str, config: str = "/nonexistent/compute.yaml") -> tuple[list[str], str]:
    """Return what bash offers for the last of ``words``, and what was written to standard error."""
    lines = [
        script("bash"),
        f"COMP_WORDS=(eschedule {' '.join(repr(word) for word in words)})",
        f"COMP_CWORD={len(words)}",
        "_eschedule_completion eschedule",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run(
        ["bash", "--norc", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PATH": f"{tool}:{os.environ['PATH']}", "ECOMPUTE_CONFIG": config},
    )
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_for_our_name(shell: str) -> None:
    assert "_ESCHEDULE_COMPLETE" in script(shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_can_read(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script(shell))
    option = "--no-execute" if shell == "fish" else "-n"
    done = subprocess.run([shell, option, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eschedule", "completion", "csh"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "bash" in done.stderr


def test_bash_completes_commands(tool: Path) -> None:
    assert bash_completes(tool, "") == (list(COMMANDS), "")
    assert bash_completes(tool, "d") == (["destroy", "doctor"], "")


def test_bash_completes_formats(tool: Path) -> None:
    assert bash_completes(tool, "list", "-o", "") == (list(FORMATS), "")
    assert bash_completes(tool, "show", "web-1", "--output", "j") == (["json"], "")


def test_bash_completes_options(tool: Path) -> None:
    assert bash_completes(tool, "launch", "--us") == (["--user-data"], "")
    assert bash_completes(tool, "--name") == (["--namespace"], "")


def test_where_etcd_is_down_no_name_is_offered_and_nothing_is_said(tool: Path, tmp_path: Path) -> None:
    config = tmp_path / "compute.yaml"
    config.write_text("etcd: {host: 127.0.0.1, port: 1}\n")
    began = time.monotonic()
    assert bash_completes(tool, "show", "", config="/nonexistent/compute.yaml") == ([], "")
    without_s, began = time.monotonic() - began, time.monotonic()
    assert bash_completes(tool, "show", "", config=str(config)) == ([], "")
    assert time.monotonic() - began < 4 * without_s + 5, "two processes were started, and one second waited at most"


@pytest.mark.parametrize("config", ["/nonexistent/compute.yaml", "/proc/self/mem"])
def test_where_the_configuration_cannot_be_read_nothing_is_said(tool: Path, config: str) -> None:
    assert bash_completes(tool, "destroy", "w", config=config) == ([], "")
