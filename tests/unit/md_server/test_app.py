"""What is answered, and to whom."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.guest.told import Guest

MakeGuest = Callable[..., Guest]

USER_DATA = "#!/bin/sh\necho secret\n"
NOTHING = (404, b"404 Not Found\n")


@pytest.fixture
def guests(service: Any, make_guest: MakeGuest) -> list[Guest]:
    made = [make_guest(1, user_data=USER_DATA, ssh_keys=("ssh-ed25519 AAAA",)), make_guest(2)]
    service.write(*made)
    return made


def test_each_guest_is_told_of_itself(service: Any, guests: list[Guest]) -> None:
    for number, guest in enumerate(guests, 1):
        found = service.ask("/openstack/latest/meta_data.json", address=f"10.10.0.{number}")
        assert found.status == 200
        assert json.loads(found.body)["uuid"] == guest.assignment.uuid
        assert service.ask("/latest/meta-data/hostname", address=f"10.10.0.{number}").body == f"guest-{number}".encode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", b"2009-04-04\nlatest"),
        ("/latest", b"dynamic/\nmeta-data/\nuser-data"),
        ("/latest/", b"dynamic/\nmeta-data/\nuser-data"),
        ("/2009-04-04/user-data", USER_DATA.encode()),
        ("/latest/meta-data/public-keys/", b"0=key-1"),
        ("/latest/meta-data/public-keys/0/openssh-key", b"ssh-ed25519 AAAA"),
        ("/latest/meta-data/public-keys/0=key-1/openssh-key", b"ssh-ed25519 AAAA"),
        ("/latest/meta-data/local-ipv4", b"10.10.0.1"),
        ("/latest/meta-data/network/interfaces/macs", b"02:54:00:12:34:01/"),
        ("/openstack", b"2018-08-27\nlatest"),
        ("/openstack/latest", b"meta_data.json\nnetwork_data.json\nuser_data\nvendor_data.json"),
        ("/openstack/2018-08-27/user_data", USER_DATA.encode()),
        ("/openstack/latest/vendor_data.json", b"{}"),
        ("/openstack/latest/password", b""),
    ],
)
def test_the_trees_have_what_readers_ask_for(service: Any, guests: list[Guest], path: str, body: bytes) -> None:
    found = service.ask(path)
    assert (found.status, found.body) == (200, body)
    head = service.ask(path, method="HEAD")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/latest/meta-data/hostnam",
        "/latest/meta-data/hostname/x",
        "/2021-03-23/meta-data/",
        "/latestx",
        "/latest/../../etc/passwd",
        "/openstack/latest/nothing",
        "/openstack/2012-08-10/meta_data.json",
        "/openstack/latest/meta_data.json/x",
        "/openstack/2012-08-10/password",
        "/ec2",
    ],
)
def test_what_is_not_there_is_not_found(service: Any, guests: list[Guest], path: str) -> None:
    found = service.ask(path)
    assert (found.status, found.body) == NOTHING


def test_to_somebody_unknown_nothing_is_there_and_nothing_says_why(service: Any, guests: list[Guest]) -> None:
    missing = service.ask("/nothing")
    for asked in ({"address": "10.10.0.9"}, {"vni": 4712}, {"address": "fe80::1:2%lan"}, {"address": "::1"}):
        for path in ("/", "/latest/meta-data/hostname", "/openstack/latest/meta_data.json", "/nothing"):
            assert service.ask(path, **asked) == missing


@pytest.mark.parametrize(
    ("address", "number"),
    [("10.10.0.1", 1), ("::ffff:10.10.0.2", 2), ("fe80::54:ff:fe12:3401%lan", 1), ("fe80::54:ff:fe12:3402", 2)],
)
def test_a_guest_is_known_by_its_address_or_by_the_mac_in_it(
    service: Any, guests: list[Guest], address: str, number: int
) -> None:
    assert service.ask("/latest/meta-data/hostname", address=address).body == f"guest-{number}".encode()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/latest/meta-data/hostname", "/openstack/latest/password", "/"])
def test_nothing_can_be_changed(service: Any, guests: list[Guest], method: str, path: str) -> None:
    assert service.ask(path, method=method).status == 405


# --- tokens ---


def token_of(service: Any, number: int, ttl_s: str = "60") -> str:
    headers = {"X_aws_ec2_metadata_token_ttl_seconds": ttl_s}
    found = service.ask("/latest/api/token", address=f"10.10.0.{number}", method="PUT", **headers)
    assert (found.status, found.headers["x-aws-ec2-metadata-token-ttl-seconds"]) == (200, ttl_s)
    return str(found.body.decode())


def with_token(service: Any, token: str, number: int = 1) -> int:
    headers = {"X_aws_ec2_metadata_token": token}
    return int(service.ask("/latest/meta-data/hostname", address=f"10.10.0.{number}", **headers).status)


def test_a_token_serves_its_guest_until_it_ends(service: Any, guests: list[Guest]) -> None:
    token = token_of(service, 1)
    assert with_token(service, token) == 200
    assert with_token(service, token, 2) == 401
    service.now += 60
    assert with_token(service, token) == 401
    assert service.ask("/latest/meta-data/hostname").status == 200


@pytest.mark.parametrize("token", ["", "x", "A" * 4000])
def test_anything_else_is_no_token(service: Any, guests: list[Guest], token: str) -> None:
    assert with_token(service, token) == 401


@pytest.mark.parametrize(
    "ttl", ["", "0", "-1", "21601", "1e3", "9" * 20, "0000000001" + "9" * 9, "0000000001" + "9" * 40]
)
def test_a_token_has_a_time_of_one_second_to_six_hours(service: Any, guests: list[Guest], ttl: str) -> None:
    headers = {"X_aws_ec2_metadata_token_ttl_seconds": ttl} if ttl else {}
    assert service.ask("/latest/api/token", method="PUT", **headers).status == 400


def test_no_token_is_given_through_a_proxy_nor_for_the_asking(service: Any, guests: list[Guest]) -> None:
    headers = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
    assert service.ask("/latest/api/token", method="PUT", X_Forwarded_For="10.0.0.1", **headers).status == 403
    assert service.ask("/latest/api/token", **headers).status == 405
    assert service.ask("/latest/api/token", method="PUT", address="10.10.0.9", **headers).status == 404


# --- files ---


def test_what_is_written_anew_is_told_anew(service: Any, guests: list[Guest], make_guest: MakeGuest) -> None:
    assert service.ask("/latest/user-data").body == USER_DATA.encode()
    service.write(make_guest(1, user_data="other"))
    assert service.ask("/latest/user-data").body == b"other"
    assert service.ask("/latest/user-data", address="10.10.0.2").status == 404


def test_a_guest_whose_file_is_gone_is_unknown(service: Any, guests: list[Guest]) -> None:
    assert service.ask("/").status == 200
    service.file(guests[0]).unlink()
    assert service.ask("/").status == 404


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"assignment": 1}', b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_none_and_its_text_is_not_logged(
    service: Any, guests: list[Guest], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    service.file(guests[0]).write_bytes(data + b"topsecret")
    assert service.ask("/").status == 404
    assert "topsecret" not in caplog.text


def test_a_guest_whose_user_data_etcd_has_lost_is_told_the_rest(service: Any, make_guest: MakeGuest) -> None:
    lost = make_guest(1, user_data="x")
    service.write(Guest(assignment=lost.assignment, secrets=None))
    assert service.ask("/latest/meta-data/hostname").body == b"guest-1"
    assert json.loads(service.ask("/openstack/latest/meta_data.json").body)["uuid"] == lost.assignment.uuid
    for path in ("/latest/user-data", "/openstack/latest/user_data"):
        assert service.ask(path).status == 404


def test_user_data_that_is_empty_is_there(service: Any, make_guest: MakeGuest) -> None:
    service.write(make_guest(1, user_data=""))
    for path in ("/latest/user-data", "/openstack/latest/user_data"):
        found = service.ask(path)
        assert (found.status, found.body) == (200, b"")


def test_neither_questions_nor_answers_are_logged(
    service: Any, guests: list[Guest], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = token_of(service, 1)
    with_token(service, token)
    service.ask("/latest/user-data")
    service.ask("/topsecret")
    assert caplog.text == ""
