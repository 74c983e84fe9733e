"""Ends the life of an instance by its host's report: decided in `decide.finish`, done here.

Run by whoever is trusted and comes first: the tool that waits, or the lead. Killed between any two
of its writes, it leaves the reason to do the rest: the claim is released before the keys that say so
are deleted, and releasing twice is releasing once. Never run by a host.

Safe from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from msgspec import structs

from ecompute.cluster import keys, states
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.documents import Assignment, Instance, Interface, NetworkHost, Port, Role, Seen, State, UsedUuid
from ecompute.cluster.errors import CompareFailed, InvalidInput, OutOfDate
from ecompute.cluster.events import INSTANCE, Events, rings
from ecompute.cluster.expiring import key_of
from ecompute.cluster.failpoint import reach
from ecompute.cluster.freshness import Reading
from ecompute.cluster.store import (
    Compare,
    Delete,
    DeletePrefix,
    Op,
    Put,
    Store,
    Versioned,
    absent,
    clock_s,
    present,
    unchanged,
)
from ecompute.cluster.upkeep.decide import Act, finish
from ecompute.cluster.upkeep.locks import Locks
from ecompute.cluster.upkeep.ports import take_port

if TYPE_CHECKING:
    from ecompute.cluster.placement import Placement

TRIES = 20

FAILPOINTS = ("finish.begin", "finish.marked", "finish.let_go", "finish.released", "finish.deleted")

T = TypeVar("T")

log = logging.getLogger(__name__)


class Finisher:
    """Finishes instances.

    Args:
        guard: what every transaction compares besides; a leader's term.
        clock: see `Reading`.
    """

    def __init__(
        self,
        store: Store,
        placement: Placement,
        events: Events,
        guard: Callable[[], list[Compare]] = list,
        clock: Callable[[], float] = clock_s,
    ) -> None:
        self._store = store
        self._placement = placement
        self._events = events
        self._guard = guard
        self._clock = clock
        self._locks = Locks(store)

    def finish(self, uuid: str, provider: str | None = None) -> Act:
        """Do all that the reports about ``uuid`` allow now; return the last thing done.

        Args:
            provider: its host, for an instance whose key is missing.

        Raises:
            Unavailable: etcd or placement does not answer; call again.
        """
        for _ in range(TRIES):
            reading = Reading(self._clock)
            instance = self._store.get(keys.instance(uuid), Instance)
            host = instance.value.provider if instance is not None else provider
            if host is None:
                return Act.NOTHING
            assignment = self._store.get(keys.assignment(host, uuid), Assignment)
            seen = self._store.get(keys.seen(host, uuid), Seen)
            planned = finish(_value(instance), _value(assignment), _value(seen))
            reach("finish.begin")
            try:
                if planned.act is Act.NOTHING:
                    return Act.NOTHING
                if planned.act is Act.ORDER_REMOVAL and instance is not None:
                    self._order_removal(instance, assignment)
                elif planned.act is Act.MARK_FAILED and instance is not None and assignment is not None:
                    self._mark_failed(instance, assignment, planned.error or "its build failed")
                    reach("finish.marked")
                    continue  # and release the claim, by what is written now
                elif planned.act is Act.LET_GO and instance is not None and seen is not None:
                    self._let_go(instance, seen, planned.interfaces)
                    reach("finish.let_go")
                elif planned.act is Act.RELEASE:
                    self._placement.release(uuid, reading.holds(self._guard))
                elif planned.act is Act.RELEASE_AND_DELETE:
                    self._placement.release(uuid, reading.holds(self._guard))
                    reach("finish.released")
                    self._delete(uuid, host, instance, assignment)
                    reach("finish.deleted")
                return planned.act
            except OutOfDate:
                continue
            except CompareFailed as error:
                if not error.keys:
                    self._locks.lease_has_ended()
                continue
        log.warning("instance %s could not be finished: it keeps changing", uuid)
        return Act.NOTHING

    def withdraw(self, instance: Versioned[Instance]) -> bool:
        """Release the claim of an instance and delete all its keys, without its host's word; return whether it is gone.

        Only for one of which the caller knows that no host can ever have begun it: a member of a gang
        that its writer has not tried to commit.

        Raises:
            Unavailable: etcd or placement does not answer; call again, or leave it to the lead.
        """
        uuid = instance.value.uuid
        self._placement.release(uuid, self._guard)  # by its writer's own word, which etcd cannot change
        found: Versioned[Instance] | None = instance
        for _ in range(TRIES):
            if found is None:
                return True
            host = found.value.provider
            assignment = self._store.get(keys.assignment(host, uuid), Assignment)
            try:
                self._delete(uuid, host, found, assignment)
                return True
            except CompareFailed:
                found = self._store.get(found.key, Instance)
        log.warning("instance %s could not be withdrawn: it keeps changing", uuid)
        return False

    def _order_removal(self, instance: Versioned[Instance], assignment: Versioned[Assignment] | None) -> None:
        value = instance.value
        key = keys.assignment(value.provider, value.uuid)
        self._store.commit(
            [unchanged(instance), absent(key) if assignment is None else unchanged(assignment), *self._guard()],
            [Put(key, assignment_of(value, Role.ABSENT))],
        )

    def _mark_failed(self, instance: Versioned[Instance], assignment: Versioned[Assignment], error: str) -> None:
        value = instance.value
        generation = value.generation + 1
        failed = structs.replace(
            value, state=states.check(value.state, State.ERROR), error=error, generation=generation
        )
        self._store.commit(
            [unchanged(instance), unchanged(assignment), *self._guard()],
            [
                Put(instance.key, failed),
                Put(
                    assignment.key,
                    structs.replace(assignment.value, role=Role.ABSENT, generation=generation),
                ),
                self._events.record(INSTANCE, value.uuid, "released", "its claim is given back"),
            ],
        )

    def _delete(
        self, uuid: str, host: str, instance: Versioned[Instance] | None, assignment: Versioned[Assignment] | None
    ) -> None:
        known = instance.value if instance is not None else assignment.value if assignment is not None else None
        if known is None:
            return
        compares: list[Compare] = [
            absent(keys.instance(uuid)) if instance is None else unchanged(instance),
            absent(keys.assignment(host, uuid)) if assignment is None else unchanged(assignment),
            *self._guard(),
        ]
        operations: list[Op] = [
            Delete(keys.instance(uuid)),
            Delete(keys.assignment(host, uuid)),
            Delete(keys.secrets(host, uuid)),
            Delete(keys.seen(host, uuid)),
            Delete(keys.booted(uuid)),
            Delete(keys.name(known.namespace, INSTANCE, known.name, uuid)),
            *(DeletePrefix(ring) for ring in rings(INSTANCE, uuid, host)),
        ]
        if instance is not None:
            self._forget(instance.value, compares, operations)
        interfaces = known.with_ports if isinstance(known, Instance) else known.spec.interfaces
        self._give_back(interfaces, uuid, host, lambda port: port.instance_uuid == uuid, compares, operations)
        self._store.commit(compares, operations)
        self._events.forget(INSTANCE, uuid)

    def _let_go(self, instance: Versioned[Instance], seen: Versioned[Seen], interfaces: Sequence[Interface]) -> None:
        """Give back what interfaces have that the guest is without."""
        value = instance.value
        gone = {interface.uuid for interface in interfaces}
        left = tuple(item for item in value.leaving if item.interface.uuid not in gone)
        compares = [unchanged(instance), unchanged(seen), *self._guard()]
        says = ", ".join(interface.addresses[0] if interface.addresses else interface.mac for interface in interfaces)
        operations: list[Op] = [
            Put(instance.key, structs.replace(value, leaving=left)),
            self._events.record(INSTANCE, value.uuid, "interface.removed", f"it is without {says}, which may be used"),
        ]
        is_gone = lambda port: port.interface_uuid in gone  # noqa: E731
        self._give_back(interfaces, value.uuid, value.provider, is_gone, compares, operations)
        self._store.commit(compares, operations)

    def _give_back(
        self,
        interfaces: Sequence[Interface],
        uuid: str,
        host: str,
        is_gone: Callable[[Port], bool],
        compares: list[Compare],
        operations: list[Op],
    ) -> None:
        """Take away ports with all that goes with them, and ``host`` out of the networks where no port of it is left.

        Args:
            uuid: of the instance.
            is_gone: whether a port is among those that are taken away.
        """
        for network_uuid in dict.fromkeys(interface.network_uuid for interface in interfaces):
            self._leave(network_uuid, host, is_gone, compares, operations)
        routed: list[tuple[str, str]] = []
        for interface in interfaces:
            port = take_port(self._store, interface, uuid, compares, operations)
            routed += [(interface.network_uuid, ip) for ip in (() if port is None else port.routed)]
        self._locks.give_up(interfaces, uuid, compares, operations, routed=routed)

    def _forget(self, instance: Instance, compares: list[Compare], operations: list[Op]) -> None:
        """Take the instance out of what refers to it: group, tags, expiry; its uuid is not used again."""
        if instance.group is not None:
            operations.append(Delete(keys.member(instance.group, instance.uuid)))
        operations += [Delete(keys.tag(instance.namespace, tag, instance.uuid)) for tag in instance.tags]
        expiry = key_of(instance)
        if expiry is not None:
            operations.append(Delete(expiry))
        if instance.digest is None:
            return
        used = self._store.get(keys.used_uuid(instance.uuid), UsedUuid)
        if used is not None and not used.value.is_spent:
            compares.append(unchanged(used))
            operations.append(Put(used.key, structs.replace(used.value, is_spent=True)))

    def _leave(
        self,
        network_uuid: str,
        host: str,
        is_gone: Callable[[Port], bool],
        compares: list[Compare],
        operations: list[Op],
    ) -> None:
        """Take ``host`` out of the network's members if no port is left there of it."""
        key = keys.network_host(network_uuid, host)
        # Read before the ports: whoever adds one rewrites this key, and the comparison fails.
        member = self._store.get(key, NetworkHost)
        if member is None:
            return
        other = self._port_of(network_uuid, host, is_gone)
        if other is not None:
            # Two that go at once would each leave it to the other.
            compares.append(present(other))
            return
        compares.append(unchanged(member))
        operations.append(Delete(key))

    def _port_of(self, network_uuid: str, host: str, is_gone: Callable[[Port], bool]) -> str | None:
        """Return the key of a port that stays on ``host``, if there is one; most often the first page has one."""
        try:
            for port in self._store.each(keys.ports(network_uuid), Port):
                if port.value.provider == host and not is_gone(port.value):
                    return port.key
        except InvalidInput:  # compacted between two pages
            return self._port_of(network_uuid, host, is_gone)
        return None


def _value(found: Versioned[T] | None) -> T | None:
    return None if found is None else found.value
