"""Calls to the members of an etcd cluster: which one, with which token, for how long, and again.

One gRPC channel a member (etcd3's client holds it). Calls go to one member until it fails, then to
the next; the first is drawn by lot, so that a thousand hosts do not all lean on the same one. Every
call has a deadline. What may be repeated (reads, keep-alives) is tried on every member; a
transaction is tried again only if it certainly was not taken in.

Invariants: no call waits longer than its deadline; a token is fetched anew when etcd no longer
takes it; passwords are read from their file when needed and kept nowhere.

Threads: all methods may be called from any. No process may fork (without exec) once this is open.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.documents import timestamp
from ecompute.cluster.errors import CloudError, InvalidInput, NotPermitted, Refused, StoreUnavailable, one_line
from ecompute.cluster.store.etcd3_loader import etcd3, rpc

log = logging.getLogger(__name__)

_OPTIONS = [
    # A page of a list may be larger than gRPC's 4 MiB; requests are bounded by etcd itself.
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    # A dead link is noticed within 15 s while anything is under way. etcd drops a client that pings
    # more often than every 5 s, or at all while nothing is under way.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # Back within two seconds of an etcd that was restarted, without knocking all the time.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # etcd is ours, and near: never through the proxy that the environment names for the web.
    ("grpc.enable_http_proxy", 0),
]

_HAS_LEADER = ("hasleader", "true")
"""Makes a member that lost its leader refuse, instead of letting us wait for what it cannot know."""

_NOT_TAKEN_IN = (
    "failed to connect to all addresses",  # gRPC: there was no connection to send it on
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: mvcc: database space exceeded",
)
_TOKEN_NOT_TAKEN = (
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",
    "etcdserver: revision of auth store is old",
)
_AUTH_CHANGED = "etcdserver: revision of auth store is old"
_LEADER_PAUSE_S = 0.15
"""Between attempts while the cluster elects a leader."""

_random = random.SystemRandom()

Rpc = Callable[["Member"], Any]
"""Picks the method to call: ``lambda member: member.client.kvstub.Range``."""


class Member:
    """One endpoint; its token, and etcd3's client with the channel and the stubs."""

    def __init__(self, address: str, settings: EtcdSettings) -> None:
        self.address = address
        self._settings = settings
        self._lock = threading.Lock()
        self._token: str | None = None
        host, _, port = address.rpartition(":")
        # The client is given no user: it would ask for a token here, once and never again.
        self.client: Any = etcd3.Etcd3Client(
            host=host,
            port=int(port),
            ca_cert=settings.ca and str(settings.ca),
            cert_cert=settings.cert and str(settings.cert),
            cert_key=settings.key and str(settings.key),
            grpc_options=_OPTIONS,
        )
        self.watch_stub: Any = rpc.WatchStub(self.client.channel)
        self.auth_stub: Any = rpc.AuthStub(self.client.channel)

    def metadata(self, timeout_s: float) -> tuple[tuple[str, str], ...]:
        """Return what goes with each call; asks for a token if there must be one and is none.

        Raises:
            grpc.RpcError: etcd did not answer, or did not accept the password.
        """
        if self._settings.user is None:
            return (_HAS_LEADER,)
        with self._lock:
            if self._token is None:
                self._token = self._authenticate(timeout_s)
            return (_HAS_LEADER, ("token", self._token)) if self._token else (_HAS_LEADER,)

    def forget_token(self) -> None:
        """Have the next call ask for a new token."""
        with self._lock:
            self._token = None

    def _authenticate(self, timeout_s: float) -> str:
        file = self._settings.password_file
        try:
            password = file.read_text(encoding="utf-8").strip() if file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the password file of etcd, {file}, cannot be read: {error}") from error
        request = rpc.AuthenticateRequest(name=self._settings.user, password=password)
        try:
            token: str = self.auth_stub.Authenticate(request, timeout=timeout_s, metadata=(_HAS_LEADER,)).token
        except grpc.RpcError as error:
            if "authentication is not enabled" in _details(error):
                return ""
            raise
        return token


