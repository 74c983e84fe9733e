"""One HTTP session to placement: the version that we speak, deadlines, retries, errors.

An *operation* is what a caller asked for; it may take several requests and several tries of them.
`Transport.settle` runs one: it calls a step until that returns, and in between waits, with jitter,
while there are tries and time left.

Invariants:

- every request carries the same microversion, has a connect and a read deadline, follows no
  redirect and reads nothing from the environment (no proxies, no netrc);
- no try begins after ``timeout_s``. One request gets half of what is left of it, so that a server
  that hangs leaves time to ask another worker, and at least half a second;
- no answer (a reset, a timeout, 5xx) says nothing about whether a write was done: steps are such
  that doing one again is safe.

Threads: everything may be called from any thread. The session is shared: its headers and settings
do not change after it is made, it keeps no cookies, and its connections are a pool.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, TypeVar

import msgspec
import requests
from requests.adapters import HTTPAdapter

from ecompute.cluster.decoding import from_json
from ecompute.cluster.documents import timestamp
from ecompute.cluster.errors import (
    CloudError,
    Conflict,
    InvalidInput,
    NotFound,
    Outrun,
    PlacementUnavailable,
    Refused,
    one_line,
)

if TYPE_CHECKING:
    from ecompute.cluster.config import PlacementSettings

MICROVERSION = "1.39"
CONCURRENT_UPDATE = "placement.concurrent_update"

TRIES_WITHOUT_ANSWER = 5
TRIES_OVERTAKEN = 12
_CONNECT_TIMEOUT_S = 3.0
_LEAST_S = 0.5
"""What a request is given at least: with less, a service that is only busy would seem to be down."""
_POOLED_CONNECTIONS = 64

T = TypeVar("T")
Parameters = Sequence[tuple[str, str]]


def pause_s(tries: int, share: float) -> float:
    """Return how long to wait after ``tries`` tries: 0.1 s, doubled each time, at most 1 s.

    Args:
        tries: how many have failed, from 1.
        share: a random number in [0, 1); half of the pause depends on it.
    """
    return float(min(1.0, 0.1 * 2 ** (tries - 1)) * (0.5 + share / 2))


class NoAnswer(Exception):
    """A request without an answer that means anything; whether it was carried out is not known."""


class Overtaken(Exception):
    """Somebody else wrote between our reading and our writing: read again."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    code: str = ""
    """Placement's own name of the error: stable, for decisions."""
    detail: str = ""
    """Placement's own words, on one line: for people."""


Send = Callable[..., Answer]
"""``send(method, path, parameters=(), document=None)``: one request, within the operation's deadline."""


class _Error(msgspec.Struct):
    code: str = ""
    detail: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error]


