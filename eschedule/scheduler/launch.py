"""Launch one instance: candidates, then ``intent → claim → request``.

Capacity is decided by placement in the claim; everything else by etcd in the request. What the
request compares: the intent and the incarnation (`ecompute.cluster.claims`), the host's
``/admin`` key as it was read (a host being drained takes nothing, whatever an answer says), the
network, the address and the membership. A comparison that fails is read again; a host that says no
is passed over. See `ecompute.cluster.claims` for what a death at any point leaves.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.claims import Claim
from ecompute.cluster.documents import (
    Admin,
    AdminState,
    Alive,
    Assignment,
    Instance,
    Name,
    Node,
    Resources,
    Role,
    Secrets,
    Spec,
    State,
    timestamp,
)
from ecompute.cluster.errors import (
    ClaimRefused,
    CloudError,
    CompareFailed,
    Conflict,
    InvalidInput,
    NoRoom,
    Unavailable,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.placement import Candidate, Candidates, host_of
from ecompute.cluster.store import Compare, Op, Put, Versioned, absent, unchanged
from eschedule.cloud.connection import Cloud
from eschedule.cloud.networks import Networks
from eschedule.scheduler.rank import Ranked, free_share, rank
from eschedule.scheduler.request import LaunchRequest, check

CANDIDATES_LIMIT = 100
REQUEST_TRIES = 20
_MAX_PAUSE_S = 0.25

T = TypeVar("T")


@dataclass(frozen=True)
class Launched:
    """A request that its host has been told of."""

    uuid: str
    name: str
    provider: str
    host: str
    addresses: tuple[str, ...]
    revision: int


@dataclass(frozen=True)
class _Host:
    node: Versioned[Node]
    admin: Versioned[Admin] | None
    is_alive: bool


class Launcher:
    """Launches instances, one call each. Safe from several threads.

    Args:
        on_refused: told of every claim that was lost, with its reason.
        on_step: told of every step, for a progress line.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        on_refused: Callable[[str], None] = lambda reason: None,
        on_step: Callable[[str], None] = lambda step: None,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cloud = cloud
        self._store = cloud.store
        self._rng = rng or random.Random()  # noqa: S311 - spreads choices, guards nothing
        self._networks = Networks(cloud.store, rng=self._rng, now=now)
        self._on_refused = on_refused
        self._on_step = on_step
        self._now = now

    def launch(self, request: LaunchRequest) -> Launched:
        """Claim room for one instance and tell its host.

        Raises:
            InvalidInput: the request cannot be meant. Nothing was claimed.
            NoRoom: no host takes it. Nothing stays claimed.
            Conflict, Unavailable: see their text. What was claimed is given back, or found by the
                audit after its grace period.
        """
        request = check(request)
        uuid = str(uuid4())
        self._on_step("asking placement for candidates")
        answer = self._cloud.placement.candidates(request.query, limit=CANDIDATES_LIMIT)
        ranked, hosts = self._ranked(answer)
        if not ranked:
            raise NoRoom("no allocation available", hint="ask for less, or see `eschedule hosts`")
        claim = self._cloud.claims.begin(uuid, namespace=request.namespace)
        try:
            for choice in ranked:
                candidate = answer.items[choice.index]
                name = hosts[choice.provider].node.value.name
                self._on_step(f"claiming room on {name}")
                try:
                    claim.take(candidate.allocations, candidate.mappings)
                except ClaimRefused as refusal:
                    self._on_refused(f"{choice.provider} {refusal}")
                    if refusal.scope != "host":
                        raise
                    continue
                launched = self._request(request, claim, candidate, choice.provider)
                if launched is not None:
                    return launched
                self._on_refused(f"{choice.provider} takes nothing new")
                claim.release()
            raise NoRoom("no allocation available", hint="every claim was lost to somebody else: try again")
        except Unavailable:
            # It is not known what was written, and giving up would wait for the same service: what
            # is an instance by now goes on, and the audit finds the rest.
            self._on_step(f"left {uuid} to the audit")
            raise
        except CloudError:
            claim.give_up()
            raise

    def _ranked(self, answer: Candidates) -> tuple[list[Ranked], dict[str, _Host]]:
        providers = sorted({host_of(candidate.allocations) for candidate in answer.items})
        hosts = self._hosts(providers)
        entries = [
            Ranked(
                index=index,
                provider=provider,
                free_share=free_share(_room(answer, candidate)),
                is_alive=hosts[provider].is_alive,
            )
            for index, candidate in enumerate(answer.items)
            if (provider := host_of(candidate.allocations)) in hosts
        ]
        return rank(entries, self._rng.getrandbits(64)), hosts

    def _hosts(self, providers: list[str]) -> dict[str, _Host]:
        """Return those of ``providers`` that are hosts of this cloud and take new instances."""
        nodes = {
            item.value.provider: item for item in self._store.get_many([keys.node(p) for p in providers], Node).items
        }
        admins = _by_last(self._store.get_many([keys.admin(p) for p in providers], Admin).items)
        alive = _by_last(self._store.get_many([keys.alive(p) for p in providers], Alive).items)
        return {
            provider: _Host(node, admins.get(provider), provider in alive)
            for provider, node in nodes.items()
            if node.value.hold is None and _is_active(admins.get(provider))
        }

    def _request(self, request: LaunchRequest, claim: Claim, candidate: Candidate, provider: str) -> Launched | None:
        """Write the request; ``None`` if the host does not take it after all."""
        for attempt in range(REQUEST_TRIES):
            host = self._hosts([provider]).get(provider)
            if host is None:
                return None
            self._on_step(f"telling {host.node.value.name}")
            try:
                return self._write(request, claim, candidate, host)
            except CompareFailed:
                if claim.is_void():
                    raise Conflict(
                        "this launch took too long and was given up for dead", hint="launch it again"
                    ) from None
            time.sleep(self._rng.uniform(0, min(_MAX_PAUSE_S, 0.01 * 2**attempt)))
        raise Conflict(f"the request to {provider} lost against others {REQUEST_TRIES} times", hint="try again")

    def _write(self, request: LaunchRequest, claim: Claim, candidate: Candidate, host: _Host) -> Launched:
        node = host.node.value
        uuid, provider = claim.consumer, node.provider
        settings = self._cloud.settings
        network = self._networks.default(request.namespace, settings.default_network, node.underlay_mtu)
        port = self._networks.port(network, instance_uuid=uuid, interface_uuid=str(uuid4()), node=host.node, epoch=1)
        name = request.name or f"vm-{uuid[:8]}"
        spec = Spec(
            resources=_resources(candidate.allocations),
            image=request.image,
            ssh_keys=request.ssh_keys,
            has_user_data=request.user_data is not None,
            interfaces=(port.interface,),
        )
        instance = Instance(
            uuid=uuid,
            namespace=request.namespace,
            name=name,
            state=State.INITIAL,
            provider=provider,
            query=request.query,
            spec=spec,
            created_at=timestamp(self._now()),
        )
        assignment = Assignment(
            uuid=uuid,
            namespace=request.namespace,
            name=name,
            role=Role.RUN,
            generation=instance.generation,
            epoch=instance.epoch,
            spec=spec,
        )
        compares: list[Compare] = [
            unchanged(host.node),
            absent(keys.admin(provider)) if host.admin is None else unchanged(host.admin),
            absent(keys.instance(uuid)),
            *port.compares,
        ]
        operations: list[Op] = [
            Put(keys.instance(uuid), instance),
            Put(keys.assignment(provider, uuid), assignment),
            Put(keys.name(request.namespace, INSTANCE, name, uuid), Name(uuid=uuid, name=name)),
            *port.operations,
            self._cloud.events.record(INSTANCE, uuid, "requested", f"claimed on {node.name}, and asked of it"),
        ]
        if request.user_data is not None:
            operations.append(Put(keys.secrets(provider, uuid), Secrets(user_data=request.user_data)))
        revision = claim.request(compares, operations)
        return Launched(uuid, name, provider, node.name, port.interface.addresses, revision)


