"""A host's devices and rules in memory, for tests and for trying things without root.

Behaves as the kernel does where that decides something: a MAC of a port has one destination, a
device is made once, what needs a device fails without it, a bridge made anew has no ports and takes
its VXLAN device's attachment with it. The contract tests hold it against `links.NetlinkLinks`.

Any thread may call this.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ecompute.cluster.errors import NetworkError
from ecompute.network import names, terms
from ecompute.network.alarms import OnDevice
from ecompute.network.filter import FilterState
from ecompute.network.present import Device, Kind
from ecompute.network.terms import FoundBridge, FoundNetwork, FoundPort, FoundVlan, FoundVxlan, Part, Physical
from ecompute.network.underlay import Address, pick

APPLIED_KEPT = 10_000
OUTLET_MTU = 1500
"""Of the operator's bridges."""

_indices = itertools.count(1)


class FakeLinks:
    """``networks`` is the state, by VNI; tests may put anything there."""

    def __init__(self, *, address: Address | None = None) -> None:
        self.networks: dict[int, FoundNetwork] = {}
        self.bridges: set[str] = set()
        """Those of the operator."""
        self.taps: dict[str, bool] = {}
        """Devices on no bridge of ours, and whether they are hardened."""
        self.outlets: dict[str, str] = {}
        """Those of them that are on a bridge of the operator, and on which."""
        self.applied: list[terms.LinkChange] = []
        self.address = address
        self._lock = threading.RLock()

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def found(
        self, vni: int, taps: Collection[str] = (), *, local: str | None = None, physical: Physical | None = None
    ) -> FoundNetwork:
        with self._lock:
            found = self._of(vni)
            if local is not None and self.address is not None and self.address.ip == local:
                found = replace(found, carrier_mtu=self.address.mtu)
            if physical is not None and physical.outlet in self.bridges:
                found = replace(found, carrier_mtu=OUTLET_MTU)
            outlet = physical.outlet if physical is not None and physical.vlan is None else None
            others = [(name, FoundPort(name, self.taps[name])) for name in taps if name in self.taps]
            there = {port for name, port in others if outlet is not None and self.outlets.get(name) == outlet}
            return replace(found, ports=found.ports | there, loose=frozenset(port for _, port in others) - there)

    def glance(self, vni: int) -> FoundNetwork:
        with self._lock:
            found = self._of(vni)
            return FoundNetwork(vni, bridge=found.bridge, vxlan=found.vxlan, vlan=found.vlan)

    def apply_entries(self, changes: Sequence[terms.EntryChange]) -> None:
        for change in changes:
            self.apply(change)

    def apply(self, change: terms.LinkChange) -> None:
        with self._lock:
            match change:
                case terms.SetMtu() | terms.Harden() | terms.SetUp():
                    self._apply_to_device(change)
                case terms.AttachTap(bridge, device):
                    _require(change, self.has_bridge(bridge), "No such device")
                    if device in self.taps:
                        self._attach(device, bridge)
                case _:
                    found = self._of(change.vni)
                    if isinstance(change, terms.AddVlan):
                        _require(change, change.outlet in self.bridges, "No such device")
                    if isinstance(change, terms.DeleteBridge):
                        self.taps |= {port.name: port.is_hardened for port in found.ports}
                    self.networks[change.vni] = _applied(change, found)
            self.applied.append(change)
            if len(self.applied) > APPLIED_KEPT:
                del self.applied[: APPLIED_KEPT // 2]

    def _apply_to_device(self, change: terms.SetMtu | terms.Harden | terms.SetUp) -> None:
        if change.device in self.taps:
            if isinstance(change, terms.Harden):
                self.taps[change.device] = True
            return
        for vni, found in self.networks.items():
            changed = _applied_to_device(change, found)
            if changed is not None:
                self.networks[vni] = changed
                return
        if not isinstance(change, terms.SetUp) and change.device.startswith(names.TAP_PREFIX):
            return  # a tap goes with its guest, at any time
        raise NetworkError(f"applying {change}: there is no device {change.device}")

    def _of(self, vni: int) -> FoundNetwork:
        return self.networks.get(vni, FoundNetwork(vni=vni))

    def plug(self, tap: str, bridge: str) -> None:
        """As the hypervisor does when a guest starts: a tap appears on a bridge."""
        with self._lock:
            self.taps[tap] = False
            self._attach(tap, bridge)

    def _attach(self, tap: str, bridge: str) -> None:
        for vni, found in self.networks.items():
            if names.bridge_name(vni) == bridge and found.bridge is not None:
                port = FoundPort(tap, self.taps.pop(tap))
                self.networks[vni] = replace(found, ports=found.ports | {port})
                return
        if bridge in self.bridges:
            self.outlets[tap] = bridge

    def unplug(self, tap: str) -> None:
        """As the kernel does when the guest ends. Idempotent."""
        with self._lock:
            self.taps.pop(tap, None)
            self.outlets.pop(tap, None)
            for vni, found in self.networks.items():
                self.networks[vni] = replace(found, ports=frozenset(p for p in found.ports if p.name != tap))

    def ours(self) -> frozenset[int]:
        with self._lock:
            return frozenset(
                vni
                for vni, found in self.networks.items()
                if (found.bridge is not None and found.bridge.kind == "bridge")
                or (found.vxlan is not None and found.vxlan.kind == "vxlan" and found.vxlan.vni == vni)
                or (found.vlan is not None and found.vlan.kind == "vlan")
            )

    def devices(self) -> frozenset[Device]:
        with self._lock:
            found = {Device(name, Kind.TAP, None) for name in self.taps if name.startswith(names.TAP_PREFIX)}
            for vni in self.ours():
                network = self.networks[vni]
                if network.bridge is not None and network.bridge.kind == "bridge":
                    found.add(Device(names.bridge_name(vni), Kind.BRIDGE, vni))
                if network.vxlan is not None and network.vxlan.kind == "vxlan" and network.vxlan.vni == vni:
                    found.add(Device(names.vxlan_name(vni), Kind.VXLAN, vni))
                if network.vlan is not None and network.vlan.kind == "vlan":
                    found.add(Device(names.vlan_name(vni), Kind.VLAN, vni))
                found |= {Device(p.name, Kind.TAP, vni) for p in network.ports if p.name.startswith(names.TAP_PREFIX)}
            return frozenset(found)

    def harden(self, device: str) -> bool:
        with self._lock:
            if device in self.taps:
                needed = not self.taps[device]
                self.taps[device] = True
                return needed
            for found in self.networks.values():
                for port in found.ports:
                    if port.name == device:
                        if not port.is_hardened:
                            self._apply_to_device(terms.Harden(device))
                        return not port.is_hardened
            raise NetworkError(f"there is no device {device}")

    def has_bridge(self, name: str) -> bool:
        with self._lock:
            ours = {names.bridge_name(vni) for vni, found in self.networks.items() if found.bridge is not None}
            return name in self.bridges | ours

    def addresses(self) -> dict[str, Address]:
        loopback = {"127.0.0.1": Address("127.0.0.1", "lo", 65536)}
        return loopback | ({self.address.ip: self.address} if self.address is not None else {})

    def source_address(self) -> Address:
        if self.address is None:
            raise NetworkError("this host has no default route, so no underlay address can be derived")
        return self.address

    def underlay(self, configured: str | None) -> Address:
        return self.source_address() if configured is None else pick(self.addresses(), configured)


class FakeFilter:
    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}
        self.is_altered = False

    def state(self, part: Part | None = None) -> FilterState:
        if not self.parts:
            return FilterState.ABSENT
        is_whole = part is None or self.parts.get(part.vni) == part
        return FilterState.WHOLE if is_whole and not self.is_altered else FilterState.ALTERED

    def put(self, part: Part) -> None:
        self.parts[part.vni] = part
        self.is_altered = False

    def repair(self) -> bool:
        was_altered, self.is_altered = self.is_altered, False
        return was_altered

    def drop(self, vni: int) -> None:
        self.parts.pop(vni, None)
        if not self.parts:
            self.is_altered = False

    def taps(self, vni: int) -> frozenset[str]:
        part = self.parts.get(vni, Part(vni))
        return part.kept | {tap.name for tap in part.taps}

    def present(self) -> frozenset[int]:
        return frozenset(self.parts)


