"""Asking a host something, and waiting for its answer: the end of a console log, a presence, to register again.

The question is a leased key below ``/operations/<provider>/``; the host answers in its place. It
goes when the asker has its answer, gives up, or dies.

Safe from several threads.
"""

from __future__ import annotations

import contextlib
import queue
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.documents import Operation
from ecompute.cluster.errors import StoreUnavailable
from ecompute.cluster.store import Change, Put, Store, absent

CONSOLE = "console"
"""Asks for the end of an instance's console log."""
PRESENCE = "presence"
"""Asks whether anything of an instance is there; the answer is `NOTHING` or something else."""
NOTHING = "nothing"
REGISTER = "register"
"""Asks it to look now whether placement knows it, and to register if not; it is about no instance."""


def ask(store: Store, provider: str, question: Operation, *, timeout_s: float) -> Operation | None:
    """Return the answer of the host ``provider``, or ``None`` if there was none in time.

    Raises:
        StoreUnavailable: etcd does not answer.
    """
    answers: queue.SimpleQueue[Operation] = queue.SimpleQueue()

    def changed(change: Change[Operation]) -> None:
        after = change.after.value if change.after is not None else None
        if after is not None and (after.answer is not None or after.error is not None):
            answers.put(after)

    key = keys.operation(provider, str(uuid4()))
    lease = store.lease(max(5, int(timeout_s) + 5), on_lost=lambda: None)
    watcher = store.watcher()
    try:
        watcher.follow(key, Operation, changed)
        store.commit([absent(key)], [Put(key, question, lease=lease.id)])
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        return None
    finally:
        watcher.close()
        with contextlib.suppress(StoreUnavailable):  # it ends by itself
            lease.revoke()
