"""New ports of networks: an interface as the guest will have it, and what the transaction must hold for it.

A `Draft` is the ports of one transaction. It chooses addresses and MACs, and returns what is compared
and what is put; nothing is taken before the caller has committed it. In a wide range an address is drawn
without looking; those that are taken are read where the range is narrow, or after draws that were lost.
What rests (see `ecompute.cluster.upkeep.locks`) is taken over only where nothing else is free, or where
that very address is asked for.

What a transaction has lost against others is noted in a `Lost`, and goes into the draft of the next try.

Threads: `Ports` from any; a draft is its maker's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from ecompute.cluster import keys
from ecompute.cluster.addressing import check_address, choose_address, label, mac_address
from ecompute.cluster.addressing6 import check_address6, derive_address6
from ecompute.cluster.documents import AddressLock, Document, Interface, MacLock, Network, NetworkHost, Node, Port
from ecompute.cluster.errors import AddressesExhausted, AddressTaken, CompareFailed, InvalidInput, MacTaken
from ecompute.cluster.store import Compare, Put, Store, Versioned, absent, unchanged
from eschedule.cloud.interface_request import InterfaceRequest

NARROW = 256
"""Addresses of a range in which it is looked before one is drawn."""
DRAWS = 2
"""After so many draws that were lost, it is looked in any range."""


@dataclass(frozen=True)
class PortRequest:
    """One new port: the interface as the guest will have it, and what the transaction must hold."""

    interface: Interface
    compares: tuple[Compare, ...]
    operations: tuple[Put, ...]


@dataclass
class Lost:
    """What transactions have lost against others, of those that were tried for the same ports."""

    locks: set[str] = field(default_factory=set)
    draws: Counter[str] = field(default_factory=Counter)
    """By network."""

    def note(self, error: CompareFailed) -> None:
        """Remember which locks were taken by others."""
        self.locks.update(error.keys)
        self.draws.update({keys.parts(key)[1] for key in error.keys if key.startswith(keys.NETWORKS)})


class Ports:
    """Args:
    rng: draws addresses.
    """

    def __init__(self, store: Store, rng: random.Random) -> None:
        self._store = store
        self._rng = rng

    def draft(self, lost: Lost | None = None) -> Draft:
        """Return a draft for one transaction.

        Args:
            lost: by those that were tried before it.
        """
        return Draft(self._store, self._rng, Lost() if lost is None else lost)

    def verify(self, network: Network, asked: InterfaceRequest) -> None:
        """See that an interface can be had as ``asked``, as far as can be told before its transaction.

        Nothing is read where any address will do.

        Raises:
            InvalidInput: the network has no such address.
            AddressTaken, MacTaken: it is another's.
        """
        draft = self.draft()
        for key in draft.asked_keys(network, asked):
            draft.free(key, network, AddressLock)
        if asked.mac is not None:
            draft.free(keys.mac(network.uuid, asked.mac), network, MacLock)


class Draft:
    """The ports of one transaction: none gets what another one of them has."""

    def __init__(self, store: Store, rng: random.Random, lost: Lost) -> None:
        self._store = store
        self._rng = rng
        self._lost = lost
        self._given: set[str] = set()
        """Keys of locks."""
        self._taken: dict[str, frozenset[str]] = {}
        """By network."""

    def port(
        self,
        network: Versioned[Network],
        asked: InterfaceRequest,
        *,
        instance_uuid: str,
        interface_uuid: str,
        name: str,
        node: Versioned[Node],
        epoch: int,
        is_only_way: bool = False,
    ) -> PortRequest:
        """Return a port on ``network`` for an instance on ``node``.

        The transaction fails if the network has changed meanwhile, or if an address or the MAC is
        taken: note it in the `Lost`, and ask a new draft, for another interface.

        Args:
            name: the instance's.
            node: its host; the transaction compares it besides.
            epoch: the instance's.
            is_only_way: nothing else leads out of the instance: see `ways_out`.

        Raises:
            InvalidInput: the network has no such address.
            AddressTaken, MacTaken: what is asked for is another's.
            AddressesExhausted: the network has no free address.
        """
        net = network.value
        locks: dict[str, tuple[Document, Compare]] = {}
        addresses: list[str] = []
        for address, prefix, compare in self._addresses(net, asked, interface_uuid):
            addresses.append(f"{address}/{prefix}")
            locks[keys.address(net.uuid, address)] = (
                AddressLock(interface_uuid=interface_uuid, instance_uuid=instance_uuid),
                compare,
            )
        mac = asked.mac or mac_address(interface_uuid)
        key = keys.mac(net.uuid, mac)
        locks[key] = (
            MacLock(interface_uuid=interface_uuid, instance_uuid=instance_uuid),
            self._claim(key, net, MacLock, is_asked=asked.mac is not None),
        )
        provider = node.value.provider
        port = Port(
            interface_uuid=interface_uuid,
            instance_uuid=instance_uuid,
            provider=provider,
            epoch=epoch,
            mac=mac,
            addresses=tuple(addresses),
            name=label(name),
        )
        return PortRequest(
            interface=_interface(net, asked, interface_uuid, mac, tuple(addresses), is_only_way=is_only_way),
            compares=(unchanged(network), *(compare for _, compare in locks.values())),
            operations=(
                Put(keys.port(net.uuid, interface_uuid), port),
                *(Put(key, lock) for key, (lock, _) in locks.items()),
                # Compared by nobody but who removes it, and rewritten by every port: a member that
                # loses its last port and gains one at the same time is decided by etcd. What it says
                # is the node's, which the transaction compares.
                Put(
                    keys.network_host(net.uuid, provider),
                    NetworkHost(provider=provider, underlay=node.value.underlay),
                ),
            ),
        )

    def asked_keys(self, net: Network, asked: InterfaceRequest) -> list[str]:
        """Return the keys of the addresses that are asked for.

        Raises:
            InvalidInput: the network has no such address.
        """
        found = []
        if asked.address is not None:
            found.append(check_address(_range(net.cidr, net, "IPv4"), asked.address, gateway=net.gateway))
        if asked.address6 is not None:
            cidr6 = IPv6Network(_range(net.cidr6, net, "IPv6"))
            found.append(check_address6(cidr6, asked.address6, gateway=net.gateway6))
        return [keys.address(net.uuid, address) for address in found]

    def address(self, net: Network, ip: str | None) -> tuple[str, Compare]:
        """Return an IPv4 address of a network beside those of ports, and what says that it is free.

        Args:
            ip: that one; None: any.

        Raises:
            InvalidInput: the network has no such address.
            AddressTaken: it is another's.
            AddressesExhausted: the network has no free address.
        """
        cidr = _range(net.cidr, net, "IPv4")
        if ip is None:
            return self._any(net, IPv4Network(cidr))
        wanted = check_address(cidr, ip, gateway=net.gateway)
        return wanted, self.free(keys.address(net.uuid, wanted), net, AddressLock)

    def free(self, key: str, net: Network, kind: type[AddressLock] | type[MacLock]) -> Compare:
        """Return what says that a lock is free, or still rests as it was read.

        Raises:
            AddressTaken, MacTaken: it is another's.
        """
        lock = self._store.get(key, kind)
        if lock is None:
            return absent(key)
        if isinstance(lock.value, AddressLock) and lock.value.is_resting:
            return unchanged(lock)
        raise _taken(key, net, kind)

    # --- inside --------------------------------------------------------------------------------

    def _addresses(self, net: Network, asked: InterfaceRequest, interface_uuid: str) -> list[tuple[str, int, Compare]]:
        """Return the addresses of an interface, IPv4 first, each with its prefix length and what is compared."""
        found: list[tuple[str, int, Compare]] = []
        wanted = [keys.last(key) for key in self.asked_keys(net, asked)]
        if net.cidr is not None and asked.has_address:
            cidr = IPv4Network(net.cidr)
            ip = next((address for address in wanted if "." in address), None)
            if ip is not None:
                compare = self._claim(keys.address(net.uuid, ip), net, AddressLock, is_asked=True)
            else:
                ip, compare = self._any(net, cidr)
            found.append((ip, cidr.prefixlen, compare))
        if net.cidr6 is not None and asked.has_address:
            cidr6 = IPv6Network(net.cidr6)
            ip = next((address for address in wanted if ":" in address), None)
            is_asked = ip is not None
            ip = ip or derive_address6(cidr6, interface_uuid, gateway=net.gateway6)
            key = keys.address(net.uuid, ip)
            found.append((ip, cidr6.prefixlen, self._claim(key, net, AddressLock, is_asked=is_asked)))
        return found

    def _claim(self, key: str, net: Network, kind: type[AddressLock] | type[MacLock], *, is_asked: bool) -> Compare:
        """Return what says that a lock is free; it is looked at only where it was lost before.

        Raises:
            AddressTaken, MacTaken: it was asked for, and is another's.
        """
        if key in self._given:
            raise _taken(key, net, kind)
        self._given.add(key)
        return self.free(key, net, kind) if is_asked and key in self._lost.locks else absent(key)

    def _any(self, net: Network, cidr: IPv4Network) -> tuple[str, Compare]:
        """Return a free address of a network, or one that rests where none is free."""
        prefix = keys.addresses(net.uuid)
        is_looked_at = cidr.num_addresses <= NARROW or self._lost.draws[net.uuid] >= DRAWS
        given = {key.removeprefix(prefix) for key in self._given if key.startswith(prefix)}
        try:
            taken = self._look(net.uuid) if is_looked_at else frozenset()
            ip = choose_address(cidr, taken | given, self._rng.getrandbits(32), gateway=net.gateway)
        except AddressesExhausted:
            lock = self._longest_resting(net.uuid, given)
            if lock is None:
                ours = sum("." in one for one in given)
                if not ours:
                    raise
                raise AddressesExhausted(
                    f"{ours} address{'es' if ours > 1 else ''} of {cidr} can be had, and more were asked for at once",
                    hint="ask for fewer interfaces there, or remove an instance of it",
                ) from None
            self._given.add(lock.key)
            return keys.last(lock.key), unchanged(lock)
        key = keys.address(net.uuid, ip)
        self._given.add(key)
        return ip, absent(key)

    def _look(self, network_uuid: str) -> frozenset[str]:
        """Return the addresses that have a lock; they are read once a draft."""
        if network_uuid not in self._taken:
            found, _ = self._store.keys(keys.addresses(network_uuid))
            self._taken[network_uuid] = frozenset(keys.last(key) for key in found)
        return self._taken[network_uuid]

    def _longest_resting(self, network_uuid: str, given: set[str]) -> Versioned[AddressLock] | None:
        """Return the lock of an IPv4 address that has rested the longest; after lost draws, of one that has long."""
        resting = [
            lock
            for lock in self._store.list(keys.addresses(network_uuid), AddressLock).items
            if lock.value.is_resting and "." in keys.last(lock.key) and keys.last(lock.key) not in given
        ]
        resting.sort(key=lambda lock: lock.mod_revision)
        among = resting[: 1 + self._lost.draws[network_uuid]]
        return self._rng.choice(among) if among else None


def leads_out(net: Network) -> bool:
    """Whether a network's gateway leads out for whoever is on it: where it has NAT, or is the operators' own. Pure."""
    return net.has_nat or net.physical is not None


def ways_out(networks: Sequence[Network]) -> list[bool]:
    """Return, for the networks of a new instance, by which its default route goes although none of them leads out.

    A floating address may be attached to it at any time, and what it then answers needs a way. One at most: where a
    network leads out, the default route is that one's. Pure.
    """
    if any(leads_out(net) for net in networks):
        return [False] * len(networks)
    first = next((n for n, net in enumerate(networks) if net.gateway is not None), None)
    return [n == first for n in range(len(networks))]


def _interface(
    net: Network,
    asked: InterfaceRequest,
    interface_uuid: str,
    mac: str,
    addresses: tuple[str, ...],
    *,
    is_only_way: bool,
) -> Interface:
    """Return the interface as the guest will have it. Pure.

    In IPv6 nothing leads out of our networks. A gateway answers for names where the network has DNS.
    """
    return Interface(
        uuid=interface_uuid,
        network_uuid=net.uuid,
        vni=net.vni,
        mac=mac,
        addresses=addresses,
        mtu=net.mtu,
        gateway=net.gateway if is_only_way or leads_out(net) else None,
        nameservers=(net.gateway,) if net.has_dns and net.gateway is not None else (),
        model=asked.model,
        physical=net.physical,
        vlan=net.vlan,
    )


def _range(cidr: str | None, net: Network, what: str) -> str:
    if cidr is None:
        raise InvalidInput(f"network {net.name} has no {what} addresses", hint="ask for none of them")
    return cidr


def _taken(key: str, net: Network, kind: type[AddressLock] | type[MacLock]) -> AddressTaken | MacTaken:
    # Whose it is is nobody's business who may not see it.
    if kind is MacLock:
        return MacTaken(f"{keys.last(key)} is taken on network {net.name}", hint="choose another MAC, or none")
    return AddressTaken(f"{keys.last(key)} is taken on network {net.name}", hint="choose another address, or none")
