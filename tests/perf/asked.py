"""How fast guests are told about themselves, and what that takes, against a service that says hello to everybody.

The service is the product's, handed the sockets of few networks and of many; eight guests of one of them ask at once,
each over a connection of its own and one question after the other. The other one is waitress and falcon with as many
threads, in a namespace like it. What is asked is a document of EC2's tree and one of OpenStack's in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from figures import Figure, figure

from ecompute.cluster.documents import Assignment, Interface, Port, Resources, Role, Secrets, Spec, encode
from ecompute.guest import handing, told
from ecompute.network import netns
from ecompute.network.metadata import HostMetadata
from ecompute.network.metadata_sockets import ADDRESS, ADDRESS6
from md_server.server import THREADS

NETWORKS = (1, 50, 200)
GUESTS = 8
LOAD_S = 1.0
FIRST_VNI = 0x5000
PROVIDER = "5d0c0f3e-8a2b-4c43-9f53-7c6b19d70001"
TIMEOUT_S = 60.0

_ASKING = """
import json, select, socket, sys, time
address, seconds, *sources = sys.argv[1:]
paths = ("/latest/meta-data/instance-id", "/openstack/latest/meta_data.json")
questions = [f"GET {path} HTTP/1.1\\r\\nHost: {address}\\r\\n\\r\\n".encode() for path in paths]
poll, asked, took = select.epoll(), {}, []
def ask(one, turn):
    asked[one.fileno()] = one, turn, time.monotonic(), b""
    one.sendall(questions[turn % len(questions)])
for turn, source in enumerate(sources):
    one = socket.create_connection((address, 80), timeout=10, source_address=(source, 0))
    poll.register(one, select.EPOLLIN)
    ask(one, turn)
