"""Networks: made, found, listed, deleted; and a namespace's default one, made at first use.

A network is one document; around it lie a VNI of its own and a name, and below it its ports, the locks
of their addresses and MACs, and the hosts that have a member. Names may repeat, but for the one called
``default``: that is what an instance gets that asks for no network, and a namespace has one or none. A
physical network has its bridge and VLAN to itself, by a name of kind ``segment``.

A network is deleted if it has no port and no member, which is compared: a request that is under way compares
the network. What rests below it goes with it.

Safe from several threads.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING
from uuid import uuid4

from ecompute.cluster import keys
from ecompute.cluster.addressing6 import gateway_address6, parse_cidr6
from ecompute.cluster.claims import incarnation_of
from ecompute.cluster.documents import (
    AddressLock,
    Name,
    Network,
    NetworkHost,
    NetworkKind,
    Node,
    Port,
    Vni,
    timestamp,
)
from ecompute.cluster.errors import Ambiguous, CompareFailed, Conflict, InvalidInput, NotFound, Refused, one_line
from ecompute.cluster.store import (
    Compare,
    Delete,
    DeletePrefix,
    Op,
    Put,
    Store,
    Versioned,
    absent,
    absent_under,
    unchanged,
)
from eschedule.cloud import references
from eschedule.cloud.network_request import NetworkRequest, check, check_name
from eschedule.cloud.underlays import believed, check_underlays, mtu_of

if TYPE_CHECKING:
    from eschedule.cloud.connection import Cloud

DEFAULT_NAME = "default"
KIND = "network"
SEGMENT = "segment"
SEGMENTS_NAMESPACE = "system"
"""Where all segments have their names: a bridge of the hosts is nobody's but the operators'."""

VNI_FIRST = 4096
VNI_LAST = 2**24 - 1
TRIES = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """How many addresses of a network's IPv4 range may be given out, and what has become of them."""

    total: int
    in_use: int
    resting: int

    @property
    def free(self) -> int:
        """Those that rest are given out again when there is no other."""
        return self.total - self.in_use


