"""etcd: revisions, comparing transactions, leases, and being set back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ecompute.cluster.errors import CompareFailed


@dataclass(frozen=True)
class Entry:
    value: Any
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True)
class Compare:
    """``mod_revision`` or ``create_revision`` of a key; 0: there is no such key."""

    key: str
    mod_revision: int | None = None
    create_revision: int | None = None


@dataclass(frozen=True)
class Put:
    key: str
    value: Any
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    key: str


def unchanged(key: str, entry: Entry | None) -> Compare:
    return Compare(key, mod_revision=0 if entry is None else entry.mod_revision)


@dataclass
class Etcd:
    revision: int = 1
    cluster_id: int = 1
    data: dict[str, Entry] = field(default_factory=dict)
    leases: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Id to (deadline, time to live)."""
    _last_lease: int = 0

    def get(self, key: str) -> Entry | None:
        return self.data.get(key)

    def below(self, prefix: str) -> dict[str, Entry]:
        return {key: entry for key, entry in self.data.items() if key.startswith(prefix)}

    def commit(self, compares: Iterable[Compare], operations: Iterable[Put | Delete]) -> int:
        for compare in compares:
            entry = self.data.get(compare.key)
            mod, create = (0, 0) if entry is None else (entry.mod_revision, entry.create_revision)
            if compare.mod_revision not in (None, mod) or compare.create_revision not in (None, create):
                raise CompareFailed(compare.key)
        self.revision += 1
        for operation in operations:
            before = self.data.pop(operation.key, None)
            if isinstance(operation, Put):
                create = self.revision if before is None else before.create_revision
                self.data[operation.key] = Entry(operation.value, create, self.revision, operation.lease)
        return self.revision

    def grant(self, now_s: float, ttl_s: float) -> int:
        # Ids are random in truth: one that was given out before a setting back is not given again.
        self._last_lease += 1
        self.leases[self._last_lease] = (now_s + ttl_s, ttl_s)
        return self._last_lease

    def keep_alive(self, lease: int, now_s: float) -> bool:
        if lease not in self.leases:
            return False
        ttl_s = self.leases[lease][1]
        self.leases[lease] = (now_s + ttl_s, ttl_s)
        return True

    def expire(self, now_s: float) -> None:
        ended = {lease for lease, (deadline, _) in self.leases.items() if deadline <= now_s}
        self.leases = {lease: times for lease, times in self.leases.items() if lease not in ended}
        keys = [key for key, entry in self.data.items() if entry.lease and entry.lease not in self.leases]
        if keys:
            self.commit([], [Delete(key) for key in keys])

    def snapshot(self) -> Etcd:
        return replace(self, data=dict(self.data), leases=dict(self.leases))

    def restore(self, snapshot: Etcd, now_s: float, *, is_other_cluster: bool) -> None:
        """Become ``snapshot``; its leases begin anew, as a new leader's do."""
        self.revision = snapshot.revision
        self.cluster_id += is_other_cluster
        self.data = dict(snapshot.data)
        self.leases = {lease: (now_s + ttl_s, ttl_s) for lease, (_, ttl_s) in snapshot.leases.items()}
