"""The kernel's devices and forwarding entries, found and changed.

`Links` is what the reconciler needs; `NetlinkLinks` does it through netlink, `fake.FakeLinks` in
memory, and one set of contract tests holds for both. One change is one call, and made twice it
changes nothing more: what is to be deleted may be gone, what is to be put may be there.

Any thread may call this; nothing is shared between threads. pyroute2 0.9 keeps one socket and one
event loop for every thread that has used an `IPRoute`, until that is closed (lanes come and go, so
a shared one would leak three file descriptors a lane): each call opens its own, about 0.7 ms, and a
thread with many calls opens one for all of them with `session`. It belongs to the network namespace
of the thread that opens it. `IPRoute` neither forks nor starts threads (a test watches); pyroute2's
`NetNS` does and is not used.

Dumps are filtered by the kernel (`strict_check`, and no filter of pyroute2's own, which would decode
every device and entry of the host first: 50 ms against 2 ms with 100 guests).
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol, cast

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ecompute.cluster.errors import NetworkError
from ecompute.network import entries, names, terms
from ecompute.network.names import bridge_name, vxlan_name
from ecompute.network.present import Device, Kind
from ecompute.network.terms import FoundBridge, FoundNetwork, FoundPort, FoundVxlan

ARP_IGNORE_ALL = 8
"""Documentation/networking/ip-sysctl: "do not reply for all local addresses"."""

AGEING_S = 300

_AF_BRIDGE = 7
_NTF_SELF = 0x02
_NUD_PERMANENT = 0x80
_NUD_PERMANENT_NOARP = _NUD_PERMANENT | 0x40
_IFF_UP = 0x1
_MAIN_TABLE = 254
_SKIP_STATS = 8
_WITHOUT_ADDRESS = {"addr_gen_mode": 1, "accept_ra": 0, "forwarding": 0}
"""IPv6 that gives itself no address, takes none, and joins no group of routers."""
_BRIDGE_OPTIONS = {
    "br_stp_state": 0,
    "br_forward_delay": 0,
    "br_mcast_snooping": 0,
    "br_ageing_time": AGEING_S * 100,
}


@dataclass(frozen=True)
class Address:
    """An address of this host, the device that has it, and that device's MTU."""

    ip: str
    interface: str
    mtu: int

    @property
    def is_loopback(self) -> bool:
        return IPv4Address(self.ip).is_loopback


