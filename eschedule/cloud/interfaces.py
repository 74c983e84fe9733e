"""The interfaces of an instance that is there: seen, and taken away.

What is asked of the host is its assignment, at the next generation; it makes the guest so, and reports
that generation. To take an interface away is two transactions:

1. the instance and the assignment are without it, and the instance says that it is *leaving*, as of that
   generation. Its port and its locks stay: the guest may still be sending from it.
2. once the host has reported that generation, whoever waits, or the lead, gives back port, addresses, MAC,
   floating addresses and, if it was the host's last there, the membership (`ecompute.cluster.upkeep.finish`).

A death between the two leaves the second to the lead, which finds it by the host's report, and in every sweep
by the instance. An instance that is destroyed meanwhile gives back what is leaving with all the rest.

Safe from several threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.assignments import assignment_of
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import (
    Admin,
    AdminState,
    Assignment,
    Instance,
    Interface,
    Leaving,
    Network,
    Node,
    Port,
    Role,
    Seen,
    State,
)
from ecompute.cluster.errors import (
    Ambiguous,
    CompareFailed,
    Conflict,
    DeadlineExceeded,
    NotFound,
    Refused,
    StepFailed,
    one_line,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.failpoint import reach
from ecompute.cluster.store import Compare, Op, Put, Store, Versioned, absent, unchanged
from eschedule.cloud import references
from eschedule.cloud.connection import Cloud
from eschedule.cloud.instances import SILENCE_S, TICK_S, HostSilent, Instances, drain

TRIES = 20

FAILPOINTS = ("interface.before", "interface.leaving")


class Standing(StrEnum):
    """How an interface stands."""

    ASKED = "asked"
    """Its host has not reported yet that the guest has it."""
    PRESENT = "present"
    LEAVING = "leaving"
    """Its host has not reported yet that the guest is without it."""


@dataclass(frozen=True)
class InterfaceView:
    """One interface of an instance.

    Args:
        network: its name; None: it is not there.
        port: None: it is not there.
    """

    interface: Interface
    network: str | None
    port: Port | None
    standing: Standing


class Interfaces:
    """The interfaces of all instances."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._store: Store = cloud.store
        self._instances = Instances(cloud)

    def all(self, found: Versioned[Instance]) -> list[InterfaceView]:
        """Return the interfaces of an instance in their order, those that are leaving last."""
        instance = found.value
        interfaces = instance.with_ports
        uuids = list(dict.fromkeys(interface.network_uuid for interface in interfaces))
        networks = {
            item.value.uuid: item.value.name
            for item in self._store.get_many([keys.network(uuid) for uuid in uuids], Network).items
        }
        listing = self._store.get_many([keys.port(i.network_uuid, i.uuid) for i in interfaces], Port)
        ports = {item.value.interface_uuid: item.value for item in listing.items}
        leaving = {item.interface.uuid for item in instance.leaving}
        seen = self._instances.view(found).seen
        is_so = seen is not None and seen.error is None and has_reached(seen, instance)
        here = Standing.PRESENT if is_so else Standing.ASKED
        return [
            InterfaceView(
                interface,
                networks.get(interface.network_uuid),
                ports.get(interface.uuid),
                Standing.LEAVING if interface.uuid in leaving else here,
            )
            for interface in interfaces
        ]

    def view(self, found: Versioned[Instance], ref: str) -> InterfaceView:
        """Return the interface of an instance that ``ref`` names, by its uuid or the beginning of it.

        Raises:
            NotFound: it has no such interface.
            Ambiguous: it has several.
        """
        uuid = find(found.value, ref).uuid
        return next(view for view in self.all(found) if view.interface.uuid == uuid)

    def now(self, instance: Instance) -> Versioned[Instance] | None:
        """Return the instance as it is now, if it is there."""
        return self._store.get(keys.instance(instance.uuid), Instance)

    # --- taken away ----------------------------------------------------------------------------

    def remove(self, ref: str, namespace: str, interface: str) -> Instance:
        """Ask the host of an instance to take an interface from it; return the instance as it is then.

        Once more of one that is leaving already asks nothing.

        Args:
            ref: what people call the instance.
            interface: its uuid, or the beginning of it.

        Raises:
            NotFound: there is no such instance, or it has no such interface.
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
            if self._told(found, after, assignment, compares, [], "interface.leaving", says):
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

    def _told(
        self,
        found: Versioned[Instance],
        after: Instance,
        assignment: Versioned[Assignment],
        compares: list[Compare],
        operations: list[Op],
        type_: str,
        says: str,
    ) -> bool:
        """Write ``after`` and tell its host; return whether it was as read until then."""
        event = self._cloud.events.record(INSTANCE, after.uuid, type_, says)
        order = Put(assignment.key, assignment_of(after))
        try:
            self._store.commit(compares, [Put(found.key, after), order, event, *operations])
        except CompareFailed:
            return False
        return True


_NOT_THERE = {
    State.INITIAL: "is not built yet",
    State.CREATING: "is not built yet",
    State.ERROR: "has failed",
    State.DELETING: "is being destroyed",
    State.DELETED: "is being destroyed",
}


def has_reached(seen: Seen, asked: Instance) -> bool:
    """Whether its host speaks of what was ``asked``, or of more: with an error, it has only tried. Pure."""
    return (seen.epoch, seen.generation) >= (asked.epoch, asked.generation)


def find(instance: Instance, ref: str) -> Interface:
    """Return the interface that ``ref`` names, by its uuid or the beginning of it. Pure.

    Raises:
        NotFound: there is none.
        Ambiguous: there are several.
    """
    found = [interface for interface in instance.with_ports if ref and interface.uuid.startswith(ref.lower())]
    if not found:
        raise NotFound(
            f"{instance.name} has no interface {one_line(ref, 80)!r}",
            hint=f"see `eschedule interface list {instance.name}`",
        )
    if len(found) > 1:
        some = ", ".join(interface.uuid for interface in found)
        raise Ambiguous(f"{one_line(ref, 80)!r} may be any of {some}", hint="give more of it")
    return found[0]


def describe(interface: Interface) -> str:
    """Return what is said of an interface in a line. Pure."""
    addresses = ", ".join(address.split("/")[0] for address in interface.addresses)
    return f"interface {interface.uuid} ({addresses or interface.mac})"


def _keeps_changing(ref: str) -> Conflict:
    return Conflict(f"{one_line(ref, 80)} keeps changing", hint="try again")
