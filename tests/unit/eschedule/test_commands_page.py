"""docs/commands.md names every command there is, and what it shows can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from ecompute.cli import cli as ecompute
from eschedule.cli.event import COLUMNS as EVENT_COLUMNS
from eschedule.cli.host import COLUMNS as HOST_COLUMNS
from eschedule.cli.instance import COLUMNS, FIELDS
from eschedule.cli.main import classic
from eschedule.cli.main import cli as eschedule

PAGE = (Path(__file__).parents[3] / "docs" / "commands.md").read_text(encoding="utf-8")
TOOLS: dict[str, click.Group] = {"eschedule": eschedule, "ecompute": ecompute}
TYPED = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_command_has_its_part_and_no_other(tool: str) -> None:
    with click.Context(TOOLS[tool]) as context:
        commands = TOOLS[tool].list_commands(context)
    assert sorted(re.findall(rf"^## {tool} (\S+)$", PAGE, re.MULTILINE)) == sorted(commands)


@pytest.mark.parametrize("heading", re.findall(r"^## (e\w+ \S+)$", PAGE, re.MULTILINE))
def test_every_part_shows_its_command(heading: str) -> None:
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    tool, command = heading.split()
    assert re.search(rf"^\$ {tool}( --\S+ \S+)* {command}\b", part, re.MULTILINE)


@pytest.mark.parametrize("line", TYPED)
def test_what_is_typed_is_understood(line: str) -> None:
    tool, *words = shlex.split(line.split(" > ")[0])
    group = TOOLS[tool]
    if tool == "eschedule" and classic(words[0]) is not None:
        return
    with click.Context(group, info_name=tool) as context:
        at = next(at for at, word in enumerate(words) if word in group.list_commands(context))
        command = group.get_command(context, words[at])
        assert command is not None
        command.make_context(words[at], words[at + 1 :], parent=context).close()


@pytest.mark.parametrize("columns", [COLUMNS, HOST_COLUMNS, EVENT_COLUMNS], ids=["list", "hosts", "events"])
def test_tables_have_the_columns_of_today(columns: tuple[str, ...]) -> None:
    header = r"\s{2,}".join(column.upper().replace("_", " ") for column in columns)
    assert re.search(f"^{header}$", PAGE, re.MULTILINE)


def test_the_fields_are_those_of_today() -> None:
    part = PAGE.split("## eschedule show\n")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^(\w+):", part, re.MULTILINE)) == FIELDS
