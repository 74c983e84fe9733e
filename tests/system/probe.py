"""What anybody on the wire can try to make a host answer: run as a program in a guest's place on its bridge.

    probe.py DEVICE JSON

``JSON`` names the host's own addresses and MACs, a port on which it listens, and the address of a guest that
is there to answer. Once it is silent on the wire (a host that joins a multicast group says so a few times),
every question is sent as raw frames, to every MAC of the host and to broadcast and multicast ones. Printed, as
JSON: every frame that came then and is not the guest's, and whether the guest answered, which shows that the
questions are well made.
"""

from __future__ import annotations

import ipaddress
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

LISTEN_S = 2.0
SILENCE_LIMIT_S = 30.0
MAC = bytes.fromhex("02ffffffff01")
IP = "10.10.0.250"
LINK_LOCAL = "fe80::ff:feff:ff01"


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(destination: bytes, kind: int, payload: bytes) -> bytes:
    return destination + MAC + struct.pack("!H", kind) + payload


def arp(target: str) -> bytes:
    """RFC 826: who has ``target``?"""
    sender = MAC + socket.inet_aton(IP)
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + sender + b"\0" * 6 + socket.inet_aton(target)


def ipv4(target: str, protocol: int, payload: bytes, source: str = IP) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    head = head[:10] + struct.pack("!H", checksum(head + addresses))
    return head + addresses + payload


def pseudo4(target: str, protocol: int, length: int) -> bytes:
    return socket.inet_aton(IP) + socket.inet_aton(target) + struct.pack("!BBH", 0, protocol, length)


def echo() -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, 7, 7) + b"probe"
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def tcp_syn(target: str, port: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 1024, 0, 0)
    return segment[:16] + struct.pack("!H", checksum(pseudo4(target, 6, len(segment)) + segment)) + segment[18:]


def udp(port: int, payload: bytes = b"probe") -> bytes:
    return struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload  # no checksum: allowed over IPv4


def ipv6(target: str, header: int, payload: bytes) -> bytes:
    addresses = ipaddress.IPv6Address(LINK_LOCAL).packed + ipaddress.IPv6Address(target).packed
    if header == 58:
        sum_ = checksum(addresses + struct.pack("!II", len(payload), header) + payload)
        payload = payload[:2] + struct.pack("!H", sum_) + payload[4:]
    return struct.pack("!IHBB", 6 << 28, len(payload), header, 255) + addresses + payload


def solicitation(target: str) -> bytes:
    """RFC 4861, section 4.3: who has ``target``?"""
    return struct.pack("!BBHI", 135, 0, 0, 0) + ipaddress.IPv6Address(target).packed + b"\x01\x01" + MAC


def link_local(mac: bytes) -> str:
    """The address that a device with ``mac`` gives itself (RFC 4291, appendix A)."""
    return str(ipaddress.IPv6Address(b"\xfe\x80" + b"\0" * 6 + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]))


def questions(asked: dict[str, object]) -> Iterator[tuple[str, bytes]]:
    macs = [bytes.fromhex(str(mac).replace(":", "")) for mac in asked["macs"]]  # type: ignore[attr-defined]
    port = int(asked["port"])  # type: ignore[call-overload]
    broadcast = b"\xff" * 6
    addresses: list[str] = list(asked["addresses"])  # type: ignore[call-overload]
    for address in addresses:
        yield f"arp {address}", ethernet(broadcast, 0x0806, arp(address))
        for mac in [*macs, broadcast]:
            yield f"arp {address}", ethernet(mac, 0x0806, arp(address))
            yield f"ping {address}", ethernet(mac, 0x0800, ipv4(address, 1, echo()))
            yield f"tcp {address}", ethernet(mac, 0x0800, ipv4(address, 6, tcp_syn(address, port)))
            yield f"udp {address}", ethernet(mac, 0x0800, ipv4(address, 17, udp(port)))
    for group, mac in (("224.0.0.1", "01005e000001"), ("224.0.0.251", "01005e0000fb"), ("255.255.255.255", "ff" * 6)):
        for destination in [bytes.fromhex(mac), *macs]:
            yield f"ping {group}", ethernet(destination, 0x0800, ipv4(group, 1, echo()))
            yield f"udp {group}", ethernet(destination, 0x0800, ipv4(group, 17, udp(port)))
    for mac in macs:
        own = link_local(mac)
        solicited = bytes.fromhex("3333ff") + ipaddress.IPv6Address(own).packed[-3:]
        group = "ff02::1:ff" + ipaddress.IPv6Address(own).packed[-3:].hex()[:2] + ":"
        group += ipaddress.IPv6Address(own).packed[-2:].hex()
        yield f"neighbour {own}", ethernet(solicited, 0x86DD, ipv6(group, 58, solicitation(own)))
        yield f"neighbour {own}", ethernet(mac, 0x86DD, ipv6(own, 58, solicitation(own)))
        yield f"ping6 {own}", ethernet(mac, 0x86DD, ipv6(own, 58, struct.pack("!BBHHH", 128, 0, 0, 7, 7)))
    for group, mac in (("ff02::1", "333300000001"), ("ff02::2", "333300000002"), ("ff02::fb", "3333000000fb")):
        payload = struct.pack("!BBHHH", 128, 0, 0, 7, 7)
        yield f"ping6 {group}", ethernet(bytes.fromhex(mac), 0x86DD, ipv6(group, 58, payload))


def heard(wire: socket.socket, timeout_s: float) -> Iterator[str]:
    """Yield every frame of somebody else: source, type, the first bytes of its content."""
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        if select.select([wire], [], [], left)[0]:
            frame, (_, _, direction, _, _) = wire.recvfrom(65535)
            if direction != socket.PACKET_OUTGOING and frame[6:12] != MAC:
                yield f"{frame[6:12].hex(':')} {frame[12:14].hex()} {frame[14:60].hex()}"


def main(device: str, asked: dict[str, object]) -> None:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    wire.bind((device, 0))
    guest = str(asked["guest"])
    told: set[str] = set()
    guest_mac = str(asked["guest_mac"])
    limit = time.monotonic() + SILENCE_LIMIT_S
    while noise := [line for line in heard(wire, LISTEN_S) if not line.startswith(guest_mac)]:
        if time.monotonic() > limit:
            sys.exit(f"it is never silent: {noise}")
    for _ in range(2):  # a frame may be lost before the bridge forwards on the new port
        for _, frame in questions(asked):
            wire.send(frame)
        wire.send(ethernet(b"\xff" * 6, 0x0806, arp(guest)))
        wire.send(ethernet(bytes.fromhex(guest_mac.replace(":", "")), 0x0800, ipv4(guest, 1, echo())))
        told.update(heard(wire, LISTEN_S))
    answers = sorted(line for line in told if not line.startswith(guest_mac))
    print(json.dumps({"answers": answers, "guest": any(line.startswith(f"{guest_mac} 0800") for line in told)}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
