"""A directory that is not the one in which the disks lie proves nothing about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecompute.cluster.errors import StorageError, StorageUnavailable
from ecompute.storage.place import MARK, Place

US = "7a8a3d5e-24a8-4f4b-8c6a-3f6f6f1f2f10"
OTHER = "1d0c1c5a-7a3b-4b68-9a06-0b9b8f6a9d11"


def test_a_new_host_marks_its_directory_and_finds_the_mark_again(tmp_path: Path) -> None:
    Place(tmp_path / "instances", US, is_new=True).check()
    Place(tmp_path / "instances", US, is_new=False).check()


def test_a_host_with_instances_does_not_believe_an_unmarked_directory(tmp_path: Path) -> None:
    place = Place(tmp_path / "instances", US, is_new=False)
    with pytest.raises(StorageUnavailable, match="not mounted"):
        place.check()


def test_a_directory_that_vanishes_while_in_use_is_noticed(tmp_path: Path) -> None:
    place = Place(tmp_path / "instances", US, is_new=True)
    (tmp_path / "instances").rename(tmp_path / "unmounted")
    with pytest.raises(StorageUnavailable):
        place.check()
    (tmp_path / "unmounted").rename(tmp_path / "instances")
    place.check()


def test_the_directory_of_another_host_is_refused(tmp_path: Path) -> None:
    Place(tmp_path / "instances", OTHER, is_new=True)
    with pytest.raises(StorageError, match=OTHER):
        Place(tmp_path / "instances", US, is_new=True)


def test_a_mark_that_is_no_text_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / MARK).write_bytes(b"\xff\xfe")
    with pytest.raises(StorageError, match="cannot be used"):
        Place(tmp_path, US, is_new=True)
