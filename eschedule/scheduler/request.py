"""What may be asked for, checked before anything is claimed. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from ecompute.cluster.documents import DEFAULT_NAMESPACE
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import candidates_query

GUEST_CLASSES = ("VCPU", "MEMORY_MB", "DISK_GB")
"""What every guest needs some of."""

USER_DATA_LIMIT_BYTES = 64 * 1024
SSH_KEY_LIMIT = 16 * 1024
SSH_KEYS_LIMIT = 32

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", re.IGNORECASE)
_KEY_TYPE = re.compile(r"(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp\d+|sk-[a-z0-9-]+@openssh\.com)")


@dataclass(frozen=True)
class LaunchRequest:
    """One instance, as asked for.

    ``query`` is placement's: ``resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&required=…``.
    """

    query: str
    image: str
    name: str | None = None
    namespace: str = DEFAULT_NAMESPACE
    user_data: str | None = None
    ssh_keys: tuple[str, ...] = ()


def check(request: LaunchRequest) -> LaunchRequest:
    """Return ``request`` with its texts trimmed.

    Raises:
        InvalidInput: one line that says what is wrong and what would be right. Whether placement
            knows the classes, traits and aggregates of the query is its to say.
    """
    return LaunchRequest(
        query=check_query(request.query),
        image=check_image(request.image),
        name=None if request.name is None else check_name(request.name),
        namespace=check_namespace(request.namespace),
        user_data=None if request.user_data is None else check_user_data(request.user_data),
        ssh_keys=check_ssh_keys(request.ssh_keys),
    )


def check_query(query: str) -> str:
    """See that a guest can be made of what ``query`` asks for, whichever candidate serves it."""
    asked = candidates_query(query)
    missing = [name for name in GUEST_CLASSES if name not in asked.totals]
    if missing:
        raise InvalidInput(
            f"the query asks for no {' and no '.join(missing)}",
            hint="a guest needs all three, for example resources=VCPU:1,MEMORY_MB:256,DISK_GB:1",
        )
    return query


def check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:80]!r} cannot be an instance's name",
            hint="use letters, digits and hyphens, at most 63, as in a host name",
        )
    return name


def check_namespace(namespace: str) -> str:
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidInput(
            f"{namespace[:80]!r} cannot be a namespace's name",
            hint="use letters, digits, hyphens and underscores, at most 63",
        )
    return namespace


def check_image(image: str) -> str:
    image = image.strip()
    if not image:
        raise InvalidInput("no image is given, and the configuration names no default", hint="give the URL of an image")
    if not image.isprintable() or " " in image or len(image) > 2048:
        raise InvalidInput(f"{image[:80]!r} is no image URL", hint="use http://, https:// or an absolute path")
    if image.startswith("/"):
        return image
    try:
        url = urlsplit(image)
        has_userinfo = url.username is not None or url.password is not None
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        has_userinfo = is_url = False
    if has_userinfo:
        raise InvalidInput(
            "an image URL with a user or password is refused", hint="it would be kept where many can read it"
        )
    if not is_url:
        raise InvalidInput(f"{image[:80]!r} is no image URL", hint="use http://, https:// or an absolute path")
    return image


def check_user_data(text: str) -> str:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > USER_DATA_LIMIT_BYTES:
        raise InvalidInput(
            f"user data of {size} bytes is too long",
            hint=f"at most {USER_DATA_LIMIT_BYTES}; let a short script fetch the rest",
        )
    if "\x00" in text:
        raise InvalidInput("user data has a NUL byte", hint="give text; encode anything else, for example with base64")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            "user data is not UTF-8 text", hint="encode anything else, for example with base64"
        ) from error
    return text


def check_ssh_keys(ssh_keys: tuple[str, ...]) -> tuple[str, ...]:
    if len(ssh_keys) > SSH_KEYS_LIMIT:
        raise InvalidInput(f"{len(ssh_keys)} ssh keys are too many", hint=f"at most {SSH_KEYS_LIMIT}")
    return tuple(check_ssh_key(key) for key in ssh_keys)


def check_ssh_key(key: str) -> str:
    """A public key as in ``id_ed25519.pub``: type, base64, comment (RFC 4253, section 6.6)."""
    key = key.strip()
    fields = key.split(None, 2)
    if "PRIVATE KEY" in key:
        raise InvalidInput("this is a private key", hint="give the public one, the file that ends in .pub")
    problem = len(key) > SSH_KEY_LIMIT or not key.isprintable() or len(fields) < 2 or not _KEY_TYPE.fullmatch(fields[0])
    if not problem:
        try:
            blob = base64.b64decode(fields[1], validate=True)
            length = int.from_bytes(blob[:4], "big")
            problem = blob[4 : 4 + length] != fields[0].encode()
        except (binascii.Error, ValueError):
            problem = True
    if problem:
        raise InvalidInput(f"{key[:40]!r} is no ssh public key", hint="give a line like `ssh-ed25519 AAAA… comment`")
    return key
