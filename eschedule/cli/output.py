"""What commands print: one set of rows, in the format that was asked for.

``table`` is for people and may change; the others are for programs. Results go to standard output,
progress to standard error, where it is one line that rewrites itself on a terminal and is silent
elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

FORMATS = ("table", "json", "yaml", "csv", "name")

F = TypeVar("F", bound=Callable[..., Any])

Row = Mapping[str, Any]


def format_option(command: F) -> F:
    """Add ``-o``."""
    return click.option(
        "-o", "--output", "output", type=click.Choice(FORMATS), default="table", show_default=True, help="The format."
    )(command)


def show_rows(rows: Sequence[Row], output: str, *, columns: Sequence[str], name: str = "name") -> None:
    """Print ``rows``.

    Args:
        columns: the fields of the table, in order; json and yaml have all fields.
        name: the field that ``-o name`` prints.
    """
    if output == "json":
        click.echo(_json(list(rows)))
    elif output == "yaml":
        click.echo(_yaml(list(rows)), nl=False)
    elif output == "csv":
        click.echo(_csv(rows, columns), nl=False)
    elif output == "name":
        for row in rows:
            click.echo(row[name])
    else:
        click.echo(
            _table(
                [[column.upper().replace("_", " ") for column in columns]]
                + [[_cell(r[c]) for c in columns] for r in rows]
            )
        )


def show_one(row: Row, output: str, *, columns: Sequence[str] | None = None, name: str = "name") -> None:
    """Print one object: a table of its fields, or the object itself (not a list of one)."""
    columns = list(columns or row)
    if output == "json":
        click.echo(_json(row))
    elif output == "yaml":
        click.echo(_yaml(row), nl=False)
    elif output in ("csv", "name"):
        show_rows([row], output, columns=columns, name=name)
    else:
        click.echo(
            _table(
                [
                    [column.replace("_", " "), _cell(row[column])]
                    for column in columns
                    if row[column] not in (None, "", [])
                ]
            )
        )


class Progress:
    """One line on standard error that says the step and how long it has taken."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._is_shown = sys.stderr.isatty()
        self._width = 0

    def step(self, text: str) -> None:
        if self._is_shown:
            line = f"{text} ({self._clock() - self._began:.0f} s)"
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._width = len(line)

    def done(self) -> None:
        if self._is_shown and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0


def _json(value: Any) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _yaml(value: Any) -> str:
    import msgspec
    import yaml

    return str(yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True))


def _csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column], missing="") for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any, missing: str = "-") -> str:
    if value is None or value == "" or value == () or value == []:
        return missing
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