began = time.monotonic()
while time.monotonic() < began + float(seconds):
    for number, _ in poll.poll(1):
        one, turn, since, got = asked[number]
        data = one.recv(1 << 16)
        assert data, "the service has closed a connection"
        got += data
        head, ends, body = got.partition(b"\\r\\n\\r\\n")
        lines = head.lower().split(b"\\r\\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if not ends or len(body) < length:
            asked[number] = one, turn, since, got
            continue
        assert got.startswith(b"HTTP/1.1 200 "), got[:100]
        took.append(time.monotonic() - since)
        ask(one, turn + 1)
took.sort()
print(json.dumps([len(took) / (time.monotonic() - began), took[int(len(took) * 0.99)] * 1000]))
"""

_HELLO = """
import falcon, logging, sys, waitress
logging.getLogger("waitress.queue").setLevel(logging.ERROR)
app = falcon.App(media_type="text/plain")
def hello(req, resp, **parts):
    resp.text = "hello"
app.add_sink(hello)
waitress.serve(app, listen=sys.argv[1], threads=int(sys.argv[2]), _quiet=True)
"""


class Place:
    """A network's namespace, with the device on which guests ask, and where wanted the guests' place before it."""

    def __init__(self, name: str, *, has_guests: bool) -> None:
        self.name, self.guests = name, f"{name}g"
        self.sources = [f"10.20.0.{10 + number}" for number in range(GUESTS)] if has_guests else []
        netns.make(self.name)
        if has_guests:
            netns.make(self.guests)
            _ip(self.name, f"link add lan type veth peer name eth0 netns {self.guests}")
            for source in self.sources:
                _ip(self.guests, f"address add {source}/24 dev eth0")
            _ip(self.guests, "link set eth0 up")
            _ip(self.guests, f"route add {ADDRESS}/32 dev eth0")
        else:
            _ip(self.name, "link add lan type bridge")
        for command in (
            "link set lo up",
            "address add 10.20.0.1/24 dev lan",
            f"address add {ADDRESS}/32 dev lan",
            f"address add {ADDRESS6}/64 dev lan nodad",
            "link set lan up",
        ):
            _ip(self.name, command)

    def ask(self) -> tuple[float, float]:
        """Return requests a second and the 99th percentile of their times, in ms."""
        argv = [sys.executable, "-c", _ASKING, ADDRESS, str(LOAD_S), *self.sources]
        done = netns.in_namespace(
            self.guests, lambda: subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        )
        assert done.returncode == 0, done.stderr
        rate, p99_ms = json.loads(done.stdout)
        return rate, p99_ms

    def remove(self) -> None:
        netns.remove(self.name)
        netns.remove(self.guests)


def asked(directory: Path, rounds: int) -> list[Figure]:
    """Requests a second, the 99th percentile and memory, with the sockets of few and of many networks."""
    made: list[Figure] = []
    state = directory / "state"
    state.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        hello = stack.enter_context(_hello())
        metadata = HostMetadata(state)
        stack.callback(lambda: HostMetadata(state).served())  # which ends it where nothing is served
        stack.callback(metadata.close)
        places: list[Place] = []
        for count in NETWORKS:
            for number in range(len(places), count):
                place = Place(f"ecbench{os.getpid()}n{number}", has_guests=number == 0)
                places.append(place)
                stack.callback(place.remove)
                stack.callback(metadata.leave, FIRST_VNI + number)
                metadata.serve(FIRST_VNI + number, place.name, _callers(state, number, place))
            _wait(lambda count=count: _served(state) >= count, f"{count} networks are served")
            rates: tuple[list[float], list[float]] = ([], [])
            p99s: tuple[list[float], list[float]] = ([], [])
            for number in range(-1, rounds):
                print(f"  metadata, {count} networks: round {number + 1} of {rounds}", file=sys.stderr)
                for which, place in ((0, places[0]), (1, hello.place)):
                    rate, p99_ms = place.ask()
                    if number >= 0:
                        rates[which].append(rate)
                        p99s[which].append(p99_ms)
            name = f"metadata, {GUESTS} guests at once, {count} networks / hello"
            memory = [[psutil.Process(pid).memory_info().rss / 2**20] for pid in (_pid(state), hello.pid)]
            made += [
                figure(name, *rates, "/s", "-"),
                figure(f"{name}: 99th percentile", *p99s, "ms", "-"),
                figure(f"{name}: resident memory", *memory, "MiB", "-"),
            ]
    return made


class _Hello:
    def __init__(self, place: Place, pid: int) -> None:
        self.place, self.pid = place, pid


@contextlib.contextmanager
def _hello() -> Iterator[_Hello]:
    place = Place(f"ecbench{os.getpid()}h", has_guests=True)
    try:
        argv = [sys.executable, "-c", _HELLO, f"{ADDRESS}:80", str(THREADS)]
        process = netns.in_namespace(place.name, lambda: subprocess.Popen(argv))
        try:
            _wait(lambda: _answers(place), "the service that says hello answers")
            yield _Hello(place, process.pid)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    finally:
        place.remove()


def _answers(place: Place) -> bool:
    def connect() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((ADDRESS, 80), timeout=1):
            return True
        return False

    return netns.in_namespace(place.guests, connect)


def _callers(state: Path, network: int, place: Place) -> told.Callers:
    """Write what the guests of a network may be told, and return who they are."""
    ports = []
    for number, source in enumerate(place.sources):
        uuid = f"{network:08x}-0000-4000-8000-{number:012x}"
        mac = f"02:00:00:00:00:{number:02x}"
        interface = Interface(
            uuid=uuid,
            network_uuid=f"n{network}",
            vni=FIRST_VNI + network,
            mac=mac,
            addresses=(f"{source}/24",),
            mtu=1450,
            gateway="10.20.0.1",
            nameservers=("10.20.0.1",),
        )
        spec = Spec(
            resources=Resources(vcpus=2, memory_mb=512, disk_gb=3),
            image="http://images.example/small.qcow2",
            ssh_keys=("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here",),
            has_user_data=True,
            interfaces=(interface,),
        )
        assignment = Assignment(
            uuid=uuid, namespace="bench", name=f"web-{number}", role=Role.RUN, generation=1, epoch=1, spec=spec
        )
        file = told.guest_file(state / "instances", uuid)
        file.parent.mkdir(parents=True)
        file.write_bytes(encode(told.Guest(assignment=assignment, secrets=Secrets(user_data="#cloud-config\n"))))
        ports.append(
            Port(
                interface_uuid=uuid,
                instance_uuid=uuid,
                provider=PROVIDER,
                epoch=1,
                mac=mac,
                addresses=interface.addresses,
            )
        )
    return told.callers(f"n{network}", PROVIDER, ports)


def _reached(state: Path) -> socket.socket:
    way = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    way.settimeout(TIMEOUT_S)
    way.connect(str(told.directory_of(state) / handing.SOCKET))
    return way


def _pid(state: Path) -> int:
    with _reached(state) as way:
        pid, _, _ = struct.unpack("3i", way.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


def _served(state: Path) -> int:
    with contextlib.suppress(OSError), _reached(state) as way:
        way.send(handing.encode(handing.List()))
        return len(handing.decode_answer(way.recv(handing.LIMIT_BYTES)).networks)
    return 0


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_S:g} s: {what}"
        time.sleep(0.1)


def _ip(namespace: str, command: str) -> None:
    subprocess.run(["ip", "-n", namespace, *command.split()], check=True, capture_output=True, timeout=TIMEOUT_S)
