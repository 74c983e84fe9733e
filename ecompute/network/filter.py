"""The rules that keep guests from the host: what they are, and how they get into the kernel.

One table of ours (``ecompute``) in each of three families, the same for all networks, so that a
network or tap that comes needs no rule of its own and there is no moment without:

- ``bridge``, input: what a tap or VXLAN device of ours hands up to the host is dropped.
- ``inet`` and ``arp``: what has come up all the same is neither taken nor routed, be it from a bridge
  of ours (through a port that an operator has put there), or from the port itself: a bridge hands up
  frames to 01:80:c2:00:00:0e (LLDP, but they may hold an IP packet) past its own input hook. The
  rules on forward let pass what goes back into a bridge of ours: with `bridge-nf-call-iptables` the
  kernel shows bridged packets there.

The bridge is matched by its ports' names: `meta ibrname` needs a module that not every kernel has.
The chain ``forward`` of the family bridge has no rules yet; those of taps and gateway belong there.

`render` is pure. `NftFilter` may be called from any thread; tables that are not ours are not read
and not touched. Every change is one atomic ruleset, through standard input of ``nft -j -f -``.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
from enum import StrEnum
from typing import Any, Protocol

from ecompute.cluster.errors import NetworkError, one_line
from ecompute.network.mesh import BRIDGE_PREFIX, TAP_PREFIX, VXLAN_PREFIX

TABLE = "ecompute"
OURS = (BRIDGE_PREFIX, TAP_PREFIX, VXLAN_PREFIX)
FAMILIES = ("bridge", "inet", "arp")
PROGRAM = "nft"

_PRIORITY = -350
"""Before every usual chain of these hooks (the first, of bridge, is at -300)."""

_TIMEOUT_S = 10.0
_Json = dict[str, Any]


class FilterState(StrEnum):
    ABSENT = "absent"
    WHOLE = "whole"
    ALTERED = "altered"


class Filter(Protocol):
    def state(self) -> FilterState: ...

    def install(self) -> None:
        """Put the rules in place, at once and as a whole.

        Raises:
            NetworkError: nft is missing or refused them.
        """

    def remove(self) -> None:
        """Take all of ours away; nothing may be there."""


# --- what the rules are --------------------------------------------------------------------------


def _name(key: str, op: str, prefix: str) -> _Json:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": f"{prefix}*"}}


def _chain(family: str, hook: str) -> _Json:
    return {
        "chain": {
            "family": family,
            "table": TABLE,
            "name": hook,
            "type": "filter",
            "hook": hook,
            "prio": _PRIORITY,
            "policy": "accept",
        }
    }


def _drop(family: str, chain: str, *matches: _Json) -> _Json:
    expression = [*matches, {"counter": None}, {"drop": None}]
    return {"rule": {"family": family, "table": TABLE, "chain": chain, "expr": expression}}


def rules() -> list[_Json]:
    """Return the tables, chains and rules that are to be there, in their order."""
    to_elsewhere = _name("oifname", "!=", BRIDGE_PREFIX)
    return [
        {"table": {"family": "bridge", "name": TABLE}},
        _chain("bridge", "input"),
        _chain("bridge", "forward"),
        _drop("bridge", "input", _name("iifname", "==", TAP_PREFIX)),
        _drop("bridge", "input", _name("iifname", "==", VXLAN_PREFIX)),
        {"table": {"family": "inet", "name": TABLE}},
        _chain("inet", "input"),
        _chain("inet", "forward"),
        *(_drop("inet", "input", _name("iifname", "==", prefix)) for prefix in OURS),
        *(_drop("inet", "forward", _name("iifname", "==", prefix), to_elsewhere) for prefix in OURS),
        {"table": {"family": "arp", "name": TABLE}},
        _chain("arp", "input"),
        *(_drop("arp", "input", _name("iifname", "==", prefix)) for prefix in OURS),
    ]


def render(*, is_wanted: bool = True) -> str:
    """Return the commands that replace our tables, or remove them, as JSON for ``nft -j -f -``.

    A table is added before it is deleted so that its absence is no error (libnftables-json(5)).
    """
    commands: list[_Json] = []
    for family in FAMILIES:
        table = {"table": {"family": family, "name": TABLE}}
        commands += [{"add": table}, {"delete": table}]
    if is_wanted:
        commands += [{"add": item} for item in rules()]
    lines = ",\n".join(json.dumps(command) for command in commands)
    return f'{{"nftables": [\n{lines}\n]}}\n'


def normalise(listing: str) -> list[_Json]:
    """Return what ``nft -j list`` printed as `rules` has it: without handles, counts and the rest."""
    items: list[_Json] = []
    for item in json.loads(listing)["nftables"]:
        ((kind, body),) = item.items()
        if kind == "metainfo":
            continue
        kept = {key: value for key, value in body.items() if key != "handle"}
        if kind == "rule":
            kept["expr"] = [{"counter": None} if "counter" in part else part for part in kept["expr"]]
        items.append({kind: kept})
    return items


# --- how they get into the kernel ----------------------------------------------------------------


class NftFilter:
    """The rules of the network namespace of the thread that calls.

    The tables are listed only when the kernel's ruleset has another generation than when they were
    last seen: that question costs 0.1 ms, a listing takes a process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[int, FilterState] | None = None
        self._installed: list[_Json] | None = None

    def state(self) -> FilterState:
        with self._lock:
            generation = _generation()
            if self._seen is None or self._seen[0] != generation:
                self._seen = (generation, self._read())
            return self._seen[1]

    def _read(self) -> FilterState:
        found: list[_Json] = []
        for family in FAMILIES:
            listing = _list(family)
            if listing is not None:
                found += normalise(listing)
        if not found:
            return FilterState.ABSENT
        # Another release of nft may print a rule in another way: what it printed right after we
        # had installed ours is as good.
        return FilterState.WHOLE if found in (rules(), self._installed) else FilterState.ALTERED

    def install(self) -> None:
        with self._lock:
            self._seen = None
            _nft("-f", "-", script=render())
            generation = _generation()
            self._installed = [item for family in FAMILIES for item in normalise(_list(family) or '{"nftables":[]}')]
            self._seen = (generation, FilterState.WHOLE)

    def remove(self) -> None:
        with self._lock:
            self._seen = None
            _nft("-f", "-", script=render(is_wanted=False))


