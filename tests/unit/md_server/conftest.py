"""A host's files, as `ecompute` writes them, and what is asked of the application upon them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from falcon import testing

from ecompute.cluster.documents import Assignment, Interface, Resources, Role, Secrets, Spec, encode
from ecompute.guest import told
from ecompute.guest.told import Callers, Guest
from md_server import app
from md_server.told import Told

VNI = 4711


def guest(number: int, *, user_data: str | None = None, ssh_keys: tuple[str, ...] = ()) -> Guest:
    interface = Interface(
        uuid=f"0b9d2c52-7a35-4f3e-9c44-3f0f6f6f00{number:02}",
        network_uuid="77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001",
        vni=VNI,
        mac=f"02:54:00:12:34:{number:02x}",
        addresses=(f"10.10.0.{number}/24",),
        mtu=1450,
    )
    spec = Spec(
        resources=Resources(vcpus=1, memory_mb=256, disk_gb=1),
        image="/x",
        ssh_keys=ssh_keys,
        has_user_data=user_data is not None,
        interfaces=(interface,),
    )
    asked = Assignment(
        uuid=f"6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a{number:02}",
        namespace="system",
        name=f"guest-{number}",
        role=Role.RUN,
        generation=1,
        epoch=1,
        spec=spec,
    )
    return Guest(assignment=asked, secrets=None if user_data is None else Secrets(user_data=user_data))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Service:
    """The application upon files below ``state``; ``now`` is its clock."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.now = 1000.0
        self._client = testing.TestClient(app.make(Told(state), b"k" * 32, now=lambda: self.now))
        told.directory_of(state).mkdir()

    def file(self, one: Guest) -> Path:
        return told.guest_file(self.state / "instances", one.assignment.uuid)

    def write(self, *guests: Guest, vni: int = VNI) -> None:
        """Write the files of one network and its guests; each is replaced as a whole."""
        addresses, macs = {}, {}
        for one in guests:
            self.file(one).parent.mkdir(parents=True, exist_ok=True)
            _replace(self.file(one), encode(one))
            for interface in one.assignment.spec.interfaces:
                addresses |= {address.split("/")[0]: one.assignment.uuid for address in interface.addresses}
                macs[interface.mac] = one.assignment.uuid
        callers = Callers(network_uuid="n", addresses=addresses, macs=macs, floating={})
        _replace(told.callers_file(told.directory_of(self.state), vni), encode(callers))

    def ask(
        self, path: str, *, address: str = "10.10.0.1", vni: int = VNI, method: str = "GET", **headers: str
    ) -> Answer:
        found = self._client.simulate_request(
            method,
            path,
            headers={name.replace("_", "-"): text for name, text in headers.items()},
            extras={app.VNI: vni, "REMOTE_ADDR": address},
        )
        return Answer(found.status_code, dict(found.headers), found.content)


def _replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.fixture
def make_guest() -> Callable[..., Guest]:
    return guest
