"""What is answered: EC2's tree and OpenStack's, to the guest that asks and about nobody else.

Who asks is known by the network of the socket and the address that the packet came from, which the host's filter
holds every guest to. No header decides it. An unknown caller is told that there is nothing.

Threads: the server's workers, several at once.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

import falcon
from msgspec import structs

from ecompute.cluster.documents import Assignment
from ecompute.cluster.errors import CloudError
from ecompute.guest import ec2, metadata, told
from ecompute.guest.told import Guest
from md_server import tokens
from md_server.told import Told

VNI = "ecompute.vni"
"""In a request's environment: the network that its socket is on."""

TOKEN = "X-aws-ec2-metadata-token"  # noqa: S105 - a header's name
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
PLAIN = "text/plain; charset=utf-8"

log = logging.getLogger(__name__)


def make(
    read: Told, key: bytes, *, now: Callable[[], float] = time.monotonic
) -> falcon.App[falcon.Request, falcon.Response]:
    """Return the WSGI application.

    Args:
        key: seals session tokens.
        now: seconds of a clock that only rises.
    """
    app = falcon.App(media_type=PLAIN)
    app.req_options.strip_url_path_trailing_slash = False
    who = Who(read)
    app.add_route("/latest/api/token", Token(who, key, now))
    app.add_sink(Ec2(who, key, now), r"/(?P<path>.*)$")
    app.add_sink(OpenStack(who), r"/openstack(?:/(?P<path>.*))?$")  # the last one added is asked first
    app.set_error_serializer(_no_words)
    app.add_error_handler(Exception, _unforeseen)
    return app


def _unforeseen(req: falcon.Request, resp: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    """Say where it was, and nothing that the guest has sent."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    log.error("nobody foresaw this: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    raise falcon.HTTPInternalServerError


def _no_words(req: falcon.Request, resp: falcon.Response, error: falcon.HTTPError) -> None:
    """An error is its status: what it was about is nobody's business."""
    resp.content_type = PLAIN
    resp.text = f"{error.status}\n"


class Who:
    """Finds the guest that asks."""

    def __init__(self, read: Told) -> None:
        self._read = read

    def asks(self, req: falcon.Request) -> tuple[Guest, str | None]:
        """Return the guest, and the floating address of its interface on this network.

        Raises:
            falcon.HTTPNotFound: nobody that is known here.
        """
        known = self._read.callers(req.env[VNI])
        uuid = None if known is None else told.caller(known, req.env["REMOTE_ADDR"])
        guest = None if uuid is None else self._read.guest(uuid)
        if known is None or guest is None:
            raise falcon.HTTPNotFound
        return guest, known.floating.get(guest.assignment.uuid)


class Token:
    """Session tokens."""

    def __init__(self, who: Who, key: bytes, now: Callable[[], float]) -> None:
        self._who, self._key, self._now = who, key, now

    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        guest, _ = self._who.asks(req)
        if req.get_header("X-Forwarded-For") is not None:
            raise falcon.HTTPForbidden  # an open proxy in the guest is not to get one for somebody else
        text = req.get_header(TTL) or ""
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(tokens.LONGEST_S))
        if not is_number or not 1 <= int(text) <= tokens.LONGEST_S:
            raise falcon.HTTPBadRequest
        resp.content_type = PLAIN
        resp.set_header(TTL, text)
        resp.text = tokens.issue(self._key, guest.assignment.uuid, ttl_s=int(text), now_s=self._now())


class Ec2:
    """``/``, ``/2009-04-04/…`` and ``/latest/…``."""

    def __init__(self, who: Who, key: bytes, now: Callable[[], float]) -> None:
        self._who, self._key, self._now = who, key, now

    def __call__(self, req: falcon.Request, resp: falcon.Response, **parts: Any) -> None:
        _only_read(req)
        guest, floating = self._who.asks(req)
        token = req.get_header(TOKEN)
        uuid = guest.assignment.uuid
        if token is not None and not tokens.is_valid(self._key, token, uuid, now_s=self._now()):
            raise falcon.HTTPUnauthorized
        version, _, below = _clean(parts["path"]).partition("/")
        if not version:
            _answer(resp, "\n".join(ec2.VERSIONS).encode())
            return
        if version not in ec2.VERSIONS:
            raise falcon.HTTPNotFound
        tree = _made(lambda: ec2.documents(_tellable(guest), guest.secrets, floating=floating))
        asked = _of_key(below)
        _answer(resp, tree[asked] if asked in tree else ec2.listing(tree, asked))


class OpenStack:
    """``/openstack/…``"""

    def __init__(self, who: Who) -> None:
        self._who = who

    def __call__(self, req: falcon.Request, resp: falcon.Response, **parts: Any) -> None:
        _only_read(req)
        guest, _ = self._who.asks(req)
        below = _clean(parts["path"] or "")
        if not below:
            _answer(resp, "\n".join(metadata.VERSIONS).encode())
            return
        tree = _made(lambda: metadata.documents(_tellable(guest), guest.secrets))
        found = tree.get(f"openstack/{below}")
        if found is not None:
            _answer(resp, found, "application/json" if below.endswith(".json") else PLAIN)
        elif below in metadata.VERSIONS:
            prefix = f"openstack/{below}/"
            _answer(resp, "\n".join(name[len(prefix) :] for name in sorted(tree) if name.startswith(prefix)).encode())
        elif below.partition("/")[2] == "password" and below.partition("/")[0] in metadata.VERSIONS:
            _answer(resp, b"")  # none was set
        else:
            raise falcon.HTTPNotFound


def _only_read(req: falcon.Request) -> None:
    if req.method not in ("GET", "HEAD"):
        raise falcon.HTTPMethodNotAllowed(["GET", "HEAD"])


def _clean(path: str) -> str:
    """Return ``path`` without empty parts: clients double slashes and end in one."""
    return "/".join(part for part in path.split("/") if part)


def _of_key(path: str) -> str:
    """Return where an ssh key lies: clients may ask for ``public-keys/0/openssh-key`` or ``…/0=key-1/…``."""
    parts = path.split("/")
    if parts[:2] == ["meta-data", "public-keys"] and len(parts) > 2:
        parts[2] = parts[2].partition("=")[0]
    return "/".join(parts)


def _tellable(guest: Guest) -> Assignment:
    """Return the assignment of a guest; without its user data, if that is lost: all else is told."""
    if guest.secrets is not None and guest.secrets.user_data is not None:
        return guest.assignment
    return structs.replace(guest.assignment, spec=structs.replace(guest.assignment.spec, has_user_data=False))


def _made(make_tree: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    try:
        return make_tree()
    except CloudError as error:
        raise falcon.HTTPNotFound from error


def _answer(resp: falcon.Response, data: bytes | None, content_type: str = PLAIN) -> None:
    if data is None:
        raise falcon.HTTPNotFound
    resp.content_type = content_type
    resp.data = data
