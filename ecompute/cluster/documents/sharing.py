"""What instances share: quotas, groups, gangs; what clients chose; which host holds which image."""

from __future__ import annotations

from enum import StrEnum

from ecompute.cluster.documents.base import Document


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
