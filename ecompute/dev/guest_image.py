"""The small guest: a disk image of some 20 MB that boots by BIOS in seconds, for demos and tests.

One FAT partition with syslinux, the distribution's kernel, and an initramfs of busybox, the few modules
that a virtual machine's disk and network need, and ``files/guest-init``. The guest takes name, keys and
addresses from the config drive and says on the serial console what it found; ``files/guest-init`` lists
the lines. Everything is written into files: no loop device, no mount, and so no privilege is needed,
except that some distributions let only root read their kernel.

Invariants: an image appears under its name only when it is complete; equal inputs give an equal name in
a cache. Any thread of any process may call `build_cached`; the second waits for the first. Two that
`build` the same path do the work twice, and the later one's image takes the place of the earlier one's.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ecompute.cluster.errors import NotFound, StorageError

PACKAGES = {
    "busybox": "busybox-static",
    "mformat": "mtools",
    "mcopy": "mtools",
    "syslinux": "syslinux",
    "qemu-img": "qemu-utils",
}
"""The programs that a build runs, and the Debian packages that have them."""

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "isofs", "button", "evdev")
"""What the guest loads, in this order, each after what it depends on; what the kernel has built in is left out."""

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=3 panic=1 mitigations=off audit=0 random.trust_cpu=on "
    "8250.nr_uarts=1 cryptomgr.notests"
)
SYSLINUX_CONFIG = f"""\
DEFAULT guest
PROMPT 0
LABEL guest
  LINUX /vmlinuz
  INITRD /initrd
  APPEND {KERNEL_ARGUMENTS}
