"""Overlays, made by the real qemu-img."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from ecompute.cluster.errors import InvalidImage, InvalidInput, StorageError
from ecompute.storage import disks
from ecompute.storage.images import Image

GIB = 1 << 30


def make_image(directory: Path, format_: str, size_bytes: int) -> Image:
    path = directory / ("a" * 64)
    subprocess.run(["qemu-img", "create", "-q", "-f", format_, path, str(size_bytes)], check=True)
    return Image(path, path.name, "raw" if format_ == "raw" else "qcow2", size_bytes)


@pytest.fixture(params=["qcow2", "raw"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    return make_image(tmp_path, request.param, GIB)


def info(path: Path) -> dict[str, object]:
    command = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(path)]
    found: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "disks"
    made.mkdir()
    return made


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(("resize", "size_bytes"), [(True, 5 * GIB), (False, GIB)])
def test_an_overlay_has_the_asked_size_and_names_its_image_with_its_format(
    image: Image, directory: Path, resize: bool, size_bytes: int
) -> None:
    path = directory / "disk.qcow2"
    disks.create_overlay(image, path, disk_gb=5, resize=resize)
    found = info(path)
    assert found["virtual-size"] == size_bytes
    assert found["backing-filename"] == str(image.path)
    assert found["backing-filename-format"] == image.format
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(directory) == ["disk.qcow2"]
    assert disks.is_complete(path)
    assert disks.image_of(path) == image.path
    assert disks.images_in_use([path, directory / "absent"]) == {image.sha256}


def test_an_image_as_large_as_the_disk_fits(image: Image, directory: Path) -> None:
    disks.create_overlay(image, directory / "disk", disk_gb=1)
    assert info(directory / "disk")["virtual-size"] == GIB


@pytest.mark.parametrize("resize", [True, False])
def test_an_image_larger_than_the_disk_is_refused_with_both_sizes(
    tmp_path: Path, directory: Path, resize: bool
) -> None:
    image = make_image(tmp_path, "qcow2", 3 * GIB + 512)
    with pytest.raises(InvalidImage) as caught:
        disks.create_overlay(image, directory / "disk", disk_gb=3, resize=resize)
    assert str(3 * GIB + 512) in str(caught.value)
    assert "DISK_GB:3" in str(caught.value)
    assert caught.value.hint == "ask for DISK_GB:4 or more"
    assert names(directory) == []


@pytest.mark.parametrize("disk_gb", [0, -1, 65537, 10**30])
def test_a_size_that_cannot_be_is_refused(image: Image, directory: Path, disk_gb: int) -> None:
    with pytest.raises(InvalidInput, match="cannot be made"):
        disks.create_overlay(image, directory / "disk", disk_gb=disk_gb)


def test_the_largest_disk_can_be_made_within_the_limits(image: Image, directory: Path) -> None:
    disks.create_overlay(image, directory / "disk", disk_gb=65536)
    assert info(directory / "disk")["virtual-size"] == 65536 * GIB


def test_an_existing_disk_is_never_written_over(image: Image, directory: Path) -> None:
    path = directory / "disk"
    path.write_bytes(b"a guest's data")
    with pytest.raises(StorageError, match="exists already"):
        disks.create_overlay(image, path, disk_gb=5)
    assert path.read_bytes() == b"a guest's data"
    assert names(directory) == ["disk"]


def test_of_two_at_once_one_makes_the_disk(image: Image, directory: Path) -> None:
    outcomes: list[str] = []

    def make() -> None:
        try:
            disks.create_overlay(image, directory / "disk", disk_gb=5)
            outcomes.append("made")
        except StorageError:
            outcomes.append("exists")

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["exists", "exists", "exists", "made"]
    assert names(directory) == ["disk"]
    assert disks.is_complete(directory / "disk")


def test_names_that_look_like_options_or_protocols_are_names(tmp_path: Path) -> None:
    odd = tmp_path / "-o nbd:x,y=z"
    odd.mkdir()
    image = make_image(odd, "qcow2", GIB)
    disks.create_overlay(image, odd / "-f json:{},a=b", disk_gb=1)
    assert disks.image_of(odd / "-f json:{},a=b") == image.path


def test_a_program_that_hangs_is_killed_and_leaves_nothing(
    image: Image, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    pretend_qemu_img(tmp_path, f"echo $$ > {pid_file}; exec sleep 600", monkeypatch)
    with pytest.raises(StorageError, match=r"within 0\.5 s"):
        disks.create_overlay(image, directory / "disk", disk_gb=5, timeout_s=0.5)
    assert names(directory) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_the_limits_hold_for_the_program(
    image: Image, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "limits"
    pretend_qemu_img(tmp_path, f"cat /proc/self/limits > {seen}; env >> {seen}; exit 1", monkeypatch)
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(StorageError, match="exit status 1"):
        disks.create_overlay(image, directory / "disk", disk_gb=5)
    text = seen.read_text()
    rows = {line[:26].strip(): line[26:].split()[0] for line in text.splitlines() if len(line) > 26}
    assert rows["Max address space"] == str(1 << 30)
    assert rows["Max cpu time"] == "30"
    assert rows["Max file size"] == str(1 << 30)
    assert rows["Max core file size"] == "0"
    assert "hunter2" not in text
    assert names(directory) == []


def test_what_the_program_says_is_told_on_one_line(
    image: Image, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_qemu_img(tmp_path, "echo first; echo second >&2; exit 1", monkeypatch)
    with pytest.raises(StorageError, match="first second"):
        disks.create_overlay(image, directory / "disk", disk_gb=5)


def test_a_program_that_is_not_there_is_named(
    image: Image, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(StorageError, match="install the package"):
        disks.create_overlay(image, directory / "disk", disk_gb=5)
    assert names(directory) == []


def test_an_image_that_left_the_cache_is_asked_for_again(image: Image, directory: Path) -> None:
    image.path.unlink()
    with pytest.raises(StorageError, match="left the cache"):
        disks.create_overlay(image, directory / "disk", disk_gb=5)
    assert names(directory) == []


def test_a_directory_that_is_not_there_is_named(image: Image, directory: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        disks.create_overlay(image, directory / "absent" / "disk", disk_gb=5)


def test_a_removed_disk_is_gone_and_removing_it_twice_is_no_error(image: Image, directory: Path) -> None:
    path = directory / "disk"
    disks.create_overlay(image, path, disk_gb=5)
    assert disks.remove(path)
    assert not disks.remove(path)
    assert not disks.is_complete(path)
    assert image.path.exists()


def test_what_is_no_overlay_is_not_complete(image: Image, directory: Path) -> None:
    for name, content in (("empty", b""), ("short", b"QFI\xfb"), ("other", bytes(4096))):
        (directory / name).write_bytes(content)
        assert not disks.is_complete(directory / name)
    (directory / "link").symlink_to(image.path)
    for name in ("absent", "link", "."):
        assert not disks.is_complete(directory / name)
    assert not disks.is_complete(image.path)


def test_what_a_killed_run_left_is_swept(directory: Path) -> None:
    (directory / ".disk.0123456789abcdef.part").touch()
    (directory / "disk").touch()
    disks.sweep(directory)
    assert names(directory) == ["disk"]


def pretend_qemu_img(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of that name before the real one."""
    programs = directory / "programs"
    programs.mkdir()
    program = programs / "qemu-img"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(disks, "SEARCH_PATH", f"{programs}:{disks.SEARCH_PATH}")
