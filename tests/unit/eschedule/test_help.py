"""Every command explains itself, with an example, and needs nothing for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from ecompute.cluster.terminal import guarded
from eschedule.cli import classic, main
from eschedule.cli.main import COMMANDS, cli


def below(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield f"{before}{name}", command
            if isinstance(command, click.Group):
                yield from below(command, f"{before}{name} ")


def commands() -> Iterator[tuple[str, click.Command]]:
    yield from below(cli)
    yield "classic launch", classic.launch
    yield "classic address", classic.address


WALKED = dict(commands())


def test_every_command_is_listed() -> None:
    assert [name for name in WALKED if " " not in name] == list(COMMANDS)


@pytest.mark.parametrize("name", WALKED)
def test_every_command_has_help_with_an_example(name: str) -> None:
    # \b keeps the lines of what follows as they are.
    assert re.search(r"\x08\n\s*Example:  eschedule ", WALKED[name].help or "")


@pytest.mark.parametrize("name", WALKED)
def test_every_option_has_help(name: str) -> None:
    for parameter in WALKED[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", [name for name in WALKED if not name.startswith("classic")])
def test_the_examples_are_the_commands_own(name: str) -> None:
    with click.Context(cli, info_name="eschedule") as root:
        text = WALKED[name].get_help(click.Context(WALKED[name], parent=root, info_name=name))
    assert f"eschedule {name}" in text.split("Example:")[1]


@pytest.mark.parametrize("name", [name for name in WALKED if not name.startswith("classic")])
def test_results_have_a_format(name: str) -> None:
    options = {option for parameter in WALKED[name].params for option in parameter.opts}
    is_silent = name in ("wait", "destroy", "console", "completion", "network unroute") or name.endswith(" delete")
    assert ("-o" in options) == (not is_silent and not isinstance(WALKED[name], click.Group))


def test_lines_fit_a_terminal_of_a_hundred_columns() -> None:
    for name, command in WALKED.items():
        with click.Context(
            command, info_name=f"eschedule {name}", max_content_width=100, terminal_width=100
        ) as context:
            assert max(map(len, command.get_help(context).splitlines())) <= 100, name


@pytest.mark.parametrize("args", [["--help"], ["-h"], [], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_needs_neither_a_configuration_nor_etcd(args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eschedule", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"ECOMPUTE_CONFIG": "/nonexistent/compute.yaml"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: eschedule")


@pytest.mark.parametrize("group", ["host", "quota", "group", "floating", "interface", "network"])
def test_a_group_of_commands_alone_shows_its_help(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["eschedule", group])
    assert guarded(main._run) == 0
    assert capsys.readouterr().out.startswith(f"Usage: eschedule {group} [OPTIONS] COMMAND")
