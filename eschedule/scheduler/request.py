"""What may be asked for, checked before anything is claimed. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, fields
from urllib.parse import urlsplit
from uuid import UUID

from ecompute.cluster import groups, quotas
from ecompute.cluster.chosen import digest_of
from ecompute.cluster.closing import CLASSES
from ecompute.cluster.documents import DEFAULT_NAMESPACE, ConfigDrive
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.placement import PRESENCE, CandidatesQuery, candidates_query
from eschedule.cloud.interface_request import DEFAULT, InterfaceRequest, check_all

USER_DATA_LIMIT_BYTES = 64 * 1024
SSH_KEY_LIMIT = 16 * 1024
SSH_KEYS_LIMIT = 32
TAGS_LIMIT = 16

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE | re.ASCII)
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", re.IGNORECASE)
_TAG = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", re.IGNORECASE | re.ASCII)
_KEY = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?", re.IGNORECASE | re.ASCII)
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
    host: str | None = None
    """The name of the one host that it may be on, or its provider's uuid."""
    is_packed: bool = False
    """The fullest host that has room, instead of the emptiest."""
    tags: tuple[str, ...] = ()
    """What others' affinity counts."""
    affinities: tuple[tuple[str, int], ...] = ()
    """Tags of others and how much their nearness is wanted, -100 to 100."""
    group: str | None = None
    """A group's name or uuid."""
    expires: str | None = None
    """A duration from now (``2h``), or a time (RFC 3339)."""
    uuid: str | None = None
    """Chosen by the client: a repeated launch with it is the same instance."""
    idempotency_key: str | None = None
    """The same, for a client that would rather not choose a uuid."""
    interfaces: tuple[InterfaceRequest, ...] = DEFAULT
    """In its own order; empty: it has none."""
    config_drive: str = ConfigDrive.OPENSTACK
    """What kind of drive tells it about itself, as a `ConfigDrive`."""


def check(request: LaunchRequest) -> LaunchRequest:
    """Return ``request`` with its texts trimmed.

    Raises:
        InvalidInput: one line that says what is wrong and what would be right. Whether placement
            knows the classes, traits and aggregates of the query is its to say.
    """
    if request.uuid is not None and request.idempotency_key is not None:
        raise InvalidInput("a uuid and an idempotency key were given", hint="a key stands for a uuid: give one of both")
    return LaunchRequest(
        query=check_query(request.query),
        image=check_image(request.image),
        name=None if request.name is None else check_name(request.name),
        namespace=check_namespace(request.namespace),
        user_data=None if request.user_data is None else check_user_data(request.user_data),
        ssh_keys=check_ssh_keys(request.ssh_keys),
        host=None if request.host is None else check_host(request.host),
        is_packed=request.is_packed,
        tags=check_tags(request.tags),
        affinities=check_affinities(request.affinities),
        group=request.group,
        expires=None if request.expires is None else request.expires.strip(),
        uuid=None if request.uuid is None else check_uuid(request.uuid),
        idempotency_key=None if request.idempotency_key is None else check_key(request.idempotency_key),
        interfaces=check_all(request.interfaces),
        config_drive=check_config_drive(request.config_drive),
    )


def digest(request: LaunchRequest) -> str:
    """Return what tells a repeated request from another one with the same uuid or key.

    Two that ask placement the same in another order are the same; so are two ways to name it.
    """
    asked = {field.name: getattr(request, field.name) for field in fields(request)}
    del asked["uuid"], asked["idempotency_key"]
    if request.interfaces == DEFAULT:
        del asked["interfaces"]  # as before there was a choice
    return digest_of(asked | {"query": candidates_query(request.query).text})


def check_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    if len(tags) > TAGS_LIMIT:
        raise InvalidInput(f"{len(tags)} tags are too many", hint=f"at most {TAGS_LIMIT}")
    return tuple(dict.fromkeys(check_tag(tag) for tag in tags))


def check_tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise InvalidInput(
            f"{tag[:80]!r} cannot be a tag", hint="use letters, digits, hyphens, dots and underscores, at most 63"
        )
    return tag


def check_affinities(affinities: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    if len(affinities) > TAGS_LIMIT:
        raise InvalidInput(f"{len(affinities)} affinities are too many", hint=f"at most {TAGS_LIMIT}")
    for tag, weight in affinities:
        if not -100 <= weight <= 100 or weight == 0:
            raise InvalidInput(
                f"{weight} is no weight of an affinity to {check_tag(tag)}",
                hint="1 to 100 for near, -1 to -100 for apart, as in db=50",
            )
    found = tuple({check_tag(tag): weight for tag, weight in affinities}.items())
    if len(found) != len(affinities):
        raise InvalidInput("an affinity is given twice for one tag", hint="give it once")
    return found


def check_uuid(text: str) -> str:
    try:
        uuid = UUID(text)
    except ValueError:
        uuid = None
    if uuid is None or len(text) != 36 or not uuid.int:
        raise InvalidInput(
            f"{text[:80]!r} is not a uuid", hint="write it like 0d5e7c1a-6f5b-4c0e-9d58-5b8f2d3f9c11, or leave it out"
        )
    return str(uuid)


def check_key(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise InvalidInput(
            f"{text[:80]!r} cannot be an idempotency key",
            hint="use letters, digits, hyphens, dots and underscores, at most 128",
        )
    return text


def check_query(query: str) -> str:
    """See that a guest can be made of what ``query`` asks for, whichever candidate serves it."""
    asked = candidates_query(query)
    missing = sorted(CLASSES - asked.totals.keys())
    if missing:
        raise InvalidInput(
            f"the query asks for no {' and no '.join(missing)}",
            hint="a guest needs all three, for example resources=VCPU:1,MEMORY_MB:256,DISK_GB:1",
        )
    check_classes(asked)
    return query


def check_classes(asked: CandidatesQuery) -> None:
    """See that nothing is asked for that stands for something else than resources.

    The classes of groups and quotas are claimed beside a host by those whom they concern; a query that
    names one would take, or look into, what may be another namespace's.
    """
    for name in sorted(asked.totals):
        if is_internal(name):
            raise InvalidInput(f"{name} is none that a query may ask for", hint="leave it out; see --group, and quota")


def is_internal(resource_class: str) -> bool:
    """Whether a resource class is one of ours that marks hosts, groups or quotas."""
    return resource_class == PRESENCE or resource_class.startswith((*groups.PREFIXES, quotas.CLASS_PREFIX))


def check_host(host: str) -> str:
    if not host.strip():
        raise InvalidInput("no host is named", hint="see `eschedule host list`, or leave it out")
    return host


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


def check_config_drive(kind: str) -> ConfigDrive:
    if kind not in list(ConfigDrive):
        raise InvalidInput(f"{kind[:80]!r} is no kind of config drive", hint=f"use one of {', '.join(ConfigDrive)}")
    return ConfigDrive(kind)


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
