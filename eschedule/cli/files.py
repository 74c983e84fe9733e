"""Files that a command is given: read as far as they may go, and refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

from ecompute.cluster.errors import InvalidInput
from eschedule.scheduler.request import USER_DATA_LIMIT_BYTES, check_user_data

KEYS_LIMIT_BYTES = 1 << 20

_ENCODE = "encode anything else, for example with base64"
_PUBLIC = "give the public one, the file that ends in .pub"


def read_user_data(path: str) -> str:
    """Return the user data in ``path``; ``-`` is standard input.

    Raises:
        InvalidInput: it cannot be read, is too long, or is not text.
    """
    data = read_file(path, USER_DATA_LIMIT_BYTES + 1)
    if len(data) > USER_DATA_LIMIT_BYTES:
        raise InvalidInput(
            f"user data in {path} is too long",
            hint=f"at most {USER_DATA_LIMIT_BYTES} bytes; let a short script fetch the rest",
        )
    try:
        return check_user_data(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"user data in {path} is not UTF-8 text", hint=_ENCODE) from error


def read_ssh_keys(path: str) -> list[str]:
    """Return the public keys in ``path``, as in ``authorized_keys``: a line each, ``#`` begins a comment.

    Raises:
        InvalidInput: it cannot be read, or holds none.
    """
    data = read_file(str(Path(path).expanduser()) if path != "-" else path, KEYS_LIMIT_BYTES)
    text = data.decode("utf-8", "replace")
    if "PRIVATE KEY" in text:
        raise InvalidInput(f"{path} is a private key", hint=_PUBLIC)
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise InvalidInput(f"{path} holds no ssh public keys", hint=_PUBLIC)
    return lines


def read_file(path: str, limit_bytes: int) -> bytes:
    """Return at most the first ``limit_bytes`` of a file; ``-`` is standard input.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        if path == "-":
            return sys.stdin.buffer.read(limit_bytes)
        with Path(path).open("rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", hint="give a readable file") from error
