"""nftables, as far as all who have tables of their own need it: changed, listed, and looked whether they changed.

The kernel counts its changes and does not say of what. A listing takes a process, and so longer than anything else
that is done for a network: what is known stays known while all that was changed since were other tables of ours
(`Ledger`).

The program ``nft`` is run with JSON (libnftables-json(5)); tables are named by whoever has them, and no other
is read or touched. Everything is about the network namespace of the thread that calls. Any thread may call this.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ecompute.cluster.errors import NetworkError, one_line
from ecompute.network import programs

PROGRAM = "nft"
TIMEOUT_S = 10.0
STEPS_KEPT = 256
UNTOUCHED = 1
"""The generation of a ruleset that was never changed (net/netfilter/nf_tables_api.c)."""

Json = dict[str, Any]
Table = tuple[str, str]
"""Family and name."""
Identity = tuple[int, int]


def script(tables: Iterable[Table], items: Iterable[Json]) -> str:
    """Return the commands that replace ``tables`` by ``items``, as JSON for `change`; without items they go. Pure.

    A table is added before it is deleted so that its absence is no error.
    """
    commands: list[Json] = []
    for family, name in tables:
        table = {"table": {"family": family, "name": name}}
        commands += [{"add": table}, {"delete": table}]
    return as_script([*commands, *({"add": item} for item in items)])


def as_script(commands: Iterable[Json]) -> str:
    """Return ``commands`` as JSON for `change`, one a line. Pure."""
    lines = ",\n".join(json.dumps(command) for command in commands)
    return f'{{"nftables": [\n{lines}\n]}}\n'


def normalise(listing: str) -> list[Json]:
    """Return what ``nft -j list`` printed as it was asked for: without handles, counts and the rest."""
    items: list[Json] = []
    for item in json.loads(listing)["nftables"]:
        ((kind, body),) = item.items()
        if kind == "metainfo":
            continue
        kept = {key: value for key, value in body.items() if key != "handle"}
        if "elem" in kept:  # of a set; listed in no order
            kept["elem"] = sorted(kept["elem"], key=json.dumps)
        if kind == "rule":
            kept["expr"] = [{"counter": None} if "counter" in part else part for part in kept["expr"]]
        items.append({kind: kept})
    return items


def change(script_: str) -> None:
    """Do all commands of a script, or none.

    Raises:
        NetworkError: nft is missing or refused them.
    """
    done = _run("-f", "-", script_=script_)
    if done.returncode != 0:
        raise NetworkError(f"changing nftables: {_reason(done.stderr)}")


def listing(table: Table) -> str | None:
    """Return what ``nft -j list`` says of a table, or None where there is none.

    Raises:
        NetworkError: nft is missing, or does not say.
    """
    if generation() == UNTOUCHED:
        return None  # nobody has put a rule here since the namespace is there: known without the program, too
    family, name = table
    done = _run("-s", "list", "table", family, name)
    if done.returncode == 0:
        return done.stdout
    if "No such file or directory" in done.stderr:
        return None
    raise NetworkError(f"listing the nftables table {family} {name}: {_reason(done.stderr)}")


class Ledger:
    """The changes of one network namespace's rules that are this process's own, and of which tables each was.

    Any thread of the namespace.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[int, frozenset[Table]] = {}
        """By the generation before."""

    def change(self, script_: str, tables: Iterable[Table]) -> int | None:
        """Do all commands of a script, or none; return the generation after it, if it is known to be this one's.

        Args:
            tables: those that it changes.

        Raises:
            NetworkError: nft is missing or refused them.
        """
        with self._lock:
            before = generation()
            change(script_)
            after = generation()
            if after != before + 1:  # somebody else was there meanwhile
                return None
            self._steps[before] = frozenset(tables)
            for old in list(self._steps)[:-STEPS_KEPT]:
                del self._steps[old]
            return after

    def are_untouched(self, tables: Iterable[Table], since: int, now: int) -> bool:
        """Whether all changes between two generations were this process's own, of other tables than these."""
        with self._lock:
            if not 0 <= now - since <= STEPS_KEPT:
                return False
            steps = [self._steps.get(step) for step in range(since, now)]
        return all(step is not None and step.isdisjoint(tables) for step in steps)


