"""What a launch writes for its host: one instance, its assignment, and all that goes with them. Pure.

The same for an instance that is launched alone and for one of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.documents import (
    ConfigDrive,
    Expiry,
    Instance,
    Name,
    Resources,
    Secrets,
    Spec,
    State,
    Tagged,
    timestamp,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.expiring import expires_at, key_of
from ecompute.cluster.placement import Candidate
from ecompute.cluster.store import Compare, Op, Put, absent, unchanged
from eschedule.cloud.ports import PortRequest
from eschedule.scheduler.beside import Rows
from eschedule.scheduler.facts import Target
from eschedule.scheduler.request import LaunchRequest

Allocations = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Order:
    """One instance, and the transaction that asks its host for it."""

    instance: Instance
    compares: tuple[Compare, ...]
    operations: tuple[Op, ...]


def name_of(request: LaunchRequest, uuid: str) -> str:
    """Return what the instance is called: as asked for, or made up."""
    return request.name or f"vm-{uuid[:8]}"


def claim_of(candidate: Candidate, rows: Rows) -> Allocations:
    """Return all that is claimed: the candidate's, and what stands beside it."""
    claim = {provider: dict(amounts) for provider, amounts in candidate.allocations.items()}
    for provider, amounts in rows.allocations.items():
        own = claim.setdefault(provider, {})
        for name, amount in amounts.items():
            own[name] = own.get(name, 0) + amount
    return claim


def order_of(
    request: LaunchRequest,
    uuid: str,
    target: Target,
    candidate: Candidate,
    rows: Rows,
    ports: Sequence[PortRequest],
    *,
    now_s: float,
    expires_at_s: int | None = None,
    group: str | None = None,
    gang: str | None = None,
    digest: str | None = None,
) -> Order:
    """Return what is written for ``uuid`` on ``target``, without its event.

    Args:
        ports: in the order of its interfaces.
        now_s: seconds since 1970, as ``expires_at_s``.
        group: the uuid of its group; ``gang`` that of its gang.
        digest: of the request, where a client chose the uuid.
    """
    node = target.node.value
    instance = Instance(
        uuid=uuid,
        namespace=request.namespace,
        name=name_of(request, uuid),
        state=State.INITIAL,
        provider=node.provider,
        query=request.query,
        spec=Spec(
            resources=resources_of(candidate.allocations),
            image=request.image,
            ssh_keys=request.ssh_keys,
            has_user_data=request.user_data is not None,
            interfaces=tuple(port.interface for port in ports),
            config_drive=ConfigDrive(request.config_drive),
        ),
        created_at=timestamp(now_s),
        claim=claim_of(candidate, rows),
        mappings=candidate.mappings,
        group=group,
        gang=gang,
        tags=request.tags,
        expires_at=None if expires_at_s is None else expires_at(expires_at_s),
        digest=digest,
    )
    operations: list[Op] = [
        Put(keys.instance(uuid), instance),
        Put(keys.assignment(node.provider, uuid), assignment_of(instance)),
        Put(keys.name(instance.namespace, INSTANCE, instance.name, uuid), Name(uuid=uuid, name=instance.name)),
        *_operations_of(ports),
        *rows.operations(uuid, node.provider),
    ]
    operations += [
        Put(keys.tag(instance.namespace, tag, uuid), Tagged(instance_uuid=uuid, provider=node.provider))
        for tag in instance.tags
    ]
    expiry = key_of(instance)
    if expiry is not None:
        operations.append(Put(expiry, Expiry(uuid=uuid)))
    if request.user_data is not None:
        operations.append(Put(keys.secrets(node.provider, uuid), Secrets(user_data=request.user_data)))
    return Order(
        instance,
        compares=(
            unchanged(target.node),
            absent(keys.admin(node.provider)) if target.admin is None else unchanged(target.admin),
            absent(keys.instance(uuid)),
            *dict.fromkeys(compare for port in ports for compare in port.compares),
            *rows.compares,
        ),
        operations=tuple(operations),
    )


def _operations_of(ports: Sequence[PortRequest]) -> list[Op]:
    """Return what is written for ``ports``; two on one network make its host a member once."""
    return list({op.key: op for port in ports for op in port.operations}.values())


def resources_of(allocations: Mapping[str, Mapping[str, int]]) -> Resources:
    """Return what the guest is to have: all that was claimed for it, wherever it is served."""
    total: dict[str, int] = {}
    for amounts in allocations.values():
        for resource_class, amount in amounts.items():
            total[resource_class] = total.get(resource_class, 0) + amount
    # `request.check` has seen to it that the query asks for all of them.
    return Resources(vcpus=total["VCPU"], memory_mb=total["MEMORY_MB"], disk_gb=total["DISK_GB"])
