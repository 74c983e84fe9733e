"""Telling the neighbours of a device that an address is here now: gratuitous ARP.

Both forms are sent (RFC 5227, section 3, and the one that routers are used to from redundancy protocols): some
listen to requests, some to replies. They are sent again after a while: frames are lost, and the host that had the
address before answers for it until it has heard of that.

An address that cannot be announced serves nevertheless, so that is no error. Any thread of the namespace may call
this; what is sent again is sent on a worker of the timers.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import threading

from ecompute.cluster.retries import Retries

AGAIN_S = (2.0, 10.0)
"""After so long each: longer than a host pauses between two looks at a network, and than a switch needs to learn."""

log = logging.getLogger(__name__)

_ETH_P_ARP = 0x0806
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6


def frames(address: str, mac: str) -> tuple[bytes, bytes]:
    """Return the two frames that say that ``address`` is at ``mac``. Pure."""
    own, ip = bytes.fromhex(mac.replace(":", "")), socket.inet_aton(address)

    def frame(operation: int, target: bytes) -> bytes:
        header = _BROADCAST + own + struct.pack("!HHHBBH", _ETH_P_ARP, 1, 0x0800, 6, 4, operation)
        return header + own + ip + target + ip

    return frame(_REQUEST, bytes(6)), frame(_REPLY, _BROADCAST)


class Announcer:
    """Announces addresses on devices, and knows which it has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._announced: dict[tuple[str, str], tuple[int, str]] = {}
        """(address, device) → index and MAC of the device as it was."""
        self._due: dict[tuple[str, str], tuple[tuple[int, str], list[float]]] = {}
        """What is announced again, and after which pauses."""
        self._wires: dict[str, socket.socket] = {}
        """Of the devices on which something is: opened in the namespace of who announced it."""
        self._silent: set[str] = set()
        """Devices of which it was said that nothing can be sent there."""
        self._again = Retries("announcing", self._wake)

    def close(self) -> None:
        """Announce nothing any more."""
        self._again.close()
        with self._lock:
            self._due.clear()
            self._close_wires()

    def announced(self, devices: dict[str, tuple[int, str]]) -> frozenset[tuple[str, str]]:
        """Return what was announced, (address, device), of ``devices`` as they are now: index and MAC by name."""
        with self._lock:
            return frozenset(one for one, by in self._announced.items() if devices.get(one[1]) == by)

    def announce(self, address: str, device: str, index: int, mac: str) -> None:
        """Say on ``device`` that ``address`` is at ``mac``, now and after each of `AGAIN_S`."""
        with self._lock:
            self._announced.pop((address, device), None)
            self._due[address, device] = (index, mac), [0.0, *AGAIN_S]
            self._send(address, device)

    def forget(self, address: str, device: str | None = None) -> None:
        """Do not announce it again, as this host has it no more.

        Args:
            device: None: on none.
        """
        with self._lock:
            for known in (self._announced, self._due):
                for one in [one for one in known if one[0] == address and device in (None, one[1])]:
                    known.pop(one)
            self._close_wires()

    def _wake(self, what: str) -> None:
        address, device = what.split(" ", 1)
        with self._lock:
            if (address, device) in self._due:
                self._send(address, device)

    def _send(self, address: str, device: str) -> None:
        """Say what is due. The lock is held."""
        by, pauses = self._due[address, device]
        try:
            wire = self._wire(device)
            for frame in frames(address, by[1]):
                wire.send(frame)
        except OSError as error:
            if device not in self._silent:
                log.warning("nothing can be announced on %s; it is tried again: %s", device, error)
            self._silent.add(device)
            if error.errno in (errno.ENODEV, errno.ENXIO) and device in self._wires:
                self._wires.pop(device).close()
        else:
            self._silent.discard(device)
            self._announced[address, device] = by
        pauses.pop(0)
        if pauses:
            self._again.later(f"{address} {device}", pauses[0])
        else:
            del self._due[address, device]
            self._close_wires()

    def _wire(self, device: str) -> socket.socket:
        if device not in self._wires:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            wire.setblocking(False)  # what a device does not take now is sent again
            try:
                wire.bind((device, 0))  # 0: it hears nothing
            except OSError:
                wire.close()
                raise
            self._wires[device] = wire
        return self._wires[device]

    def _close_wires(self) -> None:
        used = {device for _, device in self._due}
        for device in self._wires.keys() - used:
            self._wires.pop(device).close()
