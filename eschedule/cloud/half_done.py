"""What is said where etcd has taken a change, and placement, which is told after it, does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ecompute.cluster.errors import PlacementUnavailable


@contextmanager
def half_done(done: str, to_come: str) -> Iterator[None]:
    """Have an error say what took effect, and what is still to come.

    Args:
        done: "node-7 is draining: no launch lands there".
        to_come: and by whom: "its daemon tells placement when that answers".

    Raises:
        PlacementUnavailable: with both.
    """
    try:
        yield
    except PlacementUnavailable as error:
        raise PlacementUnavailable(f"{done}; {to_come}; {error.args[0]}", hint=error.hint) from error
