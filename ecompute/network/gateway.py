"""What a network's gateway is to be on this host, and the changes that make it so.

Every host with a member of a virtual network has a network namespace for it. A veth pair joins that to the
network's bridge: its inner end `lan` has the gateway's addresses and MAC, the same on every host. Another pair leads
out: its inner end `up` has a link-local address, behind which the namespace hides its guests. In between are the
rules (`nat`) and dnsmasq (`dnsmasq`).

Invariants:

- Pure: no clock, no I/O, no logging. `plan` applied to what it was given leads to what was wanted, and planned
  again it is empty.
- A device goes up once it has its settings, and the rules are there before it.
- In the namespace everything is ours; outside, a device that has our name and is no veth is an error, and is not
  touched.
- A host answers for an address from outside only while it has a route for it, and stops before that goes.

Any thread may call this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

from ecompute.cluster.documents import Network, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network import dnsmasq
from ecompute.network.dnsmasq import Paths
from ecompute.network.gateway_terms import (
    INNER,
    AddPair,
    Attach,
    DeleteInner,
    DeletePair,
    DropAddress,
    DropHostRoute,
    DropInnerNeighbour,
    DropProxy,
    DropRoute,
    EndFlows,
    FoundGateway,
    GatewayChange,
    MakeNamespace,
    PutAddress,
    PutHostRoute,
    PutInnerNeighbour,
    PutProxy,
    PutRoute,
    PutRules,
    PutTransit,
    RemoveFiles,
    RemoveNamespace,
    Route,
    SetInnerUp,
    SetOuterUp,
    SettleInner,
    SettleOuter,
    StartService,
    StopService,
    TellService,
    WantedGateway,
    WantedUplink,
)
from ecompute.network.names import (
    LAN,
    METADATA,
    METADATA6,
    UP,
    gateway_mac,
    gateway_name,
    uplink_mac,
    uplink_name,
    uplink_outer_mac,
)
from ecompute.network.nat import InsideRules

HOST_TRANSIT = "169.254.0.1"
"""The host's address at every uplink."""
FIRST_TRANSIT, LAST_TRANSIT = IPv4Address("169.254.1.0"), IPv4Address("169.254.127.255")
"""Of the inner ends: without what clouds and operators are used to have at link-local addresses."""

DEFAULT_ROUTE: Route = ("0.0.0.0/0", HOST_TRANSIT, UP)


# --- wanted --------------------------------------------------------------------------------------


def namespace_name(vni: int, provider: str) -> str:
    """Return the name of the network's namespace; the provider keeps hosts that share a machine apart."""
    return f"ec-{vni:06x}-{provider[:8]}"


def choose_transit(vni: int, taken: Iterable[str]) -> str:
    """Return an address for an uplink that is none of ``taken``; the same for the same network, if it is free.

    Raises:
        NetworkError: there is none left.
    """
    used, count = set(taken), int(LAST_TRANSIT) - int(FIRST_TRANSIT) + 1
    for step in range(count):
        address = str(FIRST_TRANSIT + (vni + step) % count)
        if address not in used:
            return address
    raise NetworkError("every link-local address for an uplink is taken on this host")


def needs_uplink(network: Network, provider: str, ports: Iterable[Port]) -> bool:
    """Whether anything of the network leads out of this host's namespace."""
    if network.has_nat or network.has_dns:
        return True
    return any(port.provider == provider and (port.floating is not None or port.routed) for port in ports)


