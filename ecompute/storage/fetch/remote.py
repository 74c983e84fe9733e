"""An image over http or https.

One GET, streamed and hashed on its way to the disk. Every redirect is looked at like the first URL.
The answer must say where it ends (a length, or chunks), so that a truncated one is noticed.
Any thread may call it; a call uses a session of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import requests
import urllib3.exceptions
from urllib3.util import parse_url

from ecompute.cluster.config import ImageSettings
from ecompute.cluster.errors import Cancelled, CloudError, InvalidImage, Refused, Unavailable
from ecompute.storage import partial, signatures
from ecompute.storage.fetch.api import MAX_VALIDATOR_CHARACTERS, Fetched, Validator, shown
from ecompute.storage.fetch.limits import NETWORK_CHUNK_BYTES, Limits, Sink
from ecompute.storage.fetch.transport import Door, Watch, session

MAX_URL_CHARACTERS = 8192
MAX_LENGTH_DIGITS = 18
_REDIRECTS = (301, 302, 303, 307, 308)


def fetch(
    url: str,
    into: Path,
    *,
    known: Validator | None,
    cancelled: Callable[[], bool],
    settings: ImageSettings,
    refused: Sequence[str],
    limits: Limits,
    ca: Path | None,
) -> Fetched:
    """As `ImageSource.fetch`, of an http or https URL."""
    check_url(url)
    with Watch(limits, cancelled) as watch:
        door = Door(settings.allow_networks, refused, limits, watch)
        with _explained(url, watch), session(door, _authorities(ca)) as http:
            response = _follow(http, url, known, limits)
            with response:
                if response.status_code == 304:
                    assert known is not None
                    return Fetched(None, "", 0, known, not_modified=True)
                return _store(response, url, into, settings, limits, watch)


def check_url(url: str, what: str = "the image URL") -> None:
    """Raise InvalidImage or Refused for a URL that is not fetched whatever answers."""
    if len(url) > MAX_URL_CHARACTERS or not url.isprintable() or " " in url:
        raise InvalidImage(
            f"{what} {shown(url)} has spaces or control characters, or is too long", hint="write https://host/path"
        )
    try:
        parts = parse_url(url)
    except urllib3.exceptions.LocationParseError as error:
        raise InvalidImage(f"{what} {shown(url)} is not a URL", hint="write https://host/path") from error
    if parts.auth is not None or "@" in (parts.netloc or ""):
        raise Refused(
            f"{what} {shown(url)} carries a user or password, which would be seen by everyone who lists instances",
            hint="offer the image without, or under a signed URL",
        )
    if parts.scheme not in ("http", "https") or not parts.host:
        raise InvalidImage(f"{what} {shown(url)} is not an http or https URL", hint="write https://host/path")


def _follow(http: requests.Session, url: str, known: Validator | None, limits: Limits) -> requests.Response:
    """Return the answer at the end of the redirects: 200, or 304 if ``known`` was asked with."""
    headers = {}
    if known is not None and known.etag is not None:
        headers["If-None-Match"] = known.etag
    elif known is not None and known.last_modified is not None:
        headers["If-Modified-Since"] = known.last_modified
    target = url
    for _ in range(limits.redirects + 1):
        response = http.get(
            target, headers=headers, stream=True, allow_redirects=False, timeout=(limits.connect_s, limits.stall_s)
        )
        if response.status_code not in _REDIRECTS:
            return _accepted(response, url, is_conditional=bool(headers))
        location = response.headers.get("Location", "")
        response.close()
        http.close()  # a connection carries one request: its server may be closing it just now
        if not location:
            raise InvalidImage(f"{shown(url)} redirects to nowhere", hint="check the URL")
        following = urljoin(target, location)
        check_url(following, f"{shown(url)} redirects:")
        if target.lower().startswith("https:") and not following.lower().startswith("https:"):
            raise Refused(
                f"{shown(url)} redirects from https to {shown(following)}", hint="name a URL that stays with https"
            )
        target = following
    raise InvalidImage(f"{shown(url)} redirects more than {limits.redirects} times", hint="name the URL at the end")


def _accepted(response: requests.Response, url: str, *, is_conditional: bool) -> requests.Response:
    status = response.status_code
    if status == 200 or (status == 304 and is_conditional):
        return response
    response.close()
    if status >= 500 or status in (408, 425, 429):
        raise Unavailable(f"{shown(url)}: the server answers {status} {response.reason}", hint="try again later")
    raise InvalidImage(f"{shown(url)}: the server answers {status} {response.reason}", hint="check the URL")


def _store(
    response: requests.Response, url: str, into: Path, settings: ImageSettings, limits: Limits, watch: Watch
) -> Fetched:
    length = _check_headers(response, url)
    path = partial.create(into, "image")
    try:
        sink = Sink(path, max_bytes=settings.max_gb << 30, kept_free_bytes=limits.kept_free_bytes, name=shown(url))
        try:
            sink.expect(length or 0)
            head = b""
            try:
                for chunk in response.raw.stream(NETWORK_CHUNK_BYTES, decode_content=False):
                    watch.count(len(chunk))
                    if watch.reason is not None:
                        break
                    if len(head) < signatures.HEAD_BYTES:
                        head += chunk
                        _check_head(head, url)
                    sink.write(chunk)
            except urllib3.exceptions.ProtocolError as error:
                raise _truncated(url, sink.size_bytes, length) from error
            if watch.reason is not None or (length is not None and sink.size_bytes != length):
                raise _truncated(url, sink.size_bytes, length)
            return Fetched(path, sink.finish(), sink.size_bytes, _validator(response))
        finally:
            sink.close()
    except BaseException:
        partial.discard(path)
        raise


def _truncated(url: str, size_bytes: int, length: int | None) -> Unavailable:
    expected = "its end" if length is None else f"{length} bytes"
    return Unavailable(
        f"{shown(url)} is truncated: the connection ended after {size_bytes} bytes, before {expected}",
        hint="try again later",
    )


def _check_headers(response: requests.Response, url: str) -> int | None:
    """Return the length of the body, or None where chunks mark its end."""
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InvalidImage(f"{shown(url)} comes encoded ({encoding})", hint="offer the unpacked image")
    if headers.get("Content-Type", "").split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise InvalidImage(
            f"{shown(url)} is an HTML page, not an image", hint="check the URL: it must be that of the image itself"
        )
    length = headers.get("Content-Length")
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    if length is None or not length.isascii() or not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
        raise InvalidImage(
            f"{shown(url)}: the server does not say how long the image is, a truncated one could not be noticed",
            hint="use a server that sends Content-Length",
        )
    return int(length)


def _check_head(head: bytes, url: str) -> None:
    """Refuse what is no image after its first bytes, not after its last."""
    found = signatures.name_of(head) if len(head) >= signatures.TAIL_BYTES else None
    if found is not None:
        raise InvalidImage(f"{shown(url)} is {found.name}, not a qcow2 or raw image", hint=found.hint)


def _validator(response: requests.Response) -> Validator:
    def usable(name: str) -> str | None:
        value = response.headers.get(name, "").strip()
        return value if value and len(value) <= MAX_VALIDATOR_CHARACTERS and value.isprintable() else None

    return Validator(usable("ETag"), usable("Last-Modified"))


def _authorities(ca: Path | None) -> str | bool:
    """The system's certificate authorities, to which an operator adds; else those of the library."""
    if ca is not None:
        return str(ca)
    known = ssl.get_default_verify_paths()
    if known.cafile is not None:
        return known.cafile
    if known.capath is not None and any(Path(known.capath).glob("*.0")):
        return known.capath
    return True