class Links(Protocol):
    """The devices of one network namespace: this host's own."""

    def session(self) -> AbstractContextManager[None]:
        """Let this thread's calls inside share one socket."""

    def found(self, vni: int, taps: Collection[str] = ()) -> FoundNetwork:
        """Return what is there of a network, and which of ``taps`` are not on its bridge.

        `is_guarded` is not known here.
        """

    def glance(self, vni: int) -> FoundNetwork:
        """Return the network's bridge and VXLAN device only: that costs the same for any number of guests."""

    def apply(self, change: terms.LinkChange) -> None:
        """Make one change.

        Raises:
            NetworkError: the kernel refused it.
        """

    def ours(self) -> frozenset[int]:
        """Return the VNIs of which a bridge or VXLAN device of ours is there."""

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

    def __init__(self) -> None:
        self._session = threading.local()

    @contextmanager
    def session(self) -> Iterator[None]:
        if getattr(self._session, "netlink", None) is not None:
            yield
            return
        netlink = self._session.netlink = _open()
        try:
            yield
        finally:
            self._session.netlink = None
            netlink.close()

    @contextmanager
    def _netlink(self) -> Iterator[Any]:
        with self.session():
            yield self._session.netlink

    def glance(self, vni: int) -> FoundNetwork:
        with _trying(f"reading network {vni}"), self._netlink() as netlink:
            bridge = _device(netlink, bridge_name(vni))
            vxlan = _device(netlink, vxlan_name(vni))
            return FoundNetwork(
                vni,
                bridge=None if bridge is None else _read_bridge(bridge),
                vxlan=None if vxlan is None else _read_vxlan(vxlan, bridge["index"] if bridge is not None else None),
            )

    def found(self, vni: int, taps: Collection[str] = ()) -> FoundNetwork:
        with _trying(f"reading network {vni}"), self._netlink() as netlink:
            found = self.glance(vni)
            if found.bridge is not None and found.bridge.kind == "bridge":
                index = _index(bridge_name(vni))
                found = replace(found, ports=_read_ports(netlink, index, vxlan_name(vni)))
            if found.vxlan is not None and found.vxlan.kind == "vxlan":
                on_it = entries.read(found.vxlan.index)
                found = replace(found, entries=on_it.ours, foreign_entries=on_it.foreign, neighbours=on_it.neighbours)
            attached = {port.name for port in found.ports}
            loose = ((name, _device(netlink, name)) for name in taps if name not in attached)
            return replace(
                found,
                loose=frozenset(FoundPort(name, _is_hardened(link)) for name, link in loose if link is not None),
            )

    def apply(self, change: terms.LinkChange) -> None:
        with _trying(f"applying {change}"), self._netlink() as netlink:
            match change:
                case terms.AddBridge(vni, mtu):
                    address = names.bridge_mac(vni)
                    name = bridge_name(vni)
                    netlink.link("add", ifname=name, kind="bridge", address=address, **_BRIDGE_OPTIONS)
                    # Set after it was made, else the bridge would follow the MTUs of its ports.
                    netlink.link("set", index=_index(name), mtu=mtu)
                case terms.TuneBridge(vni, mtu):
                    index = _index(bridge_name(vni))
                    address = names.bridge_mac(vni)
                    # No forward delay is refused as long as there is a spanning tree.
                    netlink.link("set", index=index, kind="bridge", br_stp_state=0)
                    netlink.link("set", index=index, kind="bridge", address=address, mtu=mtu, **_BRIDGE_OPTIONS)
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
                    index = _index(vxlan_name(vni))
                    netlink.link("set", index=index, master=_index(bridge_name(vni)))
                case terms.AttachTap(vni, device):
                    master = _index(bridge_name(vni))
                    with _gone_is_fine():  # a tap goes with its guest, at any time
                        netlink.link("set", index=_index(device), master=master)
                case terms.DeleteBridge(vni):
                    _delete(netlink, bridge_name(vni))
                case terms.DeleteVxlan(vni):
                    _delete(netlink, vxlan_name(vni))
                case terms.SetMtu(device, mtu):
                    netlink.link("set", index=_index(device), mtu=mtu)
                case terms.SetUp(device):
                    netlink.link("set", index=_index(device), state="up")
                case terms.Harden(device):
                    with suppress(*(FileNotFoundError,) if device.startswith(names.TAP_PREFIX) else ()):
                        _harden(device)
                case terms.PutEntry(vni, mac, underlay):
                    # An entry of zeros has one destination for each peer; a port's MAC has exactly one.
                    command = "append" if mac == names.ZEROS else "replace"
                    netlink.fdb(command, **_entry(vni, mac, underlay))
                case terms.DropEntry(vni, mac, underlay):
                    with _gone_is_fine():
                        netlink.fdb("del", **_entry(vni, mac, underlay))
                case terms.PutNeighbour(vni, address, mac):
                    index = _index(vxlan_name(vni))
                    netlink.neigh("replace", ifindex=index, dst=address, lladdr=mac, state=_NUD_PERMANENT)
                case terms.DropNeighbour(vni, address):
                    with _gone_is_fine():
                        netlink.neigh("del", ifindex=_index(vxlan_name(vni)), dst=address)

    def ours(self) -> frozenset[int]:
        with _trying("reading the devices of this host"), self._netlink() as netlink:
            devices = {name: vni for _, name in socket.if_nameindex() if (vni := names.vni_of(name)) is not None}
            return frozenset(vni for name, vni in devices.items() if _is_ours(_device(netlink, name), name, vni))

    def devices(self) -> frozenset[Device]:
        devices = [name for _, name in socket.if_nameindex() if name.startswith(names.PREFIXES)]
        with _trying("reading the devices of this host"), self._netlink() as netlink:
            links = {name: link for name in devices if (link := _device(netlink, name)) is not None}
        vnis = {link["index"]: names.vni_of(name) for name, link in links.items()}
        found = (_present(name, link, vnis.get(link.get_attr("IFLA_MASTER"))) for name, link in links.items())
        return frozenset(device for device in found if device is not None)

    def harden(self, device: str) -> bool:
        with _trying(f"hardening {device}"), self._netlink() as netlink:
            link = _device(netlink, device)
            if link is None:
                raise NetworkError(f"there is no device {device}")
            if _is_hardened(link):
                return False
            _harden(device)
            return True

    def has_bridge(self, name: str) -> bool:
        with _trying(f"reading {name}"), self._netlink() as netlink:
            link = _device(netlink, name)
            return link is not None and _kind(link) == "bridge"

    def addresses(self) -> dict[str, Address]:
        with _trying("reading the addresses of this host"), self._netlink() as netlink:
            return _read_addresses(netlink)

    def underlay(self, configured: str | None) -> Address:
        return self.source_address() if configured is None else pick(self.addresses(), configured)

    def source_address(self) -> Address:
        hint = "set `underlay:` in the configuration to an address of this host"
        with _trying("reading the default route"), self._netlink() as netlink:
            # A default route has no destination in its answer; `dst_len` alone also tells it from 0.0.0.0/1.
            routes = [
                route
                for route in netlink.route("dump", family=socket.AF_INET, table=_MAIN_TABLE)
                if route["dst_len"] == 0 and _hop(route) is not None
            ]
            if not routes:
                raise NetworkError("this host has no default route, so no underlay address can be derived", hint=hint)
            best = min(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0)
            index, gateway = cast("tuple[int, str | None]", _hop(best))
            source = best.get_attr("RTA_PREFSRC") or _source_on(netlink, index, gateway)
            link = next(iter(netlink.link("get", index=index, ext_mask=_SKIP_STATS)))
            name, mtu = link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU")
        if source is None:
            raise NetworkError(f"the default route's device {name} has no IPv4 address", hint=hint)
        found = Address(source, name, mtu)
        if found.is_loopback or name == "lo":
            raise NetworkError(f"the default route leads to loopback ({source} on {name})", hint=hint)
        return found


