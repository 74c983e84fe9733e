"""Our header reader and ``qemu-img info`` read the same images alike."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ecompute.cluster.errors import InvalidImage
from ecompute.storage.inspect import ImageInfo, inspect


def run(*command: str | Path) -> bytes:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True).stdout


def look(path: Path) -> ImageInfo:
    with path.open("rb") as file:
        return inspect(file, path.name)


@pytest.mark.parametrize("size", ["512", "1M", "1G", "63T"])
@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,lazy_refcounts=on",
        "compat=1.1,cluster_size=2M",
        "compat=1.1,extended_l2=on,cluster_size=128k",
        "compat=1.1,compression_type=zstd",
        "compat=1.1,refcount_bits=1",
        "compat=1.1,refcount_bits=64",
    ],
)
def test_what_qemu_makes_is_read_as_qemu_reads_it(tmp_path: Path, options: str, size: str) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, size)
    agrees(path)


@pytest.mark.parametrize("options", ["cluster_size=512", "preallocation=metadata", "preallocation=falloc"])
def test_small_clusters_and_preallocated_images_are_read_alike(tmp_path: Path, options: str) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "64M")
    agrees(path)


@pytest.mark.parametrize("options", [["-o", "compat=0.10"], ["-c"], ["-c", "-o", "compression_type=zstd"], []])
def test_images_with_content_are_read_alike(tmp_path: Path, options: list[str]) -> None:
    source, path = tmp_path / "raw", tmp_path / "image"
    source.write_bytes(b"\xeb" + bytes(range(256)) * 40_000 + bytes(5 << 20))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, source, path)
    agrees(path)


def agrees(path: Path) -> None:
    theirs = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", path))
    ours = look(path)
    details = theirs["format-specific"]["data"]
    assert ours.format == theirs["format"]
    assert ours.virtual_size_bytes == theirs["virtual-size"]
    assert ours.cluster_size_bytes == theirs["cluster-size"]
    assert ours.version == {"0.10": 2, "1.1": 3}[details["compat"]]
    assert ours.compression == details["compression-type"]
    assert ours.has_extended_l2 == details.get("extended-l2", False)
    assert ours.size_bytes == path.stat().st_size


def test_what_qemu_makes_and_we_refuse(tmp_path: Path) -> None:
    base, path = tmp_path / "base", tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "1M")

    def refused(why: str, *command: str | Path) -> None:
        path.unlink(missing_ok=True)
        run("qemu-img", "create", "-q", "-f", "qcow2", *command)
        with pytest.raises(InvalidImage, match=why):
            look(path)

    secret = ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"]
    refused("backing file", "-b", base, "-F", "qcow2", path)
    refused("backing file", "-o", "compat=0.10", "-b", base, "-F", "qcow2", path)
    refused("external data file", "-o", f"data_file={tmp_path}/data", path, "1M")
    refused("external data file", "-o", f"data_file={tmp_path}/data,data_file_raw=on", path, "1M")
    refused("encrypted", *secret, path, "1M")

    path.unlink()
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    run("qemu-img", "bitmap", "--add", path, "b")
    with pytest.raises(InvalidImage, match="bitmaps"):
        look(path)

    path.unlink()
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    run("qemu-img", "snapshot", "-c", "s", path)
    with pytest.raises(InvalidImage, match="1 internal snapshots"):
        look(path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", path, tmp_path / "plain")  # as the hint says
    assert look(tmp_path / "plain").virtual_size_bytes == 1 << 20


@pytest.mark.parametrize(
    ("format_", "name"),
    [
        ("vmdk", "VMDK"),
        ("vdi", "VDI"),
        ("vhdx", "VHDX"),
        ("vpc", "VHD"),
        ("qed", "QED"),
        ("qcow", "qcow image of version 1"),
        ("parallels", "Parallels"),
    ],
)
def test_other_formats_of_qemu_are_refused_by_name(tmp_path: Path, format_: str, name: str) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", format_, path, "8M")
    with pytest.raises(InvalidImage, match=name):
        look(path)


def test_a_fixed_vhd_is_told_by_its_end(tmp_path: Path) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed", path, "8M")
    with pytest.raises(InvalidImage, match="VHD"):
        look(path)


def test_a_raw_image_is_raw(tmp_path: Path) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "raw", path, "8M")
    assert (look(path).format, look(path).virtual_size_bytes) == ("raw", 8 << 20)


def test_a_dirty_image_is_refused_until_it_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "1M")
    abort = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "abort", path]
    subprocess.run([str(word) for word in abort], check=False, capture_output=True)
    with pytest.raises(InvalidImage, match="dirty"):
        look(path)
    run("qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", path)  # as the hint says
    assert look(path).virtual_size_bytes == 1 << 20
