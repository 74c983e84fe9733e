"""The gateways of a host: what is there of each, and changes made to them.

`Gateways` is what the reconciler needs; `HostGateways` does it on this machine, `fake.FakeGateways` in memory, and
one set of contract tests holds for both. One change made twice changes nothing more. What is done in a network's
namespace one after the other is done in one visit.

Any thread may call this, one at a time for a network.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from ecompute.cluster.failpoint import around, passing
from ecompute.network import inside, names, netlink, netns, outside
from ecompute.network.deaths import Deaths
from ecompute.network.dnsmasq import Paths
from ecompute.network.gateway import namespace_name
from ecompute.network.gateway_terms import (
    INNER,
    EndFlows,
    FoundGateway,
    FoundInner,
    GatewayChange,
    InnerChange,
    MakeNamespace,
    PutRules,
    RemoveFiles,
    RemoveNamespace,
    Route,
    StartService,
    StopService,
)
from ecompute.network.names import LAN, UP
from ecompute.network.nat import TABLE, InsideRules
from ecompute.network.nft import Kept
from ecompute.network.present import Device, Kind
from ecompute.network.service import Services

_INSIDE = get_args(InnerChange)

OnChange = Callable[[GatewayChange], None]


def _points(kind: type[GatewayChange]) -> tuple[str, ...]:
    which = INNER if "inner" in kind.__annotations__ else ("",)
    return tuple(".".join(filter(None, ("gateway", kind.__name__, inner))) for inner in which)


FAILPOINTS = around(point for kind in get_args(GatewayChange) for point in _points(kind))
"""Before and after each kind of change, for each of the two pairs."""


class Gateways(Protocol):
    def on_death(self, tell: Callable[[int], None]) -> None:
        """Have ``tell`` called with the VNI of a network whose dnsmasq has ended by itself, from some thread."""

    def close(self) -> None:
        """Tell of no death any more. Everything stays as it is."""

    def session(self) -> AbstractContextManager[None]:
        """Let this thread's calls inside share what they need."""

    def paths(self, vni: int) -> Paths:
        """Return where the files of a network's dnsmasq lie."""

    def found(
        self,
        vni: int,
        rules: InsideRules | None = None,
        transit: str | None = None,
        known: Collection[tuple[str, str]] = (),
    ) -> FoundGateway:
        """Return what is there of a network's gateway.

        Args:
            rules, transit: those that are wanted, to be compared.
            known: (address, device) for which the host may answer on behalf of this network.

        Raises:
            NetworkError: it cannot be said.
        """

    def apply(self, changes: Iterable[GatewayChange], on_change: OnChange | None = None) -> None:
        """Make changes, one after the other.

        Args:
            on_change: called after each, on some thread.

        Raises:
            NetworkError: one was refused; those after it were not made.
        """

    def devices(self) -> frozenset[Device]:
        """Return the namespaces and devices of gateways of ours that are there, whether anybody uses them or not."""


@dataclass
class _Known:
    """What is remembered of one network's namespace."""

    rules: Kept = field(default_factory=lambda: Kept([TABLE]))
    ended: InsideRules | None = None
    """The rules from which all flows follow."""
    is_new: bool = False
    """It is new, and nothing goes on in it."""


