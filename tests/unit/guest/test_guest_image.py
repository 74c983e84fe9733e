"""What of the small guest's image is decided without building one."""

from __future__ import annotations

import lzma
import stat
import struct
from pathlib import Path

import pytest

from ecompute.cluster.errors import NotFound
from ecompute.dev import guest_image


def install_kernel(root: Path, version: str, dep: str = "", builtin: str = "") -> None:
    (root / "boot").mkdir(exist_ok=True)
    (root / "boot" / f"vmlinuz-{version}").write_bytes(b"kernel")
    modules = root / "modules" / version
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(dep)
    (modules / "modules.builtin").write_text(builtin)


def found_kernel(root: Path) -> guest_image.Kernel:
    return guest_image.find_kernel(root / "boot", root / "modules")


def test_the_newest_kernel_made_for_guests_is_taken(tmp_path: Path) -> None:
    for version in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.12.0-1-amd64"):
        install_kernel(tmp_path, version)
    assert found_kernel(tmp_path).version == "6.1.0-10-cloud-amd64"


def test_another_kernel_will_do(tmp_path: Path) -> None:
    install_kernel(tmp_path, "6.8.0-31-generic")
    assert found_kernel(tmp_path).version == "6.8.0-31-generic"


def test_a_kernel_without_its_modules_is_none(tmp_path: Path) -> None:
    install_kernel(tmp_path, "6.1.0-9-cloud-amd64")
    (tmp_path / "modules" / "6.1.0-9-cloud-amd64" / "modules.dep").unlink()
    with pytest.raises(NotFound, match="linux-image-cloud-amd64"):
        found_kernel(tmp_path)


def test_modules_are_loaded_after_what_they_depend_on_and_once(tmp_path: Path) -> None:
    install_kernel(
        tmp_path,
        "6.1.0-9-cloud-amd64",
        dep="k/net.ko: k/failover-core.ko k/ring.ko\nk/failover-core.ko:\nk/ring.ko:\n"
        "k/blk.ko.xz: k/virtio.ko k/ring.ko\nk/virtio.ko: k/ring.ko\nk/other.ko:\n",
        builtin="k/cdrom.ko\n",
    )
    files = guest_image.module_files(found_kernel(tmp_path), ("blk", "net", "cdrom"))
    assert [guest_image.module_name(file.name) for file in files] == ["ring", "virtio", "blk", "failover_core", "net"]


def test_a_module_that_the_kernel_lacks_is_named(tmp_path: Path) -> None:
    install_kernel(tmp_path, "6.1.0-9-cloud-amd64")
    with pytest.raises(NotFound, match="isofs"):
        guest_image.module_files(found_kernel(tmp_path), ("isofs",))


def test_a_compressed_module_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"module"))
    assert guest_image.read_module(tmp_path / "a.ko.xz") == b"module"


def test_missing_programs_are_one_error_that_names_the_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guest_image.shutil, "which", lambda name, path: None)
    monkeypatch.setattr(guest_image, "MBR_CODE", tmp_path / "mbr.bin")
    with pytest.raises(NotFound) as caught:
        guest_image.find_tools()
    expected = "apt-get install --no-install-recommends busybox-static mtools qemu-utils syslinux syslinux-common"
    assert caught.value.hint == expected


@pytest.mark.parametrize(("segments", "expected"), [((1, 2, 1), True), ((6, 3, 1), False), ((), True)])
def test_a_program_with_a_loader_is_not_static(segments: tuple[int, ...], expected: bool) -> None:
    header = bytearray(64)
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, len(segments))
    program = bytes(header) + b"".join(struct.pack("<I52x", kind) for kind in segments)
    assert guest_image.is_static(program) is expected


def test_a_boot_record_has_one_active_partition() -> None:
    record = guest_image.boot_record(b"\x90" * 440, 2048, 40960)
    assert len(record) == 512
    assert record[510:] == b"\x55\xaa"
    assert record[446] == 0x80
    assert struct.unpack_from("<II", record, 454) == (2048, 40960)
    assert record[462:510] == bytes(48)


def test_an_archive_is_aligned_and_ends_with_its_trailer() -> None:
    archive = guest_image.Archive()
    archive.add("bin/x", stat.S_IFREG | 0o755, b"12345")
    archive.add("bin/y", stat.S_IFLNK | 0o777, b"x")
    data = archive.finish()
    assert len(data) % 4 == 0
    names, at = [], 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * place : at + 14 + 8 * place], 16) for place in range(13)]
        size, name_size = fields[6], fields[11]
        names.append(data[at + 110 : at + 109 + name_size].decode())
        at += -(-(110 + name_size) // 4) * 4 + -(-size // 4) * 4
    assert names == ["bin/x", "bin/y", "TRAILER!!!"]
