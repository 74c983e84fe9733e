"""Groups of instances that are to be together, or apart: made, found, deleted.

What a group means for a launch is `eschedule.scheduler.beside`; what it is in placement,
`ecompute.cluster.groups`. Safe from several threads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import uuid4

from ecompute.cluster import groups, keys
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import Group, Member, Name, Policy, Scope, timestamp
from ecompute.cluster.errors import CompareFailed, Conflict, InvalidInput, NotFound, Refused, one_line
from ecompute.cluster.store import Delete, Put, Store, Versioned, absent_under, unchanged
from eschedule.cloud import references

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

KIND = "group"
TRIES = 8

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)


def check_name(name: str) -> str:
    """Return ``name``.

    Raises:
        InvalidInput: it cannot be a group's.
    """
    if not _NAME.fullmatch(name) or references.full_uuid(name) is not None:
        raise InvalidInput(
            f"{one_line(name, 80)!r} cannot be a group's name", hint="use letters, digits and hyphens, at most 63"
        )
    return name


class Groups:
    """The groups of a cloud."""

    def __init__(self, cloud: Cloud, *, now: Callable[[], float] = time.time) -> None:
        self._store: Store = cloud.store
        self._now = now

    def create(self, namespace: str, name: str, policy: Policy, scope: Scope) -> Group:
        """Make a group without members.

        Raises:
            InvalidInput: the name cannot be one.
            Conflict: the namespace has a group of that name.
        """
        uuid = str(uuid4())
        group = Group(
            uuid=uuid,
            namespace=namespace,
            name=check_name(name),
            policy=policy,
            scope=scope,
            resource_class=groups.class_of(uuid, policy),
            created_at=timestamp(self._now()),
        )
        named = keys.named(namespace, KIND, name)
        try:
            self._store.commit(
                [absent_under(named), unchanged(incarnation_of(self._store))],
                [Put(keys.group(uuid), group), Put(keys.name(namespace, KIND, name, uuid), Name(uuid=uuid, name=name))],
            )
        except CompareFailed as error:
            if named not in error.keys:
                raise
            raise Conflict(
                f"there is a group {name} in namespace {namespace} already",
                hint=f"see `eschedule group show {name}`, or choose another name",
            ) from error
        return group

    def find(self, ref: str, namespace: str) -> Versioned[Group]:
        """Return the group of that name or uuid.

        Raises:
            NotFound: ``namespace`` has none.
        """
        uuid = references.full_uuid(ref)
        if uuid is None and _NAME.fullmatch(ref):
            named, _ = self._store.keys(keys.named(namespace, KIND, ref), limit=1)
            uuid = keys.last(named[0]) if named else None
        found = None if uuid is None else self._store.get(keys.group(uuid), Group)
        if found is None or found.value.namespace != namespace:
            raise NotFound(
                f"there is no group {one_line(ref, 80)!r} in namespace {namespace}",
                hint="see `eschedule group list`; `eschedule group create` makes one",
            )
        return found

    def all(self, namespace: str) -> list[Group]:
        """Return the groups of ``namespace``, by name."""
        named, _ = self._store.keys(keys.names(namespace, KIND))
        found = self._store.get_many([keys.group(keys.last(key)) for key in named], Group).items
        return [item.value for item in found]

    def names(self, namespace: str, beginning: str = "", *, limit: int = 100) -> list[str]:
        """Return the names of groups that begin so."""
        if beginning and not _NAME.fullmatch(beginning.rstrip("-")):
            return []
        found, _ = self._store.keys(keys.names(namespace, KIND) + beginning, limit=limit)
        return [keys.parts(key)[3] for key in found]

    def members(self, group: Group) -> list[Member]:
        """Return the members, by the uuid of their instance."""
        return members(self._store, group.uuid)

    def delete(self, ref: str, namespace: str) -> None:
        """Remove a group without members. What is left of it in placement goes with the lead's next turn.

        Raises:
            NotFound: there is no such group.
            Refused: it has members.
        """
        for _ in range(TRIES):
            group = self.find(ref, namespace)
            value = group.value
            try:
                # A launch that is under way compares the group: it will not become a member.
                self._store.commit(
                    [unchanged(group), absent_under(keys.members(value.uuid))],
                    [Delete(group.key), Delete(keys.name(namespace, KIND, value.name, value.uuid))],
                )
            except CompareFailed:
                left = self.members(value)
                if left:
                    raise Refused(
                        f"group {value.name} has {len(left)} member{'s' if len(left) > 1 else ''}, "
                        f"{left[0].instance_uuid} for one",
                        hint="destroy them first",
                    ) from None
                continue
            return
        raise Conflict(f"group {ref} keeps changing", hint="try again")


def members(store: Store, uuid: str, *, limit: int | None = None) -> list[Member]:
    """Return the members of a group, or ``limit`` of them, by the uuid of their instance."""
    return [item.value for item in store.list(keys.members(uuid), Member, limit=limit).items]
