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


# --- hosts ---------------------------------------------------------------------------------------


class InventoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One resource class of a host, in placement's words."""

    total: int
    reserved: int = 0
    allocation_ratio: float = 1.0
    min_unit: int = 1
    max_unit: int
    step_size: int = 1

    @property
    def capacity(self) -> int:
        return int((self.total - self.reserved) * self.allocation_ratio)


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
    closed: str | None = None
    """Why it takes nothing new though no operator says so: it starts, or waits for something. Or nothing."""
    unclaimed: int = 0
    """How many of its guests placement knows no claim of: it was emptied, or set back. The lead claims for them."""
    inventory: dict[str, InventoryFacts] = {}
    """What it offers when it is open, by resource class. What is left of it is placement's to say."""
    reported_at: str


class AdminState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    LOST = "lost"


class Admin(Document, frozen=True, kw_only=True):
    """``/admin/<provider>``: what operators and the lead say of a host."""

    state: AdminState = AdminState.ACTIVE
    """What operators say: active, draining or maintenance."""
    reason: str = ""
    lost_since: str | None = None
    """Set by the lead while the host's heartbeat is missing, beside whatever operators said."""
    zone: str | None = None
    """``/zones/<name>``"""
    location: str = ""
    """For people: a room, a rack."""
    traits: tuple[str, ...] = ()
    """``CUSTOM_`` traits that operators gave it."""
    turn: int = 0
    """How often its effective state has changed (`ecompute.cluster.closing.said`)."""

    @property
    def effective(self) -> AdminState:
        """What counts for new instances: lost before all else."""
        return AdminState.LOST if self.lost_since is not None else self.state


class Zone(Document, frozen=True, kw_only=True):
    """``/zones/<name>``: hosts that may fail together. In placement an aggregate, and a provider for groups."""

    name: str
    aggregate: str
    """The uuid of the aggregate whose members are its hosts."""
    provider: str
    """The uuid of the provider that carries group classes of scope zone; made in placement at first use."""
    created_at: str


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


# --- what instances share ------------------------------------------------------------------------


class QuotaPhase(StrEnum):
    COUNTING = "counting"
    """New claims carry its rows; those of older instances are being added. Nothing is refused yet."""
    HELD = "held"


class Quota(Document, frozen=True, kw_only=True):
    """``/quotas/<namespace>``: limits, held by a provider of their own that every claim there writes."""

    namespace: str
    provider: str
    phase: QuotaPhase = QuotaPhase.COUNTING
    limits: dict[str, int]
    """``{class: limit}`` with the classes VCPU, MEMORY_MB, DISK_GB and INSTANCES; without a limit: absent."""


class Policy(StrEnum):
    ANTI_AFFINITY = "anti-affinity"
    AFFINITY = "affinity"
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"
    SOFT_AFFINITY = "soft-affinity"

    @property
    def is_soft(self) -> bool:
        return self.value.startswith("soft-")


class Scope(StrEnum):
    """Within what members of a group are together or apart."""

    HOST = "host"
    ZONE = "zone"


class Group(Document, frozen=True, kw_only=True):
    """``/groups/<uuid>``: instances that are to be together, or apart. Hard ones are a resource class."""

    uuid: str
    namespace: str
    name: str
    policy: Policy
    scope: Scope = Scope.HOST
    resource_class: str
    """One unit a member, where the policy is hard."""
    place: str | None = None
    """Affinity: the host's provider, or the zone, that the first member chose."""
    created_at: str


class Member(Document, frozen=True, kw_only=True):
    """``/groups/<uuid>/members/<instance>``: a reference; a group with one is not deleted."""

    instance_uuid: str
    provider: str
    zone: str | None = None


class Tagged(Document, frozen=True, kw_only=True):
    """``/tags/<namespace>/<tag>/<instance>``: where instances with a tag are, for soft affinity."""

    instance_uuid: str
    provider: str


class GangState(StrEnum):
    WRITING = "writing"
    COMMITTED = "committed"
    CANCELLED = "cancelled"


class Gang(Document, frozen=True, kw_only=True):
    """``/gangs/<uuid>``: instances that start all or not at all. Their assignments are inert until it is committed."""

    uuid: str
    namespace: str
    members: tuple[str, ...]
    state: GangState = GangState.WRITING
    writer: str
    made_at: str


class UsedUuid(Document, frozen=True, kw_only=True):
    """``/uuids/<uuid>``: a uuid that a client chose. Kept after its instance: uuids are not used twice."""

    uuid: str
    namespace: str
    digest: str
    is_launched: bool = False
    """An instance was made of it; written by its request."""
    is_spent: bool = False
    """Given up by the audit, or destroyed: nothing is launched with it any more."""
    spent_at: str | None = None
    """When the lead first saw that it is spent; it is forgotten some months later."""
    made_at: str


class IdempotencyKey(Document, frozen=True, kw_only=True):
    """``/idempotency/<namespace>/<key>``: which uuid a client's key means."""

    key: str
    uuid: str
    digest: str
    made_at: str


class Expiry(Document, frozen=True, kw_only=True):
    """``/expiries/<seconds since 1970>/<uuid>``: ordered by time, so that the sweep reads what is due."""

    uuid: str


class Copy(Document, frozen=True, kw_only=True):
    """``/copies/<provider>/<image>``: an image that the host holds. Ranks it; nothing else decides on it."""

    url: str
    sha256: str
    size_bytes: int


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
    """``/events/<writer>/<kind>/<uuid>/<n mod 32>``: written in the transaction of the change."""

    n: int
    at: str
    writer: str
    type: str
    """Short and stable, for programs: ``created``, ``step.failed``, ``claimed``."""
    message: str
    seconds: float | None = None
    """How long it took, where that means something."""
