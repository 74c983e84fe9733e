"""Instances: what is wanted, what a host is told of it, and what it reports."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ecompute.cluster.documents.base import Document

INTERFACE_MODELS = frozenset(
    {
        "e1000",
        "e1000e",
        "i82551",
        "i82557b",
        "i82559er",
        "igb",
        "ne2k_pci",
        "pcnet",
        "rtl8139",
        "virtio",
    }
)
"""What a network card may be to a guest: the PCI cards that QEMU and libvirt both know by these names."""


class State(StrEnum):
    """The life of an instance. `ecompute.cluster.states` says which may follow which."""

    INITIAL = "initial"
    CREATING = "creating"
    CREATED = "created"
    DELETING = "deleting"
    DELETED = "deleted"
    ERROR = "error"


class Power(StrEnum):
    ON = "on"
    OFF = "off"
    PAUSED = "paused"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


class Role(StrEnum):
    """What a host is to do for an assignment."""

    RUN = "run"
    INCOMING = "incoming"
    OUTGOING = "outgoing"
    ABSENT = "absent"


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    vcpus: int
    memory_mb: int
    disk_gb: int


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """One network interface of an instance, resolved: nothing is left to look up on the host."""

    uuid: str
    network_uuid: str
    vni: int
    mac: str
    addresses: tuple[str, ...]
    """With prefix length: ``10.0.0.5/24``."""
    mtu: int
    gateway: str | None = None
    """Of the default route, IPv4; where the network leads out, or nothing does but an address of its own."""
    nameservers: tuple[str, ...] = ()
    model: str = "virtio"
    """One of `INTERFACE_MODELS`."""
    physical: str | None = None
    """What operators call the bridge of a physical network; ``vlan`` on it."""
    vlan: int | None = None
    gateway6: str | None = None


class ConfigDrive(StrEnum):
    """What kind of drive tells a guest about itself."""

    OPENSTACK = "openstack"
    NOCLOUD = "nocloud"
    NONE = "none"
    """It asks DHCP and the metadata service."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is to be."""

    resources: Resources
    image: str
    """A URL, or a path on the host where the operator allows it."""
    ssh_keys: tuple[str, ...] = ()
    has_user_data: bool = False
    """Whether ``/secrets/<provider>/<uuid>`` belongs to it."""
    interfaces: tuple[Interface, ...] = ()
    config_drive: ConfigDrive = ConfigDrive.OPENSTACK


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """An interface that an instance is to be without: a guest may send from it until its host has said otherwise."""

    interface: Interface
    generation: int
    """Once its host has reached this one, its port and all that is locked for it are given back."""


class Instance(Document, frozen=True, kw_only=True):
    """``/instances/<uuid>``: what is wanted. Written by those who ask and by the lead; by no host."""

    uuid: str
    namespace: str
    name: str
    state: State
    """``initial`` (wanted), ``error`` (its build failed and its claim is released), ``deleting``."""
    generation: int = 1
    """Counts what was asked of it; the host reports the generation it reached."""
    epoch: int = 1
    """Counts its hosts; a report with an older epoch loses."""
    provider: str
    query: str = ""
    """The placement query it was scheduled with."""
    spec: Spec
    leaving: tuple[Leaving, ...] = ()
    """Interfaces that are no part of ``spec`` any more, and still have their ports."""
    created_at: str
    error: str | None = None
    claim: dict[str, dict[str, int]] = {}
    """All that was claimed for it, ``{provider: {class: amount}}``: its host's rows, those of providers
    that share with it, and those of quota and group. What a placement that lost it is given back."""
    mappings: dict[str, list[str]] = {}
    """Which provider serves which group of its query; without what was claimed beside the host."""
    gang: str | None = None
    """``/gangs/<uuid>``, of one that was launched together with others."""
    group: str | None = None
    """``/groups/<uuid>``"""
    tags: tuple[str, ...] = ()
    """What others' soft affinity counts."""
    expires_at: str | None = None
    """The lead destroys it then; ``/expiries`` has the same time, and is what is swept."""
    digest: str | None = None
    """Of the request, where the client chose the uuid or a key: a repeated launch is told by it."""

    @property
    def with_ports(self) -> tuple[Interface, ...]:
        """All interfaces that have a port: those that it is to have, and those that are leaving."""
        return (*self.spec.interfaces, *(item.interface for item in self.leaving))


class Assignment(Document, frozen=True, kw_only=True):
    """``/hosts/<provider>/<uuid>``: the same, resolved for the host that is to do it."""

    uuid: str
    namespace: str
    name: str
    role: Role
    generation: int
    epoch: int
    spec: Spec
    gang: str | None = None
    """Nothing is done for it before this ``/gangs/<uuid>`` says committed."""


class Secrets(Document, frozen=True, kw_only=True):
    """``/secrets/<provider>/<uuid>``: what is shown to nobody but the host and its guest."""

    user_data: str | None = None


class Seen(Document, frozen=True, kw_only=True):
    """``/seen/<provider>/<uuid>``: the host's report."""

    uuid: str
    generation: int
    epoch: int
    state: State
    power: Power = Power.UNKNOWN
    addresses: tuple[str, ...] = ()
    error: str | None = None
    is_gone: bool = False
    """Neither domain nor disk nor tap of it is left on the host: its claim may be released."""
    is_assigned: bool = True
    """False: a guest of ours that nobody asked for (an emptied or older etcd). It is left alone."""
    reported_at: str


class Booted(Document, frozen=True, kw_only=True):
    """``/booted/<uuid>``: the report for people and old tools. Nothing decides on it."""

    provider: str
    state: State
    power: Power
    ip: str | None = None
    """The first address, without prefix length."""
    addresses: tuple[str, ...] = ()
    error: str | None = None
    reported_at: str
