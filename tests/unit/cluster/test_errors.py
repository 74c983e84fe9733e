"""The tree in the module's text is the tree of the classes."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import ecompute
import eschedule
from ecompute.cluster import errors
from ecompute.cluster.errors import CloudError


def subclasses(kind: type[CloudError]) -> Iterator[type[CloudError]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith(("ecompute.", "eschedule.")):
            yield child
            yield from subclasses(child)


def drawn() -> dict[str, str]:
    """Return {class: its parent} as the text draws them."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)(\w+)(  |$)", line)
        if match is None or not (match[1].strip() or match[2] == "CloudError"):
            continue
        depth = len(match[1])
        path = [(d, name) for d, name in path if d < depth]
        if path:
            found[match[2]] = path[-1][1]
        path.append((depth, match[2]))
    return found


def test_every_error_is_drawn_where_it_belongs() -> None:
    for package in (ecompute, eschedule):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    assert drawn() == {kind.__name__: kind.__base__.__name__ for kind in subclasses(CloudError)}
