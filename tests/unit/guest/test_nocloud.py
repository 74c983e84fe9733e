"""The documents of a NoCloud drive: their format in golden files, their robustness by properties.

``UPDATE_GOLDEN=1 pytest tests/unit/guest`` writes the golden files anew; read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import Assignment, ConfigDrive, Interface, Resources, Role, Secrets, Spec
from ecompute.cluster.errors import InvalidInput, NotFound
from ecompute.guest import nocloud
from ecompute.guest.drive import drive

GOLDEN = Path(__file__).parents[2] / "golden" / "nocloud"
UUID = "6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a01"
FIRST = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0001",
    network_uuid="77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001",
    vni=4711,
    mac="02:54:00:12:34:56",
    addresses=("10.10.0.5/24", "fd00:10::5/64"),
    mtu=1450,
    gateway="10.10.0.1",
    gateway6="fd00:10::1",
    nameservers=("10.10.0.1",),
)
ASKING = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0002",
    network_uuid="77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0002",
    vni=4712,
    mac="02:54:00:12:34:57",
    addresses=(),
    mtu=1500,
)


def assignment(
    *interfaces: Interface,
    ssh_keys: tuple[str, ...] = (),
    has_user_data: bool = False,
    kind: ConfigDrive = ConfigDrive.NOCLOUD,
) -> Assignment:
    spec = Spec(
        resources=Resources(vcpus=1, memory_mb=256, disk_gb=1),
        image="/x",
        ssh_keys=ssh_keys,
        has_user_data=has_user_data,
        interfaces=interfaces,
        config_drive=kind,
    )
    return Assignment(uuid=UUID, namespace="system", name="Web 1", role=Role.RUN, generation=1, epoch=1, spec=spec)


CASES = {
    "everything": (
        assignment(FIRST, ASKING, ssh_keys=("ssh-ed25519 AAAA me@here", "ssh-rsa AAAA \U0001f600"), has_user_data=True),
        Secrets(user_data="#!/bin/sh\necho hallo ü\n"),
    ),
    "bare": (assignment(), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_documents_are_those_of_the_golden_files(case: str) -> None:
    for name, data in nocloud.documents(*CASES[case]).items():
        golden = GOLDEN / case / name
        if os.environ.get("UPDATE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_bytes(data)
        assert data == golden.read_bytes()


def test_there_is_always_user_data_since_a_drive_without_is_none() -> None:
    assert nocloud.documents(assignment(), Secrets(user_data="of another life"))["user-data"] == b""


def test_a_guest_whose_user_data_is_missing_is_not_described() -> None:
    with pytest.raises(NotFound, match=UUID):
        nocloud.documents(assignment(has_user_data=True), None)


def test_an_address_that_is_none_names_the_interface() -> None:
    broken = Interface(uuid="i", network_uuid="n", vni=1, mac="m", addresses=("10.0.0.300/24",), mtu=1450)
    with pytest.raises(InvalidInput, match="interface i"):
        nocloud.network_config((broken,))


def test_a_drive_is_of_the_kind_that_was_asked_for() -> None:
    assert drive(assignment(), None).label == "cidata"
    openstack = drive(assignment(kind=ConfigDrive.OPENSTACK), None)
    assert openstack.label == "config-2"
    assert "openstack/latest/meta_data.json" in openstack.files


keys = st.text(st.characters(codec="utf-8"), max_size=60)


@given(keys=st.lists(keys, min_size=1, max_size=3))
def test_what_a_key_holds_comes_back_from_the_yaml(keys: list[str]) -> None:
    found = yaml.safe_load(nocloud.documents(assignment(ssh_keys=tuple(keys)), None)["meta-data"])
    assert found == {"instance-id": UUID, "local-hostname": "web-1", "public-keys": keys}