def wanted(
    network: Network,
    provider: str,
    ports: Sequence[Port],
    paths: Paths,
    *,
    transit: str | None,
    upstream: Sequence[str] = (),
    own: Set[str] = frozenset(),
) -> WantedGateway:
    """Return what the gateway of ``network`` is to be on the host ``provider``, one of its members.

    Args:
        paths: where dnsmasq's files lie.
        transit: the address of the uplink's inner end; None: there is to be no uplink.
        upstream: the addresses of the name servers that know what is outside.
        own: those of the host and of its routers. It would cut itself off if it answered for one, or led it to a guest.

    Raises:
        NetworkError: a range of the network is none.
    """
    problems: list[str] = []
    try:
        cidr = None if network.cidr is None else IPv4Network(network.cidr)
        cidr6 = None if network.cidr6 is None else IPv6Network(network.cidr6)
        addresses = {f"{METADATA}/32", f"{METADATA6}/64"}
        if cidr is not None and network.gateway is not None:
            addresses.add(f"{IPv4Address(network.gateway)}/{cidr.prefixlen}")
        if cidr6 is not None and network.gateway6 is not None:
            addresses.add(f"{ip_address(network.gateway6)}/{cidr6.prefixlen}")
    except ValueError as error:
        raise NetworkError(f"network {network.uuid} cannot have a gateway: {error}") from error
    mine = _newest(port for port in ports if port.provider == provider)
    floating, routed = _from_outside(mine, cidr, own, problems) if transit is not None else ({}, {})
    return WantedGateway(
        uuid=network.uuid,
        vni=network.vni,
        namespace=namespace_name(network.vni, provider),
        mtu=network.mtu,
        addresses=frozenset(addresses),
        uplink=None if transit is None else WantedUplink(transit, frozenset({*floating, *routed})),
        rules=InsideRules(
            cidr=network.cidr,
            gateway=network.gateway,
            has_dhcp=network.has_dhcp,
            has_dhcp6=network.has_dhcp and cidr6 is not None,
            has_dns=network.has_dns,
            has_nat=network.has_nat and transit is not None,
            floating=frozenset(floating.items()),
            routed=frozenset(routed),
        ),
        routed=frozenset(routed.items()),
        files=dnsmasq.render(network, provider, ports, paths, upstream),
        problems=tuple(problems),
    )


def _newest(ports: Iterable[Port]) -> list[Port]:
    """Return the ports, of those with one MAC (a guest that moves) the one of the highest epoch."""
    newest: dict[str, Port] = {}
    for port in sorted(ports, key=lambda port: port.interface_uuid):
        if (other := newest.get(port.mac)) is None or other.epoch < port.epoch:
            newest[port.mac] = port
    return list(newest.values())


