"""What operators and the lead say of a host, and its being closed in placement: the acting half of `closing`.

`say` rewrites ``/admin/<provider>``, and `close` applies to placement what was said. Between the two
the process may die: the host's keeper follows ``/admin`` and does the rest; of a host that is dead,
the lead does it once the host counts as lost; and whoever says the same again does both again.

`close` is a write to placement, which compares nothing of etcd. One that was delayed until after the
host had been opened again would leave it closed until its keeper looks by itself. So it looks at
``/admin`` afterwards and, where that does not say otherwise, rewrites it as it is, which has the keeper look
at once.

Threads: any; nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, AdminState
from ecompute.cluster.errors import CompareFailed, Conflict, NotFound
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Compare, Op, Put, Store, absent, unchanged

TRIES = 10


def say(
    store: Store,
    provider: str,
    change: Callable[[Admin], Admin],
    *,
    beside: Callable[[Admin, Admin], tuple[Sequence[Compare], Sequence[Op]]] = lambda before, after: ((), ()),
) -> tuple[Admin, Admin]:
    """Make what ``change`` makes of it all that is said of a host; return what was said, and what is.

    Nothing is written where it is the same and there is nothing beside it.

    Args:
        change: called with what was read; again, where somebody else said something meanwhile.
        beside: what else the transaction compares and does; called anew for each try, with what was said
            and what is to be.

    Raises:
        Conflict: others say something each time, or change what is compared beside it.
    """
    key = keys.admin(provider)
    for _ in range(TRIES):
        found = store.get(key, Admin)
        before = Admin() if found is None else found.value
        after = change(before)
        compares, operations = beside(before, after)
        if after == before and not operations:
            return before, before
        with suppress(CompareFailed):
            store.commit(
                [*compares, absent(key) if found is None else unchanged(found)], [*operations, Put(key, after)]
            )
            return before, after
    raise Conflict(f"what is said of host {provider} was changed by others {TRIES} times", hint="try again")


def close(store: Store, placement: Placement, provider: str) -> bool:
    """Keep everything new off a host of which ``/admin`` says so, or that says itself that it is stopped.

    Returns whether placement knows it. Idempotent.
    """
    try:
        has_written = placement.close_host(provider)
    except NotFound:
        return False  # it registers closed, for it reads `/admin` first
    key = keys.admin(provider)
    found = store.get(key, Admin)
    with suppress(CompareFailed):  # whoever else wrote it has the host look as well
        if found is None and has_written:
            store.commit([absent(key)], [Put(key, Admin())])
        elif found is not None and found.value.effective is AdminState.ACTIVE:
            store.commit([unchanged(found)], [Put(key, found.value)])
    return True
