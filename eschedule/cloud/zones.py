"""Zones: hosts that may fail together. Each is an aggregate of placement, and a name in etcd.

A zone is made by the first host that is put there and stays until it is removed, which is possible
while no host is in it. That nobody is put there meanwhile is kept by the zone's own key: who puts a
host there rewrites it, as it is, and who removes it compares what was read before the hosts were.

A host with a member of a group whose places are zones stays in its zone. A launch of such a member
compares the host's ``/admin``, and who moves the host its assignments: of the two, one comes too late.

Safe from several threads.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, Assignment, Group, Instance, Node, Scope, Zone, timestamp
from ecompute.cluster.errors import Conflict, InvalidInput, NotFound, Refused
from ecompute.cluster.store import Compare, Delete, Op, Put, absent, unchanged, unwritten_under
from eschedule.cloud.connection import Cloud

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_zone(name: str) -> str:
    """Return ``name``, which can be a zone's.

    Raises:
        InvalidInput: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:80]!r} cannot be a zone's name", hint="use small letters, digits and hyphens, at most 63"
        )
    return name


class Zones:
    """All zones of the cloud."""

    def __init__(self, cloud: Cloud, now: Callable[[], float] = time.time) -> None:
        self._cloud = cloud
        self._now = now

    def all(self) -> list[Zone]:
        """Return them by name."""
        return [item.value for item in self._cloud.store.list(keys.ZONES, Zone).items]

    def sizes(self) -> Counter[str]:
        """Return how many hosts are in each."""
        admins = self._cloud.store.list(keys.ADMIN, Admin).items
        return Counter(item.value.zone for item in admins if item.value.zone is not None)

    def move(self, node: Node, before: Admin, after: Admin) -> tuple[Sequence[Compare], Sequence[Op]]:
        """Return what a transaction compares and does that puts a host from one zone into another.

        Args:
            before: what was said of the host.
            after: what is said of it.

        Raises:
            Refused: an instance there belongs to a group whose places are zones, and the zone is another.
        """
        is_free = () if before.zone == after.zone else (self._free(node),)
        compares, operations = self._ensure(before, after)
        return [*is_free, *compares], operations

    def _ensure(self, before: Admin, after: Admin) -> tuple[Sequence[Compare], Sequence[Op]]:
        """Return what sees to it that there is the zone that a host is put in."""
        if after.zone is None:
            return (), ()
        key = keys.zone(after.zone)
        found = self._cloud.store.get(key, Zone)
        if found is None:
            made = Zone(
                name=after.zone, aggregate=str(uuid4()), provider=str(uuid4()), created_at=timestamp(self._now())
            )
            return [absent(key)], [Put(key, made)]
        if before.zone == after.zone:
            return (), ()  # it is not removed while the host is in it
        return [unchanged(found)], [Put(key, found.value)]

    def _free(self, node: Node) -> Compare:
        """Return what says that nothing on a host is told apart, or kept together, by its zone."""
        store = self._cloud.store
        assigned = store.list(keys.assignments(node.provider), Assignment)
        uuids = [item.value.uuid for item in assigned.items]
        instances = [item.value for item in store.get_many([keys.instance(uuid) for uuid in uuids], Instance).items]
        wanted = sorted({instance.group for instance in instances if instance.group is not None})
        groups = {item.value.uuid: item.value for item in store.get_many([keys.group(g) for g in wanted], Group).items}
        for instance in instances:
            group = groups.get(instance.group or "")
            if group is not None and group.scope is Scope.ZONE:
                raise Refused(
                    f"host {node.name} cannot change its zone: {instance.name} on it belongs to group {group.name}, "
                    "whose places are zones",
                    hint=f"destroy it first: `eschedule destroy {instance.uuid}`",
                )
        return unwritten_under(keys.assignments(node.provider), assigned.revision)

    def remove(self, name: str) -> None:
        """Remove a zone in which no host is.

        The provider that carries its groups goes first: should the tool die then, the zone is there
        still, and gets another when it needs one.

        Raises:
            NotFound: there is none.
            Refused: a host is in it, or a member of a group.
            Conflict: a host is put there at this moment.
        """
        store = self._cloud.store
        found = store.get(keys.zone(check_zone(name)), Zone)
        if found is None:
            raise NotFound(f"there is no zone {name}", hint="see `eschedule host zones`")
        inside = [keys.last(item.key) for item in store.list(keys.ADMIN, Admin).items if item.value.zone == name]
        if inside:
            raise Refused(
                f"zone {name} has {len(inside)} hosts",
                hint=f"take them out: `eschedule host set {inside[0]} --zone ''`",
            )
        self._cloud.placement.delete_provider(found.value.provider)
        try:
            store.commit([unchanged(found)], [Delete(found.key)])
        except Conflict as error:
            raise Conflict(f"zone {name} is in use again", hint="see `eschedule host zones`") from error
