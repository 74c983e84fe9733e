"""The host's identity: made once, kept whatever happens, and what of the provider is the daemon's."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from ecompute.cluster.config import Config
from ecompute.cluster.errors import StorageError
from ecompute.registrar import IDENTITY_FILE, identity


def test_the_uuid_is_kept_across_restarts_without_being_told(tmp_path: Path) -> None:
    first = identity(Config(), tmp_path / "state")
    assert str(uuid.UUID(first)) == first
    assert identity(Config(), tmp_path / "state") == first
    assert [path.name for path in (tmp_path / "state").iterdir()] == [IDENTITY_FILE]


def test_the_configured_uuid_comes_first_and_leaves_the_file_alone(tmp_path: Path) -> None:
    kept = identity(Config(), tmp_path)
    told = "5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee"
    assert identity(Config(uuid=told), tmp_path) == told
    assert identity(Config(), tmp_path) == kept


def test_many_starts_at_once_agree_on_one_uuid(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        found.append(identity(Config(), tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [IDENTITY_FILE]


@pytest.mark.parametrize("content", [b"", b"none\n", b"\xff\xff", b"5a4cbd31-2cf8-4b7b-a1a9"])
def test_a_damaged_file_is_an_error_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    # A new uuid would orphan the provider, and with it every guest's allocation.
    (tmp_path / IDENTITY_FILE).write_bytes(content)
    with pytest.raises(StorageError, match="does not hold a uuid"):
        identity(Config(), tmp_path)
    assert (tmp_path / IDENTITY_FILE).read_bytes() == content


def test_a_state_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be kept"):
        identity(Config(), tmp_path / "file" / "state")