def _error_of(body: bytes) -> _Error:
    try:
        error = from_json(body, _Errors).errors[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
        return _Error()
    # The first paragraph of a detail is what HTTP says of every such status.
    paragraphs = [part for part in error.detail.split("\n\n") if part.strip()]
    return _Error(code=error.code, detail=one_line(paragraphs[-1]) if paragraphs else "")


def _cause(error: BaseException) -> str:
    """Return what the operating system said, from under the layers of the HTTP libraries."""
    if isinstance(error, requests.exceptions.Timeout):
        return "timed out"
    seen: list[BaseException] = [error]
    for inner in seen:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror.lower()
        reachable = (inner.__cause__, inner.__context__, getattr(inner, "reason", None), *inner.args)
        seen.extend(e for e in reachable if isinstance(e, BaseException) and e not in seen)
    return one_line(seen[-1] or type(seen[-1]).__name__, 200)


class Transport:
    """The session, and since when it gets no answers.

    Raises:
        InvalidInput: the token cannot be read.
    """

    def __init__(self, settings: PlacementSettings, *, timeout_s: float) -> None:
        self._set_up(settings.endpoint.rstrip("/"), timeout_s, _session(settings))

    def _set_up(self, endpoint: str, timeout_s: float, session: requests.Session) -> None:
        """Be a transport of these parts; what has them from elsewhere calls this instead of the constructor."""
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._session = session
        self._lock = threading.Lock()
        self._down_since: float | None = None

    def close(self) -> None:
        self._session.close()

    def settle(self, step: Callable[[Send], T], *, unsettled: str = "", more_s: float = 0.0) -> T:
        """Return what ``step(send)`` returns, calling it again when it was overtaken or got no answer.

        Args:
            step: one whole try: reads, decides, writes. Doing it again must be safe.
            unsettled: what is not known if no try gets an answer; for the error.
            more_s: for how much longer than ``timeout_s`` it may go on, where a request takes long.

        Raises:
            PlacementUnavailable: no answer in `TRIES_WITHOUT_ANSWER` tries, or in time.
            Outrun: overtaken in each of `TRIES_OVERTAKEN` tries.
        """
        ends = time.monotonic() + self.timeout_s + more_s
        silent = overtaken = 0
        while True:
            try:
                return step(self._sender(ends))
            except NoAnswer as error:
                silent += 1
                pause = pause_s(silent, random.random())  # noqa: S311 - spreads retries, guards nothing
                if silent >= TRIES_WITHOUT_ANSWER or time.monotonic() + pause >= ends:
                    raise self._unavailable(str(error), unsettled) from error
            except Overtaken as error:
                overtaken += 1
                pause = pause_s(overtaken, random.random()) / 2  # noqa: S311 - as above
                if overtaken >= TRIES_OVERTAKEN or time.monotonic() + pause >= ends:
                    raise Outrun(
                        f"placement at {self.endpoint}: somebody else wrote first, {overtaken} times: {error}",
                        hint="try again",
                    ) from error
            time.sleep(pause)

    def ask(self, method: str, path: str, parameters: Parameters = (), document: object = None) -> Answer:
        """Return the answer to one request that may be sent again."""
        return self.settle(lambda send: send(method, path, parameters, document))

    def _sender(self, ends: float) -> Send:
        def send(method: str, path: str, parameters: Parameters = (), document: object = None) -> Answer:
            timeout_s = max(_LEAST_S, (ends - time.monotonic()) / 2)
            return self._once(method, path, parameters, document, timeout_s)

        return send

    def _once(self, method: str, path: str, parameters: Parameters, document: object, timeout_s: float) -> Answer:
        body = None if document is None else msgspec.json.encode(document)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            response = self._session.request(
                method,
                self.endpoint + path,
                params=list(parameters) or None,
                data=body,
                headers=headers,
                timeout=(min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s),
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            self._note(is_up=False)
            raise self._unavailable(_cause(error), hint="check placement.endpoint and placement.ca") from error
        except (
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
        ) as error:
            self._note(is_up=False)
            raise NoAnswer(_cause(error)) from error
        except (requests.exceptions.RequestException, OSError, UnicodeError) as error:
            raise InvalidInput(
                f"placement cannot be asked at {self.endpoint}: {one_line(error, 200)}", hint="check placement.endpoint"
            ) from error
        status = response.status_code
        if status >= 500 or status == 429:
            self._note(is_up=False)
            detail = _error_of(response.content).detail
            raise NoAnswer(f"it answers {status} {response.reason or ''}".rstrip() + (detail and f" ({detail})"))
        self._note(is_up=True)
        return self._judged(status, response.content)

    def _judged(self, status: int, body: bytes) -> Answer:
        """Return the answer, unless it is one that every operation treats the same."""
        if status < 300:
            return Answer(status, body)
        if status < 400:
            raise self.not_placement(f"it redirects ({status})")
        error = _error_of(body)
        if status == 401:
            raise Refused(f"placement at {self.endpoint} does not accept our token", hint="check placement.token_file")
        if status == 403:
            raise Refused(
                f"placement at {self.endpoint} does not allow it: {error.detail or status}",
                hint="check placement.token_file, and the policy of the service",
            )
        if status == 406:
            raise self.too_old(error.detail)
        if status == 409 and error.code == CONCURRENT_UPDATE:
            raise Overtaken(error.detail)
        return Answer(status, body, error.code, error.detail)

    # --- errors --------------------------------------------------------------------------------

    def _note(self, *, is_up: bool) -> None:
        with self._lock:
            if is_up:
                self._down_since = None
            elif self._down_since is None:
                self._down_since = time.time()

    def _unavailable(self, cause: str, unsettled: str = "", *, hint: str = "") -> PlacementUnavailable:
        with self._lock:
            since = self._down_since or time.time()
        text = f"placement at {self.endpoint} does not answer since {timestamp(since)}: {cause}"
        return PlacementUnavailable(
            f"{text}; {unsettled}" if unsettled else text, hint=hint or "check that it runs, and placement.endpoint"
        )

    def not_placement(self, found: str) -> PlacementUnavailable:
        """What answers is something else."""
        return PlacementUnavailable(
            f"what answers at {self.endpoint} is not placement: {found}", hint="check placement.endpoint"
        )

    def too_old(self, found: str) -> Refused:
        return Refused(
            f"placement at {self.endpoint} does not speak version {MICROVERSION}: {found}",
            hint="upgrade it to openstack-placement 16 or newer",
        )

    def read(self, answer: Answer, reader: Callable[[bytes], T]) -> T:
        """Return what ``reader`` makes of a good answer.

        Raises:
            PlacementUnavailable: it is not what placement would say.
        """
        try:
            return reader(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.not_placement(one_line(error, 200)) from error

    def unexpected(self, answer: Answer, tried: str) -> CloudError:
        """Return the error for an answer that ``tried`` has no better use for."""
        text = f"placement: {tried}: {answer.detail or f'it answers {answer.status}'}"
        kinds: Mapping[int, type[CloudError]] = {400: InvalidInput, 404: NotFound, 409: Conflict}
        return kinds.get(answer.status, Refused)(text)


def _session(settings: PlacementSettings) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.verify = str(settings.ca) if settings.ca is not None else True
    session.headers.update(
        {
            "Accept": "application/json",
            "OpenStack-API-Version": f"placement {MICROVERSION}",
            "X-Auth-Token": _token(settings),
        }
    )
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=_POOLED_CONNECTIONS, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _token(settings: PlacementSettings) -> str:
    if settings.token_file is None:
        return "admin"
    try:
        token = settings.token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise InvalidInput(
            f"the token of placement cannot be read from {settings.token_file}: {reason}",
            hint="check placement.token_file",
        ) from error
    if not token or not token.isprintable() or " " in token:
        raise InvalidInput(f"{settings.token_file} does not hold one token", hint="put the token there, on one line")
    return token
