"""What a host remembers on its own disk: the instances it has built and removed, and which etcd it knew.

An emptied or older etcd must neither erase a guest nor build one anew, blank. So the host trusts
its own memory over etcd in one thing: what was once built here is never built again. Files:

- ``memory/instances/<uuid>.json``: one `Record` an instance. A removed one stays as a tombstone.
- ``memory/cluster.json``: the `Cluster` that the host belongs to.
- ``memory/given-traits.json``: what operators gave it, to be told from traits that others set.

A record is replaced atomically and is on the disk before the step it announces is taken. Safe from
several threads for different instances.
"""

from __future__ import annotations

import os
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TypeVar

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.errors import StorageError
from ecompute.instances.terms import Phase, Record

T = TypeVar("T")

TOMBSTONE_DAYS = 90


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """The etcd that this host last knew."""

    incarnation: str
    cluster_id: int
    revision: int
    """At least as high as any revision on which this host has acted."""
    hold: str | None = None
    """Why this host holds, until an operator has seen to it."""


class GivenTraits(msgspec.Struct, frozen=True, kw_only=True):
    """The traits that operators had this host have, as far as they may stand in placement."""

    traits: tuple[str, ...] = ()


class Memory:
    """The files under ``directory``; read once, written through.

    Raises:
        StorageError: the memory cannot be read. A host that has lost it must not guess: see the
            hint of the error.
    """

    def __init__(self, directory: Path) -> None:
        self._instances = directory / "instances"
        self._cluster = directory / "cluster.json"
        self._given_traits = directory / "given-traits.json"
        self._instances.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left_over in directory.rglob("*.new"):
            left_over.unlink(missing_ok=True)
        self._records: dict[str, Record] = {}
        for path in self._instances.glob("*.json"):
            record = _read(path, Record)
            self._records[record.uuid] = record

    def record(self, uuid: str) -> Record | None:
        return self._records.get(uuid)

    def records(self) -> dict[str, Record]:
        return dict(self._records)

    def remember(self, record: Record) -> None:
        """Put ``record`` on the disk, if it says anything new."""
        if self._records.get(record.uuid) != record:
            _write(self._instances / f"{record.uuid}.json", record)
            self._records[record.uuid] = record

    def forget(self, uuid: str) -> None:
        """Drop the record of an instance that was never built here."""
        (self._instances / f"{uuid}.json").unlink(missing_ok=True)
        self._records.pop(uuid, None)

    def prune(self, now: float) -> int:
        """Drop tombstones older than `TOMBSTONE_DAYS`; return how many.

        Args:
            now: seconds since 1970.
        """
        dropped = 0
        for uuid, record in self.records().items():
            path = self._instances / f"{uuid}.json"
            if record.phase is Phase.REMOVED and path.stat().st_mtime < now - TOMBSTONE_DAYS * 86400:
                self.forget(uuid)
                dropped += 1
        return dropped

    def cluster(self) -> Cluster | None:
        return _read(self._cluster, Cluster) if self._cluster.exists() else None

    def remember_cluster(self, cluster: Cluster) -> None:
        _write(self._cluster, cluster)

    def given_traits(self) -> frozenset[str]:
        """Return the traits that may stand in placement because operators gave them to this host."""
        return frozenset(_read(self._given_traits, GivenTraits).traits) if self._given_traits.exists() else frozenset()

    def remember_given_traits(self, traits: AbstractSet[str]) -> None:
        """Put ``traits`` on the disk, if they are others; before they are written, and once others are gone."""
        if self.given_traits() != traits:
            _write(self._given_traits, GivenTraits(traits=tuple(sorted(traits))))

    def is_blank(self) -> bool:
        """Whether this host has never belonged to any cluster."""
        return not self._records and not self._cluster.exists()


def _read(path: Path, kind: type[T]) -> T:
    try:
        return from_json(path.read_bytes(), kind)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}",
            hint="restore it from a backup; else move it away and, for cluster.json, run `ecompute adopt`, "
            "for an instance's, first make sure that its guest is not on this host",
        ) from error


def _write(path: Path, document: msgspec.Struct) -> None:
    new = path.with_suffix(".json.new")
    try:
        with new.open("wb") as file:
            file.write(msgspec.json.encode(document))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}", hint="free space on that disk") from error
