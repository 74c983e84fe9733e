"""Two ways to make a guest's disks, held to the same: qemu-img and pycdlib, and the fakes of a fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ecompute.cluster.errors import InvalidImage, InvalidInput, StorageError
from ecompute.guest import configdrive
from ecompute.storage import disks, fake
from ecompute.storage.images import Image
from ecompute.storage.inspect import MAGIC

SHA256 = "ab" * 32
GIB = 1 << 30


@dataclass(frozen=True)
class Maker:
    create_overlay: disks.CreateOverlay
    write_config_drive: Callable[[Path, dict[str, bytes]], None]


@pytest.fixture(params=["real", "fake"])
def maker(request: pytest.FixtureRequest) -> Maker:
    if request.param == "fake":
        return Maker(fake.create_overlay, fake.write_config_drive)
    return Maker(disks.create_overlay, configdrive.write)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / SHA256
    path.write_bytes(b"\0" * 4096)
    return Image(path, SHA256, "raw", 4096)


@pytest.mark.parametrize(("resize", "size_bytes"), [(True, 2 * GIB), (False, 4096)])
def test_the_disk_names_its_image_and_has_its_size(
    maker: Maker, image: Image, tmp_path: Path, resize: bool, size_bytes: int
) -> None:
    path = tmp_path / "disk.qcow2"
    maker.create_overlay(image, path, disk_gb=2, resize=resize)
    assert disks.image_of(path) == image.path
    assert disks.images_in_use([path]) == {SHA256}
    assert path.read_bytes()[:4] == MAGIC
    assert int.from_bytes(path.read_bytes()[24:32], "big") == size_bytes
    assert path.stat().st_mode & 0o777 == disks.DISK_MODE
    assert [entry.name for entry in tmp_path.iterdir() if entry != image.path] == [path.name], "nothing is left over"


def test_a_disk_that_is_there_is_not_written_over(maker: Maker, image: Image, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    maker.create_overlay(image, path, disk_gb=1, resize=True)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="exists already"):
        maker.create_overlay(image, path, disk_gb=2, resize=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("disk_gb", [0, -1, 1 << 20])
def test_a_size_that_cannot_be_is_refused(maker: Maker, image: Image, tmp_path: Path, disk_gb: int) -> None:
    with pytest.raises(InvalidInput):
        maker.create_overlay(image, tmp_path / "disk.qcow2", disk_gb=disk_gb, resize=True)
    assert not (tmp_path / "disk.qcow2").exists()


def test_an_image_larger_than_the_disk_is_refused(maker: Maker, tmp_path: Path) -> None:
    path = tmp_path / SHA256
    path.touch()
    with pytest.raises(InvalidImage, match="DISK_GB:3 or more"):
        maker.create_overlay(Image(path, SHA256, "raw", 2 * GIB + 1), tmp_path / "disk", disk_gb=2, resize=True)


def test_no_disk_is_made_where_there_is_no_directory(maker: Maker, image: Image, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        maker.create_overlay(image, tmp_path / "missing" / "disk.qcow2", disk_gb=1, resize=True)


def test_a_config_drive_is_there_whole_for_nobody_else_and_can_be_written_again(maker: Maker, tmp_path: Path) -> None:
    path = tmp_path / "config.iso"
    for text in (b"first text", b"second text"):
        maker.write_config_drive(path, {"openstack/latest/meta_data.json": text})
        assert text in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    configdrive.remove(path)
    assert list(tmp_path.iterdir()) == []


def test_no_config_drive_is_written_where_there_is_no_directory(maker: Maker, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        maker.write_config_drive(tmp_path / "missing" / "config.iso", {"a": b""})
