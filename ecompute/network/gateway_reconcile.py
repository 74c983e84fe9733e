"""Drives the gateways of this host to what is wanted: found and wanted in, changes applied.

The same for a gateway that is new, damaged, or changed elsewhere: it is read, compared, and what differs is changed.
Killed between any two changes, the next call ends in the same place. What cannot be done does not keep the rest from
being done, as far as that is of use without it; nothing is undone: who needs the network for a new guest only takes it
down again.

Guests have DHCP, names and metadata before they have a way out, and whatever becomes of that: what fails of it is
logged once and tried again, and is no error. It is not opened before the rules are there that keep guests from the
host.

Where nothing of this host's has changed since the last call, `follow` reads nothing; what somebody else has done
meanwhile is found by the next `ensure`. A dnsmasq that ends is known at once.

Any thread may call this, one at a time for a network. What all networks share, the rules of the host, is changed by
one at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv4Address

from msgspec.structs import replace

from ecompute.cluster.documents import Network, NetworkHost, Port
from ecompute.cluster.errors import CloudError, NetworkError, Unavailable
from ecompute.cluster.retries import Retries
from ecompute.guest import told
from ecompute.network import gateway
from ecompute.network.egress import Egress, HostRules
from ecompute.network.gateway_memory import GatewayMemory, Remembered
from ecompute.network.gateway_terms import GatewayChange, WantedGateway
from ecompute.network.gateways import Gateways, OnChange
from ecompute.network.metadata import Metadata

RETRY_S = 5.0

log = logging.getLogger(__name__)


class GatewayReconciler:
    """
    Args:
        provider: the host's provider uuid.
        upstream: the name servers that know what is outside.
        control_plane: the addresses of etcd and placement.
        metadata: tells guests about themselves, in the namespaces that are made here.
        on_change: called after every change, on some thread.
    """

    def __init__(
        self,
        gateways: Gateways,
        egress: Egress,
        provider: str,
        memory: GatewayMemory,
        *,
        upstream: Callable[[], Sequence[str]],
        control_plane: Callable[[], frozenset[str]],
        metadata: Metadata,
        on_change: OnChange | None = None,
    ) -> None:
        self._gateways = gateways
        self._metadata = metadata
        self._egress = egress
        self._provider = provider
        self._memory = memory
        self._upstream = upstream
        self._control_plane = control_plane
        self._on_change = on_change
        self._lock = threading.Lock()
        self._left: dict[int, WantedGateway] = {}
        """What the last call has left of a network's gateway."""
        self._said: dict[str, str] = {}
        self._own: frozenset[str] = frozenset()
        """Addresses of the host and of its routers, as they were when a gateway was last looked at."""
        self._on_damage: Callable[[int], None] = lambda vni: None
        self._retries = Retries("way-out-retries", lambda vni: self._on_damage(int(vni)))
        gateways.on_death(self._died)

    def on_damage(self, tell: Callable[[int], None]) -> None:
        """Have ``tell`` called with the VNI of a network that is not as it was left, from some thread."""
        self._on_damage = tell

    def close(self) -> None:
        self._retries.close()
        self._gateways.close()
        self._metadata.close()

    def ensure(
        self, network: Network, ports: Sequence[Port], hosts: Iterable[NetworkHost]
    ) -> tuple[GatewayChange, ...]:
        """Make the gateway of ``network`` what it is to be here, and return the changes that this took.

        Raises:
            NetworkError: a device with our name is not ours, or something could not be done that guests need also
                where nothing leads out.
        """
        with self._gateways.session():
            return self._ensure(network, ports, list(hosts))

    def _ensure(
        self, network: Network, ports: Sequence[Port], hosts: Sequence[NetworkHost]
    ) -> tuple[GatewayChange, ...]:
        vni = network.vni
        self._left.pop(vni, None)
        transit = self._transit(network, ports)
        self._look(ports)
        wanted = self._wanted(network, ports, transit)
        wrong: list[CloudError] = []
        closed: list[CloudError] = []
        """What keeps the way out closed."""
        known = self._memory.of(vni)
        addresses = frozenset() if wanted.uplink is None else wanted.uplink.addresses
        device, wire = None, None
        with _collected(closed):
            device = self._egress.device() if transit is not None else None
            wire = device if addresses and device is not None and self._egress.is_wire(device) else None
        is_device_known = not closed
        proxied = frozenset((address, wire) for address in addresses if wire is not None)
        remembered = Remembered(
            transit=transit, addresses=addresses, proxied=proxied, underlays=frozenset(_underlays(hosts))
        )
        # An uplink that goes is remembered until the rules of the host have let go of it.
        self._memory.put(vni, replace(remembered, transit=transit or known.transit, proxied=known.proxied | proxied))
        if transit is not None and is_device_known:
            self._say("egress", "" if device is not None else _NO_EGRESS)
            with _collected(closed):
                self._keep_egress(device)
        found = self._gateways.found(vni, wanted.rules, transit, known=known.proxied | proxied)
        parts = gateway.plan_parts(wanted, found, wire)
        changes: list[GatewayChange] = []
        if is_device_known:
            with _collected(wrong):
                self._apply(parts.less, changes)
        self._apply(parts.base, changes)
        with _collected(wrong):
            self._apply(parts.service, changes)
        with _collected(wrong):
            self._serve(network, ports, is_scan=True)
        if not closed:
            with _collected(closed):
                self._apply(parts.way_out, changes)
        if not wrong and not closed:
            if known.transit is not None and transit is None:
                with _collected(closed):
                    self._keep_egress(None, without=vni, then=lambda: self._memory.put(vni, remembered))
            else:
                self._memory.put(vni, remembered)
        self._say(f"the way out of network {network.uuid}", "; ".join(str(error) for error in closed))
        if closed:
            self._retries.later(str(vni), RETRY_S)
        if wrong:
            raise wrong[0] if len(wrong) == 1 else NetworkError("; ".join(str(error) for error in wrong))
        if not closed:
            self._left[vni] = wanted
        return tuple(changes)

    def _apply(self, part: Sequence[GatewayChange], changes: list[GatewayChange]) -> None:
        changes += part
        self._gateways.apply(part, self._on_change)

    def _serve(self, network: Network, ports: Sequence[Port], *, is_scan: bool = False) -> None:
        namespace = gateway.namespace_name(network.vni, self._provider)
        callers = told.callers(network.uuid, self._provider, ports)
        self._metadata.serve(network.vni, namespace, callers, is_scan=is_scan)

    def follow(
        self, network: Network, ports: Sequence[Port], hosts: Iterable[NetworkHost]
    ) -> tuple[GatewayChange, ...]:
        """Do the same, and look at nothing where no more has changed since the last call than what dnsmasq is told.

        Raises:
            NetworkError: as `ensure`.
        """
        known = self._memory.of(network.vni)
        left = self._left.get(network.vni)
        if left is not None and known.underlays == frozenset(_underlays(hosts)):
            wanted = self._wanted(network, ports, self._transit(network, ports))
            changes = gateway.told_only(left, wanted)
            if changes is not None:
                try:
                    with self._gateways.session():
                        self._gateways.apply(changes, self._on_change)
                except NetworkError as error:
                    log.info("the gateway of network %d is not as it was left: %s", network.vni, error)
                else:
                    self._left[network.vni] = wanted
                    self._serve(network, ports)
                    return changes
        return self.ensure(network, ports, hosts)

    def remove(self, vni: int) -> tuple[GatewayChange, ...]:
        """Remove what is there of a network's gateway, and with the last one the rules of the host.

        Raises:
            NetworkError: something could not be removed.
        """
        self._left.pop(vni, None)
        self._metadata.leave(vni)  # first: its sockets keep the namespace
        known = self._memory.of(vni)
        with self._gateways.session():
            found = self._gateways.found(vni, known=known.proxied)
            changes = gateway.plan(None, found)
            self._gateways.apply(changes, self._on_change)
        if known.transit is not None:
            try:
                self._keep_egress(None, without=vni, then=lambda: self._memory.forget(vni))
                return changes
            except Unavailable as error:  # the rules are others' as well, whose next look puts them right
                log.warning("the rules of this host name network %d for a while yet: %s", vni, error)
        self._memory.forget(vni)
        return changes

    def repair(self) -> None:
        """Put the rules of the host back, where somebody has taken them away.

        Raises:
            NetworkError: the kernel refused them, or it is not known what they are to be.
        """
        try:
            if any(one.transit is not None for one in self._memory.all().values()):
                self._keep_egress(None)
        except Unavailable as error:
            raise NetworkError(f"the rules of this host are not put back: {error}") from error

    def served(self) -> frozenset[int]:
        """Return the VNIs of networks that the metadata service knows, whatever else is there of them.

        Raises:
            NetworkError: it does not answer.
        """
        return self._metadata.served()

    def present(self) -> frozenset[int]:
        """Return the VNIs of which something of ours is there."""
        return frozenset(device.vni for device in self._gateways.devices() if device.vni is not None)

    def _wanted(self, network: Network, ports: Sequence[Port], transit: str | None) -> WantedGateway:
        wanted = gateway.wanted(
            network,
            self._provider,
            ports,
            self._gateways.paths(network.vni),
            transit=transit,
            upstream=self._upstream() if network.has_dns else (),
            own=self._own,
        )
        self._say(f"network {network.uuid}", "; ".join(wanted.problems))
        return wanted

    def _look(self, ports: Iterable[Port]) -> None:
        """See which addresses are the host's, where a guest here has one of the outside."""
        if any(port.provider == self._provider and (port.floating is not None or port.routed) for port in ports):
            try:
                self._own = self._egress.own()
            except NetworkError as error:  # those that were known are kept away from all the same
                log.warning("%s", error)

    def _transit(self, network: Network, ports: Sequence[Port]) -> str | None:
        """Return the address of the network's uplink here, chosen once; None if it needs none."""
        if not gateway.needs_uplink(network, self._provider, ports):
            return None
        known = self._memory.of(network.vni)
        if known.transit is not None:
            return known.transit
        with self._lock:
            taken = {one.transit for one in self._memory.all().values() if one.transit is not None}
            transit = gateway.choose_transit(network.vni, taken | self._egress.link_local())
            self._memory.put(network.vni, replace(known, transit=transit))
            return transit

    def _keep_egress(
        self, device: str | None, *, without: int | None = None, then: Callable[[], None] = lambda: None
    ) -> None:
        """Make the rules of the host those that all networks here need.

        Args:
            without: a network that needs none any more, though it is still remembered.
            then: forgets it, once the rules have let go of it: whoever dies before that does it again.
        """
        control_plane: frozenset[str] | None = None
        while True:
            with self._lock:
                needed = {vni: one for vni, one in self._memory.all().items() if one.transit is not None}
                networks = [one for vni, one in needed.items() if vni != without]
                if not networks:
                    self._egress.remove()
                elif control_plane is not None:
                    self._put_egress(device, networks, control_plane)
                if not networks or control_plane is not None:
                    then()
                    return
            control_plane = self._control_plane()  # may take as long as looking up names does

    def _put_egress(self, device: str | None, networks: Sequence[Remembered], control_plane: frozenset[str]) -> None:
        if device is None:
            device = self._egress.device()
        self._egress.ensure(
            HostRules(
                device=device,
                addresses=frozenset().union(*(one.addresses for one in networks)),
                refused=control_plane.union(*(one.underlays for one in networks)),
                resolvers=frozenset(self._upstream()),
                is_router=device is not None and self._egress.is_router(device),
            )
        )

    def _died(self, vni: int) -> None:
        log.warning("dnsmasq of network %d has ended, and is started again", vni)
        self._left.pop(vni, None)
        self._on_damage(vni)

    def _say(self, what: str, text: str) -> None:
        """Log what is to be said of something, once."""
        if self._said.get(what, "") != text:
            self._said[what] = text
            if text:
                log.warning("%s: %s", what, text)


@contextmanager
def _collected(errors: list[CloudError]) -> Iterator[None]:
    """Go on after an error, and keep it."""
    try:
        yield
    except CloudError as error:
        errors.append(error)


_NO_EGRESS = (
    "this host has no device that leads out, so its guests do not get out either; set `egress:` in compute.yaml, "
    "or give the host a default route"
)


def _underlays(hosts: Iterable[NetworkHost]) -> Iterable[str]:
    for host in hosts:
        try:
            yield str(IPv4Address(host.underlay))
        except AddressValueError:
            continue  # said by `mesh`
