"""What does not fit together on one host: `suspects` in one look, `believed` after two. Pure.

A look that goes through a host while it works sees much that is only on its way. So a look suspects,
and what two looks in a row suspect, at least `GRACE_S` apart, is so. Of what hangs on an assignment
they have to have read the same revision of it; what a lane is at work on is never suspected.

What is done about it is the lane's to decide, from what it reads and finds itself; the audit wakes it,
where that can help (`WOKEN`). It removes nothing: a guest of which etcd knows nothing may be all that
is left of an emptied etcd, and a device or a file that has no owner may be one whose owner was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ecompute.cluster.documents import Power, Role
from ecompute.network.present import Device, Kind

GRACE_S = 60.0
"""How far apart, at least, two looks are that are believed."""


class What(StrEnum):
    """Stable, for programs."""

    GUEST = "guest-without-assignment"
    MISSING = "assignment-without-guest"
    NETWORK = "guest-without-network"
    REMOVAL = "removal-not-done"
    UNREADABLE = "assignment-unreadable"
    FILES = "files-without-instance"
    DEVICE = "device-without-owner"
    NAMESPACE = "namespace-without-owner"
    STUCK = "instance-stuck"


REPAIR = {
    What.GUEST: "none: nobody asks for it, and it is left alone; an operator's matter",
    What.MISSING: "its host looks at it again; see `eschedule doctor {}`",
    What.NETWORK: "its host looks at it again; a tap that is gone comes back when the guest is started anew",
    What.REMOVAL: "its host removes it; see `eschedule doctor {}`",
    What.UNREADABLE: "none: it is left alone; write it again, or delete it",
    What.FILES: "none: no guest here uses them; look at them, and delete them",
    What.DEVICE: "none: no guest here uses it; `ip link delete {}` on that host, if nobody else does",
    What.NAMESPACE: "none: no guest here uses it; `ip netns delete {}` on that host, if nobody else does",
    What.STUCK: "none: a step of it does not return; restart `ecompute run` there once it is known why",
}
"""What is done about each, with the subject put in."""

WOKEN = frozenset({What.MISSING, What.NETWORK, What.REMOVAL})
"""What the instance's lane is woken for; its uuid is the subject."""


@dataclass(frozen=True)
class Assigned:
    """What matters here of one assignment.

    Args:
        mod_revision: of its key.
        vnis: of its networks that have a bridge of ours here: one that is an operator's bridge itself has none.
        taps: the devices that its guest has while it runs.
        is_waiting: nothing is to be here yet: its gang is not committed, or its image is on its way.
    """

    role: Role
    mod_revision: int
    vnis: frozenset[int] = frozenset()
    taps: frozenset[str] = frozenset()
    is_waiting: bool = False


@dataclass(frozen=True)
class OwnLook:
    """What one look found."""

    assigned: Mapping[str, Assigned] = field(default_factory=dict)
    """By instance uuid."""
    unreadable: frozenset[str] = frozenset()
    """The keys of this host's assignments that cannot be read, or are not about the instance that they name."""
    domains: Mapping[str, Power] = field(default_factory=dict)
    """Ours, by uuid."""
    disks: frozenset[str] = frozenset()
    """Uuids of instances whose disk is here."""
    files: frozenset[str] = frozenset()
    """Uuids of instances that have any file here."""
    strays: frozenset[str] = frozenset()
    """Names of what lies beside the instances' directories, and is none."""
    devices: frozenset[Device] = frozenset()
    at_work: frozenset[str] = frozenset()
    """Uuids that a lane is at work on, or is about to be."""
    stuck: frozenset[str] = frozenset()
    """Uuids whose lane was set aside."""


@dataclass(frozen=True, order=True)
class Suspect:
    """``subject`` is an instance, a key, a file or a device; ``revision`` of the assignment it hangs on, or 0."""

    what: What
    subject: str
    revision: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """What is the same of it in each look, for people."""
        return self.what.value, self.subject

    @property
    def repair(self) -> str:
        return REPAIR[self.what].format(self.subject)


def suspects(look: OwnLook) -> frozenset[Suspect]:
    """Return what does not fit together in ``look``."""
    passed_over = look.at_work | look.stuck
    illegible = {key.rsplit("/", 1)[-1] for key in look.unreadable}
    guests = (look.domains.keys() | look.disks) - look.assigned.keys() - illegible
    left = look.files - look.disks - look.domains.keys() - look.assigned.keys() - illegible
    found = {
        *(Suspect(What.GUEST, uuid) for uuid in guests - passed_over),
        *(Suspect(What.FILES, name) for name in (left - passed_over) | look.strays),
        *(Suspect(What.UNREADABLE, key) for key in look.unreadable),
        *(Suspect(What.STUCK, uuid) for uuid in look.stuck),
        *(
            Suspect(What.NAMESPACE if device.kind is Kind.NAMESPACE else What.DEVICE, device.name)
            for device in _without_owner(look, has_guests=bool(guests or illegible))
        ),
    }
    for uuid, assigned in look.assigned.items():
        if uuid in passed_over:
            continue
        what = _of_assigned(look, uuid, assigned)
        if what is not None:
            found.add(Suspect(what, uuid, assigned.mod_revision))
    return frozenset(found)


def lasting(before: Mapping[Suspect, float], now: frozenset[Suspect], now_s: float) -> dict[Suspect, float]:
    """Return what this look and the ones before suspect, and since when.

    Args:
        before: what this returned for the look before.
        now_s: when this look began, on whatever clock ``before`` has.
    """
    return {suspect: before.get(suspect, now_s) for suspect in now}


def believed(since: Mapping[Suspect, float], now_s: float, grace_s: float = GRACE_S) -> frozenset[Suspect]:
    """Return those of what `lasting` returned that an earlier look, long enough ago, suspected as well."""
    return frozenset(suspect for suspect, first_s in since.items() if now_s - first_s >= grace_s)


def _of_assigned(look: OwnLook, uuid: str, assigned: Assigned) -> What | None:
    if assigned.role is Role.ABSENT:
        return What.REMOVAL if uuid in look.domains or uuid in look.files else None
    if assigned.role is not Role.RUN or assigned.is_waiting:
        return None
    if uuid not in look.domains or uuid not in look.disks:
        return What.MISSING
    if look.domains[uuid] not in (Power.ON, Power.PAUSED):
        return None
    names = {device.name for device in look.devices}
    networks = {device.vni for device in look.devices if device.kind is Kind.BRIDGE}
    return None if assigned.taps <= names and assigned.vnis <= networks else What.NETWORK


def _without_owner(look: OwnLook, *, has_guests: bool) -> frozenset[Device]:
    """Return the devices that no assignment names.

    Args:
        has_guests: there are guests here of whose interfaces nothing is known: whatever is in use may be theirs.
    """
    taps = {tap for assigned in look.assigned.values() for tap in assigned.taps}
    vnis = {vni for assigned in look.assigned.values() for vni in assigned.vnis}
    in_use = {device.vni for device in look.devices if device.kind is Kind.TAP and (has_guests or device.name in taps)}
    return frozenset(
        device
        for device in look.devices
        if (
            not has_guests and device.name not in taps
            if device.kind is Kind.TAP
            else device.vni not in vnis and device.vni not in in_use
        )
    )
