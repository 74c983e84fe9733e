"""What one guest can have the server's process keep and write, whatever it sends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from msgspec.structs import replace

from ecompute.guest import handing, told
from ecompute.guest.told import LOG_LIMIT_BYTES, Guest
from md_server.connections import CONNECTIONS_A_CALLER

T = TypeVar("T")

TIMEOUT_S = 1.0
DEADLINE_S = 30.0
USER_DATA = "A" * 60_000
ASKED = b"GET /latest/user-data HTTP/1.1\r\n\r\n"
RUN = (
    "import logging, sys, pathlib; from md_server.confine import confine; from md_server.server import Server\n"
    "logging.basicConfig(level=logging.INFO); confine()\n"
    f"Server(pathlib.Path(sys.argv[1]), request_timeout_s={TIMEOUT_S}).run()"
)


def wait_for(look: Callable[[], T], what: str) -> T:
    until = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < until, what
        time.sleep(0.02)
    return found


class Process:
    """The server as a process, of one network, on loopback."""

    def __init__(self, state: Path) -> None:
        self.log = state / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-c", RUN, str(state)], stdout=log, stderr=log)
        desk = told.directory_of(state) / handing.SOCKET
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way, socket.socket() as listening:
            wait_for(lambda: way.connect_ex(str(desk)) == 0, "it is ready")
            listening.bind(("127.0.0.1", 0))
            listening.listen(64)
            self._address = listening.getsockname()
            socket.send_fds(way, [handing.encode(handing.Serve(4711, "m"))], [listening.fileno()])
            handing.decode_answer(way.recv(handing.LIMIT_BYTES))

    def connect(self, *, receive_buffer_bytes: int = 1 << 18) -> socket.socket:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        one.settimeout(DEADLINE_S)
        one.connect(self._address)
        return one

    def ask(self, data: bytes) -> bytes:
        """Send ``data`` and return all that comes until the connection ends."""
        with self.connect() as one:
            one.sendall(data)
            return all_of(one)

    def memory_mb(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    def connections(self) -> int:
        """Return how many sockets it has open."""
        found = 0
        for one in Path(f"/proc/{self._process.pid}/fd").iterdir():
            try:
                found += os.readlink(one).startswith("socket:")
            except FileNotFoundError:
                continue
        return found

    def longest_file_bytes(self) -> int:
        limits = Path(f"/proc/{self._process.pid}/limits").read_text()
        return int(limits.split("Max file size")[1].split()[0])

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE_S)


def all_of(one: socket.socket) -> bytes:
    found = b""
    while data := one.recv(1 << 16):
        found += data
    return found


@pytest.fixture
def process(service: object, tmp_path: Path, make_guest: Callable[..., Guest]) -> Iterator[Process]:
    one = make_guest(1, user_data=USER_DATA)
    (interface,) = one.assignment.spec.interfaces
    at_home = replace(one.assignment.spec, interfaces=(replace(interface, addresses=("127.0.0.1/8",)),))
    service.write(replace(one, assignment=replace(one.assignment, spec=at_home)))  # type: ignore[attr-defined]
    made = Process(tmp_path)
    yield made
    made.end()


def test_a_bad_address_is_refused_and_nothing_of_it_is_logged(process: Process) -> None:
    before = process.log.read_text()
    for bad in (b"http://[::1", b"http://[x]:y/", b"//[", b"/%ff%00", b"\xff\xfe"):
        said = process.ask(b"GET " + bad + b" HTTP/1.0\r\n\r\n")
        assert said.startswith(b"HTTP/1.0 4"), (bad, said)
    assert process.ask(b"GET http://[::1 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 400 ")
    assert process.log.read_text() == before


def test_guests_that_go_away_before_the_answer_are_not_logged(process: Process) -> None:
    before = process.log.read_text()
    for _ in range(200):
        with process.connect() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            one.sendall(ASKED)
    assert process.ask(b"GET /latest/user-data HTTP/1.0\r\n\r\n").endswith(USER_DATA.encode())
    assert process.log.read_text() == before


def test_of_many_requests_at_once_the_first_is_answered_and_the_connection_ends(process: Process) -> None:
    said = process.ask(ASKED * 20)
    assert said.count(b"HTTP/1.1 200 OK") == 1
    assert b"Connection: close" in said


def test_one_request_after_the_other_is_answered_on_a_connection(process: Process) -> None:
    with process.connect() as one:
        for ending in (b"", b"\r\n", b""):  # old clients end a request with one line too many
            one.sendall(ASKED + ending)
            said = b""
            while not said.endswith(USER_DATA.encode()):
                said += one.recv(1 << 16)
            assert said.count(b"HTTP/1.1 200 OK") == 1


def test_answers_that_nobody_reads_cost_little_memory_and_end_with_their_time(process: Process) -> None:
    before = process.connections()
    process.ask(b"GET /latest/user-data HTTP/1.0\r\n\r\n")
    before_mb = process.memory_mb()
    held = []
    for _ in range(CONNECTIONS_A_CALLER):
        one = process.connect(receive_buffer_bytes=2048)
        one.setblocking(False)
        one.send(ASKED * 240)
        held.append(one)
    wait_for(lambda: process.connections() > before + len(held) // 2, "they are taken, and wait to be read")
    wait_for(lambda: process.connections() <= before, "they are closed though nothing was read")
    assert process.memory_mb() - before_mb < 16
    for one in held:
        one.close()


def test_a_request_that_trickles_has_no_more_time_than_another(process: Process) -> None:
    with process.connect() as one:
        began_s = time.monotonic()
        one.sendall(b"GET /latest/user-data HTTP/1.1\r\nX: ")
        one.settimeout(TIMEOUT_S / 10)
        with pytest.raises(ConnectionError):
            while time.monotonic() < began_s + DEADLINE_S:
                one.sendall(b"y")
                try:
                    if not one.recv(100):
                        raise ConnectionResetError
                except TimeoutError:
                    continue


def test_a_connection_that_says_nothing_ends(process: Process) -> None:
    with process.connect() as one, pytest.raises(ConnectionResetError):
        one.recv(1)


def test_its_log_grows_to_a_limit_and_no_further(process: Process) -> None:
    assert process.longest_file_bytes() == LOG_LIMIT_BYTES
