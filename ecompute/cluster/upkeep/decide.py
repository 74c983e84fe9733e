"""What upkeep does: `finish` for one instance, `leaks` for what nobody claims any more. Pure.

Upkeep is run by whoever is trusted and comes first: a tool that waits, or the lead. Several may run
at once, and any may be paused between two of its acts, past its lease. Its writes to etcd compare
what was read, and those of a leader its lead. A write to placement can compare nothing in etcd, so a
claim is released only for a reason that stays true for ever:

- **gone**: the host reported that it removed the instance, and nothing is built after that report.
- **gated**: neither an intent nor an instance exists. A request needs its intent, an intent is
  written once for a uuid, and uuids are not used twice; so no request can follow any more.

A reason of etcd's alone is not enough. Set back to an older state, etcd knows neither the intent nor
the instance of a guest that runs. So a gated claim is released only after its host has answered, when
asked after the fact, that nothing of it is there (`ecompute.instances.plan.has_nothing`). A host that
is dead or on hold does not answer, and its claims wait for it. And neither reason is for later: whoever
acts on one does it within seconds of reading it (`ecompute.cluster.freshness`).

Order of one act, so that a crash in it leaves the reason to do it again: the intent is deleted before
its claim is released; a claim is released before the keys that say so are deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

from ecompute.cluster.documents import Assignment, Instance, Interface, Role, Seen, State
from ecompute.cluster.placement.documents import OUR_CONSUMERS, Allocations
from ecompute.cluster.upkeep.misfits import Misfit

GRACE_S = 60.0
"""How long an intent or a claim may stand unchanged, on the auditor's own clock."""


class Act(StrEnum):
    NOTHING = "nothing"
    ORDER_REMOVAL = "order-removal"
    """Write the assignment, absent, from the instance. Compares: instance and assignment (or its absence)."""
    MARK_FAILED = "mark-failed"
    """One transaction: the instance in error with the report's reason, its assignment absent. Compares
    both. Then release the claim."""
    LET_GO = "let-go"
    """One transaction: the instance without the interfaces of the plan, their ports deleted, what was locked
    for them given up. Compares the instance and the report."""
    RELEASE = "release"
    """Release the claim; idempotent, and may find it released. The keys stay."""
    RELEASE_AND_DELETE = "release-and-delete"
    """Release the claim, then delete every key in one transaction that compares instance and assignment
    (or their absence)."""


@dataclass(frozen=True)
class FinishPlan:
    act: Act
    reason: str
    error: str | None = None
    """For `Act.MARK_FAILED`: what the instance's error is."""
    interfaces: tuple[Interface, ...] = ()
    """For `Act.LET_GO`."""


def finish(instance: Instance | None, assignment: Assignment | None, seen: Seen | None) -> FinishPlan:
    """Return what is to be done for one instance, by its host's report.

    Args:
        instance: as read; None: there is none (someone deleted its key).
        assignment: its host's, read together with ``instance``; None: there is none.
        seen: its host's report, read with or after them; None: there is none.
    """
    if instance is None:
        # Whatever its role: what a host has said to be gone it does not build.
        if assignment is not None and _is_gone(seen, assignment.epoch):
            return FinishPlan(Act.RELEASE_AND_DELETE, "it is gone, and its instance was deleted before")
        return FinishPlan(Act.NOTHING, "there is no instance")
    if assignment is not None and assignment.epoch != instance.epoch:
        return FinishPlan(Act.NOTHING, "its assignment is of another epoch")
    is_ordered = assignment is not None and assignment.role is Role.ABSENT
    is_gone = _is_gone(seen, instance.epoch)
    if instance.state is State.DELETING:
        if is_gone and seen is not None and seen.generation >= instance.generation:
            return FinishPlan(Act.RELEASE_AND_DELETE, "its host reports it gone")
        if not is_ordered:
            return FinishPlan(Act.ORDER_REMOVAL, "it is to be deleted and its host was not told")
        return FinishPlan(Act.NOTHING, "its host has not reported it gone")
    if not is_gone:
        left = _left(instance, seen)
        if left:
            return FinishPlan(Act.LET_GO, "its host reports it without them", interfaces=left)
        return FinishPlan(Act.NOTHING, "it is on its host")
    assert seen is not None
    if instance.state is State.ERROR and is_ordered:
        return FinishPlan(Act.RELEASE, "it failed, and nothing of it is on its host")
    if assignment is None:
        return FinishPlan(Act.NOTHING, "its assignment is missing; an operator's matter")
    error = seen.error or "it is gone from its host, which was not asked to remove it"
    return FinishPlan(Act.MARK_FAILED, "nothing of it is on its host", error)


def _left(instance: Instance, seen: Seen | None) -> tuple[Interface, ...]:
    """Return the interfaces that are leaving, and that the guest cannot send from any more, by its host's report.

    A report with an error says what was tried, not what was reached.
    """
    if instance.state is not State.INITIAL or seen is None or seen.epoch != instance.epoch:
        return ()
    if seen.state is not State.CREATED or seen.error is not None:
        return ()
    return tuple(item.interface for item in instance.leaving if item.generation <= seen.generation)


