"""The interfaces of an instance that is there: added, taken away, and waited for.

What is asked of the host is its assignment, at the next generation; it makes the guest so, and reports
that generation. To add an interface is one transaction: instance and assignment with it, its port with all
locks, the host's membership and the event. To take one away is two:

1. the instance and the assignment are without it, and the instance says that it is *leaving*, as of that
   generation. Its port and its locks stay: the guest may still be sending from it.
2. once the host has reported that generation, whoever waits, or the lead, gives back port, addresses, MAC,
   floating addresses and, if it was the host's last there, the membership (`ecompute.cluster.upkeep.finish`).

A death between the two leaves the second to the lead, which finds it by the host's report, and in every sweep
by the instance. An instance that is destroyed meanwhile gives back what is leaving with all the rest.

Safe from several threads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from uuid import uuid4

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import (
    Admin,
    AdminState,
    Assignment,
    Instance,
    Leaving,
    Network,
    Node,
    Role,
    State,
)
from ecompute.cluster.errors import (
    CompareFailed,
    Conflict,
    DeadlineExceeded,
    MacTaken,
    NotFound,
    Refused,
    StepFailed,
    one_line,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.failpoint import reach
from ecompute.cluster.given import physnet_trait
from ecompute.cluster.store import Compare, Op, Put, Store, Versioned, absent, unchanged
from eschedule.cloud import references
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import SILENCE_S, TICK_S, HostSilent, Instances, drain
from eschedule.cloud.interface_request import LIMIT, InterfaceRequest, check_all
from eschedule.cloud.interface_views import describe, find, has_reached
from eschedule.cloud.networks import Networks
from eschedule.cloud.ports import Lost, Ports

TRIES = 20

FAILPOINTS = ("interface.before", "interface.added", "interface.leaving")


class Interfaces:
    """The interfaces of all instances."""

    def __init__(self, cloud: Cloud, *, rng: random.Random | None = None) -> None:
        self._cloud = cloud
        self._store: Store = cloud.store
        self._instances = Instances(cloud)
        self._networks = Networks(cloud.store)
        self._ports = Ports(cloud.store, rng or random.Random())  # noqa: S311 - spreads choices, guards nothing

    # --- added ---------------------------------------------------------------------------------

    def add(self, ref: str, namespace: str, request: InterfaceRequest) -> Instance:
        """Ask the host of an instance to give it one more interface, its last; return the instance as it is then.

        Args:
            ref: what people call the instance.

        Raises:
            NotFound, Ambiguous: there is no such instance or network, or several.
            InvalidInput: the network has no such address, or no guest can have such an interface.
            AddressTaken, MacTaken, AddressesExhausted: what is asked for is another's, or nothing is free.
            Conflict: the instance is not one that runs, or it keeps changing.
            Refused: its host is lost or does not have the network, or it has as many as it may.
        """
        request = check_all([request])[0]
        lost = Lost()
        reach("interface.before")
        for _ in range(TRIES):
            found = references.find_within(self._store, ref, namespace)
            value = found.value
            assignment, compares = self._ready(found)
            if len(value.with_ports) >= LIMIT:
                raise Refused(
                    f"{value.name} has {len(value.with_ports)} interfaces, which is all that one may have",
                    hint=f"take one away: eschedule interface remove {value.name} …",
                )
            if request.mac is not None and request.mac in {interface.mac for interface in value.with_ports}:
                raise MacTaken(
                    f"{request.mac} is the MAC of another of its interfaces", hint="choose another MAC, or none"
                )
            network = self._network(request.network, namespace)
            node = self._store.get(keys.node(value.provider), Node)
            if node is None:
                raise Conflict(f"the host of {value.name} is not registered", hint="try again when it is back")
            self._check_bridge(network.value, node.value)
            port = self._ports.draft(lost).port(
                network,
                request,
                instance_uuid=value.uuid,
                interface_uuid=str(uuid4()),
                name=value.name,
                node=node,
                epoch=value.epoch,
                is_only_way=all(interface.gateway is None for interface in value.with_ports),
            )
            after = structs.replace(
                value,
                generation=value.generation + 1,
                spec=structs.replace(value.spec, interfaces=(*value.spec.interfaces, port.interface)),
            )
            says = f"its host is asked for {describe(port.interface)} on {network.value.name}"
            event = self._cloud.events.record(INSTANCE, value.uuid, "interface.asked", says)
            try:
                self._tell(
                    found, after, assignment, [*compares, unchanged(node), *port.compares], [*port.operations, event]
                )
            except CompareFailed as error:
                lost.note(error)
                continue
            reach("interface.added")
            return after
        raise _keeps_changing(ref)

    # --- taken away ----------------------------------------------------------------------------

    def remove(self, ref: str, namespace: str, interface: str) -> Instance:
        """Ask the host of an instance to take an interface from it; return the instance as it is then.

        Once more of one that is leaving already asks nothing.

        Args:
            ref: what people call the instance.
            interface: its uuid, or the beginning of it.

        Raises:
            NotFound: there is no such instance, or it has no such interface.
            InvalidInput: so short a beginning may be mistyped.
            Conflict: the instance is not one that runs, or it keeps changing.
            Refused: its host is lost.
        """
        reach("interface.before")
        for _ in range(TRIES):
            found = references.find_within(self._store, ref, namespace)
            value = found.value
            meant = find(value, interface)
            if any(item.interface.uuid == meant.uuid for item in value.leaving):
                return value
            assignment, compares = self._ready(found)
            generation = value.generation + 1
            left = tuple(item for item in value.spec.interfaces if item.uuid != meant.uuid)
            after = structs.replace(
                value,
                generation=generation,
                spec=structs.replace(value.spec, interfaces=left),
                leaving=(*value.leaving, Leaving(interface=meant, generation=generation)),
            )
            says = f"its host is asked to take away {describe(meant)}"
            event = self._cloud.events.record(INSTANCE, value.uuid, "interface.leaving", says)
            try:
                self._tell(found, after, assignment, compares, [event])
            except CompareFailed:
                continue
            reach("interface.leaving")
            return after
        raise _keeps_changing(ref)

    # --- waited for ----------------------------------------------------------------------------

    def wait(
        self,
        asked: Instance,
        *,
        timeout_s: float,
        on_step: Callable[[str], None] = lambda doing: None,
    ) -> Instance:
        """Wait until the host has made the guest as ``asked``, and what left was given back; return the instance.

        Raises:
            NotFound: it is gone, or is being destroyed.
            StepFailed: its host could not, and says why; it tries again.
            HostSilent: its host does not answer, and does it when it is back.
            DeadlineExceeded: it took longer than ``timeout_s``; the host goes on by itself.
        """
        answered = time.monotonic()
        deadline = answered + timeout_s
        with self._instances.wakes(asked) as woken:
            while True:
                found = self._store.get(keys.instance(asked.uuid), Instance)
                if found is None or found.value.state is State.DELETING:
                    raise NotFound(f"{asked.name} was destroyed meanwhile")
                seen = self._instances.view(found).seen
                events = self._instances.events(asked)
                on_step(events[-1].message if events else "")
                if seen is not None and has_reached(seen, asked):
                    if seen.error is not None:
                        raise StepFailed(
                            f"the host of {asked.name} could not: {seen.error}",
                            hint=f"it tries again; see `eschedule events {asked.uuid}`",
                        )
                    if not any(item.generation <= asked.generation for item in found.value.leaving):
                        return found.value
                    self._instances.finish(asked.uuid)
                now = time.monotonic()
                answered = now if self._instances.is_host_alive(found.value.provider) else answered
                if now - answered > SILENCE_S:
                    raise HostSilent(f"the host of {asked.name} does not answer", hint="it does it when it is back")
                if now >= deadline:
                    raise DeadlineExceeded(
                        f"the host of {asked.name} has not done it after {timeout_s:g} s",
                        hint=f"it goes on by itself; see `eschedule interface list {asked.uuid}`",
                    )
                drain(woken, timeout_s=min(TICK_S, deadline - now))

    # --- inside --------------------------------------------------------------------------------

    def _ready(self, found: Versioned[Instance]) -> tuple[Versioned[Assignment], list[Compare]]:
        """Return the assignment of an instance whose interfaces may change, and what has to stay so."""
        value = found.value
        state = self._instances.view(found).state
        if state is not State.CREATED:
            raise Conflict(f"{value.name} {_NOT_THERE[state]}", hint=f"see `eschedule show {value.uuid}`")
        assignment = self._store.get(keys.assignment(value.provider, value.uuid), Assignment)
        if assignment is None or assignment.value.role is not Role.RUN or assignment.value.epoch != value.epoch:
            raise Conflict(
                f"the host of {value.name} is told something else of it now",
                hint=f"try again; see `eschedule doctor {value.uuid}`",
            )
        admin_key = keys.admin(value.provider)
        admin = self._store.get(admin_key, Admin)
        if admin is not None and admin.value.effective is AdminState.LOST:
            node = self._store.get(keys.node(value.provider), Node)
            host = value.provider if node is None else node.value.name
            raise Refused(
                f"host {host} of {value.name} is lost since {admin.value.lost_since}: nothing is changed there",
                hint="try again when it is back",
            )
        compares = [
            unchanged(found),
            unchanged(assignment),
            absent(admin_key) if admin is None else unchanged(admin),
            unchanged(incarnation_of(self._store)),
        ]
        return assignment, compares

    def _tell(
        self,
        found: Versioned[Instance],
        after: Instance,
        assignment: Versioned[Assignment],
        compares: Sequence[Compare],
        operations: Sequence[Op],
    ) -> None:
        """Write ``after``, and what its host is told of it."""
        told = [Put(found.key, after), Put(assignment.key, assignment_of(after))]
        self._store.commit(compares, [*told, *operations])

    def _network(self, ref: str | None, namespace: str) -> Versioned[Network]:
        if ref is not None:
            return self._networks.find(ref, namespace)
        found = self._networks.find_default(namespace)
        if found is None:
            raise NotFound(f"namespace {namespace} has no default network", hint="name one of `eschedule network list`")
        return found

    def _check_bridge(self, network: Network, node: Node) -> None:
        """See that the host has the bridge of a physical network: its traits say so."""
        if network.physical is None:
            return
        if physnet_trait(network.physical) not in self._cloud.placement.traits(node.provider):
            raise Refused(
                f"host {node.name} has no bridge for network {network.name} ({network.physical})",
                hint="`bridges` in its compute.yaml names them",
            )


_NOT_THERE = {
    State.INITIAL: "is not built yet",
    State.CREATING: "is not built yet",
    State.ERROR: "has failed",
    State.DELETING: "is being destroyed",
    State.DELETED: "is being destroyed",
}


def _keeps_changing(ref: str) -> Conflict:
    return Conflict(f"{one_line(ref, 80)} keeps changing", hint="try again")
