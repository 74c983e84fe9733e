"""The only ways in which a state changes.

One table a kind of object; ``docs/states.md`` is made from them and a test holds it against them.
Pure: no clock, no I/O.
"""

from __future__ import annotations

import sys

from ecompute.cluster.documents import Instance, Seen, State
from ecompute.cluster.errors import Conflict

INSTANCE: dict[State, frozenset[State]] = {
    State.INITIAL: frozenset({State.CREATING, State.ERROR, State.DELETING}),
    State.CREATING: frozenset({State.CREATED, State.ERROR, State.DELETING}),
    State.CREATED: frozenset({State.ERROR, State.DELETING}),
    State.ERROR: frozenset({State.DELETING}),
    State.DELETING: frozenset({State.DELETED}),
    State.DELETED: frozenset(),
}

WHY: dict[tuple[State, State], str] = {
    (State.INITIAL, State.CREATING): "its host begins to build it",
    (State.INITIAL, State.ERROR): "its host finds that it cannot be built",
    (State.INITIAL, State.DELETING): "it is destroyed before its host has seen it",
    (State.CREATING, State.CREATED): "its domain runs",
    (State.CREATING, State.ERROR): "a step failed and was undone; its claim is released",
    (State.CREATING, State.DELETING): "it is destroyed while it is built",
    (State.CREATED, State.ERROR): "its disk is lost",
    (State.CREATED, State.DELETING): "it is destroyed",
    (State.ERROR, State.DELETING): "it is destroyed",
    (State.DELETING, State.DELETED): "nothing of it is left on its host",
}


def check(before: State, after: State) -> State:
    """Return ``after`` if it may follow ``before``, or is the same.

    Raises:
        Conflict: the table has no such line.
    """
    if after != before and after not in INSTANCE[before]:
        raise Conflict(f"an instance cannot go from {before} to {after}")
    return after


def life(instance: Instance, seen: Seen | None) -> State:
    """Return the state of ``instance`` as people know it: what is wanted, joined with what was seen.

    A report of an older epoch says nothing.
    """
    current = seen if seen is not None and seen.epoch == instance.epoch else None
    if instance.state is State.DELETING:
        return (
            State.DELETED
            if current is not None and current.is_gone and current.state is State.DELETED
            else State.DELETING
        )
    if instance.state is State.ERROR or current is None:
        return instance.state
    return current.state


def diagram() -> str:
    """Return the table as Mermaid and as a list, for ``docs/states.md``."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> initial"]
    lines += [f"    {before} --> {after}" for before, after in WHY]
    lines += ["    deleted --> [*]", "```", "", "| from | to | when |", "|---|---|---|"]
    lines += [f"| {before} | {after} | {why} |" for (before, after), why in WHY.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(diagram())
