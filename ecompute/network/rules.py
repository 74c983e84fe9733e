"""The parts of which nftables rules are made, as JSON (libnftables-json(5)). Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ecompute.network.nft import Json

BEFORE_ALL = -350
"""A priority before every usual chain of the hooks."""
DESTINATION_NAT, FILTER, SOURCE_NAT = -100, 0, 100
"""The priorities that nft(8) calls dstnat, filter and srcnat."""


class Rules:
    """Makes sets, chains and rules of one table."""

    def __init__(self, family: str, table: str) -> None:
        self._where = {"family": family, "table": table}
        self.table: Json = {"table": {"family": family, "name": table}}

    def set(self, name: str, addresses: Iterable[str]) -> Json:
        return {"set": {**self._where, "name": name, "type": "ipv4_addr", **_elements(addresses)}}

    def map(self, name: str, pairs: Iterable[tuple[str, str]]) -> Json:
        elements = _elements([one, other] for one, other in pairs)
        return {"map": {**self._where, "name": name, "type": "ipv4_addr", "map": "ipv4_addr", **elements}}

    def chain(self, name: str) -> Json:
        """One that is jumped to."""
        return {"chain": {**self._where, "name": name}}

    def hook(self, name: str, kind: str, priority: int, *, policy: str = "accept") -> Json:
        """One that the kernel calls at the hook of the same name."""
        return {"chain": {**self._where, "name": name, "type": kind, "hook": name, "prio": priority, "policy": policy}}

    def rule(self, chain: str, *expression: Json) -> Json:
        return {"rule": {**self._where, "chain": chain, "expr": list(expression)}}


def _elements(elements: Iterable[str] | Iterable[list[str]]) -> Json:
    ordered = sorted(elements, key=json.dumps)  # as `nft.normalise` has them
    return {"elem": ordered} if ordered else {}


def meta(key: str) -> Json:
    return {"meta": {"key": key}}


def field(protocol: str, name: str) -> Json:
    return {"payload": {"protocol": protocol, "field": name}}


def match(left: Json, right: Any, op: str = "==") -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def comes_in(device: str) -> Json:
    return match(meta("iifname"), device)


def goes_out(device: str, op: str = "==") -> Json:
    return match(meta("oifname"), device, op)


def prefix(cidr: str) -> Json:
    address, length = cidr.split("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def jump(chain: str) -> Json:
    return {"jump": {"target": chain}}


ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}
MASQUERADE: Json = {"masquerade": None}
SOURCE, DESTINATION = field("ip", "saddr"), field("ip", "daddr")
ANSWERS = match({"ct": {"key": "state"}}, ["established", "related"], "in")
