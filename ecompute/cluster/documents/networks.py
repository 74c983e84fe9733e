"""Networks, their ports and addresses; and names, by which everything is looked up."""

from __future__ import annotations

from ecompute.cluster.documents.base import Document


class Network(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>``"""

    uuid: str
    namespace: str
    name: str
    cidr: str
    vni: int
    mtu: int
    gateway: str | None = None
    """The address kept free for the gateway; answered for once the network has one."""
    created_at: str


class Port(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/ports/<interface>``: the one source of forwarding entries."""

    interface_uuid: str
    instance_uuid: str
    provider: str
    epoch: int
    mac: str
    addresses: tuple[str, ...]


class AddressLock(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/addresses/<ip>``: created only if absent."""

    interface_uuid: str
    instance_uuid: str


class NetworkHost(Document, frozen=True, kw_only=True):
    """``/networks/<uuid>/hosts/<provider>``: a member, and where it receives VXLAN packets."""

    provider: str
    underlay: str


class Vni(Document, frozen=True, kw_only=True):
    network_uuid: str


class Name(Document, frozen=True, kw_only=True):
    """``/names/<namespace>/<kind>/<name>/<uuid>``: for lists and look-ups by name."""

    uuid: str
    name: str
