"""A private PostgreSQL, and placement on it, for the tests and the bench that SQLite cannot serve.

SQLite takes one writer at a time, so races between claims are not races there. This is Debian's
``postgresql`` with a cluster of its own: one directory, made by ``initdb``, reached by a Unix socket
in that directory and by nothing else. PostgreSQL refuses to run as root; started by root it runs as
the account ``postgres`` that the package makes, which must therefore be able to pass through every
directory above.

Invariants: nothing outside the directory is written or signalled; the package's own clusters are
neither needed nor touched; what a killed run left on the same directory is ended first.

Threads: as `Child`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

from ecompute.cluster.errors import StepFailed, one_line
from ecompute.dev.placement import PlacementProcess, start_placement
from ecompute.dev.processes import Child

ACCOUNT = "postgres"
"""Whom it runs as when we are root."""
WORKERS = 3
THREADS = 8
"""Of gunicorn before it: placement's reference sizes."""

_INSTALLED = Path("/usr/lib/postgresql")
_PORT = 5432
"""Part of the socket's name; no TCP port is opened."""
_READY_TIMEOUT_S = 30.0
_INITDB_TIMEOUT_S = 120.0
_FAST_STOP_S = 15.0
_SOCKET_PATH_LIMIT = 107
"""Bytes that a Unix socket's address holds (unix(7))."""

_SETTINGS = """\
# Written at each start; changes are lost.
listen_addresses = ''
unix_socket_directories = '{directory}'
unix_socket_permissions = 0700
port = {port}
max_connections = 200
shared_buffers = 64MB
fsync = {durable}
synchronous_commit = {durable}
full_page_writes = {durable}
"""


class PostgresProcess:
    """A running cluster. Made by `start_postgres`; its data and its address stay over a restart."""

    def __init__(self, directory: Path, child: Child) -> None:
        self.directory = directory
        self.child = child

    @property
    def url(self) -> str:
        """For SQLAlchemy, with the driver named."""
        return f"postgresql+psycopg2://{ACCOUNT}@/postgres?host={quote(str(self.directory))}&port={_PORT}"

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def is_running(self) -> bool:
        return self.child.is_running

    def start(self, *, timeout_s: float = _READY_TIMEOUT_S) -> Self:
        """Start it and wait until it takes connections; nothing happens if it runs.

        Raises:
            StepFailed: it ended, or is not ready in time; says what its log ends with.
        """
        self.child.start().wait_ready(self._is_ready, timeout_s=timeout_s)
        return self

    def stop(self) -> None:
        """End it, and with it every connection. Idempotent."""
        if self.child.is_running:
            # SIGTERM would wait for its clients to leave, SIGINT does not.
            os.kill(self.child.pid, signal.SIGINT)
            self.child.wait(_FAST_STOP_S)
        self.child.stop()

    def kill(self) -> None:
        """End it at once, as a power cut would. Idempotent."""
        self.child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_ready(self) -> bool:
        # The last line of the file is "ready" once it takes connections (pg_ctl reads the same).
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


def start_postgres(directory: Path, *, is_durable: bool = True) -> PostgresProcess:
    """Start a cluster whose data and socket lie in ``directory`` (made if absent).

    Args:
        directory: short enough for a socket's address, and open to the account `ACCOUNT` if we are root.
        is_durable: False: a power cut may lose everything, and writes do not wait for the disk.

    Raises:
        StepFailed: it is not installed, cannot be there, or does not start; says why.
    """
    directory = directory.resolve()
    programs = _programs()
    account = _account()
    length = len(os.fsencode(directory / f".s.PGSQL.{_PORT}"))
    if length > _SOCKET_PATH_LIMIT:
        raise StepFailed(
            f"the socket of PostgreSQL cannot lie in {directory}: {length} bytes are more than {_SOCKET_PATH_LIMIT}",
            hint="choose a shorter directory",
        )
    directory.mkdir(parents=True, exist_ok=True)
    if account is not None:
        _see_that_it_is_reachable(directory)
        os.chown(directory, account.pw_uid, account.pw_gid)
    directory.chmod(0o700)
    prefix = _as_account(account)
    data = directory / "data"
    if not (data / "PG_VERSION").exists():
        # A cluster that a kill left half made has no version yet, and is made anew.
        shutil.rmtree(data, ignore_errors=True)
        options = ["-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        _run([*prefix, str(programs / "initdb"), "-D", str(data), *options], directory)
    settings = directory / "postgresql.conf"
    settings.write_text(
        _SETTINGS.format(
            directory=str(directory).replace("'", "''"), port=_PORT, durable="on" if is_durable else "off"
        ),
        encoding="utf-8",
    )
    settings.chmod(0o644)
    child = Child(
        "PostgreSQL",
        [*prefix, str(programs / "postgres"), "-D", str(data), "-c", f"config_file={settings}"],
        directory / "postgres.log",
        env=_environment(),
        cwd=directory,
        pid_file=directory / "postgres.pid",
    )
    process = PostgresProcess(directory, child)
    try:
        return process.start()
    except BaseException:
        process.kill()
        raise


@contextlib.contextmanager
def placement_on_postgres(
    directory: Path, *, workers: int = WORKERS, threads: int = THREADS, is_durable: bool = True
) -> Iterator[PlacementProcess]:
    """Keep a PostgreSQL and a placement service on it running; both end with the block.

    Args:
        directory: for everything of both; short, and open to `ACCOUNT` (see `start_postgres`).
        workers: processes of gunicorn.
        threads: of each.
        is_durable: as in `start_postgres`.

    Raises:
        StepFailed: one of them is not installed, or does not start; says why.
    """
    with (
        start_postgres(directory / "pg", is_durable=is_durable) as postgres,
        start_placement(directory / "placement", connection=postgres.url, workers=workers, threads=threads) as process,
    ):
        yield process


def _programs() -> Path:
    """Return the directory of the newest installed server's programs.

    Raises:
        StepFailed: there is none.
    """
    found = [path.parent for path in _INSTALLED.glob("*/bin/postgres") if os.access(path, os.X_OK)]
    on_path = shutil.which("postgres")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    if not found:
        raise StepFailed("PostgreSQL is not installed", hint="apt-get install postgresql")
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))])


def _account() -> pwd.struct_passwd | None:
    """Return whom it must run as; None: as ourselves.

    Raises:
        StepFailed: we are root, and there is no such account.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise StepFailed(
            f"PostgreSQL does not run as root, and there is no account {ACCOUNT}",
            hint="apt-get install postgresql, which makes it",
        ) from error


def _as_account(account: pwd.struct_passwd | None) -> list[str]:
    """Return what goes before a command so that it runs as ``account``, as the same process."""
    if account is None:
        return []
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]


def _see_that_it_is_reachable(directory: Path) -> None:
    for parent in directory.parents:
        if not parent.stat().st_mode & 0o001:
            raise StepFailed(
                f"the account {ACCOUNT} cannot pass through {parent} to PostgreSQL's directory {directory}",
                hint=f"chmod o+x {parent}, or choose another directory",
            )


def _environment() -> dict[str, str]:
    """Return ours, without what would point the programs at another cluster."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _run(argv: list[str], cwd: Path) -> None:
    tried = f"no PostgreSQL cluster can be made in {cwd}"
    try:
        result = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INITDB_TIMEOUT_S,
            cwd=cwd,
            env=_environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(f"{tried}: {one_line(error)}") from error
    if result.returncode != 0:
        raise StepFailed(f"{tried}: {one_line(result.stderr[-300:])}")
