"""The documents: their format in golden files, their robustness by properties.

``UPDATE_GOLDEN=1 pytest tests/unit/guest`` writes the golden files anew; read the difference.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import Assignment, Interface, Resources, Role, Secrets, Spec
from ecompute.cluster.errors import InvalidInput, NotFound
from ecompute.guest import metadata

GOLDEN = Path(__file__).parents[2] / "golden" / "guest"
UUID = "6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a01"


def interface(**changes: object) -> Interface:
    fields: dict[str, object] = {
        "uuid": "0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0001",
        "network_uuid": "77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001",
        "vni": 4711,
        "mac": "52:54:00:12:34:56",
        "addresses": ("10.10.0.5/24",),
        "mtu": 1450,
    }
    return Interface(**{**fields, **changes})  # type: ignore[arg-type]


def assignment(
    *,
    name: str = "web-1",
    ssh_keys: tuple[str, ...] = (),
    has_user_data: bool = False,
    interfaces: tuple[Interface, ...] = (),
) -> Assignment:
    resources = Resources(vcpus=1, memory_mb=256, disk_gb=1)
    spec = Spec(resources=resources, image="/x", ssh_keys=ssh_keys, has_user_data=has_user_data, interfaces=interfaces)
    return Assignment(uuid=UUID, namespace="system", name=name, role=Role.RUN, generation=1, epoch=1, spec=spec)


CASES = {
    "plain": (assignment(interfaces=(interface(),)), None),
    "everything": (
        assignment(
            name='Büro </domain> "1"',
            ssh_keys=("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here", "ssh-rsa AAAAB3NzaC1yc2E"),
            has_user_data=True,
            interfaces=(
                interface(addresses=("10.10.0.5/24", "fd00:10::5/64"), gateway="10.10.0.1", nameservers=("10.10.0.2",)),
                interface(uuid="0b9d2c52-7a35-4f3e-9c44-3f0f6f6f0002", mac="52:54:00:AB:CD:EF", addresses=(), mtu=1500),
            ),
        ),
        Secrets(user_data="#!/bin/sh\necho hallo </domain> ü\n"),
    ),
    "bare": (assignment(), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_documents_are_those_of_the_golden_files(case: str) -> None:
    for path, data in metadata.documents(*CASES[case]).items():
        _, version, name = path.split("/")
        if version != "latest":
            continue
        golden = GOLDEN / case / name
        # Indented, for people who read the difference; user data as it is.
        text = json.dumps(json.loads(data), indent=2) + "\n" if name.endswith(".json") else data.decode()
        if os.environ.get("UPDATE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text)
        assert text == golden.read_text()


def test_both_versions_have_the_same_documents() -> None:
    files = metadata.documents(*CASES["everything"])
    names = {path.split("/")[2] for path in files}
    assert names == {"meta_data.json", "network_data.json", "user_data", "vendor_data.json"}
    assert set(files) == {f"openstack/{version}/{name}" for version in ("latest", "2018-08-27") for name in names}
    assert all(files[f"openstack/latest/{name}"] == files[f"openstack/2018-08-27/{name}"] for name in names)


def test_user_data_is_left_out_when_there_is_none() -> None:
    assert not any(path.endswith("user_data") for path in metadata.documents(*CASES["plain"]))


def test_secrets_that_the_assignment_does_not_speak_of_are_passed_over() -> None:
    files = metadata.documents(assignment(), Secrets(user_data="of another life"))
    assert not any(path.endswith("user_data") for path in files)


@pytest.mark.parametrize("secrets", [None, Secrets()])
def test_a_guest_whose_user_data_is_missing_is_not_described(secrets: Secrets | None) -> None:
    with pytest.raises(NotFound, match=UUID):
        metadata.documents(assignment(has_user_data=True), secrets)


def test_an_address_that_is_none_names_the_interface() -> None:
    with pytest.raises(InvalidInput, match="0b9d2c52"):
        metadata.network_data((interface(addresses=("10.0.0.300/24",)),))


def test_each_family_has_its_own_gateway() -> None:
    document = metadata.network_data(
        (interface(addresses=("10.10.0.5/24", "fd00::5/64"), gateway="10.10.0.1", gateway6="fd00::1"),)
    )
    assert [entry["routes"][0]["gateway"] for entry in document["networks"]] == ["10.10.0.1", "fd00::1"]


@pytest.mark.parametrize("field", ["gateway", "gateway6"])
def test_a_gateway_that_is_none_names_the_interface(field: str) -> None:
    with pytest.raises(InvalidInput, match="0b9d2c52"):
        metadata.network_data((interface(addresses=("10.10.0.5/24", "fd00::5/64"), **{field: "x"}),))


def test_a_gateway_is_no_route_for_addresses_of_the_other_family() -> None:
    document = metadata.network_data((interface(addresses=("fd00::5/64",), gateway="10.10.0.1"),))
    assert document["networks"][0]["routes"] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web-1", "web-1"),
        ("Web.1", "web-1"),
        ("--", f"server-{UUID}"),
        ("ünï", "n"),
        ("../../etc", "etc"),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_a_hostname_is_as_near_to_the_name_as_can_be(name: str, expected: str) -> None:
    assert metadata.hostname(name, UUID) == expected


@given(name=st.text())
def test_a_hostname_is_always_one_label(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", metadata.hostname(name, UUID))


anything = st.text(st.characters(codec=None), max_size=40)
addresses = st.builds(
    lambda address, prefix: f"{address}/{min(prefix, 32 if address.version == 4 else 128)}",
    st.ip_addresses(),
    st.integers(1, 128),
)


@given(
    name=anything,
    namespace=anything,
    keys=st.lists(anything, max_size=3),
    user_data=st.none() | anything,
    where=st.lists(st.lists(addresses, max_size=3), max_size=3),
)
def test_every_document_parses_whatever_it_holds(
    name: str, namespace: str, keys: list[str], user_data: str | None, where: list[list[str]]
) -> None:
    interfaces = tuple(interface(addresses=tuple(some)) for some in where)
    spec = Spec(
        resources=Resources(vcpus=1, memory_mb=1, disk_gb=1),
        image="",
        ssh_keys=tuple(keys),
        has_user_data=user_data is not None,
        interfaces=interfaces,
    )
    asked = Assignment(uuid=UUID, namespace=namespace, name=name, role=Role.RUN, generation=1, epoch=1, spec=spec)
    files = metadata.documents(asked, Secrets(user_data=user_data))

    meta = json.loads(files["openstack/latest/meta_data.json"])
    assert (meta["name"], meta["project_id"]) == (name, namespace)
    assert list(meta.get("public_keys", {}).values()) == keys
    assert json.loads(files["openstack/latest/vendor_data.json"]) == {}
    network = json.loads(files["openstack/latest/network_data.json"])
    links = [link["id"] for link in network["links"]]
    assert len(set(links)) == len(interfaces)
    assert len({entry["id"] for entry in network["networks"]}) == len(network["networks"])
    found = {link: [] for link in links}
    for entry in network["networks"]:
        if not entry["type"].endswith("dhcp"):
            netmask = ipaddress.ip_address(entry["netmask"])
            prefix = bin(int(netmask)).count("1")
            found[entry["link"]].append(ipaddress.ip_interface(f"{entry['ip_address']}/{prefix}"))
    assert list(found.values()) == [[ipaddress.ip_interface(one) for one in some] for some in where]
    assert metadata.documents(asked, Secrets(user_data=user_data)) == files