def _is_gone(seen: Seen | None, epoch: int) -> bool:
    return seen is not None and seen.is_gone and seen.epoch == epoch


@dataclass(frozen=True)
class Held:
    """One consumer's allocation in placement."""

    providers: frozenset[str]
    consumer_type: str


@dataclass(frozen=True)
class Owned:
    """A key that goes with an instance: a lock of an address, a port, a name."""

    instance_uuid: str
    mod_revision: int


@dataclass(frozen=True)
class Belonging:
    """A key that goes with another one, and is of no use without it: a name, a client's key."""

    owner: str
    mod_revision: int


class Unlike(StrEnum):
    """How an allocation differs from what the request wrote down."""

    SHORT = "short"
    """It lacks something, and has nothing beyond."""
    BEYOND = "beyond"
    """It has something that was not claimed, whatever it lacks."""


def unlike(claim: Allocations, held: Allocations) -> Unlike | None:
    """Return how ``held`` differs from ``claim``, or that it does not."""
    wanted = {(provider, name): amount for provider, row in claim.items() for name, amount in row.items()}
    found = {(provider, name): amount for provider, row in held.items() for name, amount in row.items()}
    if wanted == found:
        return None
    return Unlike.SHORT if all(amount <= wanted.get(row, 0) for row, amount in found.items()) else Unlike.BEYOND


@dataclass(frozen=True)
class HostLook:
    """What etcd says of one host that matters to the audit."""

    is_alive: bool = False
    is_on_hold: bool = False
    guests: frozenset[str] = frozenset()
    """Uuids of its assignments, and of its reports that do not say gone."""

    @property
    def can_answer(self) -> bool:
        return self.is_alive and not self.is_on_hold


@dataclass(frozen=True)
class Look:
    """What an auditor read in one go: placement first, then etcd, then the answers of hosts.

    In this order a claim on its way (intent, claim, request) is never seen without its intent or its
    instance. Times are of the auditor's own monotonic clock.
    """

    began_s: float
    ended_s: float
    allocations: Mapping[str, Held] = field(default_factory=dict)
    intents: Mapping[str, int] = field(default_factory=dict)
    """Consumer to the mod revision of its intent."""
    instances: frozenset[str] = frozenset()
    """All there are."""
    holders: frozenset[str] = frozenset()
    """Those of them that ought to hold a claim: neither in error with their assignment absent, nor deleting."""
    hosts: Mapping[str, HostLook] = field(default_factory=dict)
    """By provider uuid."""
    owned: Mapping[str, Owned] = field(default_factory=dict)
    """By key; empty where they were not read."""
    vacant: Mapping[str, int] = field(default_factory=dict)
    """Keys of networks' members without a port there, to their mod revisions; each new port rewrites its member."""
    hostless: frozenset[str] = frozenset()
    """Providers that say they are hosts, and that etcd does not know."""
    unregistered: frozenset[str] = frozenset()
    """Hosts in etcd that placement does not know."""
    unwanted: frozenset[tuple[str, str]] = frozenset()
    """(provider, uuid) of assignments without an instance."""
    overfull: frozenset[tuple[str, str]] = frozenset()
    """(provider, class) of open hosts of which more is claimed than there is."""
    unlike: Mapping[str, Unlike] = field(default_factory=dict)
    """Of ``holders`` that hold something else than was claimed for them."""
    ownerless: Mapping[str, Belonging] = field(default_factory=dict)
    """By key: what it goes with is not there."""
    abandoned: frozenset[str] = frozenset()
    """Providers of no host that etcd knows, which have told something of themselves."""
    misfits: frozenset[Misfit] = frozenset()
    """What does not fit together of interfaces, ports, locks, members and floating addresses."""


@dataclass(frozen=True)
class Question:
    """To be asked of a host: is there anything of this consumer?"""

    provider: str
    consumer: str


@dataclass(frozen=True)
class Leaks:
    intents: Mapping[str, int] = field(default_factory=dict)
    """Stale: delete each first, comparing its mod revision and, where one leads, the lead."""
    questions: tuple[Question, ...] = ()
    """Ask these after that; `releases` then says which claims to release."""
    foreign: tuple[str, ...] = ()
    """Consumers of types that are not ours, to be reported. Never touched."""
    stranded: tuple[str, ...] = ()
    """Claims that nobody holds, of hosts that cannot answer now."""
    orphans: Mapping[str, int] = field(default_factory=dict)
    """Keys whose instance is nowhere any more: delete each, comparing its mod revision."""
    vacant: Mapping[str, int] = field(default_factory=dict)
    """Keys of members that have no port: delete each, comparing its mod revision."""
    unbacked: tuple[str, ...] = ()
    """Instances whose claim is gone (placement was emptied, or set back): to be claimed again. Their guests stay."""
    hostless: tuple[str, ...] = ()
    """Providers of no host, to be reported."""
    unregistered: tuple[str, ...] = ()
    """Hosts of no provider, to be reported; the host's own daemon makes it."""
    unwanted: tuple[tuple[str, str], ...] = ()
    """(provider, uuid): what a host is told to run of an instance that is not there, to be reported. A
    missing key destroys no guest."""
    overfull: tuple[tuple[str, str], ...] = ()
    """(provider, class): more is claimed than there is, to be reported."""
    short: tuple[str, ...] = ()
    """Instances that hold less than was claimed for them: the rest is to be claimed."""
    beyond: tuple[str, ...] = ()
    """Instances that hold what was not claimed for them, to be reported: another version may be moving them."""
    ownerless: Mapping[str, Belonging] = field(default_factory=dict)
    """Keys to be deleted, comparing the mod revision, and that the owner is not there."""
    abandoned: tuple[str, ...] = ()
    """Providers of no host of which something is told, to be reported: the host may be back."""
    misfits: tuple[Misfit, ...] = ()
    """Each to be put right by its own transaction, where it has one."""