@contextmanager
def _explained(url: str, watch: Watch) -> Iterator[None]:
    """Say what went wrong in our words: what the watch ended looks like any broken connection."""
    name = shown(url)
    try:
        yield
    except (
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        Unavailable,
        InvalidImage,
        OSError,
        ValueError,
    ) as error:
        if watch.reason == "cancelled":
            raise Cancelled(f"the fetch of {name} was given up") from error
        if watch.reason == "stalled" or isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            raise Unavailable(f"{name}: the server stalls", hint="try again later, or use a faster server") from error
        if isinstance(error, CloudError):
            raise
        if isinstance(error, requests.exceptions.SSLError):
            raise Unavailable(
                f"{name}: the server's certificate is not trusted: {_cause(error)}",
                hint="add its authority to this host's certificates",
            ) from error
        if isinstance(error, ValueError):  # the libraries' errors for a malformed URL are ValueErrors as well
            raise InvalidImage(f"{name} is not a URL that can be fetched", hint="check the URL") from error
        raise Unavailable(f"{name}: the connection broke: {_cause(error)}", hint="try again later") from error


def _cause(error: BaseException) -> str:
    """The innermost reason, without the wrappers (which repeat the whole URL)."""
    while True:
        inner = getattr(error, "reason", None) or next(
            (part for part in error.args if isinstance(part, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    return getattr(error, "verify_message", None) or getattr(error, "strerror", None) or type(error).__name__
