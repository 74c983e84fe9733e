"""nftables, as far as all who have tables of their own need it: changed, listed, and looked whether they changed.

The program ``nft`` is run with JSON (libnftables-json(5)); tables are named by whoever has them, and no other
is read or touched. Everything is about the network namespace of the thread that calls. Any thread may call this.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from collections.abc import Iterable
from typing import Any

from ecompute.cluster.errors import NetworkError, one_line

PROGRAM = "nft"
TIMEOUT_S = 10.0

Json = dict[str, Any]
Table = tuple[str, str]
"""Family and name."""


def script(tables: Iterable[Table], items: Iterable[Json]) -> str:
    """Return the commands that replace ``tables`` by ``items``, as JSON for `change`; without items they go. Pure.

    A table is added before it is deleted so that its absence is no error.
    """
    commands: list[Json] = []
    for family, name in tables:
        table = {"table": {"family": family, "name": name}}
        commands += [{"add": table}, {"delete": table}]
    commands += [{"add": item} for item in items]
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
    family, name = table
    done = _run("-s", "list", "table", family, name)
    if done.returncode == 0:
        return done.stdout
    if "No such file or directory" in done.stderr:
        return None
    raise NetworkError(f"listing the nftables table {family} {name}: {_reason(done.stderr)}")


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
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
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
