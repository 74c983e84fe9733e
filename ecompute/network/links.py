"""The kernel's devices and forwarding entries, found and changed.

`Links` is what the reconciler needs; `NetlinkLinks` does it through netlink, `fake.FakeLinks` in
memory, and one set of contract tests holds for both. One change is one call, and made twice it
changes nothing more: what is to be deleted may be gone, what is to be put may be there.

Any thread may call this; nothing is shared between threads. pyroute2 0.9 keeps one socket and one
event loop for every thread that has used an `IPRoute`, until that is closed (lanes come and go, so
a shared one would leak three file descriptors a lane): each call opens its own, about 0.7 ms, and a
thread with many calls opens one for all of them (`netlink.opened`). It belongs to the network namespace
of the thread that opens it. `IPRoute` neither forks nor starts threads (a test watches); pyroute2's
`NetNS` does and is not used.

Dumps are filtered by the kernel (`strict_check`, and no filter of pyroute2's own, which would decode
every device and entry of the host first: 50 ms against 2 ms with 100 guests).
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from ecompute.cluster.errors import NetworkError
from ecompute.network import entries, names, reading, terms, underlay
from ecompute.network import netlink as kernel
from ecompute.network.names import bridge_name, vlan_name, vxlan_name
from ecompute.network.present import Device
from ecompute.network.terms import FoundNetwork, Physical
from ecompute.network.underlay import Address


class Links(Protocol):
    """The devices of one network namespace: this host's own."""

    def session(self) -> AbstractContextManager[None]:
        """Let this thread's calls inside share one socket."""

    def found(
        self, vni: int, taps: Collection[str] = (), *, local: str | None = None, physical: Physical | None = None
    ) -> FoundNetwork:
        """Return what is there of a network, and which of ``taps`` are not on its bridge.

        What is in the filter is not known here.

        Args:
            local: the underlay address, of a virtual network, for the MTU of its device.
            physical: where it is, of a physical network.
        """

    def glance(self, vni: int) -> FoundNetwork:
        """Return the network's own devices only: that costs the same for any number of guests."""

    def apply(self, change: terms.LinkChange) -> None:
        """Make one change.

        Raises:
            NetworkError: the kernel refused it.
        """

    def apply_entries(self, changes: Sequence[terms.EntryChange]) -> None:
        """Make changes of entries and neighbours in their order: the same as one by one, and faster.

        Raises:
            NetworkError: the kernel refused one; those after it may have been made or not.
        """

    def ours(self) -> frozenset[int]:
        """Return the VNIs of which a bridge, VXLAN or VLAN device of ours is there."""

    def devices(self) -> frozenset[Device]:
        """Return everything of ours that is there, whether anybody has a use for it or not."""

    def harden(self, device: str) -> bool:
        """Keep IPv6 and ARP of this host away from ``device``, a tap; return whether that was needed."""

    def has_bridge(self, name: str) -> bool:
        """Whether there is a bridge of that name, an operator's own."""

    def addresses(self) -> dict[str, Address]:
        """Return the host's IPv4 addresses."""

    def source_address(self) -> Address:
        """Return the address from which packets leave by the default route.

        Raises:
            NetworkError: there is no default route, or it leads to loopback.
        """

    def underlay(self, configured: str | None) -> Address:
        """Return this host's underlay address: the configured one, or the default route's source.

        A configured one may be loopback: that serves a single host (`mesh.wanted` refuses it for two).

        Raises:
            NetworkError: the configured one is not this host's, or there is no default route.
        """


