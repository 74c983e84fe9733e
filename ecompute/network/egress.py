"""What comes from the networks' uplinks on the host itself: where it may go, and where it may not.

Guests are tenants' machines; behind an uplink they are on the operator's side. So nothing of an uplink is for the
host itself, for the control plane, for other hosts of the same networks, or for the port of VXLAN packets anywhere
(behind NAT it would come from a known host). What leads out is the egress device and nothing else; what comes in
there for an uplink is an answer, or for an address that was given to a guest. One network reaches another by such
addresses only.

The tables are ours alone, in place before the first uplink goes up, and go with the last. Forwarding is switched on
for the egress device alone, if it is not for the whole host, and off again after that; meanwhile nothing else that
comes in there is forwarded.

`HostRules` is pure; `HostEgress` may be called from any thread, one at a time.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
from pyroute2.netlink.exceptions import NetlinkError

from ecompute.cluster.decoding import from_json
from ecompute.cluster.failpoint import reach
from ecompute.network import netlink, nft
from ecompute.network.names import UPLINK_PREFIX, VXLAN_PORT
from ecompute.network.nat import TRANSIT
from ecompute.network.nft import Json
from ecompute.network.rules import (
    ACCEPT,
    ANSWERS,
    BEFORE_ALL,
    DESTINATION,
    DROP,
    MASQUERADE,
    SOURCE,
    SOURCE_NAT,
    Rules,
    comes_in,
    field,
    goes_out,
    jump,
    match,
    meta,
    prefix,
)

TABLE = "ecompute_gateway"
TABLES = (("inet", TABLE), ("arp", TABLE))
FAILPOINTS = (
    "egress.ruled",
    "egress.written",
    "egress.remembered",
    "egress.half_set",
    "egress.restored",
    "egress.forgotten",
    "egress.removed",
)

_NOWHERE = "240.0.0.1"
"""An address to which nobody has a route but the default one (RFC 1112, section 4)."""

_inet, _arp = Rules("inet", TABLE), Rules("arp", TABLE)
_FROM_UPLINK, _TO_UPLINK = comes_in(f"{UPLINK_PREFIX}*"), goes_out(f"{UPLINK_PREFIX}*")
_TRANSIT = prefix(TRANSIT)


@dataclass(frozen=True)
class HostRules:
    """What the rules follow from."""

    device: str | None
    """The egress device; None: nothing leads out."""
    addresses: frozenset[str] = frozenset()
    """Those that lead in: floating and routed ones of this host's guests."""
    refused: frozenset[str] = frozenset()
    """Addresses of hosts, etcd and placement."""
    resolvers: frozenset[str] = frozenset()
    """Name servers, which may be asked for names even where they are on one of those."""
    is_router: bool = False
    """Whether the host forwards for others, too: what is none of ours is then none of our business."""

    def items(self) -> list[Json]:
        """Return tables, sets, chains and rules in the order in which nft lists them."""
        return [
            _inet.table,
            _inet.set("addresses", self.addresses),
            _inet.set("refused", self.refused),
            _inet.set("resolvers", self.resolvers),
            _inet.hook("input", "filter", BEFORE_ALL),
            _inet.hook("forward", "filter", BEFORE_ALL),
            _inet.hook("postrouting", "nat", SOURCE_NAT),
            _inet.chain("from_guests"),
            _inet.chain("to_guests"),
            _inet.rule("input", _FROM_UPLINK, DROP),
            *self._forward(),
            *(_inet.rule("from_guests", *expression) for expression in self._from_guests()),
            *(_inet.rule("to_guests", *expression) for expression in self._to_guests()),
            _arp.table,
            _arp.hook("input", "filter", BEFORE_ALL),
            _arp.rule("input", _FROM_UPLINK, DROP),
        ]

    def _forward(self) -> Iterable[Json]:
        yield _inet.rule("forward", _FROM_UPLINK, jump("from_guests"))
        yield _inet.rule("forward", _TO_UPLINK, jump("to_guests"))
        if self.device is not None:
            if not self.is_router:
                yield _inet.rule("forward", match(meta("nfproto"), "ipv4"), comes_in(self.device), DROP)
            hidden = (_FROM_UPLINK, goes_out(self.device), match(SOURCE, _TRANSIT))
            yield _inet.rule("postrouting", *hidden, MASQUERADE)

    def _from_guests(self) -> Iterable[tuple[Json, ...]]:
        yield match(meta("nfproto"), "ipv6"), DROP
        yield match(field("udp", "dport"), VXLAN_PORT), DROP
        yield match({"ct": {"key": "direction"}}, "reply"), ANSWERS, ACCEPT
        if self.device is not None:
            for protocol in ("udp", "tcp"):
                to_resolver = (goes_out(self.device), match(DESTINATION, "@resolvers"))
                yield *to_resolver, match(field(protocol, "dport"), 53), ACCEPT
        yield match(DESTINATION, "@refused"), DROP
        yield match(DESTINATION, _TRANSIT), DROP
        yield match(SOURCE, _TRANSIT, "!="), match(SOURCE, "@addresses", "!="), DROP
        if self.device is not None:
            yield goes_out(self.device), ACCEPT
        yield _TO_UPLINK, match(DESTINATION, "@addresses"), ACCEPT
        yield (DROP,)

    def _to_guests(self) -> Iterable[tuple[Json, ...]]:
        if self.device is not None:
            yield comes_in(self.device), ANSWERS, ACCEPT
            yield comes_in(self.device), match(DESTINATION, "@addresses"), ACCEPT
        yield (DROP,)