class Members:
    """All endpoints of the configuration.

    Args:
        settings: where etcd is and how to get in.
        timeout_s: of a call that names none.

    Raises:
        InvalidInput: a certificate or key cannot be read.
    """

    def __init__(self, settings: EtcdSettings, timeout_s: float) -> None:
        try:
            members = [Member(address, settings) for address in settings.endpoints]
        except (OSError, ValueError) as error:
            raise InvalidInput(f"the settings of etcd cannot be used: {error}") from error
        if not members:
            raise InvalidInput("the settings of etcd name no endpoint")
        self._set_up(members, _who(settings), timeout_s)

    def _set_up(self, members: list[Member], who: str, timeout_s: float) -> None:
        """Consist of these parts; what has them from elsewhere calls this instead of the constructor."""
        self.timeout_s = timeout_s
        self.who = who
        """As whom etcd sees us, for people."""
        self._members = members
        self._current = _random.randrange(len(members))
        self._lock = threading.Lock()
        self._down_since: float | None = None
        self._is_closed = False

    @property
    def addresses(self) -> str:
        return ", ".join(member.address for member in self._members)

    @property
    def current(self) -> Member:
        """The member that calls go to now."""
        with self._lock:
            return self._members[self._current]

    def call(self, pick: Rpc, request: Any, *, may_repeat: bool, timeout_s: float | None = None) -> Any:
        """Return the answer of one member to ``request``.

        Args:
            pick: the method.
            request: its message.
            may_repeat: whether doing it twice does no harm; then every member is tried.
            timeout_s: for all attempts together; None: the default.

        Raises:
            StoreUnavailable: no answer. ``may_be_written`` is set unless ``may_repeat``, or it is
                certain that etcd did not take it in.
            InvalidInput: etcd does not accept the request as such.
            NotPermitted: our user may not do this.
            Refused: etcd does not know who we are.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        attempts_left = len(self._members)
        is_token_fresh = False
        while True:
            member = self.current
            remaining_s = deadline - time.monotonic()
            share_s = max(0.05, remaining_s / attempts_left if may_repeat else remaining_s)
            try:
                metadata = member.metadata(share_s)
            except grpc.RpcError as error:
                reached_rpc, failure = False, error
            else:
                try:
                    answer = pick(member)(request, timeout=share_s, metadata=metadata)
                except grpc.RpcError as error:
                    reached_rpc, failure = True, error
                except ValueError as error:
                    raise self._closed_or(error) from error
                else:
                    self.succeeded()
                    return answer
            if reached_rpc and not is_token_fresh and is_token_refused(failure):
                member.forget_token()
                is_token_fresh = True
                continue
            if reached_rpc and _details(failure).startswith(_AUTH_CHANGED) and remaining_s > _LEADER_PAUSE_S:
                # Somebody changed a user or a role meanwhile; it was certainly not taken in.
                time.sleep(_LEADER_PAUSE_S * _random.uniform(0.1, 0.5))
                continue
            if (refusal := _refusal(failure, request, self.who)) is not None:
                raise refusal from failure
            may_be_written = not may_repeat and reached_rpc and not _details(failure).startswith(_NOT_TAKEN_IN)
            self.failed(member)
            attempts_left -= 1
            remaining_s = deadline - time.monotonic()
            if not may_be_written and remaining_s > _LEADER_PAUSE_S:
                if "leader" in _details(failure):
                    attempts_left = max(1, attempts_left)
                    time.sleep(_LEADER_PAUSE_S * _random.uniform(0.5, 1))
                if attempts_left > 0:
                    continue
            raise self.unavailable(failure, may_be_written=may_be_written) from failure

    def succeeded(self) -> None:
        """A member answered."""
        with self._lock:
            self._down_since = None

    def failed(self, member: Member) -> None:
        """Have calls go to the next member, if they still go to this one."""
        with self._lock:
            if self._down_since is None:
                self._down_since = time.time()
            if self._members[self._current] is member:
                self._current = (self._current + 1) % len(self._members)

    def unavailable(self, failure: object, *, may_be_written: bool = False) -> StoreUnavailable:
        """Return the error that says that nobody answers, where, since when and why."""
        with self._lock:
            since = timestamp(self._down_since if self._down_since is not None else time.time())
            if self._is_closed:
                return StoreUnavailable(f"the connection to etcd at {self.addresses} is closed")
        why = _reason(failure) if isinstance(failure, grpc.RpcError) else str(failure)
        if may_be_written:
            return StoreUnavailable(
                f"etcd at {self.addresses} did not say whether the change was written (since {since}): {why}",
                hint="it may have been written: read again before trying again",
                may_be_written=True,
            )
        return StoreUnavailable(
            f"etcd at {self.addresses} does not answer since {since}: {why}",
            hint="check that it runs there and that the configuration names the right place",
        )

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        for member in self._members:
            member.client.close()

    def _closed_or(self, error: ValueError) -> CloudError:
        """Tell gRPC's "channel is closed" from its complaints about a message."""
        with self._lock:
            is_closed = self._is_closed
        return self.unavailable(error) if is_closed else InvalidInput(f"the request to etcd cannot be sent: {error}")