def pick(addresses: dict[str, Address], configured: str) -> Address:
    """Return the configured one of this host's addresses."""
    if configured not in addresses:
        have = ", ".join(sorted(addresses)) or "none"
        raise NetworkError(f"the underlay address {configured} is not an address of this host (it has {have})")
    return addresses[configured]


def _open() -> Any:
    return IPRoute(strict_check=True)


@contextmanager
def _trying(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(f"{what}: {error.args[-1]} (errno {error.code})") from error
    except OSError as error:
        raise NetworkError(f"{what}: {error}") from error


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ENODEV):
            raise


def _device(netlink: Any, name: str) -> Any | None:
    try:
        return next(iter(netlink.link("get", ifname=name, ext_mask=_SKIP_STATS)))
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise NetlinkError(errno.ENODEV, f"there is no device {name}") from error


def _delete(netlink: Any, name: str) -> None:
    with _gone_is_fine():
        netlink.link("del", index=_index(name))


def _entry(vni: int, mac: str, underlay: str) -> dict[str, Any]:
    return {
        "ifindex": _index(vxlan_name(vni)),
        "lladdr": mac,
        "dst": underlay,
        # Without SELF the entry would be the bridge's, and keep the MAC from ever being learned.
        "flags": _NTF_SELF,
        "state": _NUD_PERMANENT_NOARP,
    }


def _harden(device: str) -> None:
    """Write the settings of the network namespace of this thread (`/proc/sys/net` is its own)."""
    Path("/proc/sys/net/ipv4/conf", device, "arp_ignore").write_text(f"{ARP_IGNORE_ALL}\n", encoding="ascii")
    six = Path("/proc/sys/net/ipv6/conf", device)
    if not six.parent.exists():
        return  # a kernel without IPv6 has nothing to disable
    (six / "disable_ipv6").write_text("1\n", encoding="ascii")
    if device.startswith(names.VXLAN_PREFIX):
        # Its neighbour entries need IPv6. Having been off, it has lost every address.
        for setting, value in _WITHOUT_ADDRESS.items():
            (six / setting).write_text(f"{value}\n", encoding="ascii")
        (six / "disable_ipv6").write_text("0\n", encoding="ascii")


# --- reading what the kernel says ----------------------------------------------------------------


def _kind(link: Any) -> str:
    """Return the kind of a device, or that it has none (a physical one)."""
    return str(link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "physical")


def _data(link: Any, name: str) -> Any:
    return link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", name)


def _is_up(link: Any) -> bool:
    return bool(link["flags"] & _IFF_UP)


