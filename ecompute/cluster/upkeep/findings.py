"""What an audit found, in words: a line each, for a log, a table and programs. Pure.

Hosts audit themselves, and tell what they find (`ecompute.audit`); what they tell is in the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ecompute.cluster.documents import HostAudit
from ecompute.cluster.upkeep.decide import Leaks
from ecompute.cluster.upkeep.misfits import Kind


class What(StrEnum):
    """Stable, for programs."""

    INTENT = "intent-without-request"
    ALLOCATION = "allocation-without-instance"
    INSTANCE = "instance-without-allocation"
    UNLIKE = "allocation-unlike-claim"
    PROVIDER = "provider-without-host"
    HOST = "host-without-provider"
    ASSIGNMENT = "assignment-without-instance"
    KEY = "key-without-instance"
    OWNERLESS = "key-without-owner"
    ABANDONED = "reports-without-host"
    MEMBER = "member-without-port"
    OVERFULL = "host-over-capacity"
    FOREIGN = "foreign-allocation"


REPAIRS = {
    Kind.FLOATING: "detach it",
    Kind.STRANGE: "take the address from the port",
    Kind.PORT: "delete it",
    Kind.INTERFACE: "put its port there again",
    Kind.LOCK: "delete it",
    Kind.UNLOCKED: "lock it for the port",
    Kind.TAKEN: "none: an operator's matter; another interface has locked it",
    Kind.UNMEMBERED: "make the host a member",
}
"""What is done about what does not fit of interfaces and what goes with them."""

FURTHER = "further-findings"
"""Of a host that found more than a document should hold."""


@dataclass(frozen=True)
class Finding:
    """One thing that two looks in a row agree on."""

    what: str
    """One of `What` or of `Kind`, or of what a host tells."""
    subject: str
    """A consumer, an instance, a provider, a key; on a host also a file or a device."""
    where: tuple[str, ...]
    """The providers concerned."""
    repair: str
    """What is done about it by whoever repairs, or whose matter it is."""
    since: str | None = None
    """When a host first saw it; None: the audit that looked has just seen it."""

    @property
    def is_wrong(self) -> bool:
        """False for what is only told: others may claim on our hosts."""
        return self.what != What.FOREIGN


def findings(leaks: Leaks) -> tuple[Finding, ...]:
    """Return what ``leaks`` says, in a stable order."""
    asked: dict[str, list[str]] = {}
    for question in leaks.questions:
        asked.setdefault(question.consumer, []).append(question.provider)
    found = [
        Finding(What.INTENT, consumer, (), "delete it, then give back what it has claimed")
        for consumer in leaks.intents
    ]
    found += [
        Finding(What.ALLOCATION, consumer, tuple(providers), "release it, once its host says that nothing is there")
        for consumer, providers in asked.items()
    ]
    found += [
        Finding(What.ALLOCATION, consumer, (), "wait: its host cannot say whether it is empty")
        for consumer in leaks.stranded
    ]
    found += [Finding(What.INSTANCE, uuid, (), "claim again what it was given") for uuid in leaks.unbacked]
    found += [Finding(What.UNLIKE, uuid, (), "claim what it lacks of what it was given") for uuid in leaks.short]
    found += [
        Finding(What.UNLIKE, uuid, (), "with `eschedule audit --repair`, let it hold what it was given and no more")
        for uuid in leaks.beyond
    ]
    found += [Finding(What.KEY, key, (), "delete it") for key in leaks.orphans]
    found += [Finding(What.OWNERLESS, key, (), "delete it") for key in leaks.ownerless]
    found += [
        Finding(What.ABANDONED, uuid, (uuid,), "delete them with `eschedule audit --repair`, if the host stays away")
        for uuid in leaks.abandoned
    ]
    found += [Finding(What.MEMBER, key, (key.rsplit("/", 1)[1],), "delete it") for key in leaks.vacant]
    found += [
        Finding(What.PROVIDER, uuid, (uuid,), "remove it with `eschedule audit --repair`, if it is empty")
        for uuid in leaks.hostless
    ]
    found += [
        Finding(What.HOST, uuid, (uuid,), "none: its daemon makes it; start `ecompute run` there")
        for uuid in leaks.unregistered
    ]
    found += [
        Finding(What.ASSIGNMENT, uuid, (provider,), f"none: an operator's matter; see `eschedule doctor {uuid}`")
        for provider, uuid in leaks.unwanted
    ]
    found += [
        Finding(
            What.OVERFULL,
            f"{provider} {name}",
            (provider,),
            "none: an operator's matter; was its inventory lowered? if not, does placement.conf set "
            "allocation_conflict_retry_count = 1?",
        )
        for provider, name in leaks.overfull
    ]
    found += [Finding(misfit.kind, misfit.subject, (), REPAIRS[misfit.kind]) for misfit in leaks.misfits]
    found += [Finding(What.FOREIGN, consumer, (), "none: it is not ours") for consumer in leaks.foreign]
    return tuple(sorted(found, key=lambda f: (f.what, f.subject, f.where)))


def of_hosts(audits: Mapping[str, HostAudit]) -> tuple[Finding, ...]:
    """Return what hosts tell of themselves, in a stable order.

    Args:
        audits: by provider.
    """
    found = [
        Finding(finding.what, finding.subject, (provider,), finding.repair, finding.since)
        for provider, audit in audits.items()
        for finding in audit.findings
    ]
    found += [
        Finding(FURTHER, f"{audit.more} more", (provider,), "see the log of its daemon", audit.reported_at)
        for provider, audit in audits.items()
        if audit.more
    ]
    return tuple(sorted(found, key=lambda f: (f.what, f.subject, f.where)))
