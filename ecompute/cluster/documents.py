"""The documents that lie in etcd: JSON, one a key, readable with ``etcdctl``.

Each is a frozen `msgspec.Struct`; the definition here is at once validation, encoding and schema.
Times are RFC 3339 in UTC; they are for people, no decision compares them. Sizes carry their unit in
the name. A field is never reused with another meaning, and a document of a newer schema is read
(unknown fields are passed over) but never rewritten: `encode` refuses it.

Who writes which key, and when, is in ``docs/key-schema.md``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

import msgspec

from ecompute.cluster.decoding import from_json
from ecompute.cluster.errors import CloudError, NewerSchema

SCHEMA = 1
"""The newest schema that this code reads and writes."""

DEFAULT_NAMESPACE = "system"

T = TypeVar("T")


def timestamp(seconds: float) -> str:
    """Return ``seconds`` since 1970 as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Unreadable(CloudError):
    """What lies under a key is not the document that belongs there."""

    code = "document.unreadable"


class Document(msgspec.Struct, frozen=True, kw_only=True):
    schema: int = SCHEMA


def encode(document: Document) -> bytes:
    """Return ``document`` as JSON.

    Raises:
        NewerSchema: it was read from a newer writer; writing it back would lose its new fields.
    """
    if document.schema > SCHEMA:
        raise NewerSchema(
            f"a {type(document).__name__} of schema {document.schema} cannot be rewritten by schema {SCHEMA}",
            hint="upgrade this host",
        )
    return msgspec.json.encode(document)


def decode(data: bytes, kind: type[T], key: str = "") -> T:
    """Return the document that ``data`` holds.

    Raises:
        Unreadable: it is not JSON, or not of that kind.
    """
    try:
        return from_json(data, kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"{key or kind.__name__} is not a {kind.__name__}: {error}") from error


# --- the cluster ---------------------------------------------------------------------------------


class Incarnation(Document, frozen=True, kw_only=True):
    """Which life of the data this is. Made once, by the first host; changed only by a restore."""

    id: str
    made_by: str
    made_at: str


# --- instances -----------------------------------------------------------------------------------


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
    nameservers: tuple[str, ...] = ()
    model: str = "virtio"


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is to be."""

    resources: Resources
    image: str
    """A URL, or a path on the host where the operator allows it."""
    ssh_keys: tuple[str, ...] = ()
    has_user_data: bool = False
    """Whether ``/secrets/<provider>/<uuid>`` belongs to it."""
    interfaces: tuple[Interface, ...] = ()


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
    created_at: str
    error: str | None = None


class Assignment(Document, frozen=True, kw_only=True):
    """``/hosts/<provider>/<uuid>``: the same, resolved for the host that is to do it."""

    uuid: str
    namespace: str
    name: str
    role: Role
    generation: int
    epoch: int
    spec: Spec


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


# --- hosts ---------------------------------------------------------------------------------------


class Node(Document, frozen=True, kw_only=True):
    """``/nodes/<provider>``: facts that the host reports; rewritten when they change."""

    provider: str
    name: str
    underlay: str
    """The address at which other hosts send VXLAN packets to it."""
    underlay_mtu: int
    accelerator: str
    hypervisor: str
    version: str
    schema_max: int = SCHEMA
    hold: str | None = None
    """Why the host neither builds nor removes anything, or nothing."""
    reported_at: str


class AdminState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    LOST = "lost"


class Admin(Document, frozen=True, kw_only=True):
    """``/admin/<provider>``: what operators and the lead say of a host."""

    state: AdminState = AdminState.ACTIVE
    reason: str = ""


class Alive(Document, frozen=True, kw_only=True):
    """``/alive/<provider>``: there while the daemon's lease is kept; not rewritten."""

    provider: str
    name: str
    since: str


# --- networks ------------------------------------------------------------------------------------


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


# --- work ----------------------------------------------------------------------------------------


class Intent(Document, frozen=True, kw_only=True):
    """``/intents/<consumer>``: written before the claim it announces, deleted by its request."""

    consumer: str
    kind: str
    namespace: str
    writer: str
    made_at: str


class Lead(Document, frozen=True, kw_only=True):
    """``/lead/<role>``: leased. Who creates it leads until the lease ends."""

    holder: str
    since: str


class Operation(Document, frozen=True, kw_only=True):
    """``/operations/<provider>/<uuid>``: leased; asked by a tool, answered in place by the host."""

    kind: str
    instance_uuid: str
    limit_bytes: int = 65536
    answer: str | None = None
    error: str | None = None


class Event(Document, frozen=True, kw_only=True):
    """``/events/<kind>/<uuid>/<writer>/<n mod 32>``: written in the transaction of the change."""

    n: int
    at: str
    writer: str
    type: str
    """Short and stable, for programs: ``created``, ``step.failed``, ``claimed``."""
    message: str
    seconds: float | None = None
    """How long it took, where that means something."""