"""

MBR_CODE = Path("/usr/lib/syslinux/mbr/mbr.bin")
SECTOR_BYTES = 512
PARTITION_SECTOR = 2048
CLUSTER_BYTES = 1 << 20
EPOCH = "1577836800"
"""2020-01-01, the time of every file in the image."""

BUILD_TIMEOUT_S = 120


@dataclass(frozen=True)
class Kernel:
    version: str
    image: Path
    modules: Path


def build_cached(cache_dir: Path) -> Path:
    """Return the image in ``cache_dir`` that belongs to today's inputs, built if it is not there.

    Raises:
        NotFound: a program, the boot code or a kernel is missing; the hint names the packages.
        StorageError: a step of the build failed.
    """
    path = cache_dir / f"guest-{inputs_key()}.qcow2"
    if path.exists():
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / ".guest-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Whoever had the lock is done, or was killed and left its scratch directory.
        for left in cache_dir.glob(".guest-*.qcow2.*"):
            shutil.rmtree(left, ignore_errors=True)
        return path if path.exists() else build(path)


def inputs_key() -> str:
    """Return a name for all that goes into an image: kernel, programs, our files and this module."""
    tools = find_tools()
    kernel = find_kernel()
    digest = hashlib.sha256(f"{kernel.version}\n{SYSLINUX_CONFIG}\n{MODULES}\n".encode())
    for found in (kernel.image, tools["busybox"], tools["syslinux"], MBR_CODE):
        facts = found.stat()
        digest.update(f"{found} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    for name in ("guest-init", "guest-json.awk", "guest-udhcpc"):
        digest.update(read_own(name))
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def build(path: Path) -> Path:
    """Build the image as the qcow2 file ``path`` and return ``path``; an existing file is replaced.

    Raises:
        NotFound: a program, the boot code or a kernel is missing; the hint names the packages.
        StorageError: a step of the build failed; nothing is left under ``path``.
    """
    tools = find_tools()
    kernel = find_kernel()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its destination, so that the rename at the end stays in one file system.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        scratch = Path(name)
        (scratch / "initrd").write_bytes(initramfs(kernel, tools["busybox"]))
        (scratch / "syslinux.cfg").write_text(SYSLINUX_CONFIG)
        disk = make_disk(scratch, kernel, tools)
        finished = scratch / "finished"
        run([tools["qemu-img"], "convert", "-f", "raw", "-O", "qcow2", disk, finished])
        with finished.open("rb") as file:
            os.fsync(file.fileno())
        finished.replace(path)
    return path


# --- what is on this machine ---------------------------------------------------------------------


def find_tools() -> dict[str, Path]:
    # sbin is not on every user's PATH, and mtools does not need root.
    where = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=where) for name in PACKAGES}
    missing = {PACKAGES[name] for name, program in found.items() if program is None}
    if not MBR_CODE.exists():
        missing.add("syslinux-common")
    if missing:
        raise NotFound(
            f"the small guest image cannot be built: {', '.join(sorted(missing))} not installed",
            hint=f"apt-get install --no-install-recommends {' '.join(sorted(missing))}",
        )
    tools = {name: Path(program) for name, program in found.items() if program is not None}
    if not is_static(tools["busybox"].read_bytes()):
        raise NotFound(
            f"{tools['busybox']} needs libraries that the small guest does not have",
            hint="apt-get install --no-install-recommends busybox-static",
        )
    return tools


def is_static(program: bytes) -> bool:
    """Whether an ELF ``program`` (64 bits, little-endian) runs without a loader: it has no PT_INTERP segment."""
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    return all(struct.unpack_from("<I", program, table + place * size) != (3,) for place in range(count))


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """Return the newest installed kernel that has its modules, one made for virtual machines if there is one."""
    kernels = [
        Kernel(version, image, modules / version)
        for image in boot.glob("vmlinuz-*")
        if (modules / (version := image.name.removeprefix("vmlinuz-")) / "modules.dep").exists()
    ]
    if not kernels:
        raise NotFound(
            f"no kernel for the small guest: no vmlinuz in {boot} has its modules in {modules}",
            hint="apt-get install --no-install-recommends linux-image-cloud-amd64 (Ubuntu: linux-image-virtual)",
        )
    best = max(kernels, key=lambda kernel: (is_for_guests(kernel.version), version_key(kernel.version)))
    if not os.access(best.image, os.R_OK):
        raise NotFound(f"{best.image} cannot be read by this user", hint="run as root, or make it readable")
    return best


def is_for_guests(version: str) -> bool:
    return version.endswith(("-cloud-amd64", "-virtual", "-kvm"))


def version_key(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version))


def module_files(kernel: Kernel, wanted: Sequence[str] = MODULES) -> list[Path]:
    """Return the files of the modules ``wanted``, each after those it depends on, none twice.

    Raises:
        NotFound: the kernel has one neither as a module nor built in.
    """
    depends: dict[str, tuple[Path, list[str]]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        file, _, needed = line.partition(":")
        depends[module_name(file)] = (kernel.modules / file, [module_name(other) for other in needed.split()])
    builtin = {module_name(line) for line in (kernel.modules / "modules.builtin").read_text().splitlines()}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in depends:
            raise NotFound(f"kernel {kernel.version} has no module {name}", hint="install another kernel")
        file, needed = depends[name]
        for other in reversed(needed):  # modules.dep has the nearest first
            add(other)
        order[name] = file

    for name in wanted:
        add(name)
    return list(order.values())


def module_name(file: str) -> str:
    return Path(file).name.partition(".ko")[0].replace("-", "_")


def read_module(file: Path) -> bytes:
    # busybox's insmod hands the kernel the plain file.
    if file.suffix == ".xz":
        return lzma.decompress(file.read_bytes())
    if file.suffix == ".zst":
        return run(["zstd", "-dc", file])
    return file.read_bytes()


# --- the parts of the image ----------------------------------------------------------------------


def read_own(name: str) -> bytes:
    return (resources.files("ecompute.dev") / "files" / name).read_bytes()


def initramfs(kernel: Kernel, busybox: Path) -> bytes:
    """Return the initramfs as a cpio archive; not compressed, since unpacking it is what an emulated CPU is slow at."""
    archive = Archive()
    for directory in ("bin", "config", "dev", "etc", "modules", "proc", "run", "sys"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))  # standard output, before /dev is mounted
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    for applet in run([busybox, "--list"]).decode().split():
        if applet != "busybox":
            archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    files = module_files(kernel)
    for file in files:
        archive.add(f"modules/{module_name(file.name)}", stat.S_IFREG | 0o644, read_module(file))
    order = "".join(f"{module_name(file.name)}\n" for file in files)
    archive.add("modules/order", stat.S_IFREG | 0o644, order.encode())
    archive.add("init", stat.S_IFREG | 0o755, read_own("guest-init"))
    archive.add("json.awk", stat.S_IFREG | 0o644, read_own("guest-json.awk"))
    archive.add("udhcpc.script", stat.S_IFREG | 0o755, read_own("guest-udhcpc"))
    return archive.finish()


class Archive:
    """A cpio archive in the ``newc`` format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts += [pad(header + encoded), pad(data)]

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def make_disk(scratch: Path, kernel: Kernel, tools: dict[str, Path]) -> Path:
    """Write the raw disk: boot code, one partition, syslinux, kernel and initramfs."""
    disk = scratch / "disk"
    content_bytes = kernel.image.stat().st_size + (scratch / "initrd").stat().st_size
    clusters = -(-content_bytes // CLUSTER_BYTES) + 2  # syslinux itself, the tables, the root directory
    sectors = clusters * CLUSTER_BYTES // SECTOR_BYTES
    with disk.open("wb") as file:
        file.truncate((PARTITION_SECTOR + sectors) * SECTOR_BYTES)
        file.write(boot_record(MBR_CODE.read_bytes(), PARTITION_SECTOR, sectors))
    offset = PARTITION_SECTOR * SECTOR_BYTES
    target = f"{disk}@@{offset}"
    # Large clusters: the boot loader reads one after the other through the BIOS.
    geometry = ["-h", "64", "-s", "32", "-T", str(sectors), "-H", str(PARTITION_SECTOR), "-c", "32"]
    run([tools["mformat"], "-i", target, "-v", "GUEST", "-N", "20200101", *geometry, "::"])
    sources = {kernel.image: "::vmlinuz", scratch / "initrd": "::initrd", scratch / "syslinux.cfg": "::syslinux.cfg"}
    for source, name in sources.items():
        run([tools["mcopy"], "-i", target, source, name])
    run([tools["syslinux"], "--offset", str(offset), "--install", disk])
    return disk


def boot_record(code: bytes, first_sector: int, sectors: int) -> bytes:
    """Return a master boot record with one active FAT16 partition."""
    beyond_chs = b"\xfe\xff\xff"  # cylinder, head and sector are not meant: use the sector numbers
    entry = struct.pack("<B3sB3sII", 0x80, beyond_chs, 0x0E, beyond_chs, first_sector, sectors)
    return code[:440].ljust(440, b"\0") + b"GUES" + b"\0\0" + entry.ljust(64, b"\0") + b"\x55\xaa"


def run(arguments: Sequence[str | Path]) -> bytes:
    environment = {
        **os.environ,
        "SOURCE_DATE_EPOCH": EPOCH,
        "MTOOLS_SKIP_CHECK": "1",
        "MTOOLSRC": os.devnull,
        "TZ": "UTC",
        "LC_ALL": "C",
    }
    program = Path(arguments[0]).name
    try:
        done = subprocess.run(arguments, capture_output=True, check=False, env=environment, timeout=BUILD_TIMEOUT_S)
    except FileNotFoundError as error:
        raise NotFound(f"the small guest image cannot be built: no {program}", hint=f"install {program}") from error
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"{program} did not end within {BUILD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise StorageError(f"{program} failed with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout
