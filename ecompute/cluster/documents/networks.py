"""Networks, their ports and addresses; floating addresses and their pools; and names, by which all is looked up."""

from __future__ import annotations

from enum import StrEnum

from ecompute.cluster.documents.base import Document


class NetworkKind(StrEnum):
    VIRTUAL = "virtual"
    """A VXLAN segment of ours."""
    PHYSICAL = "physical"
    """A bridge of each host, which operators gave a name."""


class Network(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>``"""

    uuid: str
    namespace: str
    name: str
    kind: NetworkKind = NetworkKind.VIRTUAL
    cidr: str | None = None
    """The IPv4 range; only a physical network may have none."""
    cidr6: str | None = None
    """An IPv6 /64, or nothing."""
    vni: int
    """Numbers the network: its devices are named from it, and a virtual one's VXLAN has it."""
    mtu: int
    gateway: str | None = None
    """The address of the gateway, which every host with a member answers for; of a physical network that of
    the operators' router, if they named one."""
    gateway6: str | None = None
    """As ``gateway``; nothing leads out by it."""
    has_dhcp: bool = False
    has_nat: bool = False
    has_dns: bool = False
    domain: str | None = None
    """Of the names of its instances."""
    physical: str | None = None
    """What operators call the bridge (``bridges:``), of a physical network."""
    vlan: int | None = None
    """1 to 4094, on that bridge; None: untagged."""
    created_at: str


class Port(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/ports/<interface>``: the one source of forwarding entries, filters, leases and names."""

    interface_uuid: str
    instance_uuid: str
    provider: str
    epoch: int
    mac: str
    addresses: tuple[str, ...]
    """With prefix length, IPv4 and IPv6."""
    name: str | None = None
    """The instance's, as a label of the network's domain."""
    floating: str | None = None
    """The floating address that is translated to the first IPv4 one."""
    routed: tuple[str, ...] = ()
    """Addresses handed to it without translation, without prefix length."""


class AddressLock(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/addresses/<ip>``: created only if absent, or taken over while it rests."""

    interface_uuid: str
    instance_uuid: str
    is_resting: bool = False
    """Released: kept from being given out again until its lease ends, unless there is no other."""


class MacLock(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/macs/<mac>``: created only if absent."""

    interface_uuid: str
    instance_uuid: str


class NetworkHost(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/hosts/<provider>``: a member, and where it receives VXLAN packets."""

    provider: str
    underlay: str


class Vni(Document, frozen=True, kw_only=True):
    network_uuid: str


class Pool(Document, frozen=True, kw_only=True):
    """``/pools/<name>``: addresses of the operator's egress network that may be given out as floating ones."""

    name: str
    cidr: str
    """Every address of it is given out, the first and the last too."""
    created_at: str


class Floating(Document, frozen=True, kw_only=True):
    """``/floating/<ip>``: created only if absent; attached to at most one interface, whose port says the same."""

    ip: str
    pool: str
    namespace: str
    network_uuid: str | None = None
    interface_uuid: str | None = None
    instance_uuid: str | None = None
    is_routed: bool = False
    """Handed to the interface without translation."""
    created_at: str


class Name(Document, frozen=True, kw_only=True):
    """``/names/<namespace>/<kind>/<name>/<uuid>``: for lists and look-ups by name."""

    uuid: str
    name: str