def _by_last(items: tuple[Versioned[T], ...]) -> dict[str, Versioned[T]]:
    return {keys.last(item.key): item for item in items}


def _is_active(admin: Versioned[Admin] | None) -> bool:
    return admin is None or admin.value.state is AdminState.ACTIVE


def _room(answer: Candidates, candidate: Candidate) -> list[tuple[float, int, int]]:
    room = []
    for provider, amounts in candidate.allocations.items():
        summary = answer.summaries.get(provider)
        for resource_class, amount in amounts.items():
            use = None if summary is None else summary.resources.get(resource_class)
            if use is not None:
                room.append((float(use.capacity), use.used, amount))
    return room


def _resources(allocations: Mapping[str, Mapping[str, int]]) -> Resources:
    """Return what the guest is to have: all that was claimed for it, wherever it is served."""
    total: dict[str, int] = {}
    for amounts in allocations.values():
        for resource_class, amount in amounts.items():
            total[resource_class] = total.get(resource_class, 0) + amount
    missing = [c for c in ("VCPU", "MEMORY_MB", "DISK_GB") if c not in total]
    if missing:
        raise InvalidInput(
            f"the query asks for no {' and no '.join(missing)}",
            hint="a guest needs all three, for example resources=VCPU:1,MEMORY_MB:256,DISK_GB:1",
        )
    return Resources(vcpus=total["VCPU"], memory_mb=total["MEMORY_MB"], disk_gb=total["DISK_GB"])
