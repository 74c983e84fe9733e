"""The drive as pycdlib reads it back. That the kernel and cloud-init read it, too, is tested elsewhere."""

from __future__ import annotations

import io
import os
import stat
import time
from pathlib import Path

import pycdlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidInput, StorageError
from ecompute.guest import configdrive

FILES = {
    "openstack/latest/meta_data.json": b'{"uuid":"1"}',
    "openstack/latest/user_data": b"\x00\xff" * 40_000,
    "openstack/2018-08-27/meta_data.json": b'{"uuid":"1"}',
    "openstack/2018-08-27/empty": b"",
}


def read_back(image: bytes, extension: str) -> dict[str, bytes]:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found = {}
    for directory, _, names in iso.walk(**{f"{extension}_path": "/"}):
        for name in names:
            path = f"{directory.rstrip('/')}/{name}"
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, **{f"{extension}_path": path})
            found[path.removeprefix("/")] = data.getvalue()
    iso.close()
    return found


@pytest.mark.parametrize("extension", ["rr", "joliet"])
def test_names_and_contents_are_exact(extension: str) -> None:
    assert read_back(configdrive.render(FILES), extension) == FILES


def test_the_label_is_where_readers_look_for_it() -> None:
    image = configdrive.render(FILES)
    sector = 16 * 2048
    assert image[sector + 1 : sector + 6] == b"CD001"
    assert image[sector + 40 : sector + 72] == b"config-2".ljust(32)


def test_equal_files_give_an_equal_image_at_any_time_and_in_any_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = configdrive.render(FILES)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        second = configdrive.render(dict(reversed(FILES.items())))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert first == second


def test_only_its_owner_reads_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        configdrive.write(tmp_path / "drive", FILES)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "drive").stat().st_mode) == 0o600


def test_a_drive_is_replaced_and_the_rest_of_a_killed_write_with_it(tmp_path: Path) -> None:
    (tmp_path / "drive").write_bytes(b"old")
    (tmp_path / "drive.partial").write_bytes(b"half" * 100_000)
    (tmp_path / "drive.partial").chmod(0o644)
    configdrive.write(tmp_path / "drive", FILES)
    assert (tmp_path / "drive").read_bytes() == configdrive.render(FILES)
    assert stat.S_IMODE((tmp_path / "drive").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "drive" / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match="drive"):
        configdrive.write(tmp_path / "drive", FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["drive"]
    with pytest.raises(StorageError, match="missing"):
        configdrive.write(tmp_path / "missing" / "drive", FILES)


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"foreign")
    (tmp_path / "drive.partial").symlink_to(tmp_path / "foreign")
    with pytest.raises(StorageError):
        configdrive.write(tmp_path / "drive", FILES)
    assert (tmp_path / "foreign").read_bytes() == b"foreign"


def test_remove_takes_the_drive_and_its_rest_and_may_be_repeated(tmp_path: Path) -> None:
    configdrive.write(tmp_path / "drive", FILES)
    (tmp_path / "drive.partial").write_bytes(b"half")
    configdrive.remove(tmp_path / "drive")
    configdrive.remove(tmp_path / "drive")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "/", "a//b", "../a", "a/./b", "a\0b", "a\nb", "a/" + "b" * 65, "/a", "a/"])
def test_a_name_that_cannot_be_on_a_drive_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="config drive"):
        configdrive.render({name: b""})


@pytest.mark.parametrize("names", [("a-b", "a+b"), ("a", "a/b"), ("x.y/a", "x_y/b")])
def test_names_that_iso_9660_cannot_tell_apart_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="config drive"):
        configdrive.render(dict.fromkeys(names, b""))


@given(data=st.binary(max_size=5000), copies=st.integers(0, 40))
def test_contents_of_any_size_come_back(data: bytes, copies: int) -> None:
    files = {"openstack/latest/user_data": data * copies, "openstack/latest/meta_data.json": data}
    image = configdrive.render(files)
    assert read_back(image, "rr") == read_back(image, "joliet") == files
    assert len(image) % 2048 == 0
