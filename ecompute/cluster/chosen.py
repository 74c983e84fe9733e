"""A uuid that a client chose, or that a client's key stands for: used for one launch, and never again.

``/uuids/<uuid>`` is written with the intent, only if absent, so that of two launches with one uuid
one goes on. It outlives its instance. A launch that is given up *spends* the uuid, unless nothing was
ever claimed with it: an auditor that saw such a claim may still be about to release it, and must not
find another one under the same uuid. An idempotency key is no consumer, and stands for a new uuid then.

====================  ==================================================================
launched              an instance was made of it: a repeated launch is that instance
launched and spent    the instance was destroyed
spent                 given up, by its launch or by the audit; there was no instance
neither               its launch is under way, or died and waits for the audit; one with a key also for
                      whoever repeats it (`eschedule.scheduler.takeover`)
====================  ==================================================================

Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import msgspec
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import IdempotencyKey, UsedUuid
from ecompute.cluster.store import Compare, Delete, Op, Put, Versioned, absent, unchanged


def digest_of(asked: object) -> str:
    """Return what tells one request from another: the same for the same, whatever the order of maps."""
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


@dataclass(frozen=True)
class Chosen:
    """What a launch writes beside its intent, its request, or its end.

    Args:
        used: as it is put with the intent.
        key: the client's key, if there is one.
        replaces: the key as it was read, where it stood for a uuid that was given up.
        written_at: the revision of the intent's transaction; 0 before it.
    """

    used: UsedUuid
    key: IdempotencyKey | None = None
    replaces: Versioned[IdempotencyKey] | None = None
    written_at: int = 0

    @property
    def _used_key(self) -> str:
        return keys.used_uuid(self.used.uuid)

    @property
    def _key_key(self) -> str | None:
        return None if self.key is None else keys.idempotency(self.used.namespace, self.key.key)

    def begin(self) -> tuple[list[Compare], list[Op]]:
        """Return what the intent's transaction holds besides."""
        compares: list[Compare] = [absent(self._used_key)]
        operations: list[Op] = [Put(self._used_key, self.used)]
        if self.key is not None and self._key_key is not None:
            compares.append(absent(self._key_key) if self.replaces is None else unchanged(self.replaces))
            operations.append(Put(self._key_key, self.key))
        return compares, operations

    def begun(self, revision: int) -> Chosen:
        return replace(self, written_at=revision)

    def request(self) -> tuple[list[Compare], list[Op]]:
        """Return what the request's transaction holds besides."""
        used = Versioned(self._used_key, self.used, self.written_at, self.written_at, 0)
        return [unchanged(used)], [Put(used.key, structs.replace(self.used, is_launched=True))]

    def give_up(self, *, has_claimed: bool) -> list[Op]:
        """Return what the transaction that deletes the intent does besides; it compares the intent alone.

        Nobody but the intent's writer and the auditor who deletes it writes these keys meanwhile.

        Args:
            has_claimed: whether a claim was ever tried.
        """
        spent = structs.replace(self.used, is_spent=True)
        operations: list[Op] = [Put(self._used_key, spent) if has_claimed else Delete(self._used_key)]
        if self._key_key is not None:
            operations.append(Delete(self._key_key))
        return operations
