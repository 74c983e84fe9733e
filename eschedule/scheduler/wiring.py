"""The interfaces of a launch, on the networks that it names.

A network is kept once it was found: every request compares it, and `forget` has it read again. The
default one of a namespace is kept for as long as it serves, since a namespace has one; of others it is looked
again after some seconds whether the name still means that one alone.

Whether a network's bridge is on a host, its traits say, which are asked of placement with the rest.

Safe from several threads.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from ecompute.cluster.documents import Network
from ecompute.cluster.errors import Conflict
from ecompute.cluster.given import physnet_trait
from ecompute.cluster.placement import candidates_query
from ecompute.cluster.store import Compare, Versioned
from eschedule.cloud.networks import Networks
from eschedule.cloud.ports import Draft, Lost, PortRequest, Ports, ways_out
from eschedule.scheduler.asked import asked
from eschedule.scheduler.facts import TTL_S, Target
from eschedule.scheduler.order import name_of
from eschedule.scheduler.question import requiring
from eschedule.scheduler.request import LaunchRequest

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud


class Wiring:
    """Args:
    now: seconds since 1970; ``clock``: monotonic ones.
    """

    def __init__(
        self,
        cloud: Cloud,
        *,
        rng: random.Random,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._default_cidr = cloud.settings.default_network
        self._networks = Networks(cloud.store, rng=rng, now=now)
        self._ports = Ports(cloud.store, rng)
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str | None], tuple[float, Versioned[Network]]] = {}

    def wired(self, request: LaunchRequest) -> LaunchRequest:
        """Return ``request`` with what its networks ask of a host, once it is seen that it can have its interfaces.

        Raises:
            NotFound, Ambiguous: a network that it names is not there, or may be one of several.
            InvalidInput: a network has no such address.
            AddressTaken, MacTaken: what it asks for is another's.
        """
        networks = []
        for one in request.interfaces:
            network = self._find(request.namespace, one.network)
            if network is not None:
                networks.append(network.value)
                self._ports.verify(network.value, one)
        return replace(request, query=on_networks(request.query, networks))

    def virtual(self, request: LaunchRequest) -> list[str]:
        """Return the uuids of the networks of ours that it is to be on, as far as they are made."""
        found = [self._find(request.namespace, one.network) for one in request.interfaces]
        return list(
            dict.fromkeys(network.value.uuid for network in found if network and network.value.physical is None)
        )

    def draft(self, lost: Lost) -> Draft:
        """Return a draft of the ports of one transaction."""
        return self._ports.draft(lost)

    def ports(
        self, draft: Draft, request: LaunchRequest, uuid: str, target: Target, *, guard: Compare
    ) -> list[PortRequest]:
        """Return the ports of instance ``uuid`` on ``target``, in the order of its interfaces.

        The namespace's default network is made, if this is its first use.

        Args:
            request: as `wired` returned it.
            guard: compared where a network is made: the incarnation of the data.

        Raises:
            As `wired`; and
            AddressesExhausted: a network has no free address.
            Conflict: a network is on another bridge by now.
        """
        found = []
        for one in request.interfaces:
            network = self._find(request.namespace, one.network)
            if network is None:
                network = self._networks.default(request.namespace, self._default_cidr, guard=guard)
                self._keep(request.namespace, None, network)
            found.append((network, one))
        needed = _traits(network.value for network, _ in found)
        if needed and not needed <= asked(candidates_query(request.query)).traits:
            raise Conflict("one of its networks has become another one", hint="launch it again")
        ways = ways_out([network.value for network, _ in found])
        return [
            draft.port(
                network,
                one,
                instance_uuid=uuid,
                interface_uuid=str(uuid4()),
                name=name_of(request, uuid),
                node=target.node,
                epoch=1,
                is_only_way=is_only_way,
            )
            for (network, one), is_only_way in zip(found, ways, strict=True)
        ]

    def forget(self, namespace: str) -> None:
        """Read the networks of ``namespace`` again when they are next asked for."""
        with self._lock:
            self._known = {name: known for name, known in self._known.items() if name[0] != namespace}

    def _find(self, namespace: str, ref: str | None) -> Versioned[Network] | None:
        """Return a network; None: the default one, which was not used yet."""
        with self._lock:
            known = self._known.get((namespace, ref))
        if known is not None and (ref is None or self._clock() - known[0] < TTL_S):
            return known[1]
        if ref is None:
            network = self._networks.find_default(namespace)
            if network is None:
                return None
        else:
            network = self._networks.find(ref, namespace)
        self._keep(namespace, ref, network)
        return network

    def _keep(self, namespace: str, ref: str | None, network: Versioned[Network]) -> None:
        with self._lock:
            self._known[namespace, ref] = self._clock(), network


def on_networks(query: str, networks: Iterable[Network]) -> str:
    """Return ``query`` with what ``networks`` ask of a host."""
    return requiring(query, _traits(networks))


def _traits(networks: Iterable[Network]) -> frozenset[str]:
    return frozenset(physnet_trait(network.physical) for network in networks if network.physical is not None)
