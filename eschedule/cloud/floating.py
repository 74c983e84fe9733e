"""Floating addresses: had by a namespace, and attached to at most one interface of it.

``/floating/<ip>`` is created only if absent, so that an address never has two owners. Attached, it is said by
the port as well, which is what hosts act on: both are compared and written in one transaction, with the event.
The transaction compares the instance too; one that is being destroyed is given nothing any more, and its
port, when it goes, frees what it names (`ecompute.cluster.upkeep.ports`). A death leaves all of it or nothing.

Safe from several threads.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ecompute.cluster import floating as rules
from ecompute.cluster import keys
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import Floating, Instance, Name, Network, Pool, Port, State, timestamp
from ecompute.cluster.errors import (
    AddressesExhausted,
    AddressTaken,
    CompareFailed,
    Conflict,
    NotFound,
    Refused,
    one_line,
)
from ecompute.cluster.events import INSTANCE
from ecompute.cluster.failpoint import reach
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, Versioned, absent, unchanged
from eschedule.cloud import references
from eschedule.cloud.attaching import Place, check_outside, check_routed, choose
from eschedule.cloud.places import places
from eschedule.cloud.pools import Pools

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

KIND = "floating"
TRIES = 20
NARROW = 256
"""Addresses of a pool in which it is looked before one is drawn."""
COLLISIONS = 2
"""After so many draws that were taken, it is looked in any pool."""

FAILPOINTS = ("floating.before", "floating.created", "floating.attached", "floating.detached", "floating.deleted")


class FloatingAttached(Conflict):
    """It is attached to another interface."""

    code = "floating.attached"


@dataclass(frozen=True)
class Target:
    """What a floating address is to be attached to.

    Args:
        ref: what people call the instance.
        interface: its uuid; ``network`` a name or a uuid: where the instance has several.
        is_routed: it is handed on without translation.
    """

    ref: str
    interface: str | None = None
    network: str | None = None
    is_routed: bool = False


@dataclass(frozen=True)
class FloatingView:
    """A floating address, and the name of the instance that it is attached to."""

    floating: Floating
    instance_name: str | None = None


class FloatingAddresses:
    """All floating addresses of a cloud."""

    def __init__(self, cloud: Cloud, *, rng: random.Random | None = None, now: Callable[[], float] = time.time) -> None:
        self._cloud = cloud
        self._store: Store = cloud.store
        self._pools = Pools(cloud, now=now)
        self._rng = rng or random.Random()  # noqa: S311 - spreads choices, guards nothing
        self._now = now

    # --- had -----------------------------------------------------------------------------------

    def create(
        self, namespace: str, *, pool: str | None = None, ip: str | None = None, target: Target | None = None
    ) -> Floating:
        """Give ``namespace`` an address: any free one, or ``ip``.

        Args:
            pool: only out of this one.
            target: what it is attached to in the same transaction; raises what `attach` raises.

        Raises:
            InvalidInput: ``ip`` is no address, or in no such pool.
            NotFound: there is no pool, or none of that name.
            AddressTaken: somebody has ``ip``.
            AddressesExhausted: every address of the pools is in use.
        """
        wanted = None if ip is None else rules.parse_address(ip)
        reach("floating.before")
        exhausted: list[AddressesExhausted] = []
        for candidate in self._pools.candidates(pool, wanted):
            try:
                return self._create(namespace, candidate, wanted, target)
            except AddressesExhausted as error:
                exhausted.append(error)
        if len(exhausted) == 1:
            raise exhausted[0]
        raise AddressesExhausted(
            f"all addresses of all {len(exhausted)} pools are in use",
            hint="delete a floating address, or ask an operator for another pool",
        )

    def find(self, ip: str, namespace: str) -> Versioned[Floating]:
        """Return the floating address ``ip`` of ``namespace``.

        Raises:
            InvalidInput: it is no address.
            NotFound: ``namespace`` has no such floating address.
        """
        wanted = rules.parse_address(ip)
        found = self._store.get(keys.floating(wanted), Floating)
        if found is None or found.value.namespace != namespace:
            raise NotFound(
                f"there is no floating address {wanted} in namespace {namespace}", hint="see `eschedule floating list`"
            )
        return found

    def all(self, namespace: str | None) -> list[FloatingView]:
        """Return the floating addresses of ``namespace``, or of all of them."""
        if namespace is None:
            found = self._store.list(keys.FLOATING, Floating).items
        else:
            names, _ = self._store.keys(keys.names(namespace, KIND))
            found = self._store.get_many([keys.floating(keys.last(key)) for key in names], Floating).items
        return self.views([item.value for item in found if namespace in (None, item.value.namespace)])

    def views(self, found: Sequence[Floating]) -> list[FloatingView]:
        """Return ``found`` with the names of their instances."""
        uuids = sorted({one.instance_uuid for one in found if one.instance_uuid is not None})
        items = self._store.get_many([keys.instance(uuid) for uuid in uuids], Instance).items
        names = {item.value.uuid: item.value.name for item in items}
        return [FloatingView(one, names.get(one.instance_uuid or "")) for one in found]

    def caveat(self, floating: Floating) -> str | None:
        """Return what has to be done in the instance before the address works, if anything has."""
        if floating.instance_uuid is None:
            return None
        instance = self._store.get(keys.instance(floating.instance_uuid), Instance)
        network = self._store.get(keys.network(floating.network_uuid or ""), Network)
        if instance is None or network is None:
            return None
        own = (one for one in instance.value.spec.interfaces if one.uuid == floating.interface_uuid)
        if all(interface.gateway is not None for interface in own):
            return None
        dhcp = "comes with its next lease by DHCP, or " if network.value.has_dhcp else ""
        return (
            f"{instance.value.name} was given no default route on {network.value.name}; "
            f"the one by {network.value.gateway} {dhcp}is for it to set up"
        )

    def addresses(self, namespace: str, beginning: str = "", *, limit: int = 100) -> list[str]:
        """Return the floating addresses of ``namespace`` that begin so."""
        if not set(beginning) <= set("0123456789."):
            return []
        found, _ = self._store.keys(keys.names(namespace, KIND) + beginning, limit=limit)
        return [keys.last(key) for key in found]

    def delete(self, ip: str, namespace: str) -> None:
        """Give the address back to its pool.

        Raises:
            NotFound: ``namespace`` has no such floating address.
            Refused: it is attached.
        """
        reach("floating.before")
        for _ in range(TRIES):
            found = self.find(ip, namespace)
            value = found.value
            if rules.is_attached(value):
                raise Refused(
                    f"{value.ip} is attached to {self._whose(value)}",
                    hint=f"detach it first: eschedule floating detach {value.ip}",
                )
            try:
                self._store.commit(
                    [unchanged(found)], [Delete(found.key), Delete(keys.name(namespace, KIND, value.ip, value.ip))]
                )
            except CompareFailed:
                continue
            reach("floating.deleted")
            return
        raise _keeps_changing(ip)

    # --- attached ------------------------------------------------------------------------------

    def attach(self, ip: str, namespace: str, target: Target) -> Floating:
        """Attach a floating address of ``namespace`` to an interface of one of its instances.

        Raises:
            NotFound: there is no such address, instance or interface.
            Ambiguous: several interfaces could have it.
            Refused: the network has no gateway, or the interface no address that it could stand for.
            FloatingAttached: it is attached elsewhere.
            Conflict: the interface has another one, or the instance is being destroyed.
        """
        reach("floating.before")
        for _ in range(TRIES):
            same_incarnation = unchanged(incarnation_of(self._store))
            floating = self.find(ip, namespace)
            instance = references.find_within(self._store, target.ref, namespace)
            try:
                done = self._attach(floating, instance, target, same_incarnation)
            except CompareFailed:
                continue
            reach("floating.attached")
            return done
        raise _keeps_changing(ip)

    def detach(self, ip: str, namespace: str) -> Floating:
        """Detach a floating address from whatever it is attached to.

        Raises:
            NotFound: ``namespace`` has no such floating address.
        """
        reach("floating.before")
        for _ in range(TRIES):
            same_incarnation = unchanged(incarnation_of(self._store))
            floating = self.find(ip, namespace)
            if not rules.is_attached(floating.value):
                return floating.value
            try:
                done = self._detach(floating, same_incarnation)
            except CompareFailed:
                continue
            reach("floating.detached")
            return done
        raise _keeps_changing(ip)

    # --- inside --------------------------------------------------------------------------------

    def _create(self, namespace: str, pool: Versioned[Pool], ip: str | None, target: Target | None = None) -> Floating:
        is_narrow = rules.size(pool.value) <= NARROW
        for attempt in range(TRIES):
            same_incarnation = unchanged(incarnation_of(self._store))
            taken: set[str] = set()
            if is_narrow or attempt >= COLLISIONS:
                taken, _ = self._pools.in_use(pool.value)
            chosen = ip or rules.choose(pool.value, taken, self._rng.getrandbits(32))
            made = Floating(ip=chosen, pool=pool.value.name, namespace=namespace, created_at=timestamp(self._now()))
            key = keys.floating(chosen)
            compares = [absent(key), unchanged(pool), same_incarnation]
            operations: list[Op] = [Put(keys.name(namespace, KIND, chosen, chosen), Name(uuid=chosen, name=chosen))]
            if target is not None:
                instance = references.find_within(self._store, target.ref, namespace)
                made = self._hand(made, instance, self._place(instance.value, target), target, compares, operations)
            try:
                self._store.commit(compares, [Put(key, made), *operations])
            except CompareFailed as error:
                if key in error.keys and ip is not None:
                    raise self._taken(ip, namespace) from error
                if pool.key in error.keys:
                    pool = self._pools.find(pool.value.name)
                continue
            reach("floating.created")
            return made
        raise Conflict(f"the addresses of pool {pool.value.name} keep changing", hint="try again")

    def _taken(self, ip: str, namespace: str) -> AddressTaken:
        found = self._store.get(keys.floating(ip), Floating)
        if found is not None and found.value.namespace == namespace:
            return AddressTaken(
                f"{ip} is a floating address of namespace {namespace} already",
                hint=f"see `eschedule floating show {ip}`",
            )
        return AddressTaken(f"{ip} is in use", hint="choose another one, or leave --address out")

    def _attach(
        self, floating: Versioned[Floating], instance: Versioned[Instance], target: Target, same_incarnation: Compare
    ) -> Floating:
        value = floating.value
        if value.instance_uuid == instance.value.uuid and target.interface is None and target.network is None:
            # Whichever it is attached to is the one that is meant.
            target = replace(target, interface=value.interface_uuid)
        place = self._place(instance.value, target)
        if rules.is_attached(value):
            if rules.is_said(place.port.value, value) and value.is_routed == target.is_routed:
                return value
            raise FloatingAttached(
                f"{value.ip} is attached to {self._whose(value)}",
                hint=f"detach it first: eschedule floating detach {value.ip}",
            )
        compares = [unchanged(floating), same_incarnation]
        operations: list[Op] = []
        after = self._hand(value, instance, place, target, compares, operations)
        self._store.commit(compares, [Put(floating.key, after), *operations])
        return after

    def _place(self, instance: Instance, target: Target) -> Place:
        if instance.state is State.DELETING:
            raise Conflict(f"{instance.name} is being destroyed", hint="choose another instance")
        found = places(self._store, instance)
        return choose(instance.name, found, interface=target.interface, network=target.network)

    def _hand(
        self,
        floating: Floating,
        instance: Versioned[Instance],
        place: Place,
        target: Target,
        compares: list[Compare],
        operations: list[Op],
    ) -> Floating:
        """Add what hands ``floating``, which nobody has, to ``place``; return it as it is then."""
        value, port = instance.value, place.port.value
        check_outside(floating.ip, place.network)
        if target.is_routed:
            check_routed(value.name, port)
        elif port.floating is not None:
            raise Conflict(
                f"interface {port.interface_uuid} of {value.name} has the floating address {port.floating}",
                hint="an interface has one at most; detach that one, or attach it --routed",
            )
        after, port_after = rules.attached(floating, port, place.network.uuid, is_routed=target.is_routed)
        own = next(address.split("/")[0] for address in port.addresses if ":" not in address)
        way = "handed on without translation, to" if target.is_routed else "translated to"
        compares += [unchanged(place.port), unchanged(instance)]
        operations += [
            Put(place.port.key, port_after),
            self._cloud.events.record(
                INSTANCE, value.uuid, "floating.attached", f"{floating.ip} is {way} {own} on {place.network.name}"
            ),
        ]
        return after

    def _detach(self, floating: Versioned[Floating], same_incarnation: Compare) -> Floating:
        value = floating.value
        after = rules.freed(value)
        compares: list[Compare] = [unchanged(floating), same_incarnation]
        operations: list[Op] = [Put(floating.key, after)]
        if value.network_uuid is not None and value.interface_uuid is not None:
            key = keys.port(value.network_uuid, value.interface_uuid)
            port = self._store.get(key, Port)
            compares.append(absent(key) if port is None else unchanged(port))
            if port is not None:
                operations.append(Put(key, rules.without(port.value, value.ip)))
        if value.instance_uuid is not None:
            instance = self._store.get(keys.instance(value.instance_uuid), Instance)
            if instance is not None:  # its events go with it: none is written once it is gone
                compares.append(unchanged(instance))
                says = f"{value.ip} is not its address any more"
                operations.append(self._cloud.events.record(INSTANCE, value.instance_uuid, "floating.detached", says))
        self._store.commit(compares, operations)
        return after

    def _whose(self, floating: Floating) -> str:
        """Return where it is attached, in words."""
        (view,) = self.views([floating])
        name = "an instance" if view.instance_name is None else view.instance_name
        return f"{name} ({floating.instance_uuid}), interface {floating.interface_uuid}"


def _keeps_changing(ip: str) -> Conflict:
    return Conflict(f"{one_line(ip, 80)} keeps changing", hint="try again")
