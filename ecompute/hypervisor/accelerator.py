"""Which accelerator guests get: found by running something under each.

``/dev/kvm`` may be there and not serve, or serve slower than QEMU's own emulation. So a boot sector is
run with the CPU that guests will get; it computes for a moment (the firmware alone mostly waits) and
ends QEMU with a status of its own. KVM is taken if it gets there, and sooner than TCG.

Threads: any. QEMU is started as a child program, without `preexec_fn`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ecompute.cluster.errors import HypervisorError, one_line
from ecompute.hypervisor.qmp import Monitor

QEMU = "qemu-system-x86_64"

KVM_DEVICE = Path("/dev/kvm")

TIMEOUT_S = 10.0
"""For one trial. TCG needs half a second; one that needs twenty times that is nothing to choose."""

CPU = {"kvm": "host", "tcg": "max"}
"""What libvirt makes of the CPU modes in `domain` (``host-passthrough`` and ``maximum``)."""

_ROUNDS = 20_000_000
_SIGNAL = 0x2A
_EXIT_STATUS = _SIGNAL << 1 | 1
"""What the device ``isa-debug-exit`` makes of it."""

# A call and its return a round: for a processor next to nothing, for an emulator a look-up of where to go on.
BOOT_SECTOR = (
    b"\x31\xc0\x8e\xd0"  # xor ax, ax; mov ss, ax
    + b"\xbc\x00\x70"  # mov sp, 0x7000 (in another page than the code, which an emulator watches for writes)
    + b"\x66\xb9" + _ROUNDS.to_bytes(4, "little")  # mov ecx, rounds
    + b"\xe8\x09\x00"  # again: call done
    + b"\x66\x49"  # dec ecx
    + b"\x75\xf9"  # jnz again
    + bytes([0xB0, _SIGNAL])  # mov al, signal
    + b"\xe6\xf4"  # out 0xf4, al
    + b"\xf4\xc3"  # hlt; done: ret
).ljust(510, b"\0") + b"\x55\xaa"  # fmt: skip

_DISK_BYTES = 1 << 20
"""The firmware does not start from a virtio disk of a single sector."""


@dataclass(frozen=True)
class Trial:
    """``accelerator`` is ``kvm`` or ``tcg``; ``seconds`` has those that got there; ``reason`` is for people."""

    accelerator: str
    seconds: dict[str, float]
    reason: str


def trial(*, timeout_s: float = TIMEOUT_S) -> Trial:
    """Run the boot sector under TCG and, where there is a ``/dev/kvm``, under KVM.

    Takes up to ``timeout_s`` for each.

    Raises:
        HypervisorError: QEMU is not there, or not even TCG works.
    """
    seconds = {"tcg": measure("tcg", timeout_s=timeout_s)}
    if not KVM_DEVICE.exists():
        return choose(seconds, f"there is no {KVM_DEVICE}")
    try:
        # It has lost once it needs longer than TCG; a little more tells a slow one from one that stands still.
        seconds["kvm"] = measure("kvm", timeout_s=min(timeout_s, max(2.0, 4 * seconds["tcg"])))
    except HypervisorError as error:
        return choose(seconds, str(error))
    return choose(seconds)


def choose(seconds: dict[str, float], why_not_kvm: str = "") -> Trial:
    """Return what the measured times mean (pure)."""
    tcg, kvm = seconds["tcg"], seconds.get("kvm")
    if kvm is None:
        return Trial("tcg", seconds, f"a boot sector took {tcg:.2f} s under TCG; not under KVM: {why_not_kvm}")
    chosen = "kvm" if kvm < tcg else "tcg"
    return Trial(chosen, seconds, f"a boot sector took {kvm:.2f} s under KVM, {tcg:.2f} s under TCG")


def remembered(path: Path, configured: str = "auto") -> Trial:
    """Return the choice in the file ``path``, or try and write it there.

    It is tried again once the kernel, QEMU or the machine are others.

    Args:
        configured: ``kvm`` or ``tcg`` is taken as it is, and nothing is tried.

    Raises:
        HypervisorError: as `trial`.
    """
    if configured != "auto":
        return Trial(configured, {}, "set in the configuration")
    machine = _fingerprint()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["machine"] == machine and kept["accelerator"] in CPU:
            return Trial(kept["accelerator"], dict(kept["seconds"]), str(kept["reason"]))
    found = trial()
    kept = {"accelerator": found.accelerator, "seconds": found.seconds, "reason": found.reason, "machine": machine}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return found


def _fingerprint() -> list[str]:
    """What the choice depends on, roughly."""
    program = shutil.which(QEMU)
    build = str(Path(program).stat().st_mtime_ns) if program else ""
    models = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return [os.uname().release, build, str(KVM_DEVICE.exists()), *models[:1]]


def measure(accelerator: str, *, timeout_s: float) -> float:
    """Return how many seconds the boot sector takes under ``accelerator``, from the processor's first step.

    Raises:
        HypervisorError: it does not get there in time, or QEMU ends otherwise; says what QEMU said.
    """
    with tempfile.TemporaryDirectory(prefix="ecompute-trial-") as name, _qemu(Path(name), accelerator) as started:
        process, monitor_end = started
        deadline = time.monotonic() + timeout_s
        try:
            with Monitor(monitor_end, timeout_s=timeout_s) as monitor:
                if accelerator == "kvm" and not monitor.execute("query-kvm")["enabled"]:
                    raise HypervisorError("QEMU runs without KVM")
                begun = time.monotonic()
                monitor.execute("cont")
                has_ended = _wait(process, deadline)
                ended = time.monotonic()
        except HypervisorError as error:
            _wait(process, time.monotonic() + 0.5)
            raise HypervisorError(_said(Path(name)) or str(error)) from error
        if not has_ended:
            raise HypervisorError(f"nothing after {timeout_s:g} s")
        if process.wait() != _EXIT_STATUS:
            raise HypervisorError(_said(Path(name)) or f"QEMU ended with status {process.returncode}")
        return ended - begun


@contextlib.contextmanager
def _qemu(directory: Path, accelerator: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Start QEMU, halted before its first step; end it on the way out."""
    disk = directory / "boot"
    disk.write_bytes(BOOT_SECTOR.ljust(_DISK_BYTES, b"\0"))
    ours, its = socket.socketpair()
    argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S", "-m", "32"]
    argv += ["-machine", "q35", "-accel", accelerator, "-cpu", CPU[accelerator]]
    argv += ["-drive", f"file={disk},format=raw,if=virtio,readonly=on"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    argv += ["-chardev", f"socket,id=monitor,fd={its.fileno()}", "-mon", "chardev=monitor,mode=control"]
    with contextlib.ExitStack() as stack:
        stack.callback(ours.close)
        stack.callback(its.close)
        output = stack.enter_context((directory / "output").open("wb"))
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=[its.fileno()]
            )
        except OSError as error:
            raise HypervisorError(f"cannot start {QEMU}: {error.strerror}", hint="install qemu-system-x86") from error
        stack.callback(process.wait)
        stack.callback(process.kill)
        its.close()  # so that the monitor notices when QEMU ends
        yield process, ours


def _wait(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for the process, to the millisecond (`Popen.wait` with a timeout looks every 50); do not reap it."""
    handle = os.pidfd_open(process.pid)
    try:
        return bool(select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0])
    finally:
        os.close(handle)


def _said(directory: Path) -> str:
    """Return the last line that QEMU printed that is no warning."""
    lines = (directory / "output").read_text(errors="replace").splitlines()
    return next((one_line(line) for line in reversed(lines) if line.strip() and "warning:" not in line), "")
