"""A host's gateways in memory, for tests and for fleets.

Behaves as the kernel does where that decides something: what is inside goes with its namespace or its device, routes
and what hangs on them with the device that they lead over, and what needs a device fails without it. The contract
tests hold it against `gateways.HostGateways`.

Any thread may call this; it has none of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

from ecompute.cluster.errors import NetworkError
from ecompute.network import gateway_terms as terms
from ecompute.network import names
from ecompute.network.dnsmasq import Files, Paths
from ecompute.network.egress import HostRules
from ecompute.network.gateway import mac_of, namespace_name
from ecompute.network.gateway_terms import FoundGateway, FoundInner, FoundOuter, FoundService, GatewayChange
from ecompute.network.gateways import OnChange
from ecompute.network.names import LAN, UP
from ecompute.network.nat import InsideRules
from ecompute.network.present import Device, Kind

APPLIED_KEPT = 10_000
_INSIDE = get_args(terms.InnerChange)


class FakeGateways:
    """``networks`` is the state, by VNI; tests may put anything there.

    Args:
        provider: the host's provider uuid, for the names of namespaces.
    """

    def __init__(self, provider: str = "") -> None:
        self._provider = provider
        self.networks: dict[int, FoundGateway] = {}
        self.rules: dict[int, InsideRules] = {}
        self.transits: dict[int, str] = {}
        self.files: dict[int, Files] = {}
        """What each dnsmasq was told."""
        self.applied: list[GatewayChange] = []
        self.bridges: Callable[[int], bool] = lambda vni: True
        """Whether there is a bridge of a network."""
        self.refuses: Callable[[GatewayChange], bool] = lambda change: False
        """Whether the kernel refuses a change."""
        self._indexes: dict[int, int] = {}
        self._lock = threading.RLock()
        self._tell: Callable[[int], None] = lambda vni: None

    def on_death(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def close(self) -> None:
        self._tell = lambda vni: None

    def session(self) -> AbstractContextManager[None]:
        return nullcontext()

    def paths(self, vni: int) -> Paths:
        return Paths(Path("/nowhere") / f"{vni:06x}")

    def kill_service(self, vni: int) -> None:
        """As if somebody had killed the network's dnsmasq."""
        with self._lock:
            found = self.networks[vni]
            self.networks[vni] = replace(found, service=replace(found.service, is_running=False, conf=None))
        self._tell(vni)

    def found(
        self,
        vni: int,
        rules: InsideRules | None = None,
        transit: str | None = None,
        known: Collection[tuple[str, str]] = (),
    ) -> FoundGateway:
        with self._lock:
            found = self.networks.get(vni, FoundGateway(vni=vni))
            has_rules = rules is not None and self.rules.get(vni) == rules
            return replace(
                found,
                has_rules=has_rules,
                are_flows_ended=has_rules and found.are_flows_ended,
                is_transit_known=found.is_transit_known and self.transits.get(vni) == transit,
                proxied=found.proxied & frozenset(known),
                announced=found.announced & frozenset(known),
            )

    def apply(self, changes: Iterable[GatewayChange], on_change: OnChange | None = None) -> None:
        for change in changes:
            with self._lock:
                found = self.networks.get(change.vni, FoundGateway(vni=change.vni))
                if isinstance(change, _INSIDE) and not found.has_namespace:
                    raise NetworkError(f"applying {change}: there is no namespace")
                _require(change, not self.refuses(change), "Operation not permitted")
                self.networks[change.vni] = self._applied(change, found)
                self.applied.append(change)
                if len(self.applied) > APPLIED_KEPT:
                    del self.applied[: APPLIED_KEPT // 2]
            if on_change is not None:
                on_change(change)

    def devices(self) -> frozenset[Device]:
        with self._lock:
            return frozenset(
                Device(name, kind, vni)
                for vni, found in self.networks.items()
                for name, kind, is_there in (
                    (namespace_name(vni, self._provider), Kind.NAMESPACE, found.has_namespace),
                    (names.gateway_name(vni), Kind.VETH, found.outer_lan is not None),
                    (names.uplink_name(vni), Kind.VETH, found.outer_up is not None),
                )
                if is_there
            )

    def _applied(self, change: GatewayChange, found: FoundGateway) -> FoundGateway:
        match change:
            case terms.MakeNamespace():
                return found if found.has_namespace else replace(found, has_namespace=True, has_name=True)
            case terms.RemoveNamespace(vni):
                self.rules.pop(vni, None)
                return FoundGateway(vni=vni, service=found.service, proxied=found.proxied, announced=found.announced)
            case terms.AddPair(vni, inner, mtu):
                _require(change, found.has_namespace and found.outer(inner) is None, "File exists")
                self._indexes[vni] = self._indexes.get(vni, 1) + 1
                device = FoundInner(index=self._indexes[vni], mac=mac_of(vni, inner), mtu=mtu)
                found = _with(found, inner, FoundOuter("veth", is_paired=True, mtu=mtu))
                return _with_inner(found, inner, device)
            case terms.DeletePair(_, inner):
                return _without(_with_inner(_with(found, inner, None), inner, None), inner)
            case terms.DeleteInner(_, inner):
                return _without(_with_inner(found, inner, None), inner)
            case terms.PutRules(vni, rules):
                before = self.rules.get(vni)
                self.rules[vni] = rules
                return replace(found, are_flows_ended=before is None or (before == rules and found.are_flows_ended))
            case terms.EndFlows():
                return replace(found, are_flows_ended=True)
            case terms.StartService() | terms.TellService() | terms.StopService() | terms.RemoveFiles():
                return replace(found, service=self._served(change, found))
            case terms.PutRoute() | terms.DropRoute() | terms.PutInnerNeighbour() | terms.DropInnerNeighbour():
                return _routed(change, found)
            case terms.SettleInner() | terms.PutAddress() | terms.DropAddress() | terms.SetInnerUp():
                return _inside(change, found)
            case terms.SettleOuter() | terms.Attach() | terms.SetOuterUp():
                return self._outside(change, found)
            case _:
                return self._led(change, found)

    def _served(self, change: GatewayChange, found: FoundGateway) -> FoundService:
        match change:
            case terms.StartService(vni, files):
                _require(change, found.lan is not None, "No such device")
                assert found.lan is not None
                self.files[vni] = files
                return FoundService(True, files.conf_digest, files.told_digest, found.lan.index, has_files=True)
            case terms.TellService(vni, files):
                self.files[vni] = files
                return replace(found.service, told=files.told_digest)
            case terms.StopService():
                return replace(found.service, is_running=False, conf=None)
            case _:
                self.files.pop(change.vni, None)
                return FoundService()

    def _outside(
        self, change: terms.SettleOuter | terms.Attach | terms.SetOuterUp, found: FoundGateway
    ) -> FoundGateway:
        inner = LAN if isinstance(change, terms.Attach) else change.inner
        outer = found.outer(inner)
        _require(change, outer is not None, "No such device")
        assert outer is not None
        match change:
            case terms.SettleOuter(_, _, mtu):
                outer = replace(outer, is_settled=True, mtu=mtu)
            case terms.Attach(vni):
                _require(change, self.bridges(vni), "No such device")
                outer = replace(outer, is_attached=True)
            case _:
                outer = replace(outer, is_up=True)
        return _with(found, inner, outer)

    def _led(self, change: GatewayChange, found: FoundGateway) -> FoundGateway:
        match change:
            case terms.PutTransit(vni, transit):
                _require(change, found.outer_up is not None and found.outer_up.is_up, "Network is down")
                self.transits[vni] = transit
                return replace(found, is_transit_known=True)
            case terms.PutHostRoute(_, address, _):
                _require(change, found.is_transit_known, "Network is unreachable")
                return replace(found, host_routes=found.host_routes | {address})
            case terms.DropHostRoute(_, address):
                return replace(found, host_routes=found.host_routes - {address})
            case terms.PutProxy(_, address, device):
                pair = frozenset({(address, device)})
                return replace(found, proxied=found.proxied | pair, announced=found.announced | pair)
            case terms.DropProxy(_, address, device):
                pair = frozenset({(address, device)})
                return replace(found, proxied=found.proxied - pair, announced=found.announced - pair)
        raise AssertionError(change)


class FakeEgress:
    """``rules`` is what is in place."""

    def __init__(self, device: str | None = "egress0") -> None:
        self.name = device
        self.has_arp = True
        self.refuses = False
        """Whether the kernel refuses the rules."""
        self.rules: HostRules | None = None
        self.routes: frozenset[str] = frozenset()
        self.addresses: frozenset[str] = frozenset()

    def device(self) -> str | None:
        return self.name

    def is_wire(self, device: str) -> bool:
        return self.has_arp

    def is_router(self, device: str) -> bool:
        return False

    def link_local(self) -> frozenset[str]:
        return self.routes

    def own(self) -> frozenset[str]:
        return self.addresses

    def ensure(self, rules: HostRules) -> None:
        if self.refuses:
            raise NetworkError("nft refused the rules: Operation not permitted")
        self.rules = rules

    def remove(self) -> None:
        self.rules = None


def _with_inner(found: FoundGateway, inner: str, device: FoundInner | None) -> FoundGateway:
    return replace(found, lan=device) if inner == LAN else replace(found, up=device)


def _with(found: FoundGateway, inner: str, outer: FoundOuter | None) -> FoundGateway:
    return replace(found, outer_lan=outer) if inner == LAN else replace(found, outer_up=outer)


def _without(found: FoundGateway, inner: str) -> FoundGateway:
    """What is left when a pair has gone."""
    found = replace(
        found,
        routes=frozenset(route for route in found.routes if route[2] != inner),
        neighbours=frozenset(neighbour for neighbour in found.neighbours if neighbour[0] != inner),
    )
    return replace(found, host_routes=frozenset(), is_transit_known=False) if inner == UP else found


def _inside(
    change: terms.SettleInner | terms.PutAddress | terms.DropAddress | terms.SetInnerUp, found: FoundGateway
) -> FoundGateway:
    device = found.inner(change.inner)
    _require(change, device is not None, "No such device")
    assert device is not None
    match change:
        case terms.SettleInner(vni, inner, mtu):
            device = replace(device, is_settled=True, mtu=mtu, mac=mac_of(vni, inner))
        case terms.PutAddress(_, _, address):
            device = replace(device, addresses=device.addresses | {address})
        case terms.DropAddress(_, _, address):
            device = replace(device, addresses=device.addresses - {address})
        case _:
            device = replace(device, is_up=True)
    return _with_inner(found, change.inner, device)


def _routed(
    change: terms.PutRoute | terms.DropRoute | terms.PutInnerNeighbour | terms.DropInnerNeighbour, found: FoundGateway
) -> FoundGateway:
    match change:
        case terms.PutRoute(_, route):
            device = found.inner(route[2])
            _require(change, device is not None and device.is_up, "Network is down")
            return replace(found, routes=found.routes | {route})
        case terms.DropRoute(_, route):
            return replace(found, routes=found.routes - {route})
        case terms.PutInnerNeighbour(_, inner, address, mac):
            others = {one for one in found.neighbours if one[:2] != (inner, address)}
            return replace(found, neighbours=frozenset({*others, (inner, address, mac)}))
        case terms.DropInnerNeighbour(_, inner, address):
            return replace(found, neighbours=frozenset(one for one in found.neighbours if one[:2] != (inner, address)))


def _require(change: GatewayChange, holds: bool, reason: str) -> None:
    if not holds:
        raise NetworkError(f"applying {change}: {reason}")
