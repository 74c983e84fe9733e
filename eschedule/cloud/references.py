"""What people call an instance: its name, its uuid, or the beginning of its uuid.

Names are not unique: several instances of a namespace may have one, and then its uuid says which.
Reads only; safe from several threads.
"""

from __future__ import annotations

import re
from uuid import UUID

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance
from ecompute.cluster.errors import Ambiguous, NotFound, some_of
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.store import Store, Versioned

_SEE = "see `eschedule list`"
_NAME = re.compile(r"[^/\x00\ud800-\udfff]+")
"""What may stand in a key: no slash, and nothing that is not UTF-8."""
_UUID_BEGINNING = re.compile(r"[0-9a-f][0-9a-f-]*", re.IGNORECASE)


def full_uuid(text: str) -> str | None:
    """Return ``text`` as a uuid in its usual form, or ``None`` if it is not a whole one. Pure."""
    try:
        uuid = UUID(text)
    except ValueError:
        return None
    return str(uuid) if len(text) == 36 else None


def find(store: Store, ref: str, namespace: str) -> Versioned[Instance]:
    """Return the instance that ``ref`` names.

    A full uuid is found in any namespace; a name or a beginning in ``namespace`` only.

    Raises:
        NotFound: none, with what to do.
        Ambiguous: several, which are named.
    """
    uuid = full_uuid(ref)
    if uuid is not None:
        found = store.get(keys.instance(uuid), Instance)
        if found is None:
            raise NotFound(f"there is no instance {uuid}", hint=_SEE)
        return found
    instances = _named(store, ref, namespace) or _beginning(store, ref, namespace)
    if not instances:
        raise NotFound(f"there is no instance {ref[:80]!r} in namespace {namespace}", hint=_SEE)
    if len(instances) > 1:
        some = some_of(sorted(instance.value.uuid for instance in instances))
        raise Ambiguous(
            f"{ref[:80]!r} may be any of {len(instances)} instances: {some}", hint="give the uuid, or more of it"
        )
    return instances[0]


def find_within(store: Store, ref: str, namespace: str) -> Versioned[Instance]:
    """Return the instance of ``namespace`` that ``ref`` names; one of another is not found, whatever names it.

    Raises:
        NotFound: none, with what to do.
        Ambiguous: several, which are named.
    """
    found = find(store, ref, namespace)
    if found.value.namespace != namespace:
        raise NotFound(f"there is no instance {found.value.uuid} in namespace {namespace}", hint=_SEE)
    return found


def beginning_with(store: Store, text: str, namespace: str, *, limit: int) -> list[str]:
    """Return what ``text`` can be completed to: names, or uuids where no name begins so.

    A name that several instances have is given as their uuids, since it names none of them.
    """
    if text and not _NAME.fullmatch(text):
        return []
    named: dict[str, list[str]] = {}
    for key in store.keys(keys.names(namespace, INSTANCE) + text, limit=limit)[0]:
        _, _, _, name, uuid = keys.parts(key)
        named.setdefault(name, []).append(uuid)
    if named:
        return [word for name, uuids in named.items() for word in ([name] if len(uuids) == 1 else uuids)]
    if not _UUID_BEGINNING.fullmatch(text):
        return []
    return sorted(instance.value.uuid for instance in _beginning(store, text, namespace))


def may_be_in_a_key(text: str) -> bool:
    """Whether ``text`` can be a name at all: it stands in a key. Pure."""
    return _NAME.fullmatch(text) is not None


def _named(store: Store, name: str, namespace: str) -> tuple[Versioned[Instance], ...]:
    if not _NAME.fullmatch(name):
        return ()
    found, _ = store.keys(keys.named(namespace, INSTANCE, name))
    return store.get_many([keys.instance(keys.last(key)) for key in found], Instance).items


def _beginning(store: Store, text: str, namespace: str) -> tuple[Versioned[Instance], ...]:
    if not _UUID_BEGINNING.fullmatch(text):
        return ()
    found = store.list(keys.INSTANCES + text.lower(), Instance).items
    return tuple(instance for instance in found if instance.value.namespace == namespace)
