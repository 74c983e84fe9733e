"""A service of a host, on every address and group: prints a line for whatever reaches it.

listener.py PORT GROUP…
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys


def main(port: int, groups: list[str]) -> None:
    selector = selectors.DefaultSelector()
    for family, any_ in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            one = socket.socket(family, kind)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            elif kind == socket.SOCK_DGRAM:
                for index, _ in socket.if_nameindex():
                    for group in groups:
                        request = struct.pack("4s4si", socket.inet_aton(group), b"\0" * 4, index)
                        one.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
            one.bind((any_, port))
            if kind == socket.SOCK_STREAM:
                one.listen()
            selector.register(one, selectors.EVENT_READ, kind)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if key.data == socket.SOCK_STREAM:
                peer, source = one.accept()
                peer.close()
            else:
                _, source = one.recvfrom(65535)
            print(f"reached from {source[0]}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