def is_token_refused(failure: grpc.RpcError) -> bool:
    """Whether a call failed because its token has expired, or the member forgot it."""
    return failure.code() is grpc.StatusCode.UNAUTHENTICATED or _details(failure).startswith(_TOKEN_NOT_TAKEN)


def is_compacted(failure: BaseException | None) -> bool:
    """Whether a read failed because its revision is no longer kept."""
    return isinstance(failure, grpc.RpcError) and failure.code() is grpc.StatusCode.OUT_OF_RANGE


def is_not_found(failure: BaseException | None) -> bool:
    """Whether what a call named (a lease) does not exist."""
    return isinstance(failure, grpc.RpcError) and failure.code() is grpc.StatusCode.NOT_FOUND


def is_too_large(failure: BaseException | None) -> bool:
    """Whether an answer was longer than our channel takes."""
    return (
        isinstance(failure, grpc.RpcError)
        and failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        and "larger than max" in _details(failure)
    )


def not_permitted(who: str, what: str, keys: tuple[str, ...]) -> NotPermitted:
    """Return the error that says who may not do what, and what to do about it."""
    return NotPermitted(
        f"etcd does not let {who} {what}",
        keys=keys,
        hint="`ecompute check` says what this host's user may; roles are drawn by `eschedule host enrol`",
    )


def _who(settings: EtcdSettings) -> str:
    if settings.user is not None:
        return f"user {settings.user}"
    return f"the holder of {settings.cert}" if settings.cert is not None else "who shows neither certificate nor user"


def _what(request: Any) -> tuple[str, tuple[str, ...]]:
    """Return what ``request`` tried, in words, and the keys that it named."""
    kind = type(request).__name__
    key = bytes(request.key).decode("utf-8", "replace") if kind == "RangeRequest" else ""
    if key:
        return f"read {key}", (key,)
    return ("end this lease", ()) if kind == "LeaseRevokeRequest" else (f"do this ({kind})", ())


def _refusal(failure: grpc.RpcError, request: Any, who: str) -> CloudError | None:
    """Return the error for an answer that no other member and no later time would better, or None."""
    details = _details(failure)
    match failure.code():
        case grpc.StatusCode.PERMISSION_DENIED:
            return not_permitted(who, *_what(request))
        case grpc.StatusCode.INVALID_ARGUMENT if "user name is empty" in details:
            return Refused(
                "etcd wants to know who asks, and was shown neither a certificate nor a user",
                hint="`eschedule host enrol` makes them; compute.yaml names them: etcd.cert and key, or user",
            )
        case grpc.StatusCode.INVALID_ARGUMENT if "authentication failed" in details:
            return None  # not the fault of who asks: it works again once etcd or the file is put right
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return InvalidInput(f"the request or its answer is too large: {details}", hint="ask for less at once")
        case (
            grpc.StatusCode.INVALID_ARGUMENT
            | grpc.StatusCode.OUT_OF_RANGE
            | grpc.StatusCode.NOT_FOUND
            | grpc.StatusCode.FAILED_PRECONDITION
        ):
            return InvalidInput(f"etcd does not accept it: {details}")
        case _:
            return None


def _details(failure: grpc.RpcError) -> str:
    return str(failure.details() or "")


def _reason(failure: grpc.RpcError) -> str:
    """Return one line of what gRPC says, without its preamble."""
    details = _details(failure).rpartition("last error: ")[2]
    return one_line(f"{str(failure.code().name).lower().replace('_', ' ')}: {details}", 200)
