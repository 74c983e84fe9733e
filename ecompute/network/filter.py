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

import threading
from enum import StrEnum
from typing import Protocol

from ecompute.network import nft
from ecompute.network.names import BRIDGE_PREFIX, TAP_PREFIX, VXLAN_PREFIX
from ecompute.network.nft import Json

TABLE = "ecompute"
OURS = (BRIDGE_PREFIX, TAP_PREFIX, VXLAN_PREFIX)
FAMILIES = ("bridge", "inet", "arp")
TABLES = tuple((family, TABLE) for family in FAMILIES)

_PRIORITY = -350
"""Before every usual chain of these hooks (the first, of bridge, is at -300)."""


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


def _name(key: str, op: str, prefix: str) -> Json:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": f"{prefix}*"}}


def _chain(family: str, hook: str) -> Json:
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


def _drop(family: str, chain: str, *matches: Json) -> Json:
    expression = [*matches, {"counter": None}, {"drop": None}]
    return {"rule": {"family": family, "table": TABLE, "chain": chain, "expr": expression}}


def rules() -> list[Json]:
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
    """Return the commands that replace our tables, or remove them, as JSON for `nft.change`."""
    return nft.script(TABLES, rules() if is_wanted else ())


# --- how they get into the kernel ----------------------------------------------------------------


class NftFilter:
    """The rules of the network namespace of the thread that calls.

    The tables are listed only when the kernel's ruleset has another generation than when they were
    last seen: that question costs 0.1 ms, a listing takes a process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: tuple[int, FilterState] | None = None
        self._installed: list[Json] | None = None

    def state(self) -> FilterState:
        with self._lock:
            generation = nft.generation()
            if self._seen is None or self._seen[0] != generation:
                self._seen = (generation, self._read())
            return self._seen[1]

    def _read(self) -> FilterState:
        found = self._found()
        if not found:
            return FilterState.ABSENT
        # Another release of nft may print a rule in another way: what it printed right after we
        # had installed ours is as good.
        return FilterState.WHOLE if found in (rules(), self._installed) else FilterState.ALTERED

    def _found(self) -> list[Json]:
        listings = [nft.listing(table) for table in TABLES]
        return [item for listing in listings if listing is not None for item in nft.normalise(listing)]

    def install(self) -> None:
        with self._lock:
            self._seen = None
            nft.change(render())
            generation = nft.generation()
            self._installed = self._found()
            self._seen = (generation, FilterState.WHOLE)

    def remove(self) -> None:
        with self._lock:
            self._seen = None
            nft.change(render(is_wanted=False))
