"""The small guest under QEMU itself, without libvirt: what it does with a drive is seen on its console."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ecompute.dev import guest_image
from ecompute.dev.processes import Child

CACHE = Path(__file__).parents[3] / ".cache" / "guest-image"
BOOT_TIMEOUT_S = 90
"""Some five seconds are enough; a busy machine without hardware help may need many times that."""


class Guest:
    """A running QEMU, and what its guest has said."""

    def __init__(self, directory: Path, image: Path, drive: Path | None, network: Sequence[str]) -> None:
        self.console = directory / "console"
        self.monitor = directory / "monitor"
        self.child = Child(
            "the small guest",
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "128"),
                *("-nodefaults", "-display", "none", "-no-reboot"),
                *("-serial", f"file:{self.console}"),
                *("-monitor", f"unix:{self.monitor},server=on,wait=off"),
                *("-drive", f"file={image},if=virtio,format=qcow2,snapshot=on"),
                *(() if drive is None else ("-drive", f"file={drive},if=virtio,format=raw,readonly=on")),
                *network,
            ],
            directory / "qemu.log",
        )

    def lines(self) -> list[str]:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return [line.rstrip("\r") for line in text.split("\n")[:-1]]

    def wait_for(self, line: str) -> list[str]:
        """Wait until the guest has said ``line``; return all that it has said."""
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while line not in self.lines():
            assert self.child.is_running, f"QEMU ended: {self.child.log_tail()} {self.lines()}"
            assert time.monotonic() < deadline, f"no line {line!r} after {BOOT_TIMEOUT_S} s: {self.lines()}"
            time.sleep(0.05)
        return self.lines()

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.settimeout(10)
            monitor.connect(str(self.monitor))
            monitor.sendall(b"system_powerdown\n")
            answer = b""
            while b"system_powerdown\x1b[K\r\n(qemu) " not in answer:  # until then it is not obeyed
                answer += monitor.recv(4096)


@pytest.fixture(scope="session")
def small_image() -> Path:
    return guest_image.build_cached(CACHE)


@pytest.fixture
def boot(small_image: Path, tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def start(drive: Path | None, network: Sequence[str]) -> Guest:
        directory = tmp_path / f"guest-{len(guests)}"
        directory.mkdir()
        guests.append(Guest(directory, small_image, drive, network))
        guests[-1].child.start()
        return guests[-1]

    yield start
    for guest in guests:
        guest.child.stop()
