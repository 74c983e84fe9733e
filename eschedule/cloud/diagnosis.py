"""Everything that is known of one uuid, side by side, and who has to take the next step.

Reads only; safe from several threads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.documents import Alive, Assignment, Gang, GangState, Instance, Intent, Node, Seen, State
from ecompute.cluster.errors import InvalidInput, NotFound
from ecompute.cluster.placement import ConsumerAllocations, host_of
from ecompute.cluster.upkeep.decide import GRACE_S
from eschedule.cloud import references
from eschedule.cloud.connection import Cloud

NOTHING = "nothing"


@dataclass(frozen=True)
class Diagnosis:
    uuid: str
    provider: str | None
    """Its host, by the instance or else by the claim."""
    intent: Intent | None
    instance: Instance | None
    claim: ConsumerAllocations
    assignment: Assignment | None
    seen: Seen | None
    host: Node | None
    is_host_alive: bool
    gang: Gang | None = None
    waits_for: str = NOTHING

    @property
    def is_waiting(self) -> bool:
        return self.waits_for != NOTHING


def diagnose(cloud: Cloud, ref: str, namespace: str) -> Diagnosis:
    """Return all that is known of ``ref``, and what it waits for.

    Args:
        ref: as for `references.find`; a full uuid may also be one of which only a claim, an intent
            or a report is left.

    Raises:
        NotFound: nothing is known of it.
        Ambiguous: it names several.
    """
    store = cloud.store
    uuid = references.full_uuid(ref) or references.find(store, ref, namespace).value.uuid
    # Placement first: what is on its way from claim to request is then not taken for a leak.
    claim = cloud.placement.allocations(uuid)
    found = store.get(keys.instance(uuid), Instance)
    intent = store.get(keys.intent(uuid), Intent)
    instance = None if found is None else found.value
    provider = instance.provider if instance is not None else _host(claim) or _reporter(cloud, uuid)
    diagnosis = Diagnosis(
        uuid=uuid,
        provider=provider,
        intent=None if intent is None else intent.value,
        instance=instance,
        claim=claim,
        assignment=None,
        seen=None,
        host=None,
        is_host_alive=False,
    )
    if provider is not None:
        assignment = store.get(keys.assignment(provider, uuid), Assignment)
        seen = store.get(keys.seen(provider, uuid), Seen)
        node = store.get(keys.node(provider), Node)
        diagnosis = dataclasses.replace(
            diagnosis,
            assignment=None if assignment is None else assignment.value,
            seen=None if seen is None else seen.value,
            host=None if node is None else node.value,
            is_host_alive=store.get(keys.alive(provider), Alive) is not None,
        )
    if instance is not None and instance.gang is not None:
        gang = store.get(keys.gang(instance.gang), Gang)
        diagnosis = dataclasses.replace(diagnosis, gang=None if gang is None else gang.value)
    if instance is None and intent is None and not claim and diagnosis.seen is None:
        raise NotFound(f"nothing is known of {uuid}", hint="see `eschedule list`")
    return dataclasses.replace(diagnosis, waits_for=waits_for(diagnosis))


def waits_for(diagnosis: Diagnosis) -> str:
    """Return, in words, which step comes next and who has to take it; `NOTHING` if none is due. Pure."""
    instance, seen = diagnosis.instance, diagnosis.seen
    host = diagnosis.host.name if diagnosis.host is not None else "its host"
    if instance is None:
        if diagnosis.intent is not None:
            return f"its scheduler, to claim and request it; after {GRACE_S:.0f} s the lead's audit gives it up"
        if diagnosis.claim:
            return f"the lead's audit, to ask {host} whether nothing is there and to release the claim"
        return f"an operator: {host} has a guest that nobody asked for (was etcd emptied or put back?)"
    if diagnosis.gang is not None and diagnosis.gang.state is GangState.WRITING and instance.state is State.INITIAL:
        return (
            f"the scheduler of its gang, to ask for all {len(diagnosis.gang.members)}; if that died, the lead ends it"
        )
    if diagnosis.host is not None and diagnosis.host.hold is not None:
        return f"an operator: {host} is on hold, because {diagnosis.host.hold}"
    has_reached = seen is not None and seen.epoch == instance.epoch and seen.generation >= instance.generation
    is_failed = instance.state is State.ERROR or (seen is not None and seen.state is State.ERROR and has_reached)
    if is_failed and instance.state is not State.DELETING:
        reason = instance.error or (seen.error if seen is not None else None) or "no reason is known"
        return f"you: it failed ({reason}); `eschedule destroy {diagnosis.uuid}` removes it"
    if not diagnosis.is_host_alive and not (seen is not None and seen.is_gone):
        return f"the daemon on {host}, which does not answer: start `ecompute run` there"
    if seen is None or not has_reached:
        return f"{host}, to take up what was asked"
    if seen.is_gone:
        return "the lead, to release its claim and remove its keys"
    if seen.state is State.CREATED and not diagnosis.claim:
        return "an operator: placement holds no claim for it (was placement emptied or put back?)"
    if instance.leaving and seen.error is None:
        return "the lead, to give back what the interfaces have that it is without"
    return NOTHING if seen.state is State.CREATED else f"{host}, which is at work on it"


def _host(claim: ConsumerAllocations) -> str | None:
    if not claim:
        return None
    try:
        return host_of(claim.allocations)
    except InvalidInput:
        return next(iter(claim.allocations))


def _reporter(cloud: Cloud, uuid: str) -> str | None:
    """Return the host that reports ``uuid``, where neither etcd nor placement says which that would be."""
    wanted = [keys.seen(keys.last(key), uuid) for key in cloud.store.keys(keys.NODES)[0]]
    found = cloud.store.get_many(wanted, Seen).items
    return keys.parts(found[0].key)[1] if found else None