class HostGateways:
    """The gateways on this machine.

    Args:
        provider: the host's provider uuid.
        directory: the files of the networks' dnsmasqs lie below it.
    """

    def __init__(self, provider: str, directory: Path) -> None:
        self._provider = provider
        self._suffix = re.escape(provider[:8])
        self._deaths = Deaths()
        self._services = Services(directory)
        self._outside = outside.Outside()
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()

    def on_death(self, tell: Callable[[int], None]) -> None:
        self._deaths.tell = tell

    def close(self) -> None:
        self._deaths.close()
        self._outside.close()

    def session(self) -> AbstractContextManager[None]:
        return netlink.opened()

    def paths(self, vni: int) -> Paths:
        return self._services.paths(vni)

    def found(
        self,
        vni: int,
        rules: InsideRules | None = None,
        transit: str | None = None,
        known: Collection[tuple[str, str]] = (),
    ) -> FoundGateway:
        namespace = namespace_name(vni, self._provider)
        self._watch(vni)
        with netlink.trying(f"reading the gateway of network {vni}"):
            has_namespace = netns.identity(namespace) is not None
            inner: dict[str, tuple[int, FoundInner]] = {}
            routes: frozenset[Route] = frozenset()
            neighbours: frozenset[tuple[str, str, str]] = frozenset()
            has_rules = False
            if has_namespace:
                inner, routes, neighbours, has_rules = netns.in_namespace(namespace, lambda: self._look(vni, rules))
            with netlink.opened() as rtnetlink:
                ends = self._outside.ends(rtnetlink, vni)
                service = self._services.found(vni, namespace)
                found = self._with_uplink(FoundGateway(vni=vni, service=service), rtnetlink, ends, transit)
                proxied, announced = self._outside.proxied(rtnetlink, known)
            paired = {
                name: replace(end.outer, is_paired=name in inner and _is_pair(end, inner[name]))
                for name, end in ends.items()
            }
            return replace(
                found,
                has_namespace=has_namespace,
                has_name=netns.path_of(namespace).exists(),
                outer_lan=paired.get(LAN),
                outer_up=paired.get(UP),
                lan=inner[LAN][1] if LAN in inner else None,
                up=inner[UP][1] if UP in inner else None,
                routes=routes,
                neighbours=neighbours,
                has_rules=has_rules,
                are_flows_ended=has_rules and self._of(vni).ended == rules,
                proxied=proxied,
                announced=announced,
            )

    def _look(self, vni: int, rules: InsideRules | None) -> tuple[Any, ...]:
        with netlink.opened() as rtnetlink:
            seen = inside.look(rtnetlink)
        return (*seen, rules is not None and self._of(vni).rules.are(rules.items()))

    def _with_uplink(
        self, found: FoundGateway, rtnetlink: Any, ends: dict[str, outside.Seen], transit: str | None
    ) -> FoundGateway:
        if UP not in ends:
            return found
        routes, has_address, ways = self._outside.uplink(rtnetlink, ends[UP].index, found.vni)
        return replace(found, host_routes=routes, is_transit_known=has_address and ways == {transit})

    def apply(self, changes: Iterable[GatewayChange], on_change: OnChange | None = None) -> None:
        for (vni, is_inside), group in groupby(changes, key=lambda change: (change.vni, isinstance(change, _INSIDE))):
            if is_inside:
                work = partial(self._apply_inside, cast("list[InnerChange]", list(group)), on_change)
                netns.in_namespace(namespace_name(vni, self._provider), work)
            else:
                with netlink.opened() as rtnetlink:
                    for change in group:
                        with netlink.trying(f"applying {change}"), passing(point_of(change)):
                            self._apply_outside(rtnetlink, change)
                        if on_change is not None:
                            on_change(change)

    def _apply_inside(self, changes: list[InnerChange], on_change: OnChange | None) -> None:
        with netlink.opened() as rtnetlink:
            for change in changes:
                known = self._of(change.vni)
                what = f"applying {type(change).__name__} to the gateway of network {change.vni}"
                with netlink.trying(what), passing(point_of(change)):
                    if isinstance(change, PutRules):
                        known.ended = change.rules if known.is_new or known.ended == change.rules else None
                        known.is_new = False
                    inside.apply(rtnetlink, change, known.rules, self._services)
                    if isinstance(change, EndFlows):
                        known.ended = change.rules
                    elif isinstance(change, StartService):
                        self._watch(change.vni)
                if on_change is not None:
                    on_change(change)

    def _apply_outside(self, rtnetlink: Any, change: GatewayChange) -> None:
        namespace = namespace_name(change.vni, self._provider)
        match change:
            case MakeNamespace(vni):
                netns.make(namespace)
                with self._lock:
                    self._known[vni] = _Known(is_new=True)
            case RemoveNamespace(vni):
                netns.remove(namespace)
                with self._lock:
                    self._known.pop(vni, None)
            case StopService(vni):
                self._deaths.forget(vni)
                self._services.stop(vni)
            case RemoveFiles(vni):
                self._services.remove(vni)
            case _:
                self._outside.apply(rtnetlink, cast("outside.Change", change), namespace)

    def devices(self) -> frozenset[Device]:
        devices = ((name, names.vni_of_gateway(name)) for _, name in socket.if_nameindex())
        namespaces = (re.fullmatch(rf"ec-([0-9a-f]{{6}})-{self._suffix}", name) for name in netns.taken())
        mine = [match for match in namespaces if match and netns.identity(match[0]) is not None]
        return frozenset(
            {Device(match[0], Kind.NAMESPACE, int(match[1], 16)) for match in mine}
            | {Device(name, Kind.VETH, vni) for name, vni in devices if vni is not None}
        )

    def _of(self, vni: int) -> _Known:
        with self._lock:
            return self._known.setdefault(vni, _Known())

    def _watch(self, vni: int) -> None:
        pid = self._services.pid(vni)
        if pid is not None:
            self._deaths.watch(vni, pid)


def point_of(change: GatewayChange) -> str:
    """Return what the failpoints at a change begin with."""
    return ".".join(filter(None, ("gateway", type(change).__name__, getattr(change, "inner", ""))))


def _is_pair(end: outside.Seen, inner: tuple[int, FoundInner]) -> bool:
    other, found = inner
    return other == end.index and end.other == found.index
