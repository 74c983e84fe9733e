"""What may be loaded before a command runs: a person waits for it at every key press."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eschedule.cli.main import COMMANDS

THIRD_PARTY = {"click"}
"""All that ``--help`` and completion may load of what is not Python's own or ours."""

OURS = {
    "ecompute",
    "ecompute.cluster",
    "ecompute.cluster.errors",
    "ecompute.cluster.terminal",
    "eschedule",
    "eschedule.cli",
    "eschedule.cli.main",
    "eschedule.cli.settings",
}
"""What ``eschedule --help`` loads of ours."""

OURS_OF_A_COMMAND = OURS | {
    f"eschedule.cli.{name}"
    for name in (
        "audit", "capacity", "completion", "console", "doctor", "enrol", "event", "explain", "floating", "group",
        "host", "instance", "interface", "launch", "lifecycle", "network", "output", "parameters", "progress", "quota",
        "route",
    )
}  # fmt: skip
"""What ``eschedule COMMAND --help`` and completion may load: the command line, not the cloud."""

HEAVY_STDLIB = {"asyncio", "concurrent.futures", "ctypes", "http.client", "multiprocessing", "ssl", "urllib.request"}

DUMP = """
import atexit, os, sys
before = set(sys.modules)  # what the interpreter and its site packages have loaded by themselves
path = sys.argv.pop(1)
end = os._exit
def dump():
    with open(path, "w") as file:
        file.write("\\n".join(set(sys.modules) - before))
def dump_and_end(status):  # a command leaves without the interpreter's own end, completion does not
    dump()
    end(status)
atexit.register(dump)
os._exit = dump_and_end
from eschedule.cli.main import main
main()
"""


def loaded(tmp_path: Path, *args: str, env: dict[str, str] | None = None) -> set[str]:
    """Return the names of all modules that ``eschedule args`` has loaded by its end."""
    dump = tmp_path / "modules"
    subprocess.run(
        [sys.executable, "-c", DUMP, str(dump), *args],
        env=os.environ | {"ECOMPUTE_CONFIG": "/dev/null/nothing", **(env or {})},
        stdout=subprocess.DEVNULL,
        timeout=60,
    )
    return set(dump.read_text().splitlines())


def check(modules: set[str], ours: set[str]) -> None:
    assert "eschedule.cli.main" in modules
    tops = {name.partition(".")[0] for name in modules}
    third_party = {name for name in tops if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert third_party - {"ecompute", "eschedule"} <= THIRD_PARTY
    assert {name for name in modules if name.partition(".")[0] in ("ecompute", "eschedule")} <= ours
    assert not modules & HEAVY_STDLIB


def completing(words: str, count: int) -> dict[str, str]:
    return {"_ESCHEDULE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}


def test_help_loads_click_and_nothing_heavy(tmp_path: Path) -> None:
    check(loaded(tmp_path, "--help"), OURS)


def test_version_loads_click_and_nothing_heavy(tmp_path: Path) -> None:
    check(loaded(tmp_path, "--version"), OURS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_click_and_nothing_heavy(tmp_path: Path, command: str) -> None:
    check(loaded(tmp_path, command, "--help"), OURS_OF_A_COMMAND)


def test_a_command_that_runs_loads_what_it_needs(tmp_path: Path) -> None:
    assert "eschedule.cloud.connection" in loaded(tmp_path, "list")


def test_completing_a_command_loads_no_command(tmp_path: Path) -> None:
    check(loaded(tmp_path, env=completing("eschedule l", 1)), OURS)


@pytest.mark.parametrize(
    ("words", "count"), [("eschedule launch --", 2), ("eschedule show web-1 -o ", 4), ("eschedule completion ", 2)]
)
def test_completing_options_and_formats_loads_click_and_nothing_heavy(tmp_path: Path, words: str, count: int) -> None:
    check(loaded(tmp_path, env=completing(words, count)), OURS_OF_A_COMMAND)


def test_the_completion_script_loads_click_and_nothing_heavy(tmp_path: Path) -> None:
    check(loaded(tmp_path, "completion", "bash"), OURS_OF_A_COMMAND)
