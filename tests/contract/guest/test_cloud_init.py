"""cloud-init's own reader reads our config drive and means what we meant."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from ecompute.cluster.documents import Assignment, Interface, Resources, Role, Secrets, Spec
from ecompute.guest import configdrive, metadata, nocloud

UUID = "6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a01"
NETWORK_UUID = "77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001"
KEYS = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here", 'ssh-rsa AAAA "quoted" ü')
USER_DATA = "#cloud-config\nwrite_files: [{path: /x, content: '</domain> ü'}]\n"
STATIC = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0001",
    network_uuid=NETWORK_UUID,
    vni=4711,
    mac="52:54:00:12:34:56",
    addresses=("10.10.0.5/24", "fd00:10::5/64"),
    mtu=1450,
    gateway="10.10.0.1",
    nameservers=("10.10.0.2",),
)
ISOLATED = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0002",
    network_uuid=NETWORK_UUID,
    vni=4712,
    mac="52:54:00:12:34:57",
    addresses=("192.168.7.9/28",),
    mtu=1400,
)
ASKING = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0003",
    network_uuid=NETWORK_UUID,
    vni=4713,
    mac="52:54:00:12:34:58",
    addresses=(),
    mtu=1500,
)


@pytest.fixture(params=["rr", "joliet"])
def extension(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read(cloud_init: Path, directory: Path, assignment: Assignment, secrets: Secrets | None, extension: str) -> Any:
    """Write a drive, unpack it by ``extension``'s names, and return what cloud-init makes of it."""
    tree = directory / "tree"
    configdrive.write(directory / "drive", metadata.documents(assignment, secrets))
    unpack(directory / "drive", tree, extension)
    macs = [f"{interface.mac}=eth{place}" for place, interface in enumerate(assignment.spec.interfaces)]
    return run(cloud_init, "read_with_cloud_init.py", tree, *macs)


def read_nocloud(
    cloud_init: Path, directory: Path, assignment: Assignment, secrets: Secrets | None, extension: str
) -> Any:
    """The same with a drive of NoCloud."""
    configdrive.write(directory / "drive", nocloud.documents(assignment, secrets), label=nocloud.LABEL)
    unpack(directory / "drive", directory / "seed" / "nocloud", extension)
    return run(cloud_init, "read_nocloud_with_cloud_init.py", directory)


def run(cloud_init: Path, program: str, *arguments: Path | str) -> Any:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(program), *arguments],
        env={**os.environ, "PYTHONPATH": str(cloud_init)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def unpack(drive: Path, tree: Path, extension: str) -> None:
    iso = pycdlib.PyCdlib()
    iso.open(str(drive))
    for directory, _, names in iso.walk(**{f"{extension}_path": "/"}):
        for name in names:
            data = io.BytesIO()
            iso.get_file_from_iso_fp(data, **{f"{extension}_path": f"{directory.rstrip('/')}/{name}"})
            target = tree / directory.removeprefix("/") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data.getvalue())
    iso.close()


def assignment(*interfaces: Interface, ssh_keys: tuple[str, ...] = (), has_user_data: bool = False) -> Assignment:
    resources = Resources(vcpus=1, memory_mb=256, disk_gb=1)
    spec = Spec(resources=resources, image="/x", ssh_keys=ssh_keys, has_user_data=has_user_data, interfaces=interfaces)
    return Assignment(uuid=UUID, namespace="dev", name="Web 1", role=Role.RUN, generation=1, epoch=1, spec=spec)


def test_it_knows_name_keys_and_user_data(cloud_init: Path, tmp_path: Path, extension: str) -> None:
    asked = assignment(STATIC, ssh_keys=KEYS, has_user_data=True)
    found = read(cloud_init, tmp_path, asked, Secrets(user_data=USER_DATA), extension)
    assert found["version"] == "2018-08-27"
    assert found["metadata"]["uuid"] == found["metadata"]["instance-id"] == UUID
    assert found["metadata"]["local-hostname"] == found["metadata"]["hostname"] == "web-1"
    assert found["metadata"]["name"] == "Web 1"
    assert found["metadata"]["project_id"] == "dev"
    assert list(found["metadata"]["public_keys"].values()) == list(KEYS)
    assert bytes(found["userdata"]) == USER_DATA.encode()
    assert found["vendordata"] == {}


