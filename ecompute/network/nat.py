"""The rules in a network's namespace: what its guests reach there, what leads out, and which addresses are translated.

One table of ours in the namespace, which nobody else uses. Both filter chains drop what no rule lets pass, so that
what a network does not have is truly off: without DHCP, DNS or NAT there is no rule for it.

- *input*: from guests DHCP, DNS, metadata and echo requests; from the uplink only answers.
- *forward*: out, what comes from the network (with NAT) or from a port with an address of its own; in, answers and
  what such a port is asked. Between guests of the network only by those addresses.
- A *floating* address is translated to one of the network's and back, whoever asks: from outside, from the same
  network (the answer has to come back this way, so the gateway asks in the guest's place), or from another network
  of the same host (whose transit address no guest could answer: again the gateway asks).
- A *routed* address is not translated.

Pure. Any thread may call this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ecompute.network.names import LAN, METADATA, METADATA6, UP
from ecompute.network.nft import Json, Table
from ecompute.network.rules import (
    ACCEPT,
    ANSWERS,
    DESTINATION,
    DESTINATION_NAT,
    DROP,
    FILTER,
    MASQUERADE,
    SOURCE,
    SOURCE_NAT,
    Rules,
    comes_in,
    field,
    goes_out,
    match,
    prefix,
)

TRANSIT = "169.254.0.0/16"
"""In which the addresses of uplinks lie: no packet with one of them leaves the host."""

TABLE: Table = ("inet", "ecompute")

_inet = Rules(*TABLE)
_FROM_LAN, _TO_LAN, _FROM_UP, _TO_UP = comes_in(LAN), goes_out(LAN), comes_in(UP), goes_out(UP)
_NEW = match({"ct": {"key": "state"}}, "new", "in")
FLOWS_A_SECOND, FLOWS_AT_ONCE = 1000, 4000
"""New flows that lead out of one network on one host. All of a host's networks, and the host, share its ports and its
table of flows: an unanswered datagram holds one of each for half a minute."""
_TRANSLATED = match({"ct": {"key": "status"}}, "dnat", "in")
_TOO_MANY = {"limit": {"rate": FLOWS_A_SECOND, "burst": FLOWS_AT_ONCE, "per": "second", "inv": True}}


@dataclass(frozen=True)
class InsideRules:
    """What the rules follow from."""

    cidr: str | None
    gateway: str | None
    has_dhcp: bool = False
    has_dhcp6: bool = False
    has_dns: bool = False
    has_nat: bool = False
    floating: frozenset[tuple[str, str]] = frozenset()
    """(floating address, address of the network)"""
    routed: frozenset[str] = frozenset()

    def items(self) -> list[Json]:
        """Return table, sets, chains and rules in the order in which nft lists them."""
        return [
            _inet.table,
            _inet.set("own", (inner for _, inner in self.floating)),
            _inet.set("routed", self.routed),
            _inet.map("floating", self.floating),
            _inet.map("masks", ((inner, outer) for outer, inner in self.floating)),
            _inet.hook("input", "filter", FILTER, policy="drop"),
            _inet.hook("forward", "filter", FILTER, policy="drop"),
            _inet.hook("prerouting", "nat", DESTINATION_NAT),
            _inet.hook("postrouting", "nat", SOURCE_NAT),
            *(_inet.rule("input", *expression, ACCEPT) for expression in self._input()),
            _inet.rule("forward", _FROM_LAN, _TO_UP, _NEW, _TOO_MANY, DROP),
            *(_inet.rule("forward", *expression, ACCEPT) for expression in self._forward()),
            _inet.rule("prerouting", _translate("dnat", DESTINATION, "@floating")),
            *(_inet.rule("postrouting", *expression) for expression in self._postrouting()),
        ]

    def _input(self) -> Iterable[tuple[Json, ...]]:
        yield (comes_in("lo"),)
        yield (ANSWERS,)
        if self.has_dhcp:
            yield _FROM_LAN, match(field("udp", "dport"), 67)
        if self.has_dhcp6:
            yield _FROM_LAN, match(field("udp", "dport"), 547)
        if self.has_dns:
            yield _FROM_LAN, match(field("udp", "dport"), 53)
            yield _FROM_LAN, match(field("tcp", "dport"), 53)
        yield _FROM_LAN, match(DESTINATION, METADATA), match(field("tcp", "dport"), 80)
        yield _FROM_LAN, match(field("ip6", "daddr"), METADATA6), match(field("tcp", "dport"), 80)
        for address in (METADATA, *((self.gateway,) if self.gateway is not None else ())):
            yield _FROM_LAN, match(DESTINATION, address), match(field("icmp", "type"), "echo-request")
        for kind in ("echo-request", "nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"):
            yield _FROM_LAN, match(field("icmpv6", "type"), kind)

    def _forward(self) -> Iterable[tuple[Json, ...]]:
        yield _FROM_LAN, _TO_UP, match(SOURCE, "@own")
        yield _FROM_LAN, _TO_UP, match(SOURCE, "@routed")
        yield _FROM_UP, _TO_LAN, match(DESTINATION, "@own"), _TRANSLATED
        yield _FROM_UP, _TO_LAN, match(DESTINATION, "@own"), ANSWERS
        yield _FROM_UP, _TO_LAN, match(DESTINATION, "@routed")
        yield _FROM_LAN, _TO_LAN, _TRANSLATED
        yield _FROM_LAN, _TO_LAN, match(SOURCE, "@routed")
        yield _FROM_LAN, _TO_LAN, match(DESTINATION, "@routed")
        if self.has_nat and self.cidr is not None:
            yield _FROM_LAN, _TO_UP, match(SOURCE, prefix(self.cidr))
            yield _FROM_UP, _TO_LAN, match(DESTINATION, prefix(self.cidr)), ANSWERS

    def _postrouting(self) -> Iterable[tuple[Json, ...]]:
        yield _TO_UP, _translate("snat", SOURCE, "@masks")
        if self.has_nat and self.cidr is not None:
            yield _TO_UP, match(SOURCE, prefix(self.cidr)), MASQUERADE
        if self.gateway is not None:
            as_gateway = {"snat": {"family": "ip", "addr": self.gateway}}
            yield _FROM_LAN, _TO_LAN, _TRANSLATED, as_gateway
            yield _FROM_UP, _TO_LAN, match(SOURCE, prefix(TRANSIT)), as_gateway


def _translate(verb: str, by: Json, a_map: str) -> Json:
    return {verb: {"family": "ip", "addr": {"map": {"key": by, "data": a_map}}}}