class FakeAlarms:
    """Nothing is told but what a test says."""

    def __init__(self) -> None:
        self.on_device: OnDevice = lambda vni: None
        self.on_rules: Callable[[], None] = lambda: None

    def start(self, on_device: OnDevice, on_rules: Callable[[], None]) -> None:
        self.on_device, self.on_rules = on_device, on_rules

    def close(self) -> None:
        self.__init__()  # type: ignore[misc]


def _applied(change: terms.LinkChange, found: FoundNetwork) -> FoundNetwork:
    match change:
        case terms.AddBridge(vni, mtu):
            _require(change, found.bridge is None, "File exists")
            return replace(found, bridge=FoundBridge("bridge", names.bridge_mac(vni), mtu, is_tuned=True))
        case terms.TuneBridge(vni, mtu):
            bridge = _bridge(change, found)
            return replace(found, bridge=replace(bridge, mac=names.bridge_mac(vni), mtu=mtu, is_tuned=True))
        case terms.DeleteBridge():
            vxlan = found.vxlan and replace(found.vxlan, is_attached=False)
            vlan = found.vlan and replace(found.vlan, is_attached=False)
            return replace(found, bridge=None, vxlan=vxlan, vlan=vlan, ports=frozenset())
        case terms.AddVxlan(vni, local, mtu):
            _require(change, found.vxlan is None, "File exists")
            vxlan = FoundVxlan("vxlan", vni, local, names.VXLAN_PORT, is_proxy=True, mtu=mtu, index=next(_indices))
            return replace(found, vxlan=vxlan)
        case terms.DeleteVxlan():
            kept = replace(found, vxlan=None, entries=frozenset(), foreign_entries=frozenset())
            return replace(kept, neighbours=frozenset())
        case terms.AddVlan(_, outlet, vlan):
            _require(change, found.vlan is None, "File exists")
            return replace(found, vlan=FoundVlan("vlan", outlet, vlan, mtu=OUTLET_MTU))
        case terms.DeleteVlan():
            return replace(found, vlan=None)
        case terms.AttachVlan():
            _bridge(change, found)
            _require(change, found.vlan is not None, "No such device")
            assert found.vlan is not None
            return replace(found, vlan=replace(found.vlan, is_attached=True))
        case terms.AttachVxlan():
            _bridge(change, found)
            return replace(found, vxlan=replace(_vxlan(change, found), is_attached=True))
        case terms.PutEntry(_, mac, underlay):
            _vxlan(change, found)
            if mac == names.ZEROS:
                return replace(found, entries=found.entries | {(mac, underlay)})
            return replace(
                found,
                entries=frozenset(entry for entry in found.entries if entry[0] != mac) | {(mac, underlay)},
                foreign_entries=frozenset(entry for entry in found.foreign_entries if entry[0] != mac),
            )
        case terms.DropEntry(_, mac, underlay):
            _vxlan(change, found)
            return replace(found, entries=found.entries - {(mac, underlay)})
        case terms.PutNeighbour(_, address, mac):
            _vxlan(change, found)
            others = frozenset(one for one in found.neighbours if one[0] != address)
            return replace(found, neighbours=others | {(address, mac)})
        case terms.DropNeighbour(_, address):
            _vxlan(change, found)
            return replace(found, neighbours=frozenset(one for one in found.neighbours if one[0] != address))
    raise AssertionError(change)