def test_it_configures_every_interface(cloud_init: Path, tmp_path: Path, extension: str) -> None:
    found = read(cloud_init, tmp_path, assignment(STATIC, ISOLATED, ASKING), None, extension)
    assert found["userdata"] in (None, "")
    links = {entry["name"]: entry for entry in found["network"]["config"] if entry["type"] == "physical"}
    assert {name: (link["mac_address"], link["mtu"]) for name, link in links.items()} == {
        "eth0": (STATIC.mac, 1450),
        "eth1": (ISOLATED.mac, 1400),
        "eth2": (ASKING.mac, 1500),
    }
    (first, second) = links["eth0"]["subnets"]
    assert (first["type"], first["address"], first["netmask"]) == ("static", "10.10.0.5", "255.255.255.0")
    assert [route["gateway"] for route in first["routes"]] == ["10.10.0.1"]
    assert [entry["address"] for entry in found["network"]["config"] if entry["type"] == "nameserver"] == ["10.10.0.2"]
    assert (second["type"], second["address"]) == ("static6", "fd00:10::5")
    (isolated,) = links["eth1"]["subnets"]
    assert (isolated["address"], isolated["netmask"]) == ("192.168.7.9", "255.255.255.240")
    assert isolated["routes"] == []
    (asking,) = links["eth2"]["subnets"]
    assert asking["type"] == "dhcp4"


def test_what_it_would_write_for_debian_has_our_addresses(cloud_init: Path, tmp_path: Path) -> None:
    found = read(cloud_init, tmp_path, assignment(STATIC, ISOLATED), None, "rr")
    lines = [line.strip() for line in found["eni"].splitlines()]
    for expected in (
        "address 10.10.0.5/24",
        "address fd00:10::5/64",
        "address 192.168.7.9/28",
        "dns-nameservers 10.10.0.2",
        "mtu 1400",
        "mtu 1450",
    ):
        assert expected in lines
    default = [line for line in lines if line.startswith(("gateway", "post-up")) and "10.10.0.1" in line]
    assert len(default) == 1
    assert not any(line.startswith(("gateway", "post-up")) for line in lines if line not in default)


def test_a_guest_without_interfaces_has_no_network(cloud_init: Path, tmp_path: Path) -> None:
    found = read(cloud_init, tmp_path, assignment(), None, "rr")
    assert [entry for entry in found["network"]["config"] if entry["type"] == "physical"] == []


def test_its_nocloud_source_knows_name_keys_and_user_data(cloud_init: Path, tmp_path: Path, extension: str) -> None:
    asked = assignment(STATIC, ssh_keys=KEYS, has_user_data=True)
    found = read_nocloud(cloud_init, tmp_path, asked, Secrets(user_data=USER_DATA), extension)
    assert found["is_read"]
    assert (found["instance_id"], found["hostname"]) == (UUID, "web-1")
    assert found["keys"] == list(KEYS)
    assert bytes(found["userdata"]) == USER_DATA.encode()


def test_its_nocloud_source_configures_every_interface(cloud_init: Path, tmp_path: Path) -> None:
    found = read_nocloud(cloud_init, tmp_path, assignment(STATIC, ISOLATED, ASKING), None, "rr")
    assert found["is_read"]
    links = {entry["name"]: entry for entry in found["interfaces"]}
    assert {name: (link["mac_address"], link["mtu"]) for name, link in links.items()} == {
        "eth0": (STATIC.mac, 1450),
        "eth1": (ISOLATED.mac, 1400),
        "eth2": (ASKING.mac, 1500),
    }
    assert [subnet["type"] for subnet in links["eth2"]["subnets"]] == ["dhcp4"]
    lines = [line.strip() for line in found["eni"].splitlines()]
    for expected in (
        "address 10.10.0.5/24",
        "address fd00:10::5/64",
        "address 192.168.7.9/28",
        "dns-nameservers 10.10.0.2",
    ):
        assert expected in lines
    default = [line for line in lines if line.startswith(("gateway", "post-up")) and "10.10.0.1" in line]
    assert len(default) == 1


def test_its_nocloud_source_takes_a_drive_that_says_the_least(cloud_init: Path, tmp_path: Path) -> None:
    found = read_nocloud(cloud_init, tmp_path, assignment(), None, "rr")
    assert found["is_read"]
    assert (found["userdata"], found["keys"], found["interfaces"]) == ([], [], [])
