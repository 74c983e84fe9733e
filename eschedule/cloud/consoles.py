"""The end of a guest's console log, asked of its host."""

from __future__ import annotations

import queue
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance, Operation
from ecompute.cluster.errors import DeadlineExceeded, NotFound
from ecompute.cluster.store import Change, Put, absent
from eschedule.cloud.connection import Cloud


def console_log(cloud: Cloud, instance: Instance, *, limit_bytes: int, timeout_s: float) -> str:
    """Return at most ``limit_bytes`` from the end of the log.

    The question is a leased key: it goes when this process goes.

    Raises:
        NotFound: there is no log (yet).
        DeadlineExceeded: the host does not answer.
    """
    store = cloud.store
    answers: queue.SimpleQueue[Operation] = queue.SimpleQueue()
    key = keys.operation(instance.provider, str(uuid4()))

    def changed(change: Change[Operation]) -> None:
        if change.after is not None and (change.after.value.answer is not None or change.after.value.error):
            answers.put(change.after.value)

    lease = store.lease(max(5, int(timeout_s) + 5), on_lost=lambda: None)
    watcher = store.watcher()
    try:
        watcher.follow(key, Operation, changed)
        question = Operation(kind="console", instance_uuid=instance.uuid, limit_bytes=limit_bytes)
        store.commit([absent(key)], [Put(key, question, lease=lease.id)])
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise DeadlineExceeded(
            f"the host of {instance.name} has not answered within {timeout_s:.0f} s",
            hint=f"see `eschedule doctor {instance.uuid}`",
        ) from None
    finally:
        watcher.close()
        lease.revoke()
    if answer.answer is None:
        raise NotFound(f"{instance.name}: {answer.error}", hint="the guest may not have been started yet")
    return answer.answer
