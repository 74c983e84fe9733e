"""placement for the embedded cloud and the tests: on SQLite, or on another database, under gunicorn.

SQLite takes one worker with one thread; with more, half of the writes of several claimants end in
"database is locked". The tables are made before the service starts, by ``placement-manage db sync``
(several workers that each try to make them in an empty database end one another); on SQLite this is
skipped when the installed version has already made them here (importing placement takes a second,
each time).

Invariants: everything lies in one directory; the port stays the same over `stop`, `kill` and
`restart`; the service listens on loopback unless told otherwise, with the token ``admin`` (``noauth2``),
which is a name and not a secret: who reaches the port may do everything.

Threads: as `Child`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Self

from ecompute.cluster.errors import StepFailed, one_line
from ecompute.dev.processes import Child, free_port

HOST = "127.0.0.1"
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 5.0
_PORT_TRIES = 5
_PID_FILE = "placement.pid"
_DATABASE = "placement.sqlite"

_PLACEMENT_CONF = """\
# Written at each start; changes are lost.
[DEFAULT]
log_options = false
# One line a request would fill the disk in time.
default_log_levels = placement.requestlog=WARNING
[api]
auth_strategy = noauth2
[placement_database]
connection = {connection}
[placement]
max_allocation_candidates = 1000
allocation_candidates_generation_strategy = breadth-first
randomize_allocation_candidates = true
# See placement/README.md: tried again by the service itself, a claim may exceed the capacity.
allocation_conflict_retry_count = 1
"""

_GUNICORN_CONF = """\
# Written at each start; changes are lost.
bind = "{host}:{port}"
workers = {workers}
threads = {threads}
worker_class = "gthread"
keepalive = 65
timeout = 60
graceful_timeout = 5
worker_tmp_dir = {directory!r}
"""


class PortTaken(StepFailed):
    """Somebody else listens there."""


class PlacementProcess:
    """A running placement service. Made by `start_placement`."""

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self.directory = directory
        self.host = host
        self.port = port
        self.endpoint = f"http://{host}:{port}"
        self._was_started = False
        self._child = Child(
            "placement",
            [sys.executable, "-m", "gunicorn", "-c", directory / "gunicorn.conf.py", "placement.wsgi.api:application"],
            directory / "placement.log",
            env=_environment(directory),
            cwd=directory,
        )

    @property
    def pid(self) -> int:
        """The process id of gunicorn's master."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        return self._child.is_running

    def start(self, *, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Start it where it was, and wait until it answers; nothing happens if it runs.

        Raises:
            StepFailed: it does not; says what its log ends with.
        """
        if self._child.is_running:
            return
        _check_port(self.host, self.port, patience_s=_END_TIMEOUT_S if self._was_started else 0)
        self._was_started = True
        self._child.start()
        try:
            (self.directory / _PID_FILE).write_text(str(self._child.pid))
            self._child.wait_ready(self._answers, timeout_s=timeout_s)
        except BaseException:
            self._child.kill()
            raise

    def stop(self) -> None:
        """Let it finish what it does, then end it. Idempotent."""
        self._child.stop()

    def kill(self) -> None:
        """End it at once, as a power cut would. Idempotent."""
        self._child.kill()

    def restart(self) -> None:
        """Stop it and start it again, with its data and at its port."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze it: its port takes connections and nothing answers."""
        self._child.suspend()

    def resume(self) -> None:
        self._child.resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (http.client.HTTPException, OSError):
            return False
        finally:
            connection.close()


def start_placement(
    directory: Path,
    *,
    host: str = HOST,
    port: int = 0,
    connection: str | None = None,
    workers: int = 1,
    threads: int = 1,
) -> PlacementProcess:
    """Start a placement service whose data lies in ``directory`` (made if absent).

    Args:
        directory: its configuration and log, and its database if that is SQLite.
        host: the address that it listens on. Whoever reaches it may do everything.
        port: 0: a free one.
        connection: SQLAlchemy's URL of the database; None: SQLite in ``directory``.
        workers: processes; more than one, and more than one thread, only with another database.
        threads: of each process.

    Raises:
        PortTaken: somebody else listens there.
        StepFailed: it is not installed, or does not start; says why.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "placement.conf").write_text(_conf(connection or _sqlite(directory / _DATABASE)))
    has_ended_one = _end_former(directory)
    if port:
        _check_port(host, port, patience_s=_END_TIMEOUT_S if has_ended_one else 0)
    _check_installed()
    if connection is None:
        _make_tables(directory)
    else:
        _sync(directory, connection)
    for tries in range(1, _PORT_TRIES + 1):
        chosen = port or free_port(host)
        (directory / "gunicorn.conf.py").write_text(_gunicorn_conf(directory, host, chosen, workers, threads))
        process = PlacementProcess(directory, host, chosen)
        try:
            process.start()
        except PortTaken:  # between our choosing it and binding it
            if port or tries == _PORT_TRIES:
                raise
        else:
            return process
    raise AssertionError("not reached")


def _check_port(host: str, port: int, *, patience_s: float) -> None:
    """See that nobody listens there: somebody else's placement would answer in our place.

    Args:
        patience_s: how long to wait for a service of ours that was just killed: its worker lets go
            of the port a moment after its master has ended.
    """
    deadline = time.monotonic() + patience_s
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise PortTaken(f"placement cannot listen on {host}:{port}: {error.strerror}") from error
            else:
                return
        time.sleep(0.02)


def _end_former(directory: Path) -> bool:
    """End the service that a former run, killed before it could stop it, left running on this directory.

    Returns whether there was one.

    Two services on one SQLite file lock each other out. It is known by its process id and by its
    command line, which names our configuration file.
    """
    was_there = False
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / _PID_FILE).read_text())
        command_line = Path(f"/proc/{pid}/cmdline")
        ours = os.fsencode(directory / "gunicorn.conf.py")
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _END_TIMEOUT_S
            if ours in command_line.read_bytes().split(b"\0"):
                was_there = True
                os.killpg(pid, number)
            while ours in command_line.read_bytes().split(b"\0") and time.monotonic() < deadline:
                time.sleep(0.05)
    return was_there


def _environment(directory: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "GUNICORN_CMD_ARGS"}
    environment["OS_PLACEMENT_CONFIG_DIR"] = str(directory)
    environment["XDG_CACHE_HOME"] = str(directory / "cache")  # its libraries keep lists of plugins there
    return environment


def _sqlite(database: Path) -> str:
    return f"sqlite:///{database}"


def _conf(connection: str) -> str:
    return _PLACEMENT_CONF.format(connection=connection.replace("$", "$$"))


def _gunicorn_conf(directory: Path, host: str, port: int, workers: int, threads: int) -> str:
    text = _GUNICORN_CONF.format(host=host, port=port, directory=str(directory), workers=workers, threads=threads)
    # From 25.1 on it makes a control socket in the home directory, one for all services of a user.
    if tuple(int(part) for part in metadata.version("gunicorn").split(".")[:2]) >= (25, 1):
        text += "control_socket_disable = True\n"
    return text


def _check_installed() -> None:
    try:
        metadata.version("openstack-placement")
        metadata.version("gunicorn")
    except metadata.PackageNotFoundError as error:
        raise StepFailed(f"{error.name} is not installed", hint="pip install 'etcd-compute[embedded]'") from error


def _make_tables(directory: Path) -> None:
    """Make the tables of the installed version in SQLite, unless that was done."""
    version = metadata.version("openstack-placement")
    made, database = directory / "tables-made-by", directory / _DATABASE
    if made.exists() and made.read_text() == version and database.exists():
        return
    if database.exists():
        _sync(directory, _sqlite(database))
    else:
        # Under another name until it is whole: SQLite does not take back the half of a migration.
        new = directory / f"{_DATABASE}.new"
        new.unlink(missing_ok=True)
        _sync(directory, _sqlite(new))
        new.rename(database)
    made.write_text(version)


def _sync(directory: Path, connection: str) -> None:
    """Run ``placement-manage db sync`` on the database at ``connection``."""
    configuration = directory / "tables.conf"
    configuration.write_text(_conf(connection))
    # The script of the Python that runs us; another one on PATH may be of another version.
    script = Path(sys.executable).parent / "placement-manage"
    code = "import sys; from placement.cmd.manage import main; sys.exit(main())"
    program = [script] if os.access(script, os.X_OK) else [sys.executable, "-c", code]
    tried = f"placement's tables cannot be made in {connection}"
    try:
        result = subprocess.run(
            [*program, "--config-file", configuration, "db", "sync"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_START_TIMEOUT_S,
            cwd=directory,
            env=_environment(directory),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(f"{tried}: {one_line(error)}") from error
    if result.returncode != 0:
        raise StepFailed(f"{tried}: {one_line(result.stderr[-300:])}")
