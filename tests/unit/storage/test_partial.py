from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ecompute.storage import partial


def test_a_published_file_has_its_content_mode_and_no_second_name(tmp_path: Path) -> None:
    path = partial.create(tmp_path, "a")
    path.write_bytes(b"x")
    partial.publish(path, tmp_path / "a", mode=0o444)
    assert (tmp_path / "a").read_bytes() == b"x"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o444
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a guest's disk")
    path = partial.create(tmp_path, "a")
    with pytest.raises(FileExistsError):
        partial.publish(path, tmp_path / "a", mode=0o600)
    partial.discard(path)
    assert (tmp_path / "a").read_bytes() == b"a guest's disk"
    partial.discard(path)  # twice does no harm


def test_an_existing_file_is_replaced_when_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    path = partial.create(tmp_path, "a")
    path.write_bytes(b"new")
    partial.publish(path, tmp_path / "a", mode=0o600, is_replacing=True)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_sweep_removes_what_a_killed_run_left_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / ".disk.0123456789abcdef.part"
    left.touch()
    kept = [tmp_path / name for name in ("disk", ".hidden", "x.part", ".disk.part", ".disk.0123456789abcdef.partx")]
    for path in kept:
        path.touch()
    (tmp_path / ".d.0123456789abcdef.part").mkdir()
    (tmp_path / ".l.0123456789abcdef.part").symlink_to(kept[0])
    at_work = partial.create(tmp_path, "other")
    assert partial.sweep(tmp_path) == (left,)
    assert not left.exists()
    assert at_work.exists()
    assert all(path.exists() for path in kept)
    partial.discard(at_work)


def test_a_sweep_of_no_directory_finds_nothing(tmp_path: Path) -> None:
    assert partial.sweep(tmp_path / "absent") == ()


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert not partial.remove(tmp_path / "absent")
    assert not partial.remove(tmp_path / "absent" / "absent")
