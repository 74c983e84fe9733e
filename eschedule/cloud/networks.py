"""Networks: a namespace's default one, made at first use, and the ports of instances on it.

A network is one document; around it lie a VNI of its own, a name, and, below it, its ports, the
locks of its addresses and the hosts that have a member. Everything that belongs to one request is
part of that request's transaction; this module reads, and returns comparisons and operations.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.addressing import choose_address, gateway_address, label, mac_address
from ecompute.cluster.documents import (
    AddressLock,
    Interface,
    MacLock,
    Name,
    Network,
    NetworkHost,
    Node,
    Port,
    Vni,
    timestamp,
)
from ecompute.cluster.errors import CompareFailed, Conflict
from ecompute.cluster.store import Compare, Put, Store, Versioned, absent, absent_under, unchanged

DEFAULT_NAME = "default"
KIND = "network"
VXLAN_OVERHEAD = 50
"""Bytes of outer Ethernet, IPv4, UDP and VXLAN headers (RFC 7348, section 5)."""

NARROW = 256
"""Addresses of a range in which it is looked before one is drawn."""
COLLISIONS = 2
"""After so many draws that were taken, it is looked in any range."""

VNI_FIRST = 4096
VNI_LAST = 2**24 - 1


@dataclass(frozen=True)
class PortRequest:
    """One new port: the interface as the guest will have it, and what the transaction must hold."""

    interface: Interface
    compares: tuple[Compare, ...]
    operations: tuple[Put, ...]


class Networks:
    """Reads and makes networks. Safe from several threads.

    A namespace's default network is kept once it was read: every request compares it, and `forget`
    has it read again.
    """

    def __init__(self, store: Store, *, rng: random.Random | None = None, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._defaults: dict[str, Versioned[Network]] = {}
        self._rng = rng or random.Random()  # noqa: S311 - spreads choices, guards nothing
        self._now = now

    def default(
        self, namespace: str, cidr: ipaddress.IPv4Network, underlay_mtu: int, *, guard: Compare
    ) -> Versioned[Network]:
        """Return the default network of ``namespace``, made now if this is its first use.

        Args:
            cidr: its range, if it has to be made. Ranges of different networks may overlap.
            underlay_mtu: MTU in bytes of the network that carries it, if it has to be made.
            guard: compared when it is made: the incarnation of the data.
        """
        for _ in range(8):
            found = self.find_default(namespace)
            if found is not None:
                return found
            made = self._make(namespace, DEFAULT_NAME, cidr, underlay_mtu - VXLAN_OVERHEAD, guard)
            if made is not None:
                self._defaults[namespace] = made
                return made
        raise Conflict(f"the default network of {namespace} could not be made", hint="try again")

    def find_default(self, namespace: str) -> Versioned[Network] | None:
        """Return the default network of ``namespace``, if it has been used."""
        found = self._defaults.get(namespace) or self._named(namespace, DEFAULT_NAME)
        if found is not None:
            self._defaults[namespace] = found
        return found

    def forget(self, namespace: str) -> None:
        """Read the default network of ``namespace`` again when it is next asked for."""
        self._defaults.pop(namespace, None)

    def port(
        self,
        network: Versioned[Network],
        *,
        instance_uuid: str,
        interface_uuid: str,
        name: str,
        node: Versioned[Node],
        epoch: int,
        collisions: int = 0,
    ) -> PortRequest:
        """Return a port of ``instance_uuid`` on ``network``, with an address, on ``node``.

        The transaction fails if the network has changed meanwhile, or the address or the MAC is taken:
        ask again then, with another interface. In a wide range an address is drawn without looking, and
        compared; those that are taken are read where the range is narrow, or when the draw was taken too often.

        Args:
            name: the instance's.
            collisions: how often an address drawn for this port was taken.

        Raises:
            Conflict: the network has no free address.
        """
        net = network.value
        cidr = ipaddress.IPv4Network(net.cidr)
        is_narrow = cidr.num_addresses <= NARROW or collisions >= COLLISIONS
        taken = self._taken(net.uuid) if is_narrow else set()
        ip = choose_address(cidr, taken, self._rng.getrandbits(32), gateway=net.gateway)
        address = f"{ip}/{cidr.prefixlen}"
        mac = mac_address(interface_uuid)
        provider = node.value.provider
        interface = Interface(
            uuid=interface_uuid,
            network_uuid=net.uuid,
            vni=net.vni,
            mac=mac,
            addresses=(address,),
            mtu=net.mtu,
            gateway=net.gateway if net.has_nat else None,
            nameservers=(net.gateway,) if net.has_dns and net.gateway is not None else (),
        )
        return PortRequest(
            interface=interface,
            compares=(
                unchanged(network),
                absent(keys.address(net.uuid, str(ip))),
                absent(keys.mac(net.uuid, mac)),
            ),
            operations=(
                Put(
                    keys.port(net.uuid, interface_uuid),
                    Port(
                        interface_uuid=interface_uuid,
                        instance_uuid=instance_uuid,
                        provider=provider,
                        epoch=epoch,
                        mac=mac,
                        addresses=(address,),
                        name=label(name),
                    ),
                ),
                Put(
                    keys.address(net.uuid, str(ip)),
                    AddressLock(interface_uuid=interface_uuid, instance_uuid=instance_uuid),
                ),
                Put(keys.mac(net.uuid, mac), MacLock(interface_uuid=interface_uuid, instance_uuid=instance_uuid)),
                # Compared by nobody but who removes it, and rewritten by every port: a member that
                # loses its last port and gains one at the same time is decided by etcd. What it says
                # is the node's, which the transaction compares.
                Put(
                    keys.network_host(net.uuid, provider),
                    NetworkHost(provider=provider, underlay=node.value.underlay),
                ),
            ),
        )

    def _taken(self, network_uuid: str) -> set[str]:
        prefix = keys.addresses(network_uuid)
        return {key[len(prefix) :] for key in self._store.keys(prefix)[0]}

    def _named(self, namespace: str, name: str) -> Versioned[Network] | None:
        found, _ = self._store.keys(keys.named(namespace, KIND, name), limit=1)
        return self._store.get(keys.network(keys.last(found[0])), Network) if found else None

    def _make(
        self, namespace: str, name: str, cidr: ipaddress.IPv4Network, mtu: int, guard: Compare
    ) -> Versioned[Network] | None:
        """Make the network; ``None`` if somebody else was first, or the VNI drawn was taken."""
        uuid = str(uuid4())
        vni = self._rng.randint(VNI_FIRST, VNI_LAST)
        network = Network(
            uuid=uuid,
            namespace=namespace,
            name=name,
            cidr=str(cidr),
            vni=vni,
            mtu=mtu,
            gateway=str(gateway_address(cidr)),
            has_dhcp=True,
            has_nat=True,
            has_dns=True,
            created_at=timestamp(self._now()),
        )
        try:
            revision = self._store.commit(
                [guard, absent_under(keys.named(namespace, KIND, name)), absent(keys.vni(vni))],
                [
                    Put(keys.network(uuid), network),
                    Put(keys.vni(vni), Vni(network_uuid=uuid)),
                    Put(keys.name(namespace, KIND, name, uuid), Name(uuid=uuid, name=name)),
                ],
            )
        except CompareFailed:
            return None
        return Versioned(keys.network(uuid), network, revision, revision, 0)