class NetlinkLinks:
    """The devices of the network namespace of the thread that calls."""

    def session(self) -> AbstractContextManager[None]:
        return kernel.opened()

    def glance(self, vni: int) -> FoundNetwork:
        with kernel.trying(f"reading network {vni}"), kernel.opened() as netlink:
            bridge, vxlan, vlan = (
                kernel.device(netlink, name) for name in (bridge_name(vni), vxlan_name(vni), vlan_name(vni))
            )
            index = None if bridge is None else bridge["index"]
            return FoundNetwork(
                vni,
                bridge=None if bridge is None else reading.bridge(bridge),
                vxlan=None if vxlan is None else reading.vxlan(vxlan, index),
                vlan=None if vlan is None else reading.vlan(vlan, _name(vlan.get_attr("IFLA_LINK")), index),
            )

    def found(
        self, vni: int, taps: Collection[str] = (), *, local: str | None = None, physical: Physical | None = None
    ) -> FoundNetwork:
        with kernel.trying(f"reading network {vni}"), kernel.opened() as netlink:
            found = self.glance(vni)
            if found.bridge is not None and found.bridge.kind == "bridge":
                out = {vxlan_name(vni), vlan_name(vni)}
                found = replace(found, ports=reading.ports(netlink, kernel.index(bridge_name(vni)), out))
            if found.vxlan is not None and found.vxlan.kind == "vxlan":
                on_it = entries.read(found.vxlan.index)
                found = replace(found, entries=on_it.ours, foreign_entries=on_it.foreign, neighbours=on_it.neighbours)
            if local is not None:
                address = underlay.read(netlink).get(local)
                found = replace(found, carrier_mtu=None if address is None else address.mtu)
            attached = {port.name for port in found.ports}
            others = [link for name in taps if name not in attached if (link := kernel.device(netlink, name))]
            there: list[Any] = []
            if physical is not None and (outlet := _bridge(netlink, physical.outlet)) is not None:
                found = replace(found, carrier_mtu=outlet.get_attr("IFLA_MTU"))
                if physical.vlan is None:  # its taps are on the operator's bridge
                    there = [link for link in others if link.get_attr("IFLA_MASTER") == outlet["index"]]
            return replace(
                found,
                ports=found.ports | {reading.port(link) for link in there},
                loose=frozenset(reading.port(link) for link in others if link not in there),
            )

    def apply(self, change: terms.LinkChange) -> None:
        with kernel.trying(f"applying {change}"), kernel.opened() as netlink:
            match change:
                case terms.AddBridge(vni, mtu):
                    address = names.bridge_mac(vni)
                    name = bridge_name(vni)
                    netlink.link("add", ifname=name, kind="bridge", address=address, **reading.BRIDGE_OPTIONS)
                    # Set after it was made, else the bridge would follow the MTUs of its ports.
                    netlink.link("set", index=kernel.index(name), mtu=mtu)
                case terms.TuneBridge(vni, mtu):
                    index = kernel.index(bridge_name(vni))
                    address = names.bridge_mac(vni)
                    # No forward delay is refused as long as there is a spanning tree.
                    netlink.link("set", index=index, kind="bridge", br_stp_state=0)
                    netlink.link("set", index=index, kind="bridge", address=address, mtu=mtu, **reading.BRIDGE_OPTIONS)
                case terms.AddVxlan(vni, local, mtu):
                    netlink.link(
                        "add",
                        ifname=vxlan_name(vni),
                        kind="vxlan",
                        vxlan_id=vni,
                        vxlan_local=local,
                        vxlan_port=names.VXLAN_PORT,
                        vxlan_learning=0,
                        vxlan_proxy=1,
                        mtu=mtu,
                    )
                case terms.AttachVxlan(vni):
                    index = kernel.index(vxlan_name(vni))
                    netlink.link("set", index=index, master=kernel.index(bridge_name(vni)))
                case terms.AddVlan(vni, outlet, vlan):
                    parent = kernel.index(outlet)
                    netlink.link("add", ifname=vlan_name(vni), kind="vlan", link=parent, vlan_id=vlan)
                case terms.DeleteVlan(vni):
                    _delete(netlink, vlan_name(vni))
                case terms.AttachVlan(vni):
                    index = kernel.index(vlan_name(vni))
                    netlink.link("set", index=index, master=kernel.index(bridge_name(vni)))
                case terms.AttachTap(bridge, device):
                    master = kernel.index(bridge)
                    with kernel.gone_is_fine():  # a tap goes with its guest, at any time
                        netlink.link("set", index=kernel.index(device), master=master)
                case terms.DeleteBridge(vni):
                    _delete(netlink, bridge_name(vni))
                case terms.DeleteVxlan(vni):
                    _delete(netlink, vxlan_name(vni))
                case terms.SetMtu(device, mtu):
                    with _if_tap(device):
                        netlink.link("set", index=kernel.index(device), mtu=mtu)
                case terms.SetUp(device):
                    netlink.link("set", index=kernel.index(device), state="up")
                case terms.Harden(device):
                    with _if_tap(device):
                        _harden(device)
                case _:
                    self.apply_entries((change,))

    def apply_entries(self, changes: Sequence[terms.EntryChange]) -> None:
        drops = (terms.DropEntry, terms.DropNeighbour)
        for vni, group in groupby(changes, key=lambda change: change.vni):
            some = tuple(group)
            with kernel.trying(f"changing the entries of network {vni}"):
                try:
                    index = kernel.index(vxlan_name(vni))
                except NetlinkError:
                    if all(isinstance(change, drops) for change in some):
                        continue  # they went with their device
                    raise
                entries.change(index, some)

    def ours(self) -> frozenset[int]:
        with kernel.trying("reading the devices of this host"), kernel.opened() as netlink:
            devices = {name: vni for _, name in socket.if_nameindex() if (vni := names.vni_of(name)) is not None}
            return frozenset(
                vni for name, vni in devices.items() if reading.is_ours(kernel.device(netlink, name), name, vni)
            )

    def devices(self) -> frozenset[Device]:
        devices = [name for _, name in socket.if_nameindex() if name.startswith(names.PREFIXES)]
        with kernel.trying("reading the devices of this host"), kernel.opened() as netlink:
            links = {name: link for name in devices if (link := kernel.device(netlink, name)) is not None}
        vnis = {link["index"]: names.vni_of(name) for name, link in links.items()}
        found = (reading.present(name, link, vnis.get(link.get_attr("IFLA_MASTER"))) for name, link in links.items())
        return frozenset(device for device in found if device is not None)

    def harden(self, device: str) -> bool:
        with kernel.trying(f"hardening {device}"), kernel.opened() as netlink:
            link = kernel.device(netlink, device)
            if link is None:
                raise NetworkError(f"there is no device {device}")
            if reading.is_hardened(link):
                return False
            _harden(device)
            return True

    def has_bridge(self, name: str) -> bool:
        with kernel.trying(f"reading {name}"), kernel.opened() as netlink:
            return _bridge(netlink, name) is not None

    def addresses(self) -> dict[str, Address]:
        with kernel.trying("reading the addresses of this host"), kernel.opened() as netlink:
            return underlay.read(netlink)

    def underlay(self, configured: str | None) -> Address:
        return self.source_address() if configured is None else underlay.pick(self.addresses(), configured)

    def source_address(self) -> Address:
        with kernel.trying("reading the default route"), kernel.opened() as netlink:
            return underlay.of_default_route(netlink)


@contextmanager
def _if_tap(device: str) -> Iterator[None]:
    """Pass over that a tap is not there any more: it goes with its guest, at any time."""
    is_tap = device.startswith(names.TAP_PREFIX)
    with suppress(*(FileNotFoundError,) if is_tap else ()), kernel.gone_is_fine() if is_tap else nullcontext():
        yield


def _bridge(netlink: Any, name: str) -> Any | None:
    link = kernel.device(netlink, name)
    return link if link is not None and kernel.kind(link) == "bridge" else None


def _name(index: int | None) -> str | None:
    if index is None:
        return None
    with suppress(OSError):
        return socket.if_indextoname(index)
    return None


def _delete(netlink: Any, name: str) -> None:
    with kernel.gone_is_fine():
        netlink.link("del", index=kernel.index(name))


def _harden(device: str) -> None:
    kernel.set_all(device, {"ipv6/disable_ipv6": 1})  # and with it goes every address of before
    kernel.set_all(device, reading.hardening(device))
