"""What upkeep does for gangs: decided from two looks. Pure.

A scheduler that dies or sleeps in the middle of a gang leaves its record *writing*, intents, claims,
and instances of which their hosts have begun nothing. Upkeep turns the record *cancelled*, comparing
it: no request and no commit of that gang passes any more. Then

- members with an intent only are found by the audit, as those of any launch;
- members with an instance are refused by their own hosts, which say *gone*; `decide.finish` releases
  their claims, and here they are destroyed.

The lead does not order the hosts to remove them. Where etcd was put back to before a commit, the
record says *writing* while guests run; ordered away, they would be destroyed. Their hosts, which
remember, go on with them, and the record stays cancelled for as long as they are there.

A record goes when it is not writing and no member has an instance: none can come any more, since
every request of a gang compares its record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ecompute.cluster.documents import GangState, State
from ecompute.cluster.upkeep.decide import GRACE_S


@dataclass(frozen=True)
class GangRecord:
    """One ``/gangs/<uuid>``, as read."""

    state: GangState
    mod_revision: int
    members: frozenset[str]


@dataclass(frozen=True)
class GangMember:
    """An instance that names a gang, as read."""

    gang: str
    state: State
    is_gone: bool
    """Whether its host reports, of its epoch, that nothing of it is there."""


@dataclass(frozen=True)
class GangsLook:
    """What was read in one go: the records first. Times are of the reader's own monotonic clock."""

    began_s: float
    ended_s: float
    records: Mapping[str, GangRecord] = field(default_factory=dict)
    members: Mapping[str, GangMember] = field(default_factory=dict)
    """By instance."""


@dataclass(frozen=True)
class GangRepairs:
    cancel: Mapping[str, int] = field(default_factory=dict)
    """Nobody writes them any more: make each cancelled, comparing its mod revision."""
    orphaned: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Gangs that instances name and that have no record: write one, cancelled, comparing that there is none."""
    destroy: tuple[str, ...] = ()
    """Instances of cancelled gangs that their hosts have refused: destroy them as anybody would."""
    forget: Mapping[str, int] = field(default_factory=dict)
    """Records without instances: delete each, comparing its mod revision."""


def gang_repairs(before: GangsLook | None, now: GangsLook, *, grace_s: float = GRACE_S) -> GangRepairs:
    """Return what is to be done for the gangs there are.

    Args:
        before: an earlier look, or None; see `decide.keep`.
        grace_s: for how long a record must have stood unchanged before its writer is given up, seconds.
    """
    destroy = tuple(
        sorted(
            uuid
            for uuid, member in now.members.items()
            if member.is_gone
            and member.state is not State.DELETING
            and (record := now.records.get(member.gang)) is not None
            and record.state is GangState.CANCELLED
        )
    )
    if before is None or now.began_s - before.ended_s < grace_s:
        return GangRepairs(destroy=destroy)
    same = {uuid: record for uuid, record in now.records.items() if before.records.get(uuid) == record}
    present = now.members.keys() | before.members.keys()
    recordless = {member.gang for member in before.members.values()} - now.records.keys() - before.records.keys()
    orphaned: dict[str, set[str]] = {}
    for uuid, member in now.members.items():
        if member.gang in recordless:
            orphaned.setdefault(member.gang, set()).add(uuid)
    return GangRepairs(
        cancel={uuid: r.mod_revision for uuid, r in same.items() if r.state is GangState.WRITING},
        orphaned={uuid: frozenset(members) for uuid, members in orphaned.items()},
        destroy=destroy,
        forget={
            uuid: r.mod_revision
            for uuid, r in same.items()
            if r.state is not GangState.WRITING and not r.members & present
        },
    )
