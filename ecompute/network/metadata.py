"""The metadata service of this host, as the daemon keeps it: who is told what, and on which sockets.

`Metadata` is what a membership needs; `HostMetadata` does it with the program ``md_server``, `FakeMetadata` in
memory, and one set of contract tests holds for both.

The service is a process of its own in a session of its own: it goes on while the daemon is down, and is found again
by the socket at which it is handed others. Which networks it serves is asked of it each time; a socket of a namespace
or device that was made anew is another one, which its mark tells. So either may die at any point: the next `serve`
of the network, at the latest the scan, puts right what is missing. A service that does not answer, or is of another
version, is ended, and another one started; one that dies again and again is given pauses. The files are there before
the sockets, and go after them.

Threads: any. The service is started and handed sockets on a thread of the timers, one network after the other, so
that nobody waits for it who is building a guest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from ecompute import __version__
from ecompute.cluster.desks import socket_in
from ecompute.cluster.documents import encode
from ecompute.cluster.errors import NetworkError
from ecompute.cluster.failpoint import reach
from ecompute.cluster.retries import JITTER, Retries
from ecompute.cluster.timers import Serial
from ecompute.guest import handing, told
from ecompute.guest.told import Callers
from ecompute.network import metadata_sockets, netns
from ecompute.network.deaths import Deaths

START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 10.0
"""It answers at once, whatever guests ask of it: one that does not has stopped for good."""
END_TIMEOUT_S = 5.0
BOTH = 2
"""Sockets: of IPv4 and of IPv6. Which a network has is part of its mark."""
RETRY_S = 5.0
LONGEST_RETRY_S = 300.0
ALL = ""
"""Stands for every network, among what is to be tried again."""
SHORT_LIFE_S = 60.0
"""A second service that lives no longer than that is not started again at once."""

FAILPOINTS = (
    "metadata.new",
    "metadata.written",
    "metadata.started",
    "metadata.served",
    "metadata.left",
    "metadata.forgotten",
)

log = logging.getLogger(__name__)


class Metadata(Protocol):
    def serve(self, vni: int, namespace: str, callers: Callers, *, is_scan: bool = False) -> None:
        """Have the guests of a network told about themselves, soon.

        Args:
            namespace: the network's, in which the address of the service is.
            is_scan: look also where nothing has changed since the last call.

        Raises:
            NetworkError: what is to be told cannot be written.
        """

    def leave(self, vni: int) -> None:
        """Serve a network no more; the service ends with the last one. It may not be served.

        Raises:
            NetworkError: the service does not let go of it.
        """

    def served(self) -> frozenset[int]:
        """Return the networks of which something is there: a daemon may have died while it left one.

        Raises:
            NetworkError: the service does not answer.
        """

    def close(self) -> None:
        """Do nothing any more. The service goes on."""


class ServiceHung(NetworkError):
    """It did not answer, and was ended: it serves nothing any more."""


class _Resting(Exception):
    """It has died, and is not started again yet."""


class FakeMetadata:
    """In memory."""

    def __init__(self) -> None:
        self.callers: dict[int, Callers] = {}

    def serve(self, vni: int, namespace: str, callers: Callers, *, is_scan: bool = False) -> None:
        self.callers[vni] = callers

    def leave(self, vni: int) -> None:
        self.callers.pop(vni, None)

    def served(self) -> frozenset[int]:
        return frozenset(self.callers)

    def close(self) -> None:
        pass


class HostMetadata:
    """The one of this machine.

    Args:
        state: the state directory, below which the service finds what to tell.
        answer_timeout_s: a service that takes longer to answer is ended.
    """

    def __init__(self, state: Path, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._state = state
        self._answer_timeout_s = answer_timeout_s
        self._directory = told.directory_of(state)
        self._lock = threading.Lock()
        self._namespaces: dict[int, str] = {}
        self._left: dict[int, Callers] = {}
        self._busy = threading.Lock()
        """Held while the service is spoken with."""
        self._failures = 0
        self._short_lives = 0
        """How many services, one after the other, have died soon after their start."""
        self._not_before_s = -SHORT_LIFE_S
        """Until then none is started again."""
        self._deaths = Deaths(lambda number: self._died())
        self._retries = Retries("metadata", self._wake)
        self._work: Serial[int] = Serial("metadata", self._hand_over)

    def serve(self, vni: int, namespace: str, callers: Callers, *, is_scan: bool = False) -> None:
        with self._lock:
            is_same = self._left.get(vni) == callers and self._namespaces.get(vni) == namespace
        if is_same and not is_scan:
            return
        self._write(told.callers_file(self._directory, vni), encode(callers))
        reach("metadata.written")
        with self._lock:
            self._left[vni] = callers
            self._namespaces[vni] = namespace
        self._work.put(vni)

    def leave(self, vni: int) -> None:
        with self._lock:
            self._left.pop(vni, None)
            self._namespaces.pop(vni, None)
            is_last = not self._namespaces
        with self._busy, contextlib.suppress(ServiceHung):
            service = self._reached()
            if service is not None:
                with service:
                    self._ask(service, handing.Leave(vni))
                    reach("metadata.left")
                    self._forget(vni)
                    reach("metadata.forgotten")
                    if is_last:
                        self._end(service)
        self._forget(vni)

    def _forget(self, vni: int) -> None:
        path = told.callers_file(self._directory, vni)
        for one in (path, path.with_suffix(".new")):
            one.unlink(missing_ok=True)

    def served(self) -> frozenset[int]:
        found = {int(path.stem, 16) for path in self._directory.glob("[0-9a-f]" * 6 + ".json")}
        with self._busy, contextlib.suppress(ServiceHung):
            service = self._reached()
            if service is not None:
                with service:
                    found |= self._ask(service, handing.List()).networks.keys()
                    with self._lock:
                        is_idle = not found and not self._namespaces
                    if is_idle:
                        self._end(service)
        return frozenset(found)

    def close(self) -> None:
        self._retries.close()
        self._work.close(END_TIMEOUT_S)
        self._deaths.close()

    # --- on a thread of the timers ---------------------------------------------------------------

    def _hand_over(self, vni: int) -> None:
        with self._lock:
            namespace = self._namespaces.get(vni)
        if namespace is None:
            return
        try:
            with self._busy:
                with self._lock:
                    if vni not in self._namespaces:
                        return
                self._keep(vni, namespace)
            self._failures = 0
        except _Resting:
            pass  # all are handed over after the pause
        except NetworkError as error:
            self._failures += 1
            log.warning("network %d has no metadata service yet: %s", vni, error)
            self._retries.later(str(vni), min(LONGEST_RETRY_S, RETRY_S * 2 ** (self._failures - 1)))

    def _keep(self, vni: int, namespace: str) -> None:
        with self._current(vni) as service:
            self._deaths.watch(0, _pid(service))
            mark = netns.in_namespace(namespace, lambda: metadata_sockets.mark(namespace))
            served = self._ask(service, handing.List()).networks.get(vni)
            if served == f"{mark} {BOTH}" or (
                served == f"{mark} 1" and not netns.in_namespace(namespace, metadata_sockets.is_six_there)
            ):
                return
            self._ask(service, handing.Leave(vni))  # in the same namespace its address cannot be had twice
            sockets = netns.in_namespace(namespace, metadata_sockets.listening)
            try:
                self._ask(service, handing.Serve(vni, f"{mark} {len(sockets)}"), sockets)
            finally:
                for one in sockets:
                    one.close()
            reach("metadata.served")

    def _died(self) -> None:
        with self._lock:
            is_used = bool(self._namespaces)
        if is_used:
            log.warning("the metadata service has ended, and is started again")
        self._wake(ALL)

    def _wake(self, what: str) -> None:
        with self._lock:
            networks = list(self._namespaces) if what == ALL else [int(what)]
        for vni in networks:
            self._work.put(vni)

    # --- the service -----------------------------------------------------------------------------

    def _current(self, vni: int) -> socket.socket:
        """Return a way to a service of this version, which is started if there is none; one of another is ended.

        Args:
            vni: of the network that is handed over next; all others are after it, to a new service.
        """
        service = self._reached()
        if service is not None:
            try:
                answer = self._ask(service, handing.List())
                if answer.version == __version__:
                    return service
                log.info("the metadata service is of version %s, and gives way to %s", answer.version, __version__)
                for one in answer.networks:
                    self._ask(service, handing.Leave(one))
                self._end(service)
            except BaseException:
                service.close()
                raise
            service.close()
            with self._lock:
                others = set(self._namespaces) - {vni}
            for one in others:
                self._work.put(one)
        return self._started()

    def _reached(self) -> socket.socket | None:
        """Return a way to the service, if it runs."""
        service = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        service.settimeout(self._answer_timeout_s)
        try:
            with socket_in(self._directory, handing.SOCKET) as name:
                service.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            service.close()
            return None
        except OSError as error:
            service.close()
            raise NetworkError(f"the metadata service cannot be reached: {error}") from error
        return service

    def _started(self) -> socket.socket:
        """Start the service and return a way to it. It is nobody's child, and goes on without us."""
        self._pace()
        output = self._directory / told.LOG
        try:
            if output.exists() and output.stat().st_size > told.LOG_LIMIT_BYTES // 2:
                output.replace(output.with_suffix(".old"))
            with output.open("ab") as file:
                done = subprocess.run(
                    [sys.executable, "-m", "md_server", "--background", "--state-dir", str(self._state)],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    cwd="/",
                    timeout=START_TIMEOUT_S,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            raise NetworkError(f"the metadata service did not start within {START_TIMEOUT_S:.0f} s") from error
        except OSError as error:
            raise NetworkError(f"the metadata service does not start: {error.strerror}") from error
        reach("metadata.started")
        service = self._reached()
        if done.returncode != 0 or service is None:
            raise NetworkError(f"the metadata service does not start; {output} says why")
        return service

    def _pace(self) -> None:
        """See that a service which dies soon is not started again and again: each time it pauses twice as long.

        Raises:
            _Resting: it is too early; all networks are handed over later.
        """
        with self._lock:
            now_s = time.monotonic()
            rest_s = self._not_before_s - now_s
            if rest_s <= 0:
                is_soon = now_s < self._not_before_s + SHORT_LIFE_S
                self._short_lives = self._short_lives + 1 if is_soon else 0
                pause_s = RETRY_S * 2 ** min(self._short_lives - 1, 10) if is_soon else 0.0
                self._not_before_s = now_s + min(LONGEST_RETRY_S, pause_s)
                return
        self._retries.later(ALL, rest_s / (1 - JITTER))
        raise _Resting("the metadata service dies again and again")

    def _end(self, service: socket.socket) -> None:
        """Have the service end, if it serves nothing: what another daemon has handed to it goes on."""
        self._deaths.forget(0)
        if self._ask(service, handing.List()).networks:
            return
        with _held(service) as held:
            if held is not None:
                with contextlib.suppress(NetworkError):
                    self._ask(service, handing.End())
                _end(held)
        with self._lock:  # it did not die
            self._short_lives, self._not_before_s = 0, -SHORT_LIFE_S

    def _ask(
        self, service: socket.socket, question: handing.Question, sockets: Collection[socket.socket] = ()
    ) -> handing.Answer:
        """Return the service's answer, once ``question`` is done.

        Raises:
            ServiceHung: see there.
            NetworkError: it died, or answered nonsense.
        """
        try:
            socket.send_fds(service, [handing.encode(question)], [one.fileno() for one in sockets])
            return handing.decode_answer(service.recv(handing.LIMIT_BYTES))
        except TimeoutError as error:
            with _held(service) as held:
                if held is not None:
                    _end(held, is_hung=True)
            raise ServiceHung(
                f"the metadata service did not answer for {self._answer_timeout_s:g} s, and was ended"
            ) from error
        except (OSError, msgspec.DecodeError) as error:
            raise NetworkError(f"the metadata service does not answer: {error}") from error

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_suffix(".new")
        try:
            if path.exists() and path.read_bytes() == data:
                return
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_bytes(data)
            new.chmod(0o600)
            reach("metadata.new")
            new.replace(path)
        except OSError as error:
            raise NetworkError(f"{path} cannot be written: {error.strerror}", hint="free space on that disk") from error


@contextlib.contextmanager
def _held(service: socket.socket) -> Iterator[int | None]:
    """Yield a descriptor of the service's process, which cannot become another's; None if it has ended."""
    try:
        held = os.pidfd_open(_pid(service))
    except ProcessLookupError:
        yield None
        return
    try:
        yield held
    finally:
        os.close(held)


def _end(held: int, *, is_hung: bool = False) -> None:
    """Wait until a process has ended, and see to it."""
    poll = select.poll()
    poll.register(held, select.POLLIN)
    with contextlib.suppress(ProcessLookupError):
        if is_hung or not poll.poll(END_TIMEOUT_S * 1000):
            signal.pidfd_send_signal(held, signal.SIGKILL)
    poll.poll(END_TIMEOUT_S * 1000)


def _pid(service: socket.socket) -> int:
    pid, _, _ = struct.unpack("3i", service.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
