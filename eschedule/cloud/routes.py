"""Routed addresses: addresses of a network that are handed to an instance beside its own, without translation.

The lock of such an address is bound to the interface, as those of its own are, and the port names it under
``routed``: both are written in one transaction, which compares them and the instance. What becomes of it is
the guest's matter. It goes with the port, or before it, and rests as others do.

Addresses of pools are routed as well, but are floating ones: `eschedule.cloud.floating`.

Safe from several threads.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import AddressLock, Instance, Network, Port, State
from ecompute.cluster.errors import CompareFailed, Conflict, NotFound, Refused, one_line
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.failpoint import reach
from ecompute.cluster.floating import parse_address, without
from ecompute.cluster.store import Op, Put, Store, Versioned, absent, unchanged
from ecompute.cluster.upkeep.locks import Locks
from eschedule.cloud import references
from eschedule.cloud.attaching import Place, check_routed, choose
from eschedule.cloud.networks import Networks
from eschedule.cloud.places import places
from eschedule.cloud.ports import Lost, Ports

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

TRIES = 20

FAILPOINTS = ("route.before", "route.made", "route.removed")


@dataclass(frozen=True)
class Route:
    """One routed address, and the interface that has it."""

    ip: str
    network: Network
    instance: Instance
    interface_uuid: str


class Routes:
    """The routed addresses of all networks."""

    def __init__(self, cloud: Cloud, *, rng: random.Random | None = None) -> None:
        self._cloud = cloud
        self._store: Store = cloud.store
        self._networks = Networks(cloud.store)
        self._ports = Ports(cloud.store, rng or random.Random())  # noqa: S311 - spreads choices, guards nothing
        self._locks = Locks(cloud.store)

    def add(
        self, network: str, ref: str, namespace: str, *, ip: str | None = None, interface: str | None = None
    ) -> Route:
        """Hand an address of a network to an instance that has an interface there.

        Args:
            network: its name or uuid.
            ref: what people call the instance.
            ip: this address; None: any free one.
            interface: the uuid of the interface, where it has several there.

        Raises:
            NotFound, Ambiguous: there is no such network, instance or interface, or several are meant.
            InvalidInput: the network has no such address.
            AddressTaken, AddressesExhausted: it is another's, or none is free.
            Conflict: the interface has as many as it may, or the instance is being destroyed.
        """
        wanted = None if ip is None else parse_address(ip)
        lost = Lost()
        reach("route.before")
        for _ in range(TRIES):
            same_incarnation = unchanged(incarnation_of(self._store))
            net = self._networks.find(network, namespace)
            instance = references.find_within(self._store, ref, namespace)
            value = instance.value
            if value.state is State.DELETING:
                raise Conflict(f"{value.name} is being destroyed", hint="choose another instance")
            found = places(self._store, value)
            place = choose(
                value.name,
                found,
                interface=interface,
                network=net.value.uuid,
                network_name=net.value.name,
                needs_gateway=False,
            )
            port = place.port.value
            if wanted is not None and wanted in port.routed:
                return Route(wanted, net.value, value, port.interface_uuid)
            check_routed(value.name, port)
            address, is_free = self._ports.draft(lost).address(net.value, wanted)
            lock = AddressLock(interface_uuid=port.interface_uuid, instance_uuid=port.instance_uuid)
            says = f"{address} of {net.value.name} is handed on without translation, to {_own(place)}"
            try:
                self._store.commit(
                    [unchanged(net), is_free, unchanged(place.port), unchanged(instance), same_incarnation],
                    [
                        Put(keys.address(net.value.uuid, address), lock),
                        Put(place.port.key, structs.replace(port, routed=(*port.routed, address))),
                        self._cloud.events.record(INSTANCE, value.uuid, "address.routed", says),
                    ],
                )
            except CompareFailed as error:
                lost.note(error)
                continue
            reach("route.made")
            return Route(address, net.value, value, port.interface_uuid)
        raise Conflict(f"{one_line(ref, 80)} keeps changing", hint="try again")

    def remove(self, network: str, ip: str, namespace: str) -> None:
        """Take a routed address from the instance that has it; it rests then.

        Raises:
            NotFound, Ambiguous: there is no such network, or several; or the address is nobody's.
            Refused: it is an interface's own.
        """
        wanted = parse_address(ip)
        reach("route.before")
        for _ in range(TRIES):
            same_incarnation = unchanged(incarnation_of(self._store))
            net = self._networks.find(network, namespace)
            key = keys.address(net.value.uuid, wanted)
            lock = self._store.get(key, AddressLock)
            if lock is None or lock.value.is_resting:
                raise NotFound(
                    f"{wanted} is handed to nobody on network {net.value.name}",
                    hint=f"see `eschedule network show {net.value.name}`",
                )
            port_key = keys.port(net.value.uuid, lock.value.interface_uuid)
            port = self._store.get(port_key, Port)
            instance = self._store.get(keys.instance(lock.value.instance_uuid), Instance)
            compares = [unchanged(lock), absent(port_key) if port is None else unchanged(port), same_incarnation]
            operations: list[Op] = [self._locks.rest(lock)]
            if port is not None:
                if wanted not in port.value.routed:
                    raise Refused(
                        f"{wanted} is the own address of interface {port.value.interface_uuid}",
                        hint=f"see `eschedule interface remove {_name(instance)} {port.value.interface_uuid}`",
                    )
                operations.append(Put(port_key, without(port.value, wanted)))
            if instance is not None:  # its events go with it: none is written once it is gone
                compares.append(unchanged(instance))
                says = f"{wanted} of {net.value.name} is not handed to it any more"
                operations.append(self._cloud.events.record(INSTANCE, instance.value.uuid, "address.unrouted", says))
            try:
                self._store.commit(compares, operations)
            except CompareFailed as error:
                if not error.keys:
                    self._locks.lease_has_ended()
                continue
            reach("route.removed")
            return
        raise Conflict(f"{wanted} keeps changing", hint="try again")


def _own(place: Place) -> str:
    return next(address.split("/")[0] for address in place.interface.addresses if ":" not in address)


def _name(instance: Versioned[Instance] | None) -> str:
    return "INSTANCE" if instance is None else instance.value.name
