"""What a network's traffic costs between two guests' places on two hosts, against a VXLAN and a bridge made by hand.

Both ways are of the same kinds of devices with the same MTU and the offloads that these have by themselves, over the
same underlay, and sent over in turn. What differs is what ours adds: the filters at every port, the gateway on the
bridge, the neighbour entries. On all hosts bridged packets are kept from iptables, as INSTALL.md says. The sender
hands the kernel a mebibyte at a time and lets TCP size its own buffers.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, figure
from lab import Namespace, World, a_world

PORT = 5001
SLICE_S = 0.4
SLICES = 4
"""Of each way in a round."""
TIMEOUT_S = 30.0

_SINK = """
import socket, struct, sys
listening = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
room = bytearray(1 << 20)
while True:
    connection, _ = listening.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count = 0
        if connection.recv(1) == b"s":
            while got := connection.recv_into(room):
                count += got
            connection.sendall(struct.pack("!Q", count))
        else:
            while said := connection.recv(1):
                connection.sendall(said)
"""

_SOURCE = """
import socket, struct, sys, time
data = bytes(1 << 20)
for line in sys.stdin:
    kind, seconds = line.split()
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(kind[:1].encode())
        began, count = time.monotonic(), 0
        if kind == "stream":
            while time.monotonic() < began + float(seconds):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            (count,) = struct.unpack("!Q", connection.recv(8, socket.MSG_WAITALL))
        else:
            while time.monotonic() < began + float(seconds):
                connection.sendall(b"x")
                connection.recv(1)
                count += 1
        print(count / (time.monotonic() - began), flush=True)
"""


@dataclass
class Pair:
    """A guest's place that sends to another one."""

    source: subprocess.Popen[str]

    def rate(self, kind: str) -> float:
        """Return how many bytes (``stream``) or questions and answers (``echo``) a second there were."""
        assert self.source.stdin is not None
        assert self.source.stdout is not None
        self.source.stdin.write(f"{kind} {SLICE_S}\n")
        self.source.stdin.flush()
        said = self.source.stdout.readline()
        assert said, "the sender has ended"
        return float(said)


@contextlib.contextmanager
def paired(sender: Any, receiver: Any, address: str) -> Iterator[Pair]:
    """Have programs in both places that send and receive, as long as this is open."""
    with contextlib.ExitStack() as stack:
        with receiver.entered():
            sink = stack.enter_context(_program(_SINK, str(PORT)))
        assert sink.stdout is not None
        assert sink.stdout.readline() == "ready\n"
        with sender.entered():
            yield Pair(stack.enter_context(_program(_SOURCE, address, str(PORT))))


@contextlib.contextmanager
def _program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def by_hand(world: World, number: int, others: list[str]) -> Namespace:
    """Make a host with a bridge and a VXLAN device, and return a guest's place on it."""
    host, guest = world.make(f"by hand {number}"), world.make(f"by hand, guest {number}")
    keep_from_iptables(host)
    host.veth("eth0", world.internet, f"m{number}")
    world.internet(f"link set m{number} master wan up")
    mac, mtu = f"02:00:00:00:01:{number:02x}", world.network.mtu
    underlay = f"192.0.2.{20 + number}"
    host.veth("tap0", guest, "eth0")
    for command in (
        "link set eth0 up",
        f"address add {underlay}/24 dev eth0",
        f"link add br0 mtu {mtu} type bridge forward_delay 0 mcast_snooping 0",
        f"link add vx0 mtu {mtu} type vxlan id 7 local {underlay} dstport 4789 nolearning",
        "link set vx0 master br0 up",
        f"link set tap0 mtu {mtu} master br0 up",
        "link set br0 up",
    ):
        host(command)
    for other in others:
        host.run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", other)
    guest(f"link set eth0 address {mac} mtu {mtu} up")
    guest(f"address add 10.0.0.{number}/24 dev eth0")
    return guest


def keep_from_iptables(space: Any) -> None:
    """Switch off what `ecompute check` refuses, where the kernel has it."""
    with space.entered():
        for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
            setting.write_text("0\n")


class Wire:
    """Two hosts of ours and two made by hand, on one underlay."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def throughput(self) -> list[Figure]:
        """TCP from one guest's place to another's on another host, and the same for one byte and its answer."""
        with contextlib.ExitStack() as stack:
            world = stack.enter_context(a_world())
            ours = [host.add_guest(f"guest-{n}", 5 + n) for n, host in enumerate(world.hosts)]
            for guest in ours:
                guest.settle()
            for one in world.hosts:
                keep_from_iptables(one.space)
            hand = [by_hand(world, 1, ["192.0.2.22"]), by_hand(world, 2, ["192.0.2.21"])]
            pairs = [
                stack.enter_context(paired(ours[0].space, ours[1].space, ours[1].ip)),
                stack.enter_context(paired(hand[0], hand[1], "10.0.0.2")),
            ]
            return [
                figure(
                    "TCP between hosts / VXLAN and bridge by hand",
                    *self._rates(pairs, "stream", 8 / 1e9),
                    "Gbit/s",
                    "≥ 0.95",
                ),
                figure("a byte and its answer between hosts / by hand", *self._rates(pairs, "echo", 1), "/s", "-"),
            ]

    def _rates(self, pairs: list[Pair], kind: str, unit: float) -> tuple[list[float], list[float]]:
        rates: tuple[list[float], list[float]] = ([], [])
        for pair in pairs:
            pair.rate(kind)  # neighbours are known, and windows have been found
        for number in range(self.rounds):
            print(f"  throughput, {kind}: round {number + 1} of {self.rounds}", file=sys.stderr)
            sums = [0.0, 0.0]
            for turn in range(SLICES):
                for which in ((0, 1), (1, 0))[turn % 2]:
                    sums[which] += pairs[which].rate(kind)
            for rate, total in zip(rates, sums, strict=True):
                rate.append(total / SLICES * unit)
        return rates
