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
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.claims import Claim, incarnation_of
from ecompute.cluster.documents import (
    Assignment,
    Instance,
    Interface,
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
    CompareFailed,
    Conflict,
    NoRoom,
    StoreUnavailable,
    Unavailable,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.placement import Candidate, Candidates
from ecompute.cluster.store import Compare, Op, Put, absent, unchanged
from eschedule.cloud.connection import Cloud
from eschedule.cloud.networks import Networks
from eschedule.scheduler.candidates import Target, by_host, ranked, targets
from eschedule.scheduler.rank import Ranked
from eschedule.scheduler.request import LaunchRequest, check

CANDIDATES_LIMIT = 100
REQUEST_TRIES = 20
_MAX_PAUSE_S = 0.25


@dataclass(frozen=True)
class Launched:
    """A request that its host has been told of."""

    uuid: str
    name: str
    provider: str
    host: str
    is_host_alive: bool
    """Whether its daemon answers; one that does not takes the request up when it is back."""
    addresses: tuple[str, ...]


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
            OnHold: etcd holds no cloud, or has lost it.
            Conflict: see its text. Nothing stays claimed.
            Unavailable: what was claimed is found by the audit after its grace period, unless the
                instance is there by then.
        """
        request = check(request)
        uuid = str(uuid4())
        self._on_step("asking placement for candidates")
        answer = self._cloud.placement.candidates(request.query, limit=CANDIDATES_LIMIT)
        if not answer.items:
            raise self._no_room(f"no host can serve {request.query}", "ask for less, or see `eschedule hosts`")
        hosts = by_host(answer)
        known = targets(self._store, set(hosts.values()))
        choices = ranked(answer, hosts, known, self._rng.getrandbits(64))
        if not choices:
            raise self._no_room("no host with room takes anything new now", "see `eschedule hosts`")
        claim = self._cloud.claims.begin(uuid, namespace=request.namespace)
        try:
            return self._try_each(request, claim, answer, choices, known)
        except Unavailable as error:
            # It is not known what was written, and giving up would wait for the same service: what
            # is an instance by now goes on, and the audit finds the rest.
            error.hint = f"{error.hint}; then see `eschedule doctor {uuid}` for what became of it"
            raise
        except BaseException:
            try:
                claim.give_up()
            except Unavailable:
                self._on_step(f"left {uuid} to the audit")
            raise

    def _no_room(self, text: str, hint: str) -> NoRoom:
        """Return what to raise. Hosts on hold offer nothing, and then that is the reason, and not the lack of room.

        Raises:
            OnHold: etcd holds no cloud, or has lost it.
        """
        incarnation_of(self._store)
        nodes = [item.value for item in self._store.list(keys.NODES, Node).items]
        held = sorted((node for node in nodes if node.hold is not None), key=lambda node: node.name)
        if not held:
            return NoRoom(text, hint=hint)
        return NoRoom(
            f"{text}: {len(held)} of {len(nodes)} hosts are on hold ({held[0].name}: {held[0].hold})",
            hint="see `eschedule hosts`; an operator ends a hold with `ecompute adopt`",
        )

    def _try_each(
        self,
        request: LaunchRequest,
        claim: Claim,
        answer: Candidates,
        choices: list[Ranked],
        known: Mapping[str, Target],
    ) -> Launched:
        closed: set[str] = set()
        for choice in choices:
            if choice.provider in closed:
                continue
            candidate, target = answer.items[choice.index], known[choice.provider]
            self._on_step(f"claiming room on {target.name}")
            try:
                claim.take(candidate.allocations, candidate.mappings)
            except ClaimRefused as refusal:
                if refusal.scope != "host":
                    raise
                self._on_refused(f"{choice.provider} {refusal}")
                continue
            launched = self._request(request, claim, candidate, target)
            if launched is not None:
                return launched
            if claim.is_in_doubt:
                raise Conflict(
                    f"{target.name} takes nothing new, and whether it was asked before is not known",
                    hint=f"see `eschedule doctor {claim.consumer}`, and launch another where it shows nothing",
                )
            self._on_refused(f"{choice.provider} takes nothing new")
            closed.add(choice.provider)
            claim.release()
        raise NoRoom("every claim was lost to somebody else", hint="try again, or see `eschedule hosts`")

    def _request(self, request: LaunchRequest, claim: Claim, candidate: Candidate, known: Target) -> Launched | None:
        """Write the request; ``None`` if the host does not take it after all."""
        provider = known.node.value.provider
        target: Target | None = known
        for attempt in range(REQUEST_TRIES):
            if attempt:
                time.sleep(self._rng.uniform(0, min(_MAX_PAUSE_S, 0.01 * 2**attempt)))
                target = targets(self._store, [provider]).get(provider)
            if target is None:
                return None
            self._on_step(f"telling {target.name}")
            try:
                return self._write(request, claim, candidate, target)
            except CompareFailed:
                if claim.is_void():
                    raise Conflict(
                        "this launch took too long and was given up for dead", hint="launch it again"
                    ) from None
            except StoreUnavailable as error:
                if not error.may_be_written:
                    raise
                self._on_step("asking etcd what became of it")
                if claim.settle():
                    return self._found(claim.consumer, target)
        raise Conflict(f"the request to {provider} lost against others {REQUEST_TRIES} times", hint="try again")

    def _write(self, request: LaunchRequest, claim: Claim, candidate: Candidate, target: Target) -> Launched:
        node = target.node.value
        uuid = claim.consumer
        network = self._networks.default(
            request.namespace,
            self._cloud.settings.default_network,
            node.underlay_mtu,
            guard=claim.same_incarnation(),
        )
        port = self._networks.port(network, instance_uuid=uuid, interface_uuid=str(uuid4()), node=target.node, epoch=1)
        instance = _instance(request, uuid, node.provider, candidate, port.interface, timestamp(self._now()))
        compares: list[Compare] = [
            unchanged(target.node),
            absent(keys.admin(node.provider)) if target.admin is None else unchanged(target.admin),
            absent(keys.instance(uuid)),
            *port.compares,
        ]
        operations: list[Op] = [
            Put(keys.instance(uuid), instance),
            Put(keys.assignment(node.provider, uuid), _assignment(instance)),
            Put(keys.name(instance.namespace, INSTANCE, instance.name, uuid), Name(uuid=uuid, name=instance.name)),
            *port.operations,
            self._cloud.events.record(INSTANCE, uuid, "requested", f"claimed on {node.name}, and asked of it"),
        ]
        if request.user_data is not None:
            operations.append(Put(keys.secrets(node.provider, uuid), Secrets(user_data=request.user_data)))
        claim.request(compares, operations)
        return _launched(instance, target)

    def _found(self, uuid: str, target: Target) -> Launched:
        found = self._store.get(keys.instance(uuid), Instance)
        if found is None:
            raise Conflict(f"{uuid} was launched, and destroyed by somebody at once")
        return _launched(found.value, target)


def _instance(
    request: LaunchRequest, uuid: str, provider: str, candidate: Candidate, interface: Interface, created_at: str
) -> Instance:
    return Instance(
        uuid=uuid,
        namespace=request.namespace,
        name=request.name or f"vm-{uuid[:8]}",
        state=State.INITIAL,
        provider=provider,
        query=request.query,
        spec=Spec(
            resources=_resources(candidate.allocations),
            image=request.image,
            ssh_keys=request.ssh_keys,
            has_user_data=request.user_data is not None,
            interfaces=(interface,),
        ),
        created_at=created_at,
    )


def _assignment(instance: Instance) -> Assignment:
    return Assignment(
        uuid=instance.uuid,
        namespace=instance.namespace,
        name=instance.name,
        role=Role.RUN,
        generation=instance.generation,
        epoch=instance.epoch,
        spec=instance.spec,
    )


def _launched(instance: Instance, target: Target) -> Launched:
    addresses = tuple(address for interface in instance.spec.interfaces for address in interface.addresses)
    return Launched(instance.uuid, instance.name, instance.provider, target.name, target.is_alive, addresses)


def _resources(allocations: Mapping[str, Mapping[str, int]]) -> Resources:
    """Return what the guest is to have: all that was claimed for it, wherever it is served."""
    total: dict[str, int] = {}
    for amounts in allocations.values():
        for resource_class, amount in amounts.items():
            total[resource_class] = total.get(resource_class, 0) + amount
    # `check` has seen to it that the query asks for all of them.
    return Resources(vcpus=total["VCPU"], memory_mb=total["MEMORY_MB"], disk_gb=total["DISK_GB"])
