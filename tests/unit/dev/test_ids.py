"""Tests have the same names in every process, or workers could not share them out (pytest-xdist then runs none)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[2]
DIFFERENT_EACH_TIME = {"getpid", "mkdtemp", "monotonic", "random", "randrange", "time", "token_hex", "uuid1", "uuid4"}


def calls(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            called = part.func
            yield called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def found_in(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of parameters that are made of what is different each time, itself or by a constant."""
    constants = {
        target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign) and DIFFERENT_EACH_TIME & set(calls(statement.value))
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(".parametrize"):
            continue
        has_ids = any(keyword.arg == "ids" for keyword in node.keywords)
        if not has_ids and (DIFFERENT_EACH_TIME & set(calls(node)) or constants & names(node)):
            yield node.lineno


def test_what_is_different_each_time_is_found() -> None:
    source = (
        "ID = str(uuid4())\n"
        "@pytest.mark.parametrize('a', [ID])\n"
        "def test_a(a): ...\n"
        "@pytest.mark.parametrize('b', [f'{uuid.uuid4()}'])\n"
        "def test_b(b): ...\n"
        "@pytest.mark.parametrize('c', [ID], ids=['c'])\n"
        "def test_c(c): ...\n"
    )
    assert list(found_in(ast.parse(source))) == [2, 4]


def test_no_name_of_a_test_is_different_each_time() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for line in found_in(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == [], "give these parameters names of their own: ids=[…]"