def leaks(before: Look | None, now: Look, grace_s: float = GRACE_S) -> Leaks:
    """Return what two looks in a row, at least ``grace_s`` apart, agree is held by nobody.

    A caller that looks more often keeps the earlier look until it is old enough (`keep`).
    """
    foreign = tuple(sorted(c for c, held in now.allocations.items() if not _is_ours(held)))
    if before is None or now.began_s - before.ended_s < grace_s:
        return Leaks(foreign=foreign)
    stale = {c: revision for c, revision in now.intents.items() if before.intents.get(c) == revision}
    questions: list[Question] = []
    stranded: list[str] = []
    unclaimed = (_unclaimed(now) & _unclaimed(before)) | (stale.keys() & now.allocations.keys() - now.instances)
    for consumer in sorted(unclaimed):
        providers = sorted(now.allocations[consumer].providers)
        hosts = [now.hosts.get(provider, HostLook()) for provider in providers]
        if not all(host.can_answer for host in hosts):
            stranded.append(consumer)
        elif not any(consumer in host.guests for host in hosts):
            questions += [Question(provider, consumer) for provider in providers]
    orphans = {
        key: owned.mod_revision
        for key, owned in now.owned.items()
        if before.owned.get(key) == owned and not _is_anywhere(owned.instance_uuid, now, before)
    }
    vacant = {key: revision for key, revision in now.vacant.items() if before.vacant.get(key) == revision}
    unbacked = (now.holders & before.holders) - now.allocations.keys() - before.allocations.keys()
    return Leaks(
        intents=stale,
        questions=tuple(questions),
        foreign=foreign,
        stranded=tuple(stranded),
        orphans=orphans,
        vacant=vacant,
        unbacked=tuple(sorted(unbacked)),
        hostless=tuple(sorted(now.hostless & before.hostless)),
        unregistered=tuple(sorted(now.unregistered & before.unregistered)),
        unwanted=tuple(sorted(now.unwanted & before.unwanted)),
        overfull=tuple(sorted(now.overfull & before.overfull)),
        short=_unlike_in_both(before, now, Unlike.SHORT),
        beyond=_unlike_in_both(before, now, Unlike.BEYOND),
        ownerless={key: found for key, found in now.ownerless.items() if before.ownerless.get(key) == found},
        abandoned=tuple(sorted(now.abandoned & before.abandoned)),
        misfits=tuple(sorted(now.misfits & before.misfits, key=lambda misfit: (misfit.kind, misfit.subject))),
    )


def _unlike_in_both(before: Look, now: Look, how: Unlike) -> tuple[str, ...]:
    return tuple(sorted(uuid for uuid, found in now.unlike.items() if found is how and before.unlike.get(uuid) is how))


def releases(asked: Leaks, deleted: frozenset[str], nothing_there: frozenset[Question]) -> tuple[str, ...]:
    """Return the consumers to release: those of which every host asked has answered *nothing*.

    Args:
        asked: what was to be done.
        deleted: the consumers of ``asked.intents`` whose intent this auditor has deleted.
        nothing_there: the questions answered so, asked after that. No answer counts as *something*.
    """
    consumers = {question.consumer for question in asked.questions}
    refused = {question.consumer for question in asked.questions if question not in nothing_there}
    return tuple(sorted(consumers - refused - (asked.intents.keys() - deleted)))


class _Timed(Protocol):
    @property
    def began_s(self) -> float: ...
    @property
    def ended_s(self) -> float: ...


T = TypeVar("T", bound=_Timed)


def keep(before: T | None, now: T, grace_s: float = GRACE_S) -> T:
    """Return the look, of whatever kind, that the next one is to be compared with."""
    return before if before is not None and now.began_s - before.ended_s < grace_s else now


def _is_ours(held: Held) -> bool:
    return held.consumer_type.startswith(OUR_CONSUMERS)


def _unclaimed(look: Look) -> set[str]:
    ours = {consumer for consumer, held in look.allocations.items() if _is_ours(held)}
    return ours - look.intents.keys() - look.instances


def _is_anywhere(uuid: str, *looks: Look) -> bool:
    return any(
        uuid in look.instances
        or uuid in look.intents
        or uuid in look.allocations
        or any(uuid in host.guests for host in look.hosts.values())
        for look in looks
    )
