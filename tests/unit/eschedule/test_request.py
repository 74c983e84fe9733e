"""What may be asked for."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import ConfigDrive
from ecompute.cluster.errors import InvalidInput
from eschedule.cli.launch import CONFIG_DRIVES
from eschedule.scheduler.request import (
    SSH_KEYS_LIMIT,
    USER_DATA_LIMIT_BYTES,
    LaunchRequest,
    check,
    check_image,
    check_name,
    check_namespace,
    check_query,
    check_ssh_key,
    check_ssh_keys,
    check_user_data,
)

QUERY = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"


def ssh_key(kind: str = "ssh-ed25519", *, said: str | None = None, comment: str = "me@here") -> str:
    blob = len(kind).to_bytes(4, "big") + kind.encode() + (32).to_bytes(4, "big") + bytes(32)
    return f"{said or kind} {base64.b64encode(blob).decode()} {comment}".strip()


def test_a_plain_request_passes_with_its_texts_trimmed() -> None:
    asked = LaunchRequest(
        query=QUERY, image=" http://images.example/a.qcow2 ", name="web-1", ssh_keys=(ssh_key() + "\n",)
    )
    checked = check(asked)
    assert checked.image == "http://images.example/a.qcow2"
    assert checked.ssh_keys == (ssh_key(),)
    assert check(checked) == checked


def test_a_config_drive_is_one_of_three_kinds_in_the_request_and_in_the_help() -> None:
    assert list(CONFIG_DRIVES) == list(ConfigDrive)
    for kind in ConfigDrive:
        assert check(LaunchRequest(query=QUERY, image="/i", config_drive=str(kind))).config_drive is kind
    with pytest.raises(InvalidInput, match="'iso' is no kind of config drive; use one of openstack, nocloud, none"):
        check(LaunchRequest(query=QUERY, image="/i", config_drive="iso"))


@pytest.mark.parametrize("name", ["a", "web-1", "A" * 63, "0day", "x-y-z"])
def test_a_name_is_one_label_of_a_host_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "a-",
        "a_b",
        "a.b",
        "a/b",
        "../etc",
        "a b",
        "a\nb",
        "a\x00b",
        "ä",
        "a" * 64,
        "</domain>",
        "a\udcff",
        "\x1b[31m",
    ],
)
def test_what_is_no_label_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be an instance's name; use letters") as raised:
        check_name(name)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("namespace", ["", "a/b", "a b", "-a", "a" * 64, "ü"])
def test_a_namespace_is_a_word(namespace: str) -> None:
    assert check_namespace("team_1-x") == "team_1-x"
    with pytest.raises(InvalidInput, match="cannot be a namespace's name"):
        check_namespace(namespace)


@pytest.mark.parametrize("image", ["http://h/i", "https://h:8443/i?x=y", "http://[::1]/i", "/srv/images/small.qcow2"])
def test_an_image_is_a_url_or_an_absolute_path(image: str) -> None:
    assert check_image(image) == image


@pytest.mark.parametrize(
    "image",
    ["", "  ", "image.qcow2", "ftp://h/i", "file:///etc/passwd", "http://", "http:///i", "http://h:x/i", "http://h:99999/i",
     "http://[::1/i", "http://h/a b", "http://h/\n", "http://h/\x1b[2J", "http://h/" + "a" * 2048],
)  # fmt: skip
def test_what_is_neither_is_refused(image: str) -> None:
    with pytest.raises(InvalidInput):
        check_image(image.replace("\n", "\nx"))


@pytest.mark.parametrize("image", ["http://user@h/i", "https://user:secret@h/i"])
def test_a_password_in_a_url_is_refused_and_not_repeated(image: str) -> None:
    with pytest.raises(InvalidInput, match="user or password") as raised:
        check_image(image)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("resources=VCPU:1", "no DISK_GB and no MEMORY_MB"),
        ("resources=MEMORY_MB:1,DISK_GB:1", "no VCPU;"),
        ("resources=VCPU:0,MEMORY_MB:1,DISK_GB:1", "zero"),
        ("resources=VCPU:-1,MEMORY_MB:1,DISK_GB:1", "not an amount"),
        ("resources=VCPU:1.5,MEMORY_MB:1,DISK_GB:1", "not an amount"),
        ("resources=VCPU:99999999999,MEMORY_MB:1,DISK_GB:1", "more VCPU than can be"),
        ("resource=VCPU:1", "did you mean resources"),
        ("", "empty"),
    ],
)
def test_a_query_that_makes_no_guest_is_refused_before_anything_is_claimed(query: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        check_query(query)


def test_granular_groups_count_together() -> None:
    query = "resources1=VCPU:1,MEMORY_MB:64&resources2=DISK_GB:1&group_policy=none"
    assert check_query(query) == query


def test_user_data_may_be_just_as_long_as_is_allowed() -> None:
    assert check_user_data("ä" * (USER_DATA_LIMIT_BYTES // 2))
    with pytest.raises(InvalidInput, match="too long"):
        check_user_data("ä" * (USER_DATA_LIMIT_BYTES // 2) + "x")


@pytest.mark.parametrize("text", ["a\x00b", "a\udcffb"])
def test_user_data_is_text(text: str) -> None:
    with pytest.raises(InvalidInput):
        check_user_data(text)


def test_user_data_may_look_like_anything_else() -> None:
    text = "</domain>]]>\x1b[2J\r\n#cloud-config"
    assert check_user_data(text) == text


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com"])
def test_public_keys_of_every_kind_pass(kind: str) -> None:
    assert check_ssh_key(ssh_key(kind)) == ssh_key(kind)
    assert check_ssh_key(ssh_key(kind, comment="")) == ssh_key(kind, comment="")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 ????",
        "ssh-ed25519 AAAA",
        ssh_key("ssh-rsa", said="ssh-ed25519"),
        ssh_key("ssh-foo"),
        ssh_key(comment="a\nssh-ed25519 AAAA"),
        ssh_key(comment="\x1b]0;x\x07"),
        ssh_key(comment="x" * 20000),
        "-----BEGIN OPENSSH PRIVATE KEY-----",
    ],
)
def test_what_is_no_public_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        check_ssh_key(key)
    assert str(raised.value).isprintable()


def test_a_private_key_is_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="private key") as raised:
        check_ssh_key("-----BEGIN OPENSSH PRIVATE KEY----- b3BlbnNzaC1rZXk")
    assert "b3Blbn" not in str(raised.value)


def test_ssh_keys_are_counted() -> None:
    assert len(check_ssh_keys((ssh_key(),) * SSH_KEYS_LIMIT)) == SSH_KEYS_LIMIT
    with pytest.raises(InvalidInput, match="too many"):
        check_ssh_keys((ssh_key(),) * (SSH_KEYS_LIMIT + 1))


@given(st.text(max_size=200))
def test_whatever_is_typed_is_taken_or_refused_on_one_printable_line(text: str) -> None:
    for checker in (check_name, check_namespace, check_image, check_query, check_user_data, check_ssh_key):
        try:
            checker(text)
        except InvalidInput as error:
            assert str(error).isprintable()


@pytest.mark.parametrize(
    "name",
    ["CUSTOM_HYPERVISOR", "CUSTOM_AAG_8603765694D04B6BB1C1A7E747FB2FC4", "CUSTOM_AFG_86", "CUSTOM_QUOTA_VCPU"],
)
@pytest.mark.parametrize("group", ["", "1"])
def test_what_stands_for_groups_quotas_and_hosts_is_not_to_be_asked_for(name: str, group: str) -> None:
    asked = f",{name}:1" if not group else f"&resources{group}={name}:1&group_policy=none"
    with pytest.raises(InvalidInput, match=f"{name} is none that a query may ask for"):
        check_query(f"resources=VCPU:1,MEMORY_MB:64,DISK_GB:1{asked}")


def test_a_host_that_is_named_by_nothing_is_no_wish_for_any_host() -> None:
    with pytest.raises(InvalidInput, match="no host is named"):
        check(LaunchRequest(query="resources=VCPU:1,MEMORY_MB:64,DISK_GB:1", image="http://i.example/i", host=" "))