class Kept:
    """Tables of ours in one network namespace, and whether they are as they were put.

    They are listed only when the kernel's ruleset has another generation than when they were last known, and not by
    changes of ours: that question costs 0.1 ms. What another release of nft prints in another way is known by what it
    printed after they had been put a second time.

    Any thread of the namespace, one at a time.

    Args:
        ledger: of the namespace, where others of this process have tables in it, too.
    """

    def __init__(self, tables: Sequence[Table], ledger: Ledger | None = None) -> None:
        self._tables = tuple(tables)
        self._ledger = ledger if ledger is not None else Ledger()
        self._known: tuple[Identity, int, list[Json]] | None = None
        """A namespace, its generation, and what was there then."""
        self._put: list[Json] | None = None
        self._is_doubtful = False
        """Whether what was put was then not found as it had been put."""
        self._printed: tuple[list[Json], list[Json]] | None = None
        """What was put, and how it is listed."""

    def are(self, items: list[Json]) -> bool:
        """Return whether the tables hold ``items`` and nothing else.

        Raises:
            NetworkError: it cannot be said.
        """
        here, now = _identity(), generation()
        found = self._as_known(here, now)
        if found is None:
            found = self._found()
            if self._printed is not None and self._printed[1] == found:
                found = self._printed[0]
        self._known = (here, now, found)
        is_so = found == items
        self._is_doubtful = not is_so and self._put == items
        return is_so

    def put(self, items: list[Json]) -> None:
        """Replace what the tables hold, all at once; without items they go.

        Raises:
            NetworkError: nft is missing or refused it.
        """
        self._known = None
        after = self._ledger.change(script(self._tables, items), self._tables)
        if self._is_doubtful:
            self._printed = (items, self._found())
        self._put = items
        if after is not None:
            self._known = (_identity(), after, items)

    def _as_known(self, here: Identity, now: int) -> list[Json] | None:
        if self._known is None:
            return None
        there, since, items = self._known
        return items if there == here and self._ledger.are_untouched(self._tables, since, now) else None

    def _found(self) -> list[Json]:
        listings = [listing(table) for table in self._tables]
        return [item for listed in listings if listed is not None for item in normalise(listed)]


def _identity() -> Identity:
    """Return which network namespace this thread is in."""
    here = Path("/proc/thread-self/ns/net").stat()
    return here.st_dev, here.st_ino


def _reason(stderr: str) -> str:
    return one_line(stderr.splitlines()[0] if stderr else "nft gave no reason")


def _run(*arguments: str, script_: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [PROGRAM, "-j", *arguments],
            input=script_,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env=programs.environment(),
        )
    except FileNotFoundError as error:
        raise NetworkError("the program nft is missing", hint="install the package nftables") from error
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"nft did not end within {TIMEOUT_S:.0f} s") from error


_NETLINK_NETFILTER = 12
_GET_GENERATION = (10 << 8) | 16
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN: include/uapi/linux/netfilter/nf_tables.h"""
_GENERATION_ID = 1


def generation() -> int:
    """Return the number that the kernel counts up with every change of any nftables rule.

    Raises:
        NetworkError: the kernel has no nftables.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(TIMEOUT_S)
            netlink.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 1, 0, 0, 0, 0))
            answer = netlink.recv(8192)
    except OSError as error:
        raise NetworkError(f"asking the kernel for its nftables generation: {error}") from error
    length, kind = struct.unpack_from("=IH", answer)
    offset = 20
    while kind == (10 << 8) | 15 and offset + 8 <= length:
        size, attribute = struct.unpack_from("=HH", answer, offset)
        if attribute == _GENERATION_ID:
            (number,) = struct.unpack_from(">I", answer, offset + 4)
            return int(number)
        offset += (size + 3) & ~3
    raise NetworkError("the kernel does not tell its nftables generation", hint="it needs nf_tables")