class Networks:
    """The networks of a cloud.

    Args:
        now: seconds since 1970.
        warn: told, in one line each, what is odd about hosts where a network is made.
    """

    def __init__(
        self,
        store: Store,
        *,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self._store = store
        self._warn = warn
        self._rng = rng or random.Random()  # noqa: S311 - spreads choices, guards nothing
        self._now = now

    @classmethod
    def of(cls, cloud: Cloud, *, warn: Callable[[str], None] = log.warning) -> Networks:
        return cls(cloud.store, warn=warn)

    # --- made ----------------------------------------------------------------------------------

    def create(
        self, namespace: str, request: NetworkRequest, *, guard: Compare | None = None, is_default: bool = False
    ) -> Versioned[Network]:
        """Make a network.

        Args:
            guard: compared besides; None: the incarnation of the data, which is read.
            is_default: its range is the configuration's, and nobody chose it now.

        Raises:
            InvalidInput: there can be no such network.
            Conflict: the namespace has a default network already, or the bridge and VLAN have one.
        """
        request = check(request)
        mtu = self._mtu(request, is_default=is_default)
        for _ in range(TRIES):
            guarded = unchanged(incarnation_of(self._store)) if guard is None else guard
            try:
                return self._make(namespace, request, mtu, guarded)
            except CompareFailed as error:
                if guarded.name in error.keys:
                    raise
                self._explain(namespace, request, error)
        raise Conflict(f"no VNI was free in {TRIES} draws", hint="try again, or delete networks")

    def default(self, namespace: str, cidr: IPv4Network, *, guard: Compare) -> Versioned[Network]:
        """Return the default network of ``namespace``, made now if this is its first use.

        Args:
            cidr: its range, if it has to be made. Ranges of different networks may overlap.
            guard: compared when it is made: the incarnation of the data.

        Raises:
            InvalidInput: that range cannot be a network's here.
        """
        for _ in range(TRIES):
            found = self.find_default(namespace)
            if found is not None:
                return found
            try:
                return self.create(namespace, NetworkRequest(DEFAULT_NAME, str(cidr)), guard=guard, is_default=True)
            except DefaultExists:
                continue  # somebody else was first
            except InvalidInput as error:
                raise InvalidInput(
                    f"the default network of {namespace} cannot be made: {error.args[0]}",
                    hint="change default_network in compute.yaml, or see `eschedule network create default`",
                ) from error
        raise Conflict(f"the default network of {namespace} comes and goes", hint="try again")

    # --- found ---------------------------------------------------------------------------------

    def find_default(self, namespace: str) -> Versioned[Network] | None:
        """Return the default network of ``namespace``, if it has been used."""
        found = self._named(namespace, DEFAULT_NAME)
        return found[0] if found else None

    def find(self, ref: str, namespace: str) -> Versioned[Network]:
        """Return the network of that name or uuid.

        Raises:
            NotFound: ``namespace`` has none. Of another's it is not said whether it exists.
            Ambiguous: it has several of that name.
        """
        uuid = references.full_uuid(ref)
        if uuid is not None:
            one = self._store.get(keys.network(uuid), Network)
            found: Sequence[Versioned[Network]] = [one] if one is not None and one.value.namespace == namespace else []
        else:
            found = self._named(namespace, ref)
        if not found:
            raise NotFound(
                f"there is no network {one_line(ref, 80)!r} in namespace {namespace}",
                hint="see `eschedule network list`; `eschedule network create` makes one",
            )
        if len(found) > 1:
            uuids = ", ".join(sorted(item.value.uuid for item in found))
            raise Ambiguous(f"{len(found)} networks are called {ref}: {uuids}", hint="give the uuid")
        return found[0]

    def all(self, namespace: str | None) -> list[Network]:
        """Return the networks of ``namespace``, or of all of them, by namespace and name."""
        if namespace is None:
            uuids = [item.value.network_uuid for item in self._store.list(keys.VNIS, Vni).items]
        else:
            uuids = [keys.last(key) for key in self._store.keys(keys.names(namespace, KIND))[0]]
        found = self._several(uuids)
        return sorted(
            (item.value for item in found), key=lambda network: (network.namespace, network.name, network.uuid)
        )

    def names(self, namespace: str, beginning: str = "", *, limit: int = 100) -> list[str]:
        """Return what ``beginning`` can be completed to; a name that several have is given as their uuids."""
        if beginning and not references.may_be_in_a_key(beginning):
            return []
        named: dict[str, list[str]] = {}
        for key in self._store.keys(keys.names(namespace, KIND) + beginning, limit=limit)[0]:
            *_, name, uuid = keys.parts(key)
            named.setdefault(name, []).append(uuid)
        return [word for name, uuids in named.items() for word in ([name] if len(uuids) == 1 else uuids)]

    # --- looked at -----------------------------------------------------------------------------

    def ports(self, network: Network) -> list[Port]:
        """Return the ports of a network, by their interface."""
        return [item.value for item in self._store.list(keys.ports(network.uuid), Port).items]

    def members(self, network: Network) -> list[str]:
        """Return the providers of the hosts that have a port of a network."""
        return [item.value.provider for item in self._store.list(keys.network_hosts(network.uuid), NetworkHost).items]

    def usage(self, network: Network) -> Usage | None:
        """Return how many addresses a network has left; None: it gives out none of IPv4."""
        if network.cidr is None:
            return None
        in_use = resting = 0
        for lock in self._store.each(keys.addresses(network.uuid), AddressLock):
            if ":" not in keys.last(lock.key):
                resting += lock.value.is_resting
                in_use += not lock.value.is_resting
        return Usage(IPv4Network(network.cidr).num_addresses - 3, in_use, resting)

    # --- deleted -------------------------------------------------------------------------------

    def delete(self, ref: str, namespace: str) -> Network:
        """Remove a network that no interface is on; return it.

        Raises:
            NotFound, Ambiguous: as `find`.
            Refused: it has interfaces, or hosts that have not left it.
        """
        for _ in range(TRIES):
            network = self.find(ref, namespace)
            value = network.value
            prefix = keys.network_prefix(value.uuid)
            operations: list[Op] = [
                Delete(network.key),
                DeletePrefix(prefix),  # what rests
                Delete(keys.vni(value.vni)),
                Delete(keys.name(value.namespace, KIND, value.name, value.uuid)),
            ]
            if value.physical is not None:
                segment = segment_of(value.physical, value.vlan)
                operations.append(Delete(keys.name(SEGMENTS_NAMESPACE, SEGMENT, segment, value.uuid)))
            empty = [absent_under(keys.ports(value.uuid)), absent_under(keys.network_hosts(value.uuid))]
            try:
                self._store.commit([unchanged(network), *empty], operations)
            except CompareFailed:
                self._see_that_it_is_empty(value)
                continue
            return value
        raise Conflict(f"network {ref} keeps changing", hint="try again")

    # --- inside --------------------------------------------------------------------------------

    def _mtu(self, request: NetworkRequest, *, is_default: bool) -> int:
        """Return the MTU of a network, once it is seen that it can be on these hosts.

        Raises:
            InvalidInput: it cannot.
        """
        underlays, odd = believed(item.value for item in self._store.list(keys.NODES, Node).items)
        odd += check_underlays(request, underlays, is_default=is_default)
        mtu, narrow = mtu_of(request, underlays, is_default=is_default)
        for note in (*odd, *narrow):
            self._warn(note)
        return mtu

    def _make(self, namespace: str, request: NetworkRequest, mtu: int, guard: Compare) -> Versioned[Network]:
        """Make a network that was checked.

        Raises:
            CompareFailed: the VNI drawn is taken, or what may be there once is there.
        """
        uuid = str(uuid4())
        vni = self._rng.randint(VNI_FIRST, VNI_LAST)
        network = Network(
            uuid=uuid,
            namespace=namespace,
            name=request.name,
            kind=NetworkKind.VIRTUAL if request.physical is None else NetworkKind.PHYSICAL,
            cidr=request.cidr,
            cidr6=request.cidr6,
            vni=vni,
            mtu=mtu,
            gateway=request.gateway,
            gateway6=_gateway6(request),
            has_dhcp=bool(request.has_dhcp),
            has_nat=bool(request.has_nat),
            has_dns=bool(request.has_dns),
            domain=request.domain,
            physical=request.physical,
            vlan=request.vlan,
            created_at=timestamp(self._now()),
        )
        compares = [guard, absent(keys.vni(vni)), *_once(namespace, request)]
        operations: list[Op] = [
            Put(keys.network(uuid), network),
            Put(keys.vni(vni), Vni(network_uuid=uuid)),
            Put(keys.name(namespace, KIND, request.name, uuid), Name(uuid=uuid, name=request.name)),
        ]
        if request.physical is not None:
            segment = segment_of(request.physical, request.vlan)
            operations.append(Put(keys.name(SEGMENTS_NAMESPACE, SEGMENT, segment, uuid), Name(uuid=uuid, name=segment)))
        revision = self._store.commit(compares, operations)
        return Versioned(keys.network(uuid), network, revision, revision, 0)

    def _explain(self, namespace: str, request: NetworkRequest, error: CompareFailed) -> None:
        """Raise what is to be said of a network that was not made; return where it is to be tried again."""
        if keys.named(namespace, KIND, DEFAULT_NAME) in error.keys:
            raise DefaultExists(
                f"namespace {namespace} has a default network already",
                hint="choose another name, or see `eschedule network show default`",
            ) from error
        if request.physical is not None:
            named = keys.named(SEGMENTS_NAMESPACE, SEGMENT, segment_of(request.physical, request.vlan))
            if named in error.keys:
                on = request.physical if request.vlan is None else f"VLAN {request.vlan} of {request.physical}"
                found = self._several([keys.last(key) for key in self._store.keys(named, limit=1)[0]])
                if found and found[0].value.namespace == namespace:
                    which, advice = f" {found[0].value.uuid}", "use that one, or another bridge or VLAN"
                else:  # another namespace's is not to be known, and could not be used
                    which, advice = "", "choose another bridge or VLAN"
                raise Conflict(f"there is a network{which} on {on} already", hint=advice) from error

    def _see_that_it_is_empty(self, network: Network) -> None:
        """Raise Refused, with an example, if a network is in use."""
        count = self._store.count(keys.ports(network.uuid))
        if count:
            example = self._store.list(keys.ports(network.uuid), Port, limit=1).items
            instance = f", of instance {example[0].value.instance_uuid} for one" if example else ""
            raise Refused(
                f"network {network.name} has {count} interface{'s' if count > 1 else ''}{instance}",
                hint="destroy its instances first, or take the interfaces from them",
            )
        members = self.members(network)
        if members:
            raise Refused(
                f"network {network.name} still has hosts, {members[0]} for one, though no interface is left there",
                hint="`eschedule audit --repair` takes them out of it",
            )

    def _named(self, namespace: str, name: str) -> tuple[Versioned[Network], ...]:
        if not references.may_be_in_a_key(name):
            return ()
        return self._several([keys.last(key) for key in self._store.keys(keys.named(namespace, KIND, name))[0]])

    def _several(self, uuids: Sequence[str]) -> tuple[Versioned[Network], ...]:
        return self._store.get_many([keys.network(uuid) for uuid in uuids], Network).items


class DefaultExists(Conflict):
    """A namespace has one default network."""

    code = "network.default.exists"


def segment_of(physical: str, vlan: int | None) -> str:
    """Return what stands for a bridge and a VLAN in a name."""
    return physical if vlan is None else f"{physical}.{vlan}"


def _once(namespace: str, request: NetworkRequest) -> list[Compare]:
    """Return what says that there is none yet of what may be there once."""
    compares = []
    if check_name(request.name) == DEFAULT_NAME:
        compares.append(absent_under(keys.named(namespace, KIND, DEFAULT_NAME)))
    if request.physical is not None:
        segment = segment_of(request.physical, request.vlan)
        compares.append(absent_under(keys.named(SEGMENTS_NAMESPACE, SEGMENT, segment)))
    return compares


def _gateway6(request: NetworkRequest) -> str | None:
    """Return the IPv6 gateway's address; of a physical network it is the operator's to announce."""
    if request.cidr6 is None or request.physical is not None:
        return None
    return gateway_address6(parse_cidr6(request.cidr6))
