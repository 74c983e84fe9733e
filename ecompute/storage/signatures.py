"""What is certainly not a disk that we boot, told by its signature.

An image is qcow2 or raw. Raw is "anything else", so that whatever has a name of its own is named
here and refused: a guest booted from a gzip stream or an error page says nothing useful. Pure; any
thread may call it.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 40 * 1024
"""How much of a file's beginning `name_of` looks at."""

TAIL_BYTES = 512
"""And of its end."""

_TEXT = frozenset(b"\t\n\r\x0c\x1b") | frozenset(range(0x20, 0x7F))
_CONVERT = "convert it with 'qemu-img convert -O qcow2' and offer the result"
_UNPACK = "offer the unpacked image"
_SERVER = "check the URL: the server answers with a page, not with an image"


@dataclass(frozen=True)
class Signature:
    name: str
    hint: str


@dataclass(frozen=True)
class _Magic:
    offset: int
    magic: bytes
    name: str
    hint: str


_MAGICS = (
    _Magic(0, b"QFI\xfb\x00\x00\x00\x01", "a qcow image of version 1", _CONVERT),
    _Magic(0, b"KDMV", "a VMDK image", _CONVERT),
    _Magic(0, b"COWD", "a VMDK image", _CONVERT),
    _Magic(0, b"# Disk DescriptorFile", "a VMDK descriptor", _CONVERT),
    _Magic(64, b"\x7f\x10\xda\xbe", "a VDI image", _CONVERT),
    _Magic(0, b"vhdxfile", "a VHDX image", _CONVERT),
    _Magic(0, b"conectix", "a VHD image", _CONVERT),
    _Magic(0, b"QED\x00", "a QED image", _CONVERT),
    _Magic(0, b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    _Magic(0, b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    _Magic(0, b"Bochs Virtual HD Image", "a Bochs image", _CONVERT),
    _Magic(0, b"LUKS\xba\xbe", "a LUKS volume", "offer an image that is not encrypted"),
    _Magic(0x8001, b"CD001", "an ISO 9660 image", "offer the image of an installed disk"),
    _Magic(0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
    _Magic(0, b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    _Magic(0, b"BZh", "compressed with bzip2", _UNPACK),
    _Magic(0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    _Magic(0, b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    _Magic(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Magic(0, b"PK\x03\x04", "a ZIP archive", _UNPACK),
    _Magic(0, b"PK\x05\x06", "a ZIP archive", _UNPACK),
    _Magic(0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    _Magic(257, b"ustar", "a tar archive or an OVA", _UNPACK),
)

_TAIL_MAGICS = (
    (512, b"conectix", "a VHD image", _CONVERT),
    (511, b"conectix", "a VHD image", _CONVERT),
    (512, b"koly", "a DMG image", _CONVERT),
)

_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<!--", b"<title")


def is_html(head: bytes) -> bool:
    """Return whether ``head`` begins like an HTML page."""
    return head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML)


def name_of(head: bytes, tail: bytes = b"") -> Signature | None:
    """Return what the file is if it is known and no disk image of ours, or None.

    Args:
        head: the first `HEAD_BYTES` of the file, or all of a shorter one.
        tail: the last `TAIL_BYTES`, where they are known.
    """
    for known in _MAGICS:
        if head.startswith(known.magic, known.offset):
            return Signature(known.name, known.hint)
    for distance, magic, name, hint in _TAIL_MAGICS:
        if len(tail) >= distance and tail.startswith(magic, len(tail) - distance):
            return Signature(name, hint)
    if is_html(head):
        return Signature("an HTML page", _SERVER)
    # The first sector of a disk holds a boot loader, a partition table, or zeros: never only text.
    if head and _TEXT.issuperset(head[:512]):
        return Signature("text", _SERVER)
    return None
