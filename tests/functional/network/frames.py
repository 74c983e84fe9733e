"""Frames as anybody on the wire may send them, octet by octet."""

from __future__ import annotations

import select
import socket
import struct

SERVICE_PORT = 7
ETH_P_ALL, ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 3, 0x0800, 0x0806, 0x86DD
BROADCAST = "ff:ff:ff:ff:ff:ff"


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def icmp(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + body)) + body


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def frame(to: str, mine: str, kind: int, payload: bytes) -> bytes:
    return octets(to) + octets(mine) + struct.pack("!H", kind) + payload


def arp(kind: int, mine: str, my_ip: str, ip: str) -> bytes:
    """RFC 826: 1 asks, 2 answers; 3 is RARP's question."""
    header = struct.pack("!HHBBH", 1, ETH_P_IP, 6, 4, kind)
    return header + octets(mine) + socket.inet_aton(my_ip) + bytes(6) + socket.inet_aton(ip)


def arp_request(mine: str, my_ip: str, ip: str) -> bytes:
    return arp(1, mine, my_ip, ip)


def extended(header: int, payload: bytes) -> bytes:
    """``payload`` behind a header of options that are all padding, which says what comes next (RFC 8200)."""
    return struct.pack("!BBBB4x", header, 0, 1, 4) + payload


def vxlan(vni: int, inner: bytes) -> bytes:
    """RFC 7348, section 5, without the outer headers."""
    return struct.pack("!II", 0x08000000, vni << 8) + inner


def neighbour_solicitation(mine: str, my_ip: str, ip: str) -> bytes:
    """The whole frame, to the group that the owner of ``ip`` listens to (RFC 4861, section 4.3)."""
    target = socket.inet_pton(socket.AF_INET6, ip)
    body = struct.pack("!BBHI", 135, 0, 0, 0) + target + b"\1\1" + octets(mine)
    group = socket.inet_ntop(socket.AF_INET6, bytes.fromhex("ff0200000000000000000001ff") + target[13:])
    return frame("33:33:ff:" + target[13:].hex(":"), mine, ETH_P_IPV6, ipv6(58, my_ip, group, body))


def ipv4(protocol: int, my_ip: str, ip: str, payload: bytes) -> bytes:
    def header(sum_: int) -> bytes:
        return struct.pack(
            "!BBHHHBBH4s4s",
            *(0x45, 0, 20 + len(payload), 1, 0, 64, protocol, sum_),
            socket.inet_aton(my_ip),
            socket.inet_aton(ip),
        )

    return header(checksum(header(0))) + payload


def ipv6(protocol: int, my_ip: str, ip: str, payload: bytes) -> bytes:
    """An IPv6 packet; the checksum of an ICMPv6 or UDP payload is filled in."""
    source, target = socket.inet_pton(socket.AF_INET6, my_ip), socket.inet_pton(socket.AF_INET6, ip)
    place = 2 if protocol == socket.IPPROTO_ICMPV6 else 6
    pseudo = source + target + struct.pack("!II", len(payload), protocol)
    payload = payload[:place] + struct.pack("!H", checksum(pseudo + payload)) + payload[place + 2 :]
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 255) + source + target + payload


def udp(payload: bytes) -> bytes:
    return struct.pack("!HHHH", 40000, SERVICE_PORT, 8 + len(payload), 0) + payload


def drain(raw: socket.socket, quiet_s: float) -> list[bytes]:
    heard = []
    while select.select([raw], [], [], quiet_s)[0]:
        got, address = raw.recvfrom(4096)
        if address[2] != socket.PACKET_OUTGOING:
            heard.append(got)
    return heard