class Egress(Protocol):
    def device(self) -> str | None:
        """Return the device by which this host leads out, or None where there is none.

        Raises:
            NetworkError: it cannot be said.
        """

    def is_wire(self, device: str) -> bool:
        """Whether others on ``device`` ask for addresses (ARP): nobody does in a tunnel of IP packets.

        Raises:
            NetworkError: it cannot be said.
        """

    def is_router(self, device: str) -> bool:
        """Whether this host forwards whatever comes in by ``device``, and not for us."""

    def link_local(self) -> frozenset[str]:
        """Return the link-local addresses to which this host has a route of their own."""

    def own(self) -> frozenset[str]:
        """Return the addresses of this host, and of the routers by which it reaches others: no guest's may be one.

        Raises:
            NetworkError: it cannot be said.
        """

    def ensure(self, rules: HostRules) -> None:
        """Put the rules in place, and have their device forward.

        Raises:
            NetworkError: nft is missing, or the kernel refused it.
        """

    def remove(self) -> None:
        """Take away all of that; nothing may be there."""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """How a device was set before it was ours to set."""

    device: str
    forwarding: int
    proxy_delay: int
    boot_id: str | None = None
    """Of the life of the machine in which it was so: nothing of it is left in another one."""


class HostEgress:
    """The egress of this machine.

    Args:
        configured: the device; None: that of the default route.
        memory: the file in which it is remembered how the device was set.
        boot_id: changes when the machine starts anew.
        ledger: of the host's namespace, where others of this process have tables in it, too.
    """

    def __init__(
        self, configured: str | None, memory: Path, *, boot_id: str | None = None, ledger: nft.Ledger | None = None
    ) -> None:
        self._configured = configured
        self._boot_id = boot_id
        self._memory = memory
        self._kept = nft.Kept(TABLES, ledger)

    def device(self) -> str | None:
        with netlink.trying("looking for the egress device"), netlink.opened() as rtnetlink:
            if self._configured is not None:
                return self._configured if netlink.device(rtnetlink, self._configured) is not None else None
            try:
                routes = list(rtnetlink.route("get", dst=_NOWHERE))
            except NetlinkError:  # of whatever kind: no way leads there
                return None
            names = dict(socket.if_nameindex())
            name = next((names.get(route.get_attr("RTA_OIF")) for route in routes), None)
            return None if name is None or name == "lo" or name.startswith(UPLINK_PREFIX) else name

    def is_wire(self, device: str) -> bool:
        with netlink.trying("looking at the egress device"), netlink.opened() as rtnetlink:
            link = netlink.device(rtnetlink, device)
            return link is not None and netlink.has_arp(link)

    def is_router(self, device: str) -> bool:
        before = self._before()
        is_ours = before is not None and before.device == device and before.forwarding == 0
        with netlink.trying(f"reading the settings of {device}"):
            return _get("all", "forwarding") == 1 or (not is_ours and _get(device, "forwarding") == 1)

    def link_local(self) -> frozenset[str]:
        with netlink.trying("reading the routes of this host"), netlink.opened() as rtnetlink:
            routes = rtnetlink.route("dump", family=socket.AF_INET, table=netlink.MAIN_TABLE)
            addresses = (str(route.get_attr("RTA_DST")) for route in routes if route["dst_len"] == 32)
            return frozenset(address for address in addresses if address.startswith("169.254."))

    def own(self) -> frozenset[str]:
        with netlink.trying("reading the addresses and routes of this host"), netlink.opened() as rtnetlink:
            found = [address.get_attr("IFA_LOCAL") for address in rtnetlink.addr("dump", family=socket.AF_INET)]
            for route in rtnetlink.route("dump", family=socket.AF_INET, table=netlink.MAIN_TABLE):
                found.append(route.get_attr("RTA_GATEWAY"))
                found += [hop.get_attr("RTA_GATEWAY") for hop in route.get_attr("RTA_MULTIPATH") or ()]
            return frozenset(str(address) for address in found if address is not None)

    def ensure(self, rules: HostRules) -> None:
        items = rules.items()
        if not self._kept.are(items):
            self._kept.put(items)
        reach("egress.ruled")
        with netlink.trying("setting the egress device"):
            before = self._before()
            if before is not None and before.device != rules.device:
                self._restore(before)
            if rules.device is not None:
                self._set(rules.device)

    def remove(self) -> None:
        with netlink.trying("setting the egress device"):
            before = self._before()
            if before is not None:
                self._restore(before)
            self._memory.unlink(missing_ok=True)
            self._new().unlink(missing_ok=True)
        reach("egress.forgotten")
        if not self._kept.are([]):
            self._kept.put([])
        reach("egress.removed")

    def _new(self) -> Path:
        return self._memory.with_name(f"{self._memory.name}.new")

    def _set(self, device: str) -> None:
        forwarding, proxy_delay = _get(device, "forwarding"), _get(device, "proxy_delay")
        now = Before(device=device, forwarding=forwarding, proxy_delay=proxy_delay, boot_id=self._boot_id)
        if now.forwarding == 1 and now.proxy_delay == 0:
            return
        if self._before() is None:
            self._new().write_bytes(msgspec.json.encode(now))
            reach("egress.written")
            self._new().replace(self._memory)
        reach("egress.remembered")
        _put(device, "forwarding", 1)
        reach("egress.half_set")
        _put(device, "proxy_delay", 0)

    def _restore(self, before: Before) -> None:
        if _path(before.device, "forwarding").exists():
            if _get("all", "forwarding") == 0:  # else it has become somebody else's wish
                _put(before.device, "forwarding", before.forwarding)
            _put(before.device, "proxy_delay", before.proxy_delay)
        reach("egress.restored")
        self._memory.unlink(missing_ok=True)

    def _before(self) -> Before | None:
        try:
            before = from_json(self._memory.read_bytes(), Before)
            return before if before.boot_id == self._boot_id else None
        except (FileNotFoundError, msgspec.DecodeError):
            return None


def _path(device: str, setting: str) -> Path:
    kind = "neigh" if setting == "proxy_delay" else "conf"
    return Path("/proc/sys/net/ipv4", kind, device, setting)


def _get(device: str, setting: str) -> int:
    return int(_path(device, setting).read_text(encoding="ascii"))


def _put(device: str, setting: str, value: int) -> None:
    _path(device, setting).write_text(f"{value}\n", encoding="ascii")
