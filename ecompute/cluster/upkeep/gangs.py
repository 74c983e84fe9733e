"""Ends gangs whose schedulers died, and forgets those that are over: decided in `gang_plan`, done here.

The *short* look is for gangs that are not committed, which are few; the *full* one goes through every
record and every instance that names a gang. Each has its own memory of the look before. One thread at
a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Gang, GangState, Instance, Seen, State, timestamp
from ecompute.cluster.ending import mark_deleting
from ecompute.cluster.errors import CompareFailed
from ecompute.cluster.store import Compare, Delete, Op, Put, Versioned, absent, unchanged
from ecompute.cluster.upkeep.decide import GRACE_S, keep
from ecompute.cluster.upkeep.duties import Charge, Duty
from ecompute.cluster.upkeep.gang_plan import (
    GangMember,
    GangRecord,
    GangsLook,
    gang_repairs,
)

PERIOD_S = 20.0
FULL_PERIOD_S = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Read:
    """A look, and the documents that it was made from."""

    look: GangsLook
    records: dict[str, Versioned[Gang]]
    instances: dict[str, Versioned[Instance]]


class GangUpkeep:
    """One lead's part in gangs, with its memory of the looks before.

    Args:
        grace_s: for how long a record may stand unchanged before its writer is given up, seconds.
    """

    def __init__(self, charge: Charge, *, grace_s: float = GRACE_S) -> None:
        self._charge = charge
        self._store = charge.store
        self._grace_s = grace_s
        self._before: dict[bool, GangsLook | None] = {True: None, False: None}

    def run(self, *, is_full: bool) -> None:
        """Take a look, and repair what it and the one before agree on.

        Raises:
            NotLeading: the term has ended.
            Unavailable: etcd does not answer; call again.
        """
        now = self._read(is_full=is_full)
        before = self._before[is_full]
        repairs = gang_repairs(before, now.look, grace_s=self._grace_s)
        self._before[is_full] = keep(before, now.look, self._grace_s)
        for uuid in repairs.cancel:
            record = now.records[uuid]
            cancelled = structs.replace(record.value, state=GangState.CANCELLED)
            if self._commit([unchanged(record)], [Put(record.key, cancelled)]):
                log.warning("cancelled gang %s: its scheduler has done nothing for a while", uuid)
        for uuid, members in repairs.orphaned.items():
            if self._commit([absent(keys.gang(uuid))], [Put(keys.gang(uuid), self._substitute(uuid, members, now))]):
                log.warning("gang %s has members and had no record: those that never began are given up", uuid)
        for uuid in repairs.destroy:
            self._destroy(now.instances[uuid])
        for uuid in repairs.forget:
            self._commit([unchanged(now.records[uuid])], [Delete(keys.gang(uuid))])

    # --- looking -------------------------------------------------------------------------------

    def _read(self, *, is_full: bool) -> _Read:
        began_s = self._charge.clock()
        records = {item.value.uuid: item for item in self._store.list(keys.GANGS, Gang).items}
        found: Iterable[Versioned[Instance]]
        if is_full:
            found = self._store.each(keys.INSTANCES, Instance)  # of all there are, members alone are kept
        else:
            records = {uuid: r for uuid, r in records.items() if r.value.state is not GangState.COMMITTED}
            found = self._of(uuid for record in records.values() for uuid in record.value.members)
        instances = {item.value.uuid: item for item in found if item.value.gang is not None}
        gone = self._gone([i.value for i in instances.values() if self._is_cancelled(records, i.value)])
        return _Read(
            GangsLook(
                began_s=began_s,
                ended_s=self._charge.clock(),
                records={
                    uuid: GangRecord(r.value.state, r.mod_revision, frozenset(r.value.members))
                    for uuid, r in records.items()
                },
                members={
                    uuid: GangMember(i.value.gang, i.value.state, uuid in gone)
                    for uuid, i in instances.items()
                    if i.value.gang is not None
                },
            ),
            records,
            instances,
        )

    def _of(self, uuids: Iterable[str]) -> tuple[Versioned[Instance], ...]:
        return self._store.get_many([keys.instance(uuid) for uuid in uuids], Instance).items

    def _gone(self, instances: list[Instance]) -> set[str]:
        """Return those of which their host says, of their epoch, that nothing is there."""
        epochs = {instance.uuid: instance.epoch for instance in instances}
        reports = self._store.get_many([keys.seen(i.provider, i.uuid) for i in instances], Seen).items
        return {r.value.uuid for r in reports if r.value.is_gone and r.value.epoch == epochs.get(r.value.uuid)}

    @staticmethod
    def _is_cancelled(records: dict[str, Versioned[Gang]], instance: Instance) -> bool:
        record = records.get(instance.gang or "")
        return record is not None and record.value.state is GangState.CANCELLED

    # --- acting --------------------------------------------------------------------------------

    def _substitute(self, uuid: str, members: frozenset[str], now: _Read) -> Gang:
        namespace = now.instances[min(members)].value.namespace
        return Gang(
            uuid=uuid,
            namespace=namespace,
            members=tuple(sorted(members)),
            state=GangState.CANCELLED,
            writer="lead",
            made_at=timestamp(time.time()),
        )

    def _destroy(self, instance: Versioned[Instance]) -> None:
        found: Versioned[Instance] | None = instance
        while found is not None and found.value.state is not State.DELETING:
            try:
                mark_deleting(
                    self._store,
                    self._charge.events,
                    found,
                    event="gang.cancelled",
                    reason="its gang was cancelled: it could not be launched as a whole",
                    compares=self._charge.guard(),
                )
                return
            except CompareFailed:
                self._charge.guard()
                found = self._store.get(found.key, Instance)

    def _commit(self, compares: list[Compare], operations: list[Op]) -> bool:
        try:
            self._store.commit([*compares, *self._charge.guard()], operations)
        except CompareFailed:
            return False
        return True


def _begin(charge: Charge) -> Callable[[], object]:
    upkeep = GangUpkeep(charge)
    next_full_s = charge.clock()

    def turn() -> None:
        nonlocal next_full_s
        upkeep.run(is_full=False)
        if charge.clock() >= next_full_s:
            upkeep.run(is_full=True)
            next_full_s = charge.clock() + FULL_PERIOD_S

    return turn


GANGS = Duty("gangs", PERIOD_S, _begin)
