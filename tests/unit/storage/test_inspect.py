"""The header reader against headers put together by hand, and against anything at all."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidImage
from ecompute.storage.inspect import MAX_READ_BYTES, MAX_VIRTUAL_BYTES, ImageInfo, backing_name, inspect

CLUSTER = 65536
GIB = 1 << 30

FIELDS: dict[str, tuple[int, str]] = {
    "version": (4, ">I"),
    "backing_file_offset": (8, ">Q"),
    "backing_file_bytes": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "virtual_size": (24, ">Q"),
    "crypt_method": (32, ">I"),
    "l1_entries": (36, ">I"),
    "l1_offset": (40, ">Q"),
    "refcount_offset": (48, ">Q"),
    "refcount_clusters": (56, ">I"),
    "snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_bytes": (100, ">I"),
    "compression": (104, ">B"),
}


def qcow2(*, extensions: bytes = b"", l1: bytes = b"", size: int = 4 * CLUSTER, **changed: int) -> bytes:
    """A plain image of 1 GiB in four clusters (header, refcount table, a refcount block, L1), changed."""
    fields = {
        "version": 3,
        "cluster_bits": 16,
        "virtual_size": GIB,
        "l1_entries": 2,
        "l1_offset": 3 * CLUSTER,
        "refcount_offset": CLUSTER,
        "refcount_clusters": 1,
        "refcount_order": 4,
        "header_bytes": 112,
    } | changed
    image = bytearray(max(size, 4 * CLUSTER))
    image[:4] = b"QFI\xfb"
    for name, value in fields.items():
        offset, format_ = FIELDS[name]
        if fields["version"] >= 3 or offset < 72:
            struct.pack_into(format_, image, offset, value)
    start = fields["header_bytes"] if fields["version"] >= 3 else 72
    image[start : start + len(extensions)] = extensions
    image[3 * CLUSTER : 3 * CLUSTER + len(l1)] = l1
    return bytes(image[:size])


def extension(kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def look(content: bytes) -> ImageInfo:
    return inspect(io.BytesIO(content))


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_qcow2_passes(version: int) -> None:
    found = look(qcow2(version=version))
    assert (found.format, found.virtual_size_bytes, found.version) == ("qcow2", GIB, version)
    assert found.compression == "zlib"


def test_a_header_of_the_least_length_passes() -> None:
    assert look(qcow2(header_bytes=104)).format == "qcow2"


def test_zstd_and_extended_l2_entries_pass() -> None:
    found = look(qcow2(incompatible=0b11000, compression=1, l1_entries=4))
    assert found.compression == "zstd"
    assert found.has_extended_l2


def test_unknown_extensions_and_compatible_features_are_passed_over() -> None:
    both = extension(0x6803F857, bytes(48)) + extension(0x12345678, b"abc") + extension(0)
    assert look(qcow2(extensions=both, compatible=1 << 40)).format == "qcow2"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"backing_file_offset": 512, "backing_file_bytes": 11}, "backing file"),
        ({"backing_file_offset": 512, "backing_file_bytes": 0}, "backing file"),
        ({"incompatible": 1 << 2}, "external data file"),
        ({"autoclear": 1 << 1}, "external data file"),
        ({"extensions": extension(0x44415441, b"/etc/shadow")}, "external data file"),
        ({"extensions": extension(0x44415441, b"/etc/shadow"), "version": 2}, "external data file"),
        ({"extensions": extension(1) * 9 + extension(0x44415441, b"/etc/shadow")}, "external data file"),
        ({"crypt_method": 1}, "encrypted"),
        ({"crypt_method": 2}, "encrypted"),
        ({"extensions": extension(0x0537BE77, bytes(16))}, "encryption header"),
        ({"extensions": extension(0x23852875, bytes(24))}, "bitmaps"),
        ({"incompatible": 1 << 5}, "unknown qcow2 features .incompatible bits 5"),
        ({"incompatible": 1 << 63 | 1 << 7}, "bits 7, 63"),
        ({"incompatible": 1 << 0}, "dirty"),
        ({"incompatible": 1 << 1}, "corrupt"),
        ({"snapshots": 1}, "1 internal snapshots"),
        ({"incompatible": 1 << 3}, "compression type 0"),
        ({"compression": 1}, "compression type 1"),
        ({"incompatible": 1 << 3, "compression": 2}, "compression type 2"),
        ({"incompatible": 1 << 3, "header_bytes": 104}, "compression type"),
        ({"version": 0}, "version 0"),
        ({"version": 4}, "version 4"),
        ({"cluster_bits": 8}, "cluster_bits 8"),
        ({"cluster_bits": 22}, "cluster_bits 22"),
        ({"cluster_bits": 0xFFFFFFFF}, "cluster_bits"),
        ({"header_bytes": 96}, "header of 96"),
        ({"header_bytes": 105}, "header of 105"),
        ({"header_bytes": 0xFFFFFFF8}, "header of"),
        ({"refcount_order": 7}, "refcount order 7"),
        ({"virtual_size": 0}, "virtual size of 0"),
        ({"virtual_size": 513}, "virtual size of 513"),
        ({"virtual_size": MAX_VIRTUAL_BYTES + 512}, "virtual size"),
        ({"virtual_size": (1 << 64) - 512}, "virtual size"),
        ({"virtual_size": 2 * GIB}, "L1 table of 2 entries and needs 4"),
        ({"l1_entries": 0}, "L1 table of 0"),
        ({"l1_entries": 0xFFFFFFFF}, "L1 table"),
        ({"l1_entries": 8193}, "truncated: its L1 table"),
        ({"l1_offset": 0}, "L1 table at 0"),
        ({"l1_offset": 3 * CLUSTER + 8}, "L1 table at"),
        ({"l1_offset": 4 * CLUSTER}, "truncated: its L1 table"),
        ({"l1_offset": 0xFFFFFFFFFFFF0000}, "truncated: its L1 table"),
        ({"refcount_clusters": 0}, "refcount table of 0"),
        ({"refcount_clusters": 129}, "refcount table of"),
        ({"refcount_clusters": 4}, "truncated: its refcount table"),
        ({"refcount_offset": 0}, "refcount table at 0"),
        ({"incompatible": 1 << 4, "cluster_bits": 13}, "extended L2"),
        ({"extensions": struct.pack(">II", 1, 0xFFFFFFFF)}, "leaves the header"),
        ({"extensions": struct.pack(">II", 1, CLUSTER)}, "leaves the header"),
        ({"extensions": extension(1) * 70}, "more than 64"),
        ({"l1": struct.pack(">Q", 1 << 63 | 4 * CLUSTER)}, "truncated or damaged"),
        ({"l1": struct.pack(">QQ", 0, 512)}, "truncated or damaged"),
        ({"size": 4}, "truncated: the header"),
        ({"size": 71}, "truncated: the header"),
        ({"size": 103}, "truncated: the header"),
        ({"size": 2 * CLUSTER}, "truncated"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_reason(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidImage, match=why) as caught:
        look(qcow2(**changed))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_an_l1_table_is_read_to_its_end() -> None:
    """64 TiB in clusters of 64 KiB: the wrong entry is the last of 131072."""
    entries = MAX_VIRTUAL_BYTES // (512 << 20)
    image = qcow2(virtual_size=MAX_VIRTUAL_BYTES, l1_entries=entries, size=3 * CLUSTER + 8 * entries)
    assert look(image).virtual_size_bytes == MAX_VIRTUAL_BYTES
    with pytest.raises(InvalidImage, match="its L1 table points to"):
        look(image[:-8] + struct.pack(">Q", 1 << 40))


@pytest.mark.parametrize(("size", "virtual"), [(512, 512), (513, 1024), (1 << 20, 1 << 20)])
def test_anything_else_is_raw(size: int, virtual: int) -> None:
    assert look(b"\xeb" + bytes(size - 1)) == ImageInfo("raw", virtual, size)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"QFI\xfb\x00\x00\x00\x01" + bytes(512), "qcow image of version 1"),
        (b"KDMV" + bytes(512), "VMDK"),
        (b"# Disk DescriptorFile\nversion=1\n", "VMDK"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(512), "VDI"),
        (b"vhdxfile" + bytes(512), "VHDX"),
        (b"conectix" + bytes(2048), "VHD"),
        (bytes(2048) + b"conectix" + bytes(504), "VHD"),
        (bytes(2048) + b"conectix" + bytes(503), "VHD"),
        (bytes(2048) + b"koly" + bytes(508), "DMG"),
        (b"LUKS\xba\xbe" + bytes(512), "LUKS"),
        (bytes(0x8001) + b"CD001" + bytes(2048), "ISO 9660"),
        (b"\x1f\x8b\x08" + bytes(512), "gzip"),
        (b"\xfd7zXZ\x00" + bytes(512), "xz"),
        (b"BZh91AY" + bytes(512), "bzip2"),
        (b"PK\x03\x04" + bytes(512), "ZIP"),
        (b"disk.ovf" + bytes(249) + b"ustar" + bytes(512), "tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(512), "zstd"),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML>\x00" + bytes(512), "HTML"),
        (b"<html>" + b"a" * 512, "HTML"),
        (b'{"error": "no such image"}', "text"),
        (b"not found", "text"),
    ],
)
def test_a_file_with_a_name_of_its_own_is_refused_by_that_name(content: bytes, name: str) -> None:
    with pytest.raises(InvalidImage, match=name) as caught:
        look(content)
    assert caught.value.hint


def test_an_empty_file_is_no_image() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        look(b"")


def test_a_file_that_begins_as_qcow2_is_never_raw() -> None:
    with pytest.raises(InvalidImage):
        look(b"QFI\xfb" + bytes(1 << 20))


def test_the_backing_file_of_an_overlay_is_read() -> None:
    image = bytearray(qcow2(backing_file_offset=512, backing_file_bytes=5))
    image[512:517] = b"/a/bc"
    assert backing_name(io.BytesIO(bytes(image))) == "/a/bc"
    assert backing_name(io.BytesIO(qcow2())) is None


# --- anything at all -----------------------------------------------------------------------------


class Counted(io.BytesIO):
    """Counts what is read, and takes no read without a limit."""

    total = 0

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        assert size is not None
        assert 0 <= size <= MAX_READ_BYTES
        data = super().read(size)
        self.total += len(data)
        return data


def survives(content: bytes) -> None:
    for reader in (inspect, backing_name):
        file = Counted(content)
        try:
            reader(file)
        except InvalidImage as error:
            assert "\n" not in str(error)
        assert file.total <= min(MAX_READ_BYTES, 4 * len(content) + 4096)


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=2048))
def test_no_bytes_crash_the_reader(content: bytes) -> None:
    survives(content)


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=512))
def test_no_bytes_behind_the_magic_crash_the_reader(content: bytes) -> None:
    survives(b"QFI\xfb\x00\x00\x00\x03" + content)


_EDGES = st.sampled_from([0, 1, 2, 7, 8, 9, 16, 21, 72, 104, 112, 511, 512, CLUSTER, 1 << 31, (1 << 32) - 1])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), _EDGES | st.integers(0, (1 << 64) - 1), max_size=4),
    st.binary(max_size=128),
    st.binary(max_size=16),
    st.sampled_from([4 * CLUSTER, 3 * CLUSTER + 16, 3 * CLUSTER, CLUSTER, 512, 104, 72, 8]),
)
def test_no_changed_header_crashes_the_reader(fields: dict[str, int], extensions: bytes, l1: bytes, size: int) -> None:
    image = bytearray(qcow2(extensions=extensions, l1=l1))
    for name, value in fields.items():
        offset, format_ = FIELDS[name]
        struct.pack_into(format_, image, offset, value & ((1 << 8 * struct.calcsize(format_)) - 1))
    survives(bytes(image[:size]))


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 4 * CLUSTER))
def test_a_shortened_image_is_refused_or_whole(size: int) -> None:
    content = qcow2(size=size)
    survives(content)
    if 0 < size < 3 * CLUSTER + 16:
        with pytest.raises(InvalidImage):
            look(content)


@settings(deadline=None)  # a busy machine is no failure
@given(
    backing=st.sampled_from([0, 512]),
    data_file=st.booleans(),
    crypt=st.sampled_from([0, 1, 2]),
    unknown=st.integers(0, (1 << 64) - 1).map(lambda bits: bits & ~0b11111),
    snapshots=st.sampled_from([0, 3]),
)
def test_what_passes_is_plain(backing: int, data_file: bool, crypt: int, unknown: int, snapshots: int) -> None:
    image = qcow2(
        backing_file_offset=backing,
        incompatible=unknown | (4 if data_file else 0),
        crypt_method=crypt,
        snapshots=snapshots,
    )
    is_plain = not (backing or data_file or crypt or unknown or snapshots)
    try:
        look(image)
    except InvalidImage:
        assert not is_plain
    else:
        assert is_plain
