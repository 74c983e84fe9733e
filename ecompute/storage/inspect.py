"""What an image file is, found by reading its header: before any QEMU program sees it.

A qcow2 file can name other files, which QEMU would open for whoever wrote the header; it can hold
tables that point anywhere, and features that the guest's QEMU does not know. Only what is plain
passes: one file, no backing file, no external data file, no encryption, known features, tables
inside the file. Two things that QEMU could read are refused as well:

- internal snapshots: disk contents and machine states that are not the image's, in one more table;
- persistent bitmaps: QEMU parses them when it opens the image, and nothing here needs them.

``qemu-img convert`` makes a plain image of either, and the error says so. Anything that is neither
qcow2 nor known under another name (`ecompute.storage.signatures`) is raw.

Pure over a seekable binary file; reads at most `MAX_READ_BYTES` of it, whatever it claims. Any
thread may call it, with its own file.

Source: QEMU's ``docs/interop/qcow2``; the limits are those of QEMU's ``block/qcow2.h``.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from ecompute.cluster.errors import InvalidImage
from ecompute.storage import signatures

MAGIC = b"QFI\xfb"
SECTOR_BYTES = 512
MAX_VIRTUAL_BYTES = 64 << 40
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_HEADER_BYTES = 2 << 20
MAX_EXTENSIONS = 64
MAX_BACKING_NAME_BYTES = 1023
MAX_READ_BYTES = MAX_L1_BYTES + MAX_HEADER_BYTES + (1 << 20)

_FIELDS_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_FIELDS_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_HEADER_V2_BYTES = 72
_HEADER_V3_BYTES = 104
_READ_AT_ONCE_BYTES = 1 << 20
_L1_OFFSET_MASK = 0x00FFFFFFFFFFFE00

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_AUTOCLEAR_RAW_DATA = 1 << 1

_EXTENSION_END = 0x00000000
_EXTENSION_ENCRYPTION = 0x0537BE77
_EXTENSION_BITMAPS = 0x23852875
_EXTENSION_DATA_FILE = 0x44415441

_CONVERT = "make a plain image of it with 'qemu-img convert -O qcow2'"
_DAMAGED = "fetch or make the image again"


@dataclass(frozen=True)
class ImageInfo:
    format: Literal["qcow2", "raw"]
    virtual_size_bytes: int
    """The size of the disk that a guest sees; a multiple of 512."""
    size_bytes: int
    """The length of the file."""
    cluster_size_bytes: int | None = None
    version: int | None = None
    compression: Literal["zlib", "zstd"] | None = None
    has_extended_l2: bool = False


@dataclass(frozen=True)
class _Header:
    version: int
    backing_file_offset: int
    backing_file_bytes: int
    cluster_bits: int
    virtual_size_bytes: int
    crypt_method: int
    l1_entries: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int
    incompatible: int
    autoclear: int
    refcount_order: int
    header_bytes: int
    compression_type: int

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits


def inspect(file: BinaryIO, name: str = "the image") -> ImageInfo:
    """Return what the image in ``file`` is.

    Args:
        file: seekable, opened for reading.
        name: what errors call it.

    Raises:
        InvalidImage: it is not a plain qcow2 or raw image; the message says why and what to do.
        OSError: the file could not be read.
    """
    size_bytes = file.seek(0, 2)
    if size_bytes == 0:
        raise InvalidImage(f"{name} is empty", hint="check the URL")
    head = _read(file, 0, min(signatures.HEAD_BYTES, size_bytes))
    tail = _read(file, max(0, size_bytes - signatures.TAIL_BYTES), min(signatures.TAIL_BYTES, size_bytes))
    if head.startswith(MAGIC) and not head.startswith(MAGIC + b"\x00\x00\x00\x01"):
        return _qcow2(file, size_bytes, name)
    found = signatures.name_of(head, tail)
    if found is not None:
        raise InvalidImage(f"{name} is {found.name}, not a qcow2 or raw image", hint=found.hint)
    virtual_size_bytes = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    if virtual_size_bytes > MAX_VIRTUAL_BYTES:
        raise InvalidImage(f"{name} is {size_bytes} bytes long; the limit is {MAX_VIRTUAL_BYTES}")
    return ImageInfo("raw", virtual_size_bytes, size_bytes)


def backing_name(file: BinaryIO) -> str | None:
    """Return the backing file that the qcow2 header in ``file`` names, or None.

    For overlays that we made ourselves: which image does this one need?

    Raises:
        InvalidImage: it is not a qcow2 image.
        OSError: the file could not be read.
    """
    size_bytes = file.seek(0, 2)
    if _read(file, 0, min(len(MAGIC), size_bytes)) != MAGIC:
        raise InvalidImage("the file is not a qcow2 image")
    header = _header(file, size_bytes, "the overlay")
    if header.backing_file_offset == 0:
        return None
    if header.backing_file_bytes > MAX_BACKING_NAME_BYTES:
        raise InvalidImage(f"the overlay's backing file has a name of {header.backing_file_bytes} bytes")
    _inside("the backing file's name", header.backing_file_offset, header.backing_file_bytes, size_bytes, "the overlay")
    return _read(file, header.backing_file_offset, header.backing_file_bytes).decode(errors="surrogateescape")


def _qcow2(file: BinaryIO, size_bytes: int, name: str) -> ImageInfo:
    header = _header(file, size_bytes, name)
    _check_plain(header, name)
    _check_sizes(header, size_bytes, name)
    _check_extensions(file, header, size_bytes, name)
    _check_l1(file, header, size_bytes, name)
    return ImageInfo(
        "qcow2",
        header.virtual_size_bytes,
        size_bytes,
        header.cluster_bytes,
        header.version,
        "zstd" if header.compression_type else "zlib",
        bool(header.incompatible & _EXTENDED_L2),
    )


def _header(file: BinaryIO, size_bytes: int, name: str) -> _Header:
    _inside("the header", 0, _HEADER_V2_BYTES, size_bytes, name)
    (
        _,
        version,
        backing_file_offset,
        backing_file_bytes,
        cluster_bits,
        virtual_size_bytes,
        crypt_method,
        l1_entries,
        l1_table_offset,
        refcount_table_offset,
        refcount_table_clusters,
        snapshots,
        _,
    ) = _FIELDS_V2.unpack(_read(file, 0, _HEADER_V2_BYTES))
    if version not in (2, 3):
        raise InvalidImage(f"{name} is qcow2 of version {version}; known are 2 and 3", hint=_CONVERT)
    if not 9 <= cluster_bits <= 21:
        raise InvalidImage(f"{name} has cluster_bits {cluster_bits}; valid are 9 to 21", hint=_DAMAGED)
    incompatible = autoclear = compression_type = 0
    refcount_order, header_bytes = 4, _HEADER_V2_BYTES
    if version == 3:
        _inside("the header", 0, _HEADER_V3_BYTES, size_bytes, name)
        incompatible, _, autoclear, refcount_order, header_bytes = _FIELDS_V3.unpack(
            _read(file, _HEADER_V2_BYTES, _FIELDS_V3.size)
        )
        if not _HEADER_V3_BYTES <= header_bytes <= 1 << cluster_bits or header_bytes % 8:
            raise InvalidImage(f"{name} has a header of {header_bytes} bytes, which cannot be", hint=_DAMAGED)
        _inside("the header", 0, header_bytes, size_bytes, name)
        if header_bytes > _HEADER_V3_BYTES:
            compression_type = _read(file, _HEADER_V3_BYTES, 1)[0]
    return _Header(
        version,
        backing_file_offset,
        backing_file_bytes,
        cluster_bits,
        virtual_size_bytes,
        crypt_method,
        l1_entries,
        l1_table_offset,
        refcount_table_offset,
        refcount_table_clusters,
        snapshots,
        incompatible,
        autoclear,
        refcount_order,
        header_bytes,
        compression_type,
    )


def _check_plain(header: _Header, name: str) -> None:
    if header.backing_file_offset:
        raise InvalidImage(f"{name} has a backing file, which is refused", hint=_CONVERT)
    if header.incompatible & _DATA_FILE or header.autoclear & _AUTOCLEAR_RAW_DATA:
        raise InvalidImage(f"{name} has an external data file, which is refused", hint=_CONVERT)
    if header.crypt_method:
        raise InvalidImage(f"{name} is encrypted, and no key goes with it", hint="offer an image that is not encrypted")
    unknown = header.incompatible & ~_KNOWN_INCOMPATIBLE
    if unknown:
        bits = ", ".join(str(bit) for bit in range(64) if unknown >> bit & 1)
        raise InvalidImage(f"{name} needs unknown qcow2 features (incompatible bits {bits})", hint=_CONVERT)
    if header.incompatible & _CORRUPT:
        raise InvalidImage(f"{name} is marked corrupt", hint="repair it with 'qemu-img check -r all'")
    if header.incompatible & _DIRTY:
        raise InvalidImage(f"{name} is marked dirty: it was not closed", hint="repair it with 'qemu-img check -r all'")
    if header.snapshots:
        raise InvalidImage(f"{name} holds {header.snapshots} internal snapshots, which are refused", hint=_CONVERT)
    if bool(header.incompatible & _COMPRESSION) != (header.compression_type != 0) or header.compression_type > 1:
        raise InvalidImage(f"{name} has the unknown compression type {header.compression_type}", hint=_CONVERT)


def _check_sizes(header: _Header, size_bytes: int, name: str) -> None:
    virtual = header.virtual_size_bytes
    if virtual == 0 or virtual % SECTOR_BYTES or virtual > MAX_VIRTUAL_BYTES:
        raise InvalidImage(
            f"{name} has a virtual size of {virtual} bytes; valid are multiples of 512 up to {MAX_VIRTUAL_BYTES}",
            hint=_DAMAGED,
        )
    has_extended_l2 = bool(header.incompatible & _EXTENDED_L2)
    if has_extended_l2 and header.cluster_bits < 14:
        raise InvalidImage(f"{name} has extended L2 entries with clusters below 16 KiB", hint=_DAMAGED)
    if header.refcount_order > 6:
        raise InvalidImage(f"{name} has refcount order {header.refcount_order}; valid are 0 to 6", hint=_DAMAGED)
    covered_by_l1_entry = header.cluster_bytes * (header.cluster_bytes // (16 if has_extended_l2 else 8))
    needed = -(-virtual // covered_by_l1_entry)
    if not needed <= header.l1_entries <= MAX_L1_BYTES // 8:
        raise InvalidImage(f"{name} has an L1 table of {header.l1_entries} entries and needs {needed}", hint=_DAMAGED)
    _table("L1 table", header.l1_table_offset, header.l1_entries * 8, header, size_bytes, name)
    refcount_table_bytes = header.refcount_table_clusters << header.cluster_bits
    if not 0 < refcount_table_bytes <= MAX_REFCOUNT_TABLE_BYTES:
        raise InvalidImage(f"{name} has a refcount table of {refcount_table_bytes} bytes", hint=_DAMAGED)
    _table("refcount table", header.refcount_table_offset, refcount_table_bytes, header, size_bytes, name)


def _check_extensions(file: BinaryIO, header: _Header, size_bytes: int, name: str) -> None:
    position, end = header.header_bytes, min(header.cluster_bytes, size_bytes)
    for _ in range(MAX_EXTENSIONS):
        if position + _EXTENSION.size > end:
            return
        kind, length = _EXTENSION.unpack(_read(file, position, _EXTENSION.size))
        if kind == _EXTENSION_END:
            return
        if kind == _EXTENSION_DATA_FILE:
            raise InvalidImage(f"{name} names an external data file, which is refused", hint=_CONVERT)
        if kind == _EXTENSION_ENCRYPTION:
            raise InvalidImage(f"{name} has an encryption header, which is refused", hint=_CONVERT)
        if kind == _EXTENSION_BITMAPS:
            raise InvalidImage(f"{name} holds persistent bitmaps, which are refused", hint=_CONVERT)
        position += _EXTENSION.size + (length + 7) // 8 * 8
        if position > end:
            raise InvalidImage(f"{name} has a header extension that leaves the header", hint=_DAMAGED)
    raise InvalidImage(f"{name} has more than {MAX_EXTENSIONS} header extensions", hint=_CONVERT)


def _check_l1(file: BinaryIO, header: _Header, size_bytes: int, name: str) -> None:
    """An L2 table outside the file: it was truncated, or it was never an image."""
    for entries in _l1_entries(file, header):
        for entry in entries:
            offset = entry & _L1_OFFSET_MASK
            if offset >= size_bytes or offset % header.cluster_bytes:
                raise InvalidImage(f"{name} is truncated or damaged: its L1 table points to {offset}", hint=_DAMAGED)


def _l1_entries(file: BinaryIO, header: _Header) -> Iterator[array[int]]:
    position, left = header.l1_table_offset, header.l1_entries * 8
    while left:
        data = _read(file, position, min(left, _READ_AT_ONCE_BYTES))
        entries = array("Q", data)
        if sys.byteorder == "little":
            entries.byteswap()
        yield entries
        position += len(data)
        left -= len(data)


def _table(what: str, offset: int, length: int, header: _Header, size_bytes: int, name: str) -> None:
    if offset < header.cluster_bytes or offset % header.cluster_bytes:
        raise InvalidImage(f"{name} has its {what} at {offset}, where none can be", hint=_DAMAGED)
    _inside(f"its {what}", offset, length, size_bytes, name)


def _inside(what: str, offset: int, length: int, size_bytes: int, name: str) -> None:
    if offset + length > size_bytes:
        raise InvalidImage(f"{name} is truncated: {what} ends at {offset + length} of {size_bytes}", hint=_DAMAGED)


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    """Return exactly ``length`` bytes; the callers have checked that they are there."""
    file.seek(offset)
    data = b""
    while len(data) < length:
        piece = file.read(length - len(data))
        if not piece:
            raise InvalidImage("the image became shorter while it was read", hint=_DAMAGED)
        data += piece
    return data
