"""What a guest is told in EC2's words: the tree in golden files, its robustness by properties.

``UPDATE_GOLDEN=1 pytest tests/unit/guest`` writes the golden files anew; read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import Assignment, Interface, Resources, Role, Secrets, Spec
from ecompute.cluster.errors import InvalidInput, NotFound
from ecompute.guest import ec2

GOLDEN = Path(__file__).parents[2] / "golden" / "ec2"
UUID = "6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a01"
FIRST = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0001",
    network_uuid="77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001",
    vni=4711,
    mac="02:54:00:12:34:56",
    addresses=("10.10.0.5/24", "10.10.0.6/24", "fd00:10::5/64"),
    mtu=1450,
    gateway="10.10.0.1",
)
SECOND = Interface(
    uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0002",
    network_uuid="77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0002",
    vni=4712,
    mac="02:54:00:12:34:57",
    addresses=(),
    mtu=1500,
)


def assignment(
    *interfaces: Interface, name: str = "Web 1", ssh_keys: tuple[str, ...] = (), has_user_data: bool = False
) -> Assignment:
    resources = Resources(vcpus=2, memory_mb=256, disk_gb=1)
    spec = Spec(resources=resources, image="/x", ssh_keys=ssh_keys, has_user_data=has_user_data, interfaces=interfaces)
    return Assignment(uuid=UUID, namespace="dev", name=name, role=Role.RUN, generation=1, epoch=1, spec=spec)


CASES = {
    "everything": (
        assignment(FIRST, SECOND, ssh_keys=("ssh-ed25519 AAAA me@here", "ssh-rsa AAAA"), has_user_data=True),
        Secrets(user_data="#!/bin/sh\n"),
        "203.0.113.7",
    ),
    "bare": (assignment(), None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tree_is_that_of_the_golden_file(case: str) -> None:
    golden = GOLDEN / f"{case}.json"
    found = {path: text.decode() for path, text in ec2.documents(*CASES[case][:2], floating=CASES[case][2]).items()}
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text()


def test_a_directory_lists_what_lies_in_it() -> None:
    tree = ec2.documents(*CASES["everything"][:2], floating=CASES["everything"][2])
    assert ec2.listing(tree, "") == b"dynamic/\nmeta-data/\nuser-data"
    assert ec2.listing(tree, "meta-data/placement") == b"availability-zone"
    assert ec2.listing(tree, "meta-data/public-keys") == b"0=key-1\n1=key-2"
    assert ec2.listing(tree, "meta-data/public-keys/0") == b"openssh-key"
    lines = (ec2.listing(tree, "meta-data") or b"").split(b"\n")
    assert b"public-keys/" in lines and b"instance-id" in lines and b"" not in lines


@pytest.mark.parametrize("directory", ["meta", "meta-data/instance-id", "meta-data/public-keys/2", "meta-data//", "/"])
def test_what_is_no_directory_has_no_list(directory: str) -> None:
    assert ec2.listing(ec2.documents(*CASES["everything"][:2], floating=CASES["everything"][2]), directory) is None


def test_a_guest_whose_user_data_is_missing_is_not_described() -> None:
    with pytest.raises(NotFound, match=UUID):
        ec2.documents(assignment(has_user_data=True), None)


def test_an_address_that_is_none_names_the_interface() -> None:
    broken = Interface(uuid="i", network_uuid="n", vni=1, mac="m", addresses=("10.0.0.300/24",), mtu=1450)
    with pytest.raises(InvalidInput, match="interface i"):
        ec2.documents(assignment(broken), None)


@given(name=st.text(st.characters(codec=None), max_size=40), keys=st.lists(st.text(max_size=40), max_size=3))
def test_every_path_is_a_leaf_of_a_tree_whatever_a_name_or_key_holds(name: str, keys: list[str]) -> None:
    tree = ec2.documents(assignment(FIRST, name=name, ssh_keys=tuple(keys)), None)

    def leaves(directory: str) -> set[str]:
        listed = (ec2.listing(tree, directory) or b"").decode()
        found = set()
        for child in listed.split("\n"):
            path = f"{directory}/{child}".strip("/")
            if "=" in child and directory.endswith("public-keys"):
                found |= leaves(f"{directory}/{child.partition('=')[0]}")
            elif child.endswith("/"):
                found |= leaves(path)
            else:
                found.add(path)
        return found

    assert leaves("") == {path for path in tree if not path.endswith("/")}
