"""The documents that lie in etcd: JSON, one a key, readable with ``etcdctl``.

Each is a frozen `msgspec.Struct`; the definition here is at once validation, encoding and schema.
Times are RFC 3339 in UTC; they are for people, no decision compares them. Sizes carry their unit in
the name. A field is never reused with another meaning, and a document of a newer schema is read
(unknown fields are passed over) but never rewritten: `encode` refuses it.

Who writes which key, and when, is in ``docs/key-schema.md``.
"""

from ecompute.cluster.documents.base import (
    DEFAULT_NAMESPACE,
    SCHEMA,
    Document,
    T,
    Unreadable,
    decode,
    encode,
    timestamp,
)
from ecompute.cluster.documents.hosts import (
    Admin,
    AdminState,
    Alive,
    InventoryFacts,
    Node,
    Zone,
)
from ecompute.cluster.documents.instances import (
    Assignment,
    Booted,
    Instance,
    Interface,
    Power,
    Resources,
    Role,
    Secrets,
    Seen,
    Spec,
    State,
)
from ecompute.cluster.documents.networks import (
    AddressLock,
    Name,
    Network,
    NetworkHost,
    Port,
    Vni,
)
from ecompute.cluster.documents.sharing import (
    Copy,
    Expiry,
    Gang,
    GangState,
    Group,
    IdempotencyKey,
    Member,
    Policy,
    Quota,
    QuotaPhase,
    Scope,
    Tagged,
    UsedUuid,
)
from ecompute.cluster.documents.work import (
    Event,
    Incarnation,
    Intent,
    Lead,
    Operation,
)

__all__ = [
    "DEFAULT_NAMESPACE",
    "SCHEMA",
    "T",
    "Document",
    "Unreadable",
    "decode",
    "encode",
    "timestamp",
    "Assignment",
    "Booted",
    "Instance",
    "Interface",
    "Power",
    "Resources",
    "Role",
    "Secrets",
    "Seen",
    "Spec",
    "State",
    "Admin",
    "AdminState",
    "Alive",
    "InventoryFacts",
    "Node",
    "Zone",
    "AddressLock",
    "Name",
    "Network",
    "NetworkHost",
    "Port",
    "Vni",
    "Copy",
    "Expiry",
    "Gang",
    "GangState",
    "Group",
    "IdempotencyKey",
    "Member",
    "Policy",
    "Quota",
    "QuotaPhase",
    "Scope",
    "Tagged",
    "UsedUuid",
    "Event",
    "Incarnation",
    "Intent",
    "Lead",
    "Operation",
]
