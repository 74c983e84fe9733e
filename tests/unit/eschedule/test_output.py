"""What commands print."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eschedule.cli.output import FORMATS, Stream, render_one, render_rows, table

FIELDS = ("name", "count", "tags", "is_up", "error")
COLUMNS = ("name", "tags")
ROWS: list[dict[str, Any]] = [
    {"name": "a", "count": 1, "tags": ["x", "y"], "is_up": True, "error": None},
    {"name": "long-name", "count": None, "tags": [], "is_up": False, "error": 'says "no", twice\nand again'},
]
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e\r\x7f\x00 \ud800 \U000e0001"


def rows(output: str, given: list[dict[str, Any]] = ROWS) -> str:
    return render_rows(given, output, fields=FIELDS, columns=COLUMNS)


def is_safe(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_a_table_has_a_header_and_aligned_columns() -> None:
    assert rows("table") == "NAME       TAGS\na          x,y\nlong-name  -\n"


def test_json_and_yaml_have_every_field_in_order() -> None:
    assert json.loads(rows("json")) == ROWS
    assert yaml.safe_load(rows("yaml")) == ROWS
    assert list(json.loads(rows("json"))[0]) == list(FIELDS)


def test_csv_has_every_field_with_lists_in_one_cell() -> None:
    assert rows("csv").splitlines()[:2] == ["name,count,tags,is_up,error", "a,1,x y,true,"]
    read = list(csv.DictReader(io.StringIO(rows("csv"))))
    assert [row["name"] for row in read] == ["a", "long-name"]
    assert read[1]["error"] == 'says "no", twice\ufffdand again'


def test_name_is_one_a_line() -> None:
    assert rows("name") == "a\nlong-name\n"


def test_nothing_found_is_an_empty_list() -> None:
    assert rows("json", []) == "[]\n"
    assert yaml.safe_load(rows("yaml", [])) == []
    assert rows("csv", []) == "name,count,tags,is_up,error\n"
    assert rows("name", []) == ""


def test_one_object_is_itself_and_not_a_list_of_one() -> None:
    assert json.loads(render_one(ROWS[0], "json")) == ROWS[0]
    assert yaml.safe_load(render_one(ROWS[0], "yaml")) == ROWS[0]
    assert render_one(ROWS[0], "csv") == render_rows(ROWS[:1], "csv", fields=FIELDS, columns=COLUMNS)
    assert render_one(ROWS[0], "name") == "a\n"
    assert render_one(ROWS[0], "table") == "name   a\ncount  1\ntags   x,y\nis up  yes\n"


@pytest.mark.parametrize("output", FORMATS)
def test_nothing_that_a_guest_or_a_host_said_commands_the_terminal(output: str) -> None:
    row = {"name": HOSTILE, "count": 1, "tags": [HOSTILE], "is_up": True, "error": HOSTILE}
    assert is_safe(rows(output, [row]))
    assert is_safe(render_one(row, output))


def test_json_still_says_what_was_there() -> None:
    assert json.loads(render_one({"name": HOSTILE}, "json")) == {"name": HOSTILE}


def test_yaml_still_says_what_was_there() -> None:
    text = "\x1b[31m\u202eä"
    assert yaml.safe_load(render_one({"name": text}, "yaml")) == {"name": text}
    assert "ä" in render_one({"name": "ä"}, "yaml")


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=5))
def test_any_table_is_safe_and_has_a_line_a_row(cells: list[list[str]]) -> None:
    made = table(cells)
    assert is_safe(made)
    assert made.count("\n") == len(cells)


@given(st.text(), st.sampled_from(FORMATS))
def test_any_text_is_safe_in_every_format(text: str, output: str) -> None:
    try:
        made = render_one({"name": text}, output)
    except UnicodeEncodeError:
        pytest.fail("it cannot be rendered")
    assert is_safe(made)


@pytest.mark.parametrize("output", FORMATS)
def test_a_stream_is_readable_as_it_comes(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    stream = Stream(output, fields=FIELDS, name="name", line=lambda row: f"{row['name']}: {row['error']}")
    for row in ROWS:
        stream.show(row)
    said = capsys.readouterr().out
    match output:
        case "json":
            assert [json.loads(line) for line in said.splitlines()] == ROWS
        case "yaml":
            assert yaml.safe_load(said) == ROWS
        case "csv" | "name":
            assert said == rows(output)
        case _:
            assert said == 'a: None\nlong-name: says "no", twice\ufffdand again\n'
