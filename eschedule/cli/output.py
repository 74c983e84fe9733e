"""What commands print: rows with stable fields, in the format that was asked for.

``table`` is for people and may change from one release to the next. The others are for programs:
``json``, ``yaml`` and ``csv`` have every field of a row, in the same order, with the same names, and
``name`` one name a line. Nothing found is ``[]``, or the header alone.

Results go to standard output, everything else to standard error. No character that could command a
terminal is written: what a guest, a host or a server said may hold any.

All but `show_*` and `Stream` are pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from ecompute.cluster.terminal import printable, put

FORMATS = ("table", "json", "yaml", "csv", "name")

F = TypeVar("F", bound=Callable[..., Any])

Row = Mapping[str, Any]


def format_option(command: F) -> F:
    """Add ``-o``."""
    return click.option(
        "-o", "--output", "output", type=click.Choice(FORMATS), default="table", show_default=True, help="The format."
    )(command)


def show_rows(
    rows: Sequence[Row], output: str, *, fields: Sequence[str], columns: Sequence[str], name: str = "name"
) -> None:
    """Print ``rows``.

    Args:
        fields: all fields of a row, in order.
        columns: those that the table shows.
        name: the field that ``-o name`` prints.
    """
    put(render_rows(rows, output, fields=fields, columns=columns, name=name), end="")


def show_one(row: Row, output: str, *, name: str = "name") -> None:
    """Print one object: the object itself, not a list of one; as a table, its fields."""
    put(render_one(row, output, name=name), end="")


def render_rows(
    rows: Sequence[Row], output: str, *, fields: Sequence[str], columns: Sequence[str], name: str = "name"
) -> str:
    match output:
        case "json":
            return _json(list(rows)) + "\n"
        case "yaml":
            return _yaml(list(rows))
        case "csv":
            return _csv([fields, *([row[field] for field in fields] for row in rows)])
        case "name":
            return "".join(f"{printable(row[name])}\n" for row in rows)
        case _:
            return table([[_title(column) for column in columns], *([row[c] for c in columns] for row in rows)])


def render_one(row: Row, output: str, *, name: str = "name") -> str:
    match output:
        case "json":
            return _json(row) + "\n"
        case "yaml":
            return _yaml(dict(row))
        case "csv" | "name":
            return render_rows([row], output, fields=list(row), columns=(), name=name)
        case _:
            return table([[_title(field).lower(), value] for field, value in row.items() if not _is_empty(value)])


def table(cells: Sequence[Sequence[Any]]) -> str:
    """Return ``cells`` in aligned columns, a line a row."""
    texts = [[_cell(cell) for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in texts) for i in range(len(texts[0]))] if texts else []
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in texts
    )


class Stream:
    """Rows one by one, as they come: ``csv`` begins with a header, ``json`` is an object a line.

    Args:
        line: renders a row for people.
    """

    def __init__(self, output: str, *, fields: Sequence[str], name: str, line: Callable[[Row], str]) -> None:
        self._output = output
        self._fields = fields
        self._name = name
        self._line = line
        if output == "csv":
            put(_csv([fields]), end="")

    def show(self, row: Row) -> None:
        match self._output:
            case "json":
                put(_escaped(json.dumps(row, ensure_ascii=False)))
            case "yaml":
                put(_yaml([dict(row)]), end="")
            case "csv":
                put(_csv([[row[field] for field in self._fields]]), end="")
            case "name":
                put(printable(row[self._name]))
            case _:
                put(printable(self._line(row)))


def _title(field: str) -> str:
    return field.upper().replace("_", " ")


def _json(value: Any) -> str:
    return _escaped(json.dumps(value, ensure_ascii=False, indent=2), keep="\n")


def _escaped(text: str, keep: str = "") -> str:
    """Return JSON with what could command a terminal as ``\\uXXXX``; such characters stand in strings only."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else json.dumps(c)[1:-1] for c in text)


def _yaml(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if any(not c.isprintable() and c != "\n" for c in text):
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False)
    return text


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(_csv_cell(item) for item in value)
    if isinstance(value, Mapping):
        return _escaped(json.dumps(value, ensure_ascii=False))
    return printable(value)


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", (), [], {})


def _cell(value: Any) -> str:
    if _is_empty(value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(_cell(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return printable(value)
