"""The interfaces of an instance as they are seen: what is asked for, what its host has reported, what is leaving.

Reads only; safe from several threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance, Interface, Port, Seen
from ecompute.cluster.errors import Ambiguous, InvalidInput, NotFound, one_line
from ecompute.cluster.store import Store, Versioned
from eschedule.cloud.places import networks_and_ports

SHORTEST = 4
"""Characters of the beginning of a uuid: with fewer, what was mistyped would be another one that is there."""


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


def views(store: Store, found: Versioned[Instance]) -> list[InterfaceView]:
    """Return the interfaces of an instance in their order, those that are leaving last."""
    instance = found.value
    interfaces = instance.with_ports
    networks, ports = networks_and_ports(store, interfaces)
    leaving = {item.interface.uuid for item in instance.leaving}
    seen = store.get(keys.seen(instance.provider, instance.uuid), Seen)
    is_so = seen is not None and seen.value.error is None and has_reached(seen.value, instance)
    here = Standing.PRESENT if is_so else Standing.ASKED
    return [
        InterfaceView(
            interface,
            networks[interface.network_uuid].name if interface.network_uuid in networks else None,
            ports[interface.uuid].value if interface.uuid in ports else None,
            Standing.LEAVING if interface.uuid in leaving else here,
        )
        for interface in interfaces
    ]


def view(store: Store, found: Versioned[Instance], ref: str) -> InterfaceView:
    """Return the interface of an instance that ``ref`` names, by its uuid or the beginning of it.

    Raises:
        NotFound: it has no such interface.
        Ambiguous: it has several.
    """
    uuid = find(found.value, ref).uuid
    return next(view for view in views(store, found) if view.interface.uuid == uuid)


def has_reached(seen: Seen, asked: Instance) -> bool:
    """Whether its host speaks of what was ``asked``, or of more: with an error, it has only tried. Pure."""
    return (seen.epoch, seen.generation) >= (asked.epoch, asked.generation)


def find(instance: Instance, ref: str) -> Interface:
    """Return the interface that ``ref`` names, by its uuid or the beginning of it, an address or its MAC. Pure.

    Raises:
        NotFound: there is none.
        InvalidInput: it is too short a beginning.
        Ambiguous: there are several.
    """
    wanted = ref.lower()
    whole = [
        interface
        for interface in instance.with_ports
        if wanted in (interface.mac, *(address.split("/")[0] for address in interface.addresses))
    ]
    found = whole or [one for one in instance.with_ports if wanted and one.uuid.startswith(wanted)]
    if not found:
        raise NotFound(
            f"{instance.name} has no interface {one_line(ref, 80)!r}",
            hint=f"see `eschedule interface list {instance.name}`",
        )
    if not whole and len(ref) < SHORTEST:
        raise InvalidInput(
            f"{ref!r} is too little of an interface's uuid", hint=f"give its first {SHORTEST} characters, or more"
        )
    if len(found) > 1:
        some = ", ".join(interface.uuid for interface in found)
        raise Ambiguous(f"{one_line(ref, 80)!r} may be any of {some}", hint="give more of it")
    return found[0]


def describe(interface: Interface) -> str:
    """Return what is said of an interface in a line. Pure."""
    addresses = ", ".join(address.split("/")[0] for address in interface.addresses)
    return f"interface {interface.uuid} ({addresses or interface.mac})"