def _list(family: str) -> str | None:
    """Return the listing of our table of a family, or None where there is none."""
    done = _run("-s", "list", "table", family, TABLE)
    if done.returncode == 0:
        return done.stdout
    if "No such file or directory" in done.stderr:
        return None
    raise NetworkError(f"listing the nftables table {family} {TABLE}: {_reason(done.stderr)}")


def _nft(*arguments: str, script: str) -> None:
    done = _run(*arguments, script=script)
    if done.returncode != 0:
        raise NetworkError(f"changing the nftables table {TABLE}: {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    return one_line(stderr.splitlines()[0] if stderr else "nft gave no reason")


def _run(*arguments: str, script: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [PROGRAM, "-j", *arguments],
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except FileNotFoundError as error:
        raise NetworkError("the program nft is missing", hint="install the package nftables") from error
    except subprocess.TimeoutExpired as error:
        raise NetworkError(f"nft did not end within {_TIMEOUT_S:.0f} s") from error


_NETLINK_NETFILTER = 12
_GET_GENERATION = (10 << 8) | 16
"""NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN: include/uapi/linux/netfilter/nf_tables.h"""
_GENERATION_ID = 1


def _generation() -> int:
    """Return the number that the kernel counts up with every change of any nftables rule.

    Raises:
        NetworkError: the kernel has no nftables.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.settimeout(_TIMEOUT_S)
            netlink.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 1, 0, 0, 0, 0))
            answer = netlink.recv(8192)
    except OSError as error:
        raise NetworkError(f"asking the kernel for its nftables generation: {error}") from error
    length, kind = struct.unpack_from("=IH", answer)
    offset = 20
    while kind == (10 << 8) | 15 and offset + 8 <= length:
        size, attribute = struct.unpack_from("=HH", answer, offset)
        if attribute == _GENERATION_ID:
            (generation,) = struct.unpack_from(">I", answer, offset + 4)
            return int(generation)
        offset += (size + 3) & ~3
    raise NetworkError("the kernel does not tell its nftables generation", hint="it needs nf_tables")
