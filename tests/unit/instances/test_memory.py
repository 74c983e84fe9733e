"""What a host remembers survives it, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import StorageError
from ecompute.instances.memory import TOMBSTONE_DAYS, Cluster, Memory
from ecompute.instances.terms import Phase, Record

UUID = "6d2b4f0e-6a3e-4f61-9f9b-0d9d6a5a1f11"


def record(phase: Phase) -> Record:
    return Record(uuid=UUID, epoch=1, phase=phase, boot_id="b", power=Power.ON)


def test_a_record_is_there_after_a_restart(tmp_path: Path) -> None:
    Memory(tmp_path).remember(record(Phase.RUNNING))
    assert Memory(tmp_path).record(UUID) == record(Phase.RUNNING)


def test_a_later_record_replaces_the_earlier(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.remember(record(Phase.BUILDING))
    memory.remember(record(Phase.STARTING))
    assert Memory(tmp_path).records() == {UUID: record(Phase.STARTING)}


def test_a_write_that_was_cut_short_leaves_the_record_before_it(tmp_path: Path) -> None:
    Memory(tmp_path).remember(record(Phase.RUNNING))
    (tmp_path / "instances" / f"{UUID}.json.new").write_bytes(b'{"uuid": "6d2')
    assert Memory(tmp_path).record(UUID) == record(Phase.RUNNING)
    assert not list(tmp_path.rglob("*.new"))


def test_a_memory_that_cannot_be_read_is_an_error_and_no_blank_host(tmp_path: Path) -> None:
    Memory(tmp_path).remember(record(Phase.RUNNING))
    (tmp_path / "instances" / f"{UUID}.json").write_bytes(b"garbage")
    with pytest.raises(StorageError, match="cannot be read"):
        Memory(tmp_path)


def test_a_host_that_knew_a_cluster_or_an_instance_is_not_blank(tmp_path: Path) -> None:
    blank = Memory(tmp_path / "a")
    assert blank.is_blank()
    blank.remember_cluster(Cluster(incarnation="i", cluster_id=1, revision=1))
    assert not blank.is_blank()
    other = Memory(tmp_path / "b")
    other.remember(record(Phase.REMOVED))
    assert not other.is_blank()


def test_only_old_tombstones_are_pruned(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.remember(record(Phase.REMOVED))
    path = tmp_path / "instances" / f"{UUID}.json"
    now = path.stat().st_mtime
    assert memory.prune(now + 86400) == 0
    os.utime(path, (now - (TOMBSTONE_DAYS + 1) * 86400,) * 2)
    assert memory.prune(now) == 1
    assert Memory(tmp_path).record(UUID) is None