def _is_hardened(link: Any) -> bool:
    ipv4 = link.get_nested("IFLA_AF_SPEC", "AF_INET") or {}
    if ipv4.get("arp_ignore") != ARP_IGNORE_ALL:
        return False
    ipv6 = link.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_CONF")
    if ipv6 is None or not link.get_attr("IFLA_IFNAME").startswith(names.VXLAN_PREFIX):
        return ipv6 is None or ipv6["disable_ipv6"] == 1
    mode = link.get_nested("IFLA_AF_SPEC", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")
    found = {"addr_gen_mode": mode, **{name: ipv6[name] for name in ("accept_ra", "forwarding")}}
    return ipv6["disable_ipv6"] == 0 and found == _WITHOUT_ADDRESS


def _is_ours(link: Any | None, name: str, vni: int) -> bool:
    if link is None:
        return False
    if name.startswith(names.BRIDGE_PREFIX):
        return _kind(link) == "bridge"
    return _kind(link) == "vxlan" and _data(link, "IFLA_VXLAN_ID") == vni


def _present(name: str, link: Any, vni_of_bridge: int | None) -> Device | None:
    vni = names.vni_of(name)
    if vni is not None and _is_ours(link, name, vni):
        return Device(name, Kind(_kind(link)), vni)
    if name.startswith(names.TAP_PREFIX) and _kind(link) == "tun":
        return Device(name, Kind.TAP, vni_of_bridge)
    return None


def _read_bridge(link: Any) -> FoundBridge:
    if _kind(link) != "bridge":
        return FoundBridge(kind=_kind(link))
    return FoundBridge(
        kind="bridge",
        mac=link.get_attr("IFLA_ADDRESS"),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=_is_up(link),
        is_hardened=_is_hardened(link),
        is_tuned=all(_data(link, f"IFLA_{name.upper()}") == value for name, value in _BRIDGE_OPTIONS.items()),
    )


def _read_vxlan(link: Any, bridge_index: int | None) -> FoundVxlan:
    if _kind(link) != "vxlan":
        return FoundVxlan(kind=_kind(link))
    return FoundVxlan(
        kind="vxlan",
        # A device that takes its VNI from the packets' metadata has none of its own.
        vni=None if _data(link, "IFLA_VXLAN_COLLECT_METADATA") else _data(link, "IFLA_VXLAN_ID"),
        local=_data(link, "IFLA_VXLAN_LOCAL"),
        port=_data(link, "IFLA_VXLAN_PORT"),
        is_learning=bool(_data(link, "IFLA_VXLAN_LEARNING")),
        is_proxy=bool(_data(link, "IFLA_VXLAN_PROXY")),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=_is_up(link),
        is_hardened=_is_hardened(link),
        is_attached=bridge_index is not None and link.get_attr("IFLA_MASTER") == bridge_index,
        index=link["index"],
    )


def _read_ports(netlink: Any, bridge_index: int, without: str) -> frozenset[FoundPort]:
    links = netlink.link("dump", dump_filter=None, master=bridge_index, ext_mask=_SKIP_STATS)
    return frozenset(
        FoundPort(name, _is_hardened(link)) for link in links if (name := link.get_attr("IFLA_IFNAME")) != without
    )


def _read_addresses(netlink: Any) -> dict[str, Address]:
    links = {link["index"]: link for link in netlink.link("dump", ext_mask=_SKIP_STATS)}
    addresses = {}
    for address in netlink.addr("dump", family=socket.AF_INET):
        link = links.get(address["index"])
        if link is not None:
            ip = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            addresses[ip] = Address(ip, link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU"))
    return addresses


def _hop(route: Any) -> tuple[int, str | None] | None:
    """Return the device index and gateway of a route, of its first hop where it has several."""
    index = route.get_attr("RTA_OIF")
    if index is not None:
        return int(index), route.get_attr("RTA_GATEWAY")
    for hop in route.get_attr("RTA_MULTIPATH") or ():
        return int(hop["oif"]), hop.get_attr("RTA_GATEWAY")
    return None


def _source_on(netlink: Any, index: int, gateway: str | None) -> str | None:
    """Return the address that packets to ``gateway`` have, or the first of the device."""
    if gateway is not None:
        for route in netlink.route("get", dst=gateway, oif=index):
            return cast("str | None", route.get_attr("RTA_PREFSRC"))
    for address in netlink.addr("dump", family=socket.AF_INET, index=index):
        return cast("str | None", address.get_attr("IFA_LOCAL"))
    return None