def _applied_to_device(change: terms.SetMtu | terms.Harden | terms.SetUp, found: FoundNetwork) -> FoundNetwork | None:
    values = {
        terms.SetMtu: {"mtu": getattr(change, "mtu", None)},
        terms.Harden: {"is_hardened": True},
        terms.SetUp: {"is_up": True},
    }[type(change)]
    if change.device == names.bridge_name(found.vni) and found.bridge is not None:
        return replace(found, bridge=replace(found.bridge, **values))  # type: ignore[arg-type]
    if change.device == names.vxlan_name(found.vni) and found.vxlan is not None:
        changed = replace(found, vxlan=replace(found.vxlan, **values))  # type: ignore[arg-type]
        if isinstance(change, terms.Harden):  # IPv6 is switched off on the way, and with it go its neighbours
            return replace(changed, neighbours=frozenset(one for one in found.neighbours if ":" not in one[0]))
        return changed
    if change.device == names.vlan_name(found.vni) and found.vlan is not None:
        return replace(found, vlan=replace(found.vlan, **values))  # type: ignore[arg-type]
    for port in found.ports:
        if port.name == change.device and not isinstance(change, terms.SetUp):
            return replace(found, ports=found.ports - {port} | {replace(port, **values)})  # type: ignore[arg-type]
    return None


def _bridge(change: terms.LinkChange, found: FoundNetwork) -> FoundBridge:
    _require(change, found.bridge is not None, "No such device")
    assert found.bridge is not None
    return found.bridge


def _vxlan(change: terms.LinkChange, found: FoundNetwork) -> FoundVxlan:
    _require(change, found.vxlan is not None, "No such device")
    assert found.vxlan is not None
    return found.vxlan


def _require(change: terms.LinkChange, holds: bool, reason: str) -> None:
    if not holds:
        raise NetworkError(f"applying {change}: {reason}")