def _from_outside(
    ports: Iterable[Port], cidr: IPv4Network | None, own: Set[str], problems: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return {floating address: the port's own} and {routed address: MAC} of what comes in from outside."""
    floating: dict[str, str] = {}
    routed: dict[str, str] = {}
    for port in sorted(ports, key=lambda port: -port.epoch):
        inner = next((plain for text in port.addresses if (plain := _four(text)) is not None), None)
        for text in (*((port.floating,) if port.floating is not None else ()), *port.routed):
            address = _four(text)
            if address is None:
                problems.append(f"port {port.interface_uuid}: no guest can have {text!r} from outside")
            elif address in own:
                problems.append(f"port {port.interface_uuid}: {address} is this host's own, or its router's")
            elif address in floating or address in routed:
                problems.append(f"port {port.interface_uuid}: {address} is another one's")
            elif text != port.floating:
                if cidr is None or IPv4Address(address) not in cidr:
                    routed[address] = port.mac
            elif inner is None or inner in floating.values():
                problems.append(f"port {port.interface_uuid}: {address} cannot be translated to an address of it")
            else:
                floating[address] = inner
    return floating, routed


@lru_cache(maxsize=1 << 12)
def _four(text: str) -> str | None:
    """Return an IPv4 address without its prefix length; None if no guest can have it."""
    try:
        address = IPv4Address(text.split("/")[0])
    except ValueError:
        return None
    is_none = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    return None if is_none or address.is_reserved else str(address)


# --- plan ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The changes, in the order in which they are made. A part that fails keeps no other from being of use, but for
    ``base``, which ``service`` and ``way_out`` stand on."""

    less: tuple[GatewayChange, ...] = ()
    """What is not this host's any more."""
    base: tuple[GatewayChange, ...] = ()
    """The namespace, all that is in it, and its way to the guests."""
    service: tuple[GatewayChange, ...] = ()
    """dnsmasq."""
    way_out: tuple[GatewayChange, ...] = ()
    """The uplink's outer end, and all that hangs on it: nothing passes there before."""

    def all(self) -> tuple[GatewayChange, ...]:
        return (*self.less, *self.base, *self.service, *self.way_out)


def plan(wanted: WantedGateway | None, found: FoundGateway, egress: str | None = None) -> tuple[GatewayChange, ...]:
    """Return the changes that lead from ``found`` to ``wanted``; to nothing, if that is None.

    Args:
        egress: the device on which this host answers for addresses from outside, if there is one.

    Raises:
        NetworkError: a device has our name and is not ours.
    """
    if wanted is not None:
        return plan_parts(wanted, found, egress).all()
    _check_ours(found)
    return tuple(_plan_removal(found))


def plan_parts(wanted: WantedGateway, found: FoundGateway, egress: str | None = None) -> Parts:
    """Return the same for a gateway that is wanted, so that each part can be tried by itself.

    Raises:
        NetworkError: as `plan`.
    """
    _check_ours(found)
    assert wanted.vni == found.vni
    return Parts(
        less=tuple(_plan_less(wanted, found, egress)),
        base=(*_plan_pairs(wanted, found), *_plan_inside(wanted, found), *_plan_outer(wanted, found, LAN)),
        service=tuple(_plan_service(wanted, found)),
        way_out=() if wanted.uplink is None else tuple(_plan_way_out(wanted, wanted.uplink, found, egress)),
    )


def told_only(left: WantedGateway, wanted: WantedGateway) -> tuple[GatewayChange, ...] | None:
    """Return the changes that lead from what was left to ``wanted``; None where it differs in more than names."""
    if left == wanted:
        return ()
    if left.files is None or wanted.files is None or left.files.conf != wanted.files.conf:
        return None
    return (TellService(wanted.vni, wanted.files),) if replace(left, files=wanted.files) == wanted else None


def _check_ours(found: FoundGateway) -> None:
    for name, outer in ((gateway_name(found.vni), found.outer_lan), (uplink_name(found.vni), found.outer_up)):
        if outer is not None and outer.kind != "veth":
            raise NetworkError(
                f"{name} is a device of kind {outer.kind!r}, not our veth",
                hint="rename or remove it: names that begin with ecg and ecu are ours",
            )


def _plan_removal(found: FoundGateway) -> Iterable[GatewayChange]:
    vni = found.vni
    yield from (DropProxy(vni, address, device) for address, device in sorted(found.proxied))
    yield from (DropHostRoute(vni, address) for address in sorted(found.host_routes))
    if found.service.conf is not None:
        yield StopService(vni)
    # The ends inside go with them, even if somebody keeps the namespace without its name.
    yield from (DeletePair(vni, inner) for inner in INNER if found.outer(inner) is not None)
    if found.has_name:
        yield RemoveNamespace(vni)
    if found.service.has_files:
        yield RemoveFiles(vni)


def _plan_less(wanted: WantedGateway, found: FoundGateway, egress: str | None) -> Iterable[GatewayChange]:
    """What is not this host's any more goes first."""
    vni, addresses = wanted.vni, _addresses(wanted)
    for address, device in sorted(found.proxied):
        if address not in addresses or device != egress:
            yield DropProxy(vni, address, device)
    yield from (DropHostRoute(vni, address) for address in sorted(found.host_routes - addresses))
    if wanted.uplink is None and found.outer_up is not None:
        yield DeletePair(vni, UP)
    if wanted.files is None:
        if found.service.conf is not None:
            yield StopService(vni)
        if found.service.has_files:
            yield RemoveFiles(vni)


def _plan_pairs(wanted: WantedGateway, found: FoundGateway) -> Iterable[GatewayChange]:
    vni = wanted.vni
    if not found.has_namespace:
        yield MakeNamespace(vni)
    for inner in _inner(wanted):
        if _is_intact(found, inner):
            continue
        if found.outer(inner) is not None:
            yield DeletePair(vni, inner)
        if found.inner(inner) is not None:
            yield DeleteInner(vni, inner)
        yield AddPair(vni, inner, wanted.mtu_of(inner))


def _plan_inside(wanted: WantedGateway, found: FoundGateway) -> Iterable[GatewayChange]:
    vni = wanted.vni
    if not found.has_rules:
        yield PutRules(vni, wanted.rules)
    for inner in _inner(wanted):
        device = found.inner(inner) if _is_intact(found, inner) else None
        mtu = wanted.mtu_of(inner)
        if device is None or not device.is_settled or (device.mac, device.mtu) != (mac_of(vni, inner), mtu):
            yield SettleInner(vni, inner, mtu)
        addresses = addresses_of(wanted, inner)
        there = device.addresses if device is not None else frozenset()
        # In this order: a device without any address has no routes either.
        yield from (PutAddress(vni, inner, address) for address in sorted(addresses - there))
        yield from (DropAddress(vni, inner, address) for address in sorted(there - addresses))
        if device is None or not device.is_up:
            yield SetInnerUp(vni, inner)
    gone = {inner for inner in INNER if not _is_intact(found, inner)}
    routes = {route for route in found.routes if route[2] not in gone}
    # A device that is given another MAC forgets its neighbours.
    gone |= {inner for inner in INNER if (device := found.inner(inner)) is None or device.mac != mac_of(vni, inner)}
    neighbours = {neighbour for neighbour in found.neighbours if neighbour[0] not in gone}
    yield from (DropRoute(vni, route) for route in sorted(routes - routes_of(wanted), key=str))
    for inner, address, _ in sorted(neighbours - neighbours_of(wanted)):
        if (inner, address) not in {one[:2] for one in neighbours_of(wanted)}:
            yield DropInnerNeighbour(vni, inner, address)
    yield from (PutInnerNeighbour(vni, *one) for one in sorted(neighbours_of(wanted) - neighbours))
    yield from (PutRoute(vni, route) for route in sorted(routes_of(wanted) - routes, key=str))
    if found.has_namespace and not (found.has_rules and found.are_flows_ended):
        yield EndFlows(vni, wanted.rules, None if wanted.uplink is None else wanted.uplink.transit)


def _plan_service(wanted: WantedGateway, found: FoundGateway) -> Iterable[GatewayChange]:
    files, service = wanted.files, found.service
    if files is None:
        return
    is_deaf = not _is_intact(found, LAN) or found.lan is None or service.lan != found.lan.index
    if not service.is_running or service.conf != files.conf_digest or is_deaf:
        yield StartService(wanted.vni, files)
    elif service.told != files.told_digest:
        yield TellService(wanted.vni, files)


def _plan_outer(wanted: WantedGateway, found: FoundGateway, inner: str) -> Iterable[GatewayChange]:
    vni, mtu = wanted.vni, wanted.mtu_of(inner)
    outer = found.outer(inner) if _is_intact(found, inner) else None
    if outer is None or not outer.is_settled or outer.mtu != mtu:
        yield SettleOuter(vni, inner, mtu)
    if inner == LAN and (outer is None or not outer.is_attached):
        yield Attach(vni)
    if outer is None or not outer.is_up:
        yield SetOuterUp(vni, inner)


def _plan_way_out(
    wanted: WantedGateway, uplink: WantedUplink, found: FoundGateway, egress: str | None
) -> Iterable[GatewayChange]:
    vni = wanted.vni
    yield from _plan_outer(wanted, found, UP)
    is_new = found.outer_up is None or not found.outer_up.is_up or not _is_intact(found, UP)
    has_same_mac = found.outer_up is not None and found.outer_up.is_settled
    if is_new or not has_same_mac or not found.is_transit_known:
        yield PutTransit(vni, uplink.transit)
    there = frozenset() if is_new else found.host_routes
    for address in sorted(uplink.addresses - there):
        yield PutHostRoute(vni, address, uplink.transit)
    if egress is not None:
        for address in sorted(uplink.addresses):
            if (address, egress) not in found.proxied & found.announced:
                yield PutProxy(vni, address, egress)


def _inner(wanted: WantedGateway) -> tuple[str, ...]:
    return (LAN,) if wanted.uplink is None else INNER


def _is_intact(found: FoundGateway, inner: str) -> bool:
    """Whether both ends of a pair are there, each where it belongs."""
    outer = found.outer(inner)
    return found.has_namespace and outer is not None and outer.is_paired and found.inner(inner) is not None


def _addresses(wanted: WantedGateway) -> frozenset[str]:
    return frozenset() if wanted.uplink is None else wanted.uplink.addresses


def mac_of(vni: int, inner: str) -> str:
    return gateway_mac(vni) if inner == LAN else uplink_mac(vni)


def addresses_of(wanted: WantedGateway, inner: str) -> frozenset[str]:
    if inner == LAN:
        return wanted.addresses
    return frozenset() if wanted.uplink is None else frozenset({f"{wanted.uplink.transit}/32"})


def routes_of(wanted: WantedGateway) -> frozenset[Route]:
    routed: set[Route] = {(f"{address}/32", None, LAN) for address, _ in wanted.routed}
    return frozenset(routed if wanted.uplink is None else {*routed, DEFAULT_ROUTE})


def neighbours_of(wanted: WantedGateway) -> frozenset[tuple[str, str, str]]:
    routed = {(LAN, address, mac) for address, mac in wanted.routed}
    host = (UP, HOST_TRANSIT, uplink_outer_mac(wanted.vni))
    return frozenset(routed if wanted.uplink is None else {*routed, host})
