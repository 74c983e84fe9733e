"""Files that a command is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecompute.cluster.errors import InvalidInput
from eschedule.cli.files import read_ssh_keys, read_user_data
from eschedule.scheduler.request import USER_DATA_LIMIT_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_user_data_is_what_the_file_holds(file: Path) -> None:
    file.write_text("#cloud-config\nä\n")
    assert read_user_data(str(file)) == "#cloud-config\nä\n"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"x" * (USER_DATA_LIMIT_BYTES + 1), "too long"),
        (b"a\x00b", "NUL"),
        (b"\xff", "not UTF-8"),
        (b"\xff\x00", "not UTF-8"),
    ],
)
def test_user_data_that_is_too_long_or_no_text_is_refused(file: Path, data: bytes, says: str) -> None:
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=says):
        read_user_data(str(file))


def test_a_file_that_never_ends_is_read_only_as_far_as_it_may_go() -> None:
    with pytest.raises(InvalidInput, match="too long"):
        read_user_data("/dev/zero")


@pytest.mark.parametrize("path", ["/nonexistent", "/", ""])
def test_a_file_that_cannot_be_read_says_why(path: str) -> None:
    for read in (read_user_data, read_ssh_keys):
        with pytest.raises(InvalidInput, match="cannot be read"):
            read(path)


def test_keys_are_a_line_each_without_comments(file: Path) -> None:
    file.write_text("# mine\n\nssh-ed25519 AAAA a\n  ssh-rsa BBBB b\n")
    assert read_ssh_keys(str(file)) == ["ssh-ed25519 AAAA a", "  ssh-rsa BBBB b"]


def test_a_private_key_is_refused_and_not_repeated(file: Path) -> None:
    file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n")
    with pytest.raises(InvalidInput, match="is a private key; give the public one") as raised:
        read_ssh_keys(str(file))
    assert "c2VjcmV0" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_file_without_keys_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidInput, match="holds no ssh public keys"):
        read_ssh_keys(str(file))
