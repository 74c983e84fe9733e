"""Hosts and guests' places as network namespaces: those of the tests, which end with what made them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "functional" / "network"))

from netlab import Namespace
from served import Host, World, a_network

__all__ = ["Host", "Namespace", "World", "a_network", "a_world"]


@contextmanager
def a_world() -> Iterator[World]:
    """Two hosts and what is outside of them."""
    with ExitStack() as stack:

        def make(name: str) -> Namespace:
            space = Namespace(name)
            stack.callback(os.close, space.fd)
            return space

        world = World(make)
        stack.callback(world.remove)
        yield world
