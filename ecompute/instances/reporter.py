"""Writes the host's reports: ``/seen`` and ``/booted``, with the event, in one transaction.

What a report says is decided in `ecompute.instances.report`. A report compares the assignment it
speaks of (or its absence), so that a host that slept never writes about an instance that was changed
meanwhile, or whose keys are gone. That comparison is also the gate of a build and of a removal.

Safe from several threads for different instances.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Booted, Seen, timestamp
from ecompute.cluster.events import INSTANCE, Events
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, Versioned, absent, unchanged
from ecompute.instances.report import report
from ecompute.instances.terms import Found, Record, Step

_EVENT = {
    Step.REPORT_CREATING: ("creating", "its host begins to build it"),
    Step.REPORT_CREATED: ("created", "its domain runs"),
    Step.REPORT_DELETING: ("deleting", "its host begins to remove it"),
    Step.REPORT_DELETED: ("deleted", "nothing of it is left on its host"),
    Step.REPORT_FAILED: ("failed", "its build failed and is undone"),
    Step.REPORT_LOST: ("lost", "it cannot be brought back"),
    Step.REPORT: ("seen", "its host sees a change"),
}


class Reporter:
    """Reports for one host.

    Args:
        provider: the host's provider uuid.
    """

    def __init__(self, store: Store, provider: str, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._provider = provider
        self._events = Events(store, provider, now)
        self._now = now
        self._said: dict[str, Seen] = {}

    def write(
        self,
        step: Step,
        uuid: str,
        assignment: Versioned[Assignment] | None,
        *,
        record: Record | None,
        found: Found,
        error: str | None,
        seconds: float | None = None,
    ) -> None:
        """Write the report of ``step``.

        Args:
            seconds: how long the work took that it reports.

        Raises:
            CompareFailed: the assignment has changed: nothing was written, look again.
            StoreUnavailable: etcd does not answer; it may have been written.
        """
        seen = report(
            step,
            uuid=uuid,
            assignment=None if assignment is None else assignment.value,
            record=record,
            found=found,
            error=error,
            reported_at=timestamp(self._now()),
        )
        operations: list[Op] = [Put(keys.seen(self._provider, uuid), seen)]
        said = structs.replace(seen, reported_at="")
        if assignment is not None and self._said.get(uuid) != said:
            # An event goes with its instance, which a guest that nobody asked for does not have.
            type_, message = _EVENT[step]
            message = f"{message}: {error}" if error else _with_power(message, step, seen)
            operations.append(Put(keys.booted(uuid), self._booted(seen)))
            operations.append(self._events.record(INSTANCE, uuid, type_, message, seconds=seconds))
        self._store.commit(self._compare(uuid, assignment), operations)
        self._said[uuid] = said

    def clear(self, uuid: str) -> None:
        """Delete the report of what nobody asks for and is not here.

        Raises:
            CompareFailed: it is assigned by now.
        """
        self._store.commit(self._compare(uuid, None), [Delete(keys.seen(self._provider, uuid))])
        self.forget(uuid)

    def forget(self, uuid: str) -> None:
        """Drop what is kept of an instance that is gone."""
        self._said.pop(uuid, None)
        self._events.forget(INSTANCE, uuid)

    def _compare(self, uuid: str, assignment: Versioned[Assignment] | None) -> list[Compare]:
        return [absent(keys.assignment(self._provider, uuid)) if assignment is None else unchanged(assignment)]

    def _booted(self, seen: Seen) -> Booted:
        return Booted(
            provider=self._provider,
            state=seen.state,
            power=seen.power,
            ip=seen.addresses[0].split("/")[0] if seen.addresses else None,
            addresses=seen.addresses,
            error=seen.error,
            reported_at=seen.reported_at,
        )


def _with_power(message: str, step: Step, seen: Seen) -> str:
    return f"{message}: power is {seen.power}" if step is Step.REPORT else message
