"""Telling the neighbours of a device that an address is here now: gratuitous ARP.

Both forms are sent (RFC 5227, section 3, and the one that routers are used to from redundancy protocols): some
listen to requests, some to replies. Any thread of the namespace may call this.
"""

from __future__ import annotations

import socket
import struct

from ecompute.cluster.errors import NetworkError

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


def announce(address: str, device: str, mac: str) -> None:
    """Say on ``device`` that ``address`` is at ``mac``.

    Raises:
        NetworkError: it cannot be sent there.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((device, _ETH_P_ARP))
            for frame in frames(address, mac):
                raw.send(frame)
    except OSError as error:
        raise NetworkError(f"announcing {address} on {device}: {error}") from error
