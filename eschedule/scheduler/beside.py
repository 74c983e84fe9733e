"""What a claim carries beside its host's rows: those of its namespace's quota and of its group.

`Beside` is read once a launch; `Beside.prepare` then gives the rows for one host. They are claimed in
the same write as the host's, and what they rest on is compared in the request's transaction. Where that
fails because of them (`Beside.is_reason`), the claim is given back and all is read again.

Together (affinity): the group's document names its place. The first member's launch writes it before
it claims, and moves it if that place has no room; only while there is no member, which etcd decides.
Of two first members at once, one finds the group rewritten when it requests, and begins again.

One launch's; not for several threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from msgspec import structs

from ecompute.cluster import groups, keys, quotas
from ecompute.cluster.documents import Group, Member, Policy, Quota, Scope, Zone
from ecompute.cluster.errors import (
    ClaimRefused,
    CloudError,
    CompareFailed,
    Conflict,
    InvalidInput,
    NoRoom,
    NotFound,
    QuotaExceeded,
)
from ecompute.cluster.failpoint import reach
from ecompute.cluster.store import Compare, Op, Put, Versioned, absent, absent_under, unchanged
from eschedule.cloud.groups import Groups, members
from eschedule.cloud.quotas import used_of
from eschedule.scheduler.facts import Facts

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

FAILPOINTS = ("beside.pinned", "beside.prepared")


class BesideChanged(Conflict):
    """Somebody has changed the group meanwhile: read `Beside` again, and begin with it."""

    code = "beside.changed"


def _no_operations(uuid: str, provider: str) -> tuple[Op, ...]:
    return ()


@dataclass(frozen=True)
class Rows:
    """What is claimed beside one host, and what the request says of it."""

    allocations: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """``{provider: {class: amount}}``"""
    stop: frozenset[str] = frozenset()
    """Those of them whose refusal no other host can mend."""
    compares: tuple[Compare, ...] = ()
    operations: Callable[[str, str], tuple[Op, ...]] = _no_operations
    """What the request writes, by the instance's uuid and its host's provider."""


@dataclass(frozen=True)
class Places:
    """Where the members of a group are. A place is a provider, or the name of a zone."""

    group: Group
    counts: Mapping[str, int] = field(default_factory=dict)
    """How many members a place has."""
    is_followed: bool = False
    """Whether the place that another first member has written is taken as chosen before that is a member."""

    def of(self, provider: str, zone: str | None) -> str | None:
        """Return the place of a host; None: it is in no zone, where zones are the places."""
        return zone if self.group.scope is Scope.ZONE else provider

    @property
    def chosen(self) -> str | None:
        """Where alone members may go."""
        is_binding = bool(self.counts) or self.is_followed
        return self.group.place if self.group.policy is Policy.AFFINITY and is_binding else None

    @property
    def taken(self) -> frozenset[str]:
        """Where no member may go any more."""
        return frozenset(self.counts) if self.group.policy is Policy.ANTI_AFFINITY else frozenset()

    def weight(self, place: str | None) -> float:
        """Return how much a place is liked, from -1 to 1."""
        if self.group.policy is Policy.AFFINITY:
            return 1.0 if place is not None and place == self.group.place else 0.0
        if place is None or not self.group.policy.is_soft:
            return 0.0
        share = self.counts.get(place, 0) / max(self.counts.values(), default=1)
        return share if self.group.policy is Policy.SOFT_AFFINITY else -share


class Beside:
    """What one launch's namespace and group ask for."""

    def __init__(
        self,
        cloud: Cloud,
        namespace: str,
        quota: Versioned[Quota] | None,
        totals: Mapping[str, int],
        group: Versioned[Group] | None = None,
        places: Places | None = None,
        zones: Mapping[str, str | None] | None = None,
    ) -> None:
        self._cloud = cloud
        self._namespace = namespace
        self._quota = quota
        self._rows = quotas.rows(totals)
        self._group = group
        self._places = places
        self.group_uuid = None if group is None else group.value.uuid
        self.is_following = places is not None and places.is_followed and places.chosen is not None
        """Whether it goes where another first member wants to go, which may come to nothing."""
        self.excluded: frozenset[str] = frozenset()
        """Hosts that it cannot be; a hint, placement decides."""
        self.only: frozenset[str] | None = None
        """The hosts that alone it can be; None: any."""
        self.may_be_old = False
        """Whether these hosts are those of some seconds ago: where they leave none, read it anew."""
        if places is not None and zones is not None:
            open_zones = {places.chosen} if places.chosen else set(zones.values()) - places.taken - {None}
            self.only = frozenset(provider for provider, zone in zones.items() if zone in open_zones)
        elif places is not None:
            self.excluded = places.taken
            self.only = frozenset({places.chosen}) if places.chosen else None

    @classmethod
    def read(
        cls,
        cloud: Cloud,
        *,
        namespace: str,
        group_ref: str | None,
        totals: Mapping[str, int],
        is_followed: bool = False,
        facts: Facts | None = None,
        is_fresh: bool = True,
    ) -> Self:
        """Return what is claimed beside a host in ``namespace``.

        Args:
            group_ref: a group's name or uuid.
            totals: what the instance asks for, ``{class: amount}``.
            is_followed: go where another first member of the group wants to go: were each of several to
                insist on its own place, none would ever be written.
            facts: keeps what is read of members and zones.
            is_fresh: read them now, whatever is kept.

        Raises:
            NotFound: there is no such group.
        """
        quota = cloud.store.get(keys.quota(namespace), Quota)
        if group_ref is None:
            return cls(cloud, namespace, quota, totals)
        # The group first: who becomes a member after it was read changes nothing that is decided by it,
        # but for the place of the first one, whose change its comparison finds.
        group = Groups(cloud).find(group_ref, namespace)
        known = Facts(cloud.store) if facts is None else facts
        if is_fresh:
            known.forget(group.value.uuid, "zones")
        if group.value.policy is Policy.AFFINITY:
            # Where they are, the group says; whether there are any decides, and is never old.
            found, is_new = tuple(members(cloud.store, group.value.uuid, limit=1)), True
        else:
            found, is_new = known.members(group.value.uuid)
        is_of_zones = group.value.scope is Scope.ZONE
        counts = Counter(
            place for member in found if (place := member.zone if is_of_zones else member.provider) is not None
        )
        zones = known.zones() if is_of_zones and not group.value.policy.is_soft else None
        beside = cls(cloud, namespace, quota, totals, group, Places(group.value, counts, is_followed), zones)
        beside.may_be_old = not is_fresh and (not is_new or zones is not None)
        return beside

    @property
    def are_members_apart(self) -> bool:
        """Whether no two members may be at one place (see `place_of`)."""
        return self._group is not None and self._group.value.policy is Policy.ANTI_AFFINITY

    @property
    def are_members_together(self) -> bool:
        """Whether all members must be at one place."""
        return self._group is not None and self._group.value.policy is Policy.AFFINITY

    def place_of(self, provider: str, zone: str | None) -> str | None:
        """Return the place of a host, as its group sees it; None: it has none there."""
        return provider if self._places is None else self._places.of(provider, zone)

    def weight(self, provider: str, zone: str | None) -> float:
        """Return what the group says of a host: -1 (away from it) to 1 (there)."""
        return 0.0 if self._places is None else self._places.weight(self._places.of(provider, zone))

    def prepare(self, provider: str, zone: str | None) -> Rows:
        """Return the rows for one host, having made in placement what they need there.

        Raises:
            ClaimRefused: the group does not take that host; another may do.
            BesideChanged: the group was changed by somebody else.
        """
        allocations: dict[str, dict[str, int]] = {}
        compares = [absent(keys.quota(self._namespace)) if self._quota is None else unchanged(self._quota)]
        stop: set[str] = set()
        if self._quota is not None:
            allocations[self._quota.value.provider] = dict(self._rows)
            stop.add(self._quota.value.provider)
        if self._group is None or self._places is None:
            return Rows(allocations, frozenset(stop), tuple(compares))
        group = self._group.value
        if not group.policy.is_soft:
            place = self._places.of(provider, zone)
            if place is None:
                raise ClaimRefused(f"host {provider} is in no zone, and group {group.name} is of zones")
            if group.policy is Policy.AFFINITY:
                self._pin(place)
            allocations[self._carrier(provider, zone)] = {group.resource_class: 1}
        reach("beside.prepared")

        def operations(uuid: str, host: str) -> tuple[Op, ...]:
            return (Put(keys.member(group.uuid, uuid), Member(instance_uuid=uuid, provider=host, zone=zone)),)

        return Rows(allocations, frozenset(stop), (*compares, unchanged(self._group)), operations)

    def _pin(self, place: str) -> None:
        """Make ``place`` the group's, while it has no members."""
        assert self._group is not None
        assert self._places is not None
        group = self._group
        if group.value.place == place:
            return
        if self._places.chosen is not None:
            raise ClaimRefused(f"group {group.value.name} is at {self._places.chosen}, and not at {place}")
        pinned = structs.replace(group.value, place=place)
        try:
            revision = self._cloud.store.commit(
                [unchanged(group), absent_under(keys.members(pinned.uuid))], [Put(group.key, pinned)]
            )
        except CompareFailed as error:
            raise BesideChanged(f"group {pinned.name} was changed meanwhile", hint="try again") from error
        self._group = Versioned(group.key, pinned, revision, group.create_revision, 0)
        reach("beside.pinned")

    def _carrier(self, provider: str, zone: str | None) -> str:
        """Return the provider that carries the group's class at that place, made with it where it is missing."""
        assert self._group is not None
        group, placement = self._group.value, self._cloud.placement
        name: str
        parent: str | None
        if group.scope is Scope.ZONE and zone is not None:
            found = self._cloud.store.get(keys.zone(zone), Zone)
            if found is None:
                raise ClaimRefused(f"there is no zone {zone}")
            carrier, name, parent = found.value.provider, groups.name_of_zone(zone), None
        else:
            carrier, name, parent = groups.provider_of_host(provider), groups.name_of_host(provider), provider
        wanted = {group.resource_class: groups.inventory_of(group.policy)}
        for _ in range(3):
            try:
                placement.change_inventories(carrier, lambda inventories: {**inventories, **wanted})
            except NotFound:
                try:
                    placement.ensure_provider(carrier, name, parent=parent)
                except InvalidInput as error:
                    raise ClaimRefused(f"placement does not know host {provider}") from error
                continue  # the lead may take an empty one away just then
            return carrier
        raise Conflict(f"provider {name} comes and goes", hint="try again")

    # --- what went wrong -----------------------------------------------------------------------

    def no_room(self, error: NoRoom) -> NoRoom:
        """Return ``error``, which found no host, with what a hard group has to do with it."""
        if self._group is None or self._places is None or self._group.value.policy.is_soft:
            return error
        group, are_zones = self._group.value, self._group.value.scope is Scope.ZONE
        if self._places.chosen is not None:
            keeps = f"keeps its members together, and they are at {self._places.chosen}"
        elif self._places.taken:
            many = len(self._places.taken)
            keeps = (
                f"keeps its members apart, and has one in {many} {'zone' if are_zones else 'host'}{'s' * (many > 1)}"
            )
        elif self.only is not None and not self.only:
            keeps = "is of zones, and no host is in a zone"
        else:
            return error
        return NoRoom(f"{error.args[0]}; group {group.name} {keeps}", hint=f"see `eschedule group show {group.name}`")

    def is_reason(self, error: CompareFailed) -> bool:
        """Whether a request was not written because quota or group have changed: the rows are old then."""
        mine = {keys.quota(self._namespace)} | ({keys.group(self.group_uuid)} if self.group_uuid else set())
        return bool(mine & set(error.keys))

    def exceeded(self, refusal: ClaimRefused, asked: Mapping[str, int] | None = None) -> CloudError:
        """Return what to raise for a claim that the quota refused.

        Args:
            asked: ``{VCPU, MEMORY_MB, DISK_GB, INSTANCES: amount}`` of all that was claimed at once;
                None: of one instance.
        """
        if self._quota is None:
            return refusal
        quota = self._quota.value
        used = used_of(self._cloud, quota)
        if not used:
            return Conflict(
                f"placement does not know the quota of namespace {quota.namespace} any more: the lead makes it again",
                hint="try again in some minutes, or let `eschedule quota set` make it now",
            )
        if asked is None:
            asked = {name: self._rows[ours] for name, ours in quotas.CLASSES.items() if ours in self._rows}
        over = [
            f"{asked[name]} {name} asked, {used.get(name, 0)} of {limit} used"
            for name, limit in quota.limits.items()
            if asked.get(name, 0) + used.get(name, 0) > limit
        ]
        return QuotaExceeded(
            f"namespace {quota.namespace} is at its quota: {'; '.join(over) or 'room for it came free just now'}",
            hint=f"destroy something, ask for less, or see `eschedule quota show {quota.namespace}`",
        )
