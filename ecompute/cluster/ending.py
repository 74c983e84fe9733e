"""How an instance is asked to end: marked deleting, and its host told. Used by tools and by upkeep.

One transaction; its host takes the guest down and reports it gone, and `upkeep.finish` does the rest.
A death before it leaves everything as it was, one after it leaves the lead to finish. Holds no state.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from ecompute.cluster import keys, states
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.documents import Assignment, Instance, Role, State
from ecompute.cluster.events import INSTANCE, Events
from ecompute.cluster.store import Compare, Op, Put, Store, Versioned, absent, unchanged


def mark_deleting(
    store: Store,
    events: Events,
    instance: Versioned[Instance],
    *,
    event: str = "destroy.requested",
    reason: str = "its host is asked to remove it",
    compares: Sequence[Compare] = (),
    operations: Sequence[Op] = (),
) -> None:
    """Mark ``instance`` deleting and its assignment absent.

    Args:
        instance: as read; neither deleting nor deleted.
        event: what its event is called, and ``reason`` what that says.
        compares: what must hold besides: a leader's term.
        operations: what is done besides.

    Raises:
        CompareFailed: somebody else was first; read it again.
        StoreUnavailable: it may have been written; read it again.
    """
    value = instance.value
    key = keys.assignment(value.provider, value.uuid)
    assignment = store.get(key, Assignment)
    marked = structs.replace(value, state=states.check(value.state, State.DELETING), generation=value.generation + 1)
    order = assignment_of(marked, Role.ABSENT)
    if assignment is not None:
        order = structs.replace(assignment.value, role=Role.ABSENT, generation=marked.generation)
    store.commit(
        [unchanged(instance), absent(key) if assignment is None else unchanged(assignment), *compares],
        [
            Put(instance.key, marked),
            Put(key, order),
            events.record(INSTANCE, value.uuid, event, reason),
            *operations,
        ],
    )
