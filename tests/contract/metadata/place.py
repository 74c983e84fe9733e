"""One network of a host as the metadata service meets it: its namespace, and two guests' places on it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ecompute.cluster.documents import Assignment, Interface, Port, Resources, Role, Secrets, Spec, encode
from ecompute.dev.hosts import ip
from ecompute.guest import told
from ecompute.network import netns
from ecompute.network.metadata_sockets import ADDRESS, ADDRESS6

VNI = 4711
NETWORK_UUID = "77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001"
PROVIDER = "5d0c0f3e-8a2b-4c43-9f53-7c6b19d70001"
KEYS = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here", 'ssh-rsa AAAA "quoted"')
USER_DATA = "#cloud-config\nwrite_files: [{path: /x, content: '</domain> ü'}]\n"


@dataclass(frozen=True)
class Place:
    """Where a guest would be: a namespace with its address and MAC."""

    netns: str
    uuid: str
    ip: str
    mac: str

    def run(self, *argv: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.netns, *argv],
            capture_output=True, text=True, timeout=90, env={**os.environ, **(env or {})}, check=False,
        )  # fmt: skip

    def get(self, path: str, *options: str, address: str = ADDRESS) -> tuple[int, str]:
        """Ask over HTTP; return the status and what was answered."""
        done = self.run("curl", "-s", "-m", "20", "-w", "\n%{http_code}", f"http://{address}{path}", *options)
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body


class Net:
    """The network's namespace on a host, with the guests ``a`` and ``b``, whose files are written."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.prefix = f"ecm{os.getpid()}"
        self.netns = f"{self.prefix}n"
        self.names = [self.netns]
        ip("netns", "add", self.netns)
        ip("-n", self.netns, "link", "set", "lo", "up")
        ip("-n", self.netns, "link", "add", "lan", "type", "bridge", "forward_delay", "0")
        self.dress()
        self.a = self._place(5)
        self.b = self._place(6)

    def dress(self) -> None:
        """Give the device of the network what the gateway has on it."""
        for address in ("10.20.0.1/24", f"{ADDRESS}/32"):
            ip("-n", self.netns, "address", "add", address, "dev", "lan")
        ip("-n", self.netns, "address", "add", f"{ADDRESS6}/64", "dev", "lan", "nodad")
        ip("-n", self.netns, "link", "set", "lan", "up")

    def _place(self, number: int) -> Place:
        name = f"{self.prefix}g{number}"
        place = Place(
            name, f"0b9d2c52-7a35-4f3e-9c44-3f0f6f6f000{number}", f"10.20.0.{number}", f"02:00:00:00:00:0{number}"
        )
        ip("netns", "add", name)
        self.names.append(name)
        ip(
            "-n",
            name,
            "link",
            "add",
            "eth0",
            "address",
            place.mac,
            "type",
            "veth",
            "peer",
            f"g{number}",
            "netns",
            self.netns,
        )
        ip("-n", self.netns, "link", "set", f"g{number}", "master", "lan", "up")
        ip("-n", name, "address", "add", f"{place.ip}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "route", "add", "default", "via", "10.20.0.1")
        directory = self.state / "instances" / place.uuid
        directory.mkdir(parents=True, exist_ok=True)
        guest = told.Guest(assignment=assignment(place), secrets=Secrets(user_data=USER_DATA))
        told.guest_file(self.state / "instances", place.uuid).write_bytes(encode(guest))
        return place

    def callers(self) -> told.Callers:
        ports = [
            Port(
                interface_uuid=place.uuid, instance_uuid=place.uuid, provider=PROVIDER, epoch=1,
                mac=place.mac, addresses=(f"{place.ip}/24",), floating="203.0.113.9" if place is self.a else None,
            )
            for place in (self.a, self.b)
        ]  # fmt: skip
        return told.callers(NETWORK_UUID, PROVIDER, ports)

    def remove(self) -> None:
        for name in self.names:
            netns.remove(name)


def assignment(place: Place) -> Assignment:
    return Assignment(
        uuid=place.uuid, namespace="team", name=f"Web {place.ip[-1]}", role=Role.RUN, generation=1, epoch=1,
        spec=Spec(
            resources=Resources(vcpus=2, memory_mb=512, disk_gb=3), image="http://images/x.qcow2", ssh_keys=KEYS,
            has_user_data=True,
            interfaces=(
                Interface(
                    uuid=place.uuid, network_uuid=NETWORK_UUID, vni=VNI, mac=place.mac,
                    addresses=(f"{place.ip}/24",), mtu=1450, gateway="10.20.0.1", nameservers=("10.20.0.1",),
                ),
            ),
        ),
    )  # fmt: skip


T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], *, timeout_s: float = 40.0, what: str) -> T:
    """Return what ``condition`` returns once that is true; fail when time is up."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return value
