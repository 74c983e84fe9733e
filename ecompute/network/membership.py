"""Which networks this host is a member of, and what each needs here.

A host is a member while it has a guest on the network. The documents below ``/networks/<uuid>/`` say
who else is and where every guest sits; whatever changes there marks the network, and the network's
devices and forwarding entries are converged from a fresh reading. Joining is a step of building an
instance; leaving is one of removing it.

A network with many guests changes often, and every change wakes all of its hosts: so a host pauses after
each round, `PAUSES` times as long as that took, at most `LONGEST_PAUSE_S`. The guests that it builds itself
do not wait for that.

What a network is here has two parts: the segment (`reconcile`), and the gateway that serves this host's guests
(`gateway_reconcile`). A new guest needs both: without DHCP it would start into nothing. One that runs is not kept
off the segment by a gateway of which something fails: that is logged once, and tried again.

While the host is on hold nothing is changed: an emptied etcd has no peers, and running guests would
lose theirs.

Safe from several threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Interface, Network, NetworkHost, NetworkKind, Port
from ecompute.cluster.errors import CloudError, NetworkError, OnHold
from ecompute.cluster.failpoint import reach
from ecompute.cluster.periodic import Periodic
from ecompute.cluster.retries import Retries
from ecompute.cluster.store import Follow, Store, Watcher
from ecompute.network.alarms import Alarms
from ecompute.network.gateway_reconcile import GatewayReconciler
from ecompute.network.mesh import wanted
from ecompute.network.names import gateway_name
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.terms import Tap

SCAN_PERIOD_S = 600.0
RETRY_S = 5.0
PAUSES = 9.0
LONGEST_PAUSE_S = 2.0
FAILPOINTS = ("network.marked", "network.down")

log = logging.getLogger(__name__)


class Memberships:
    """The networks of one host.

    Args:
        provider: the host's provider uuid.
        memory: a directory in which it is remembered which networks were brought up here.
        is_held: whether the host is on hold.
        bridges: what operators call the host's bridges, and their names.
        alarms: tells of damage, so that it does not last until the next scan.
        scan_period_s: how often all of it is read and put right, whether anything has happened or not.
    """

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        reconciler: NetworkReconciler,
        gateways: GatewayReconciler,
        provider: str,
        memory: Path,
        *,
        is_held: Callable[[], bool],
        bridges: Mapping[str, str] = MappingProxyType({}),
        alarms: Alarms | None = None,
        scan_period_s: float = SCAN_PERIOD_S,
    ) -> None:
        self._store = store
        self._watcher = watcher
        self._reconciler = reconciler
        self._gateways = gateways
        self._provider = provider
        self._memory = memory
        memory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._is_held = is_held
        self._bridges = bridges
        self._alarms = alarms
        self._lock = threading.Lock()
        self._users: dict[str, set[str]] = {}
        self._vnis: dict[str, int] = {}
        self._follows: dict[str, tuple[Follow[Port], Follow[NetworkHost]]] = {}
        self._marked: set[str] = set()
        self._busy: dict[int, threading.Lock] = {}
        self._admitted: dict[str, Tap] = {}
        self._admitting = threading.Lock()
        self._is_admission_due = True
        self._retries = Retries("network-retries", self._mark)
        self._failures: dict[str, str] = {}
        """What was said of a network's gateway that is not as it should be."""
        self._narrow: dict[str, int] = {}
        """What was said of a network's MTU here."""
        self._damaged_at: dict[int | None, float] = {}
        self._suspect: set[str] = set()
        """Networks of which something was damaged: all of each is read again."""
        self._not_before = 0.0
        self._is_converging = False
        self._pause = Retries("network-pause", lambda _: self._periodic.wake())
        self._scan_period_s = scan_period_s
        self._scan_at = 0.0
        self._periodic = Periodic(
            "networks", self._converge_marked, period_s=scan_period_s, jitter_s=scan_period_s / 10
        )

        gateways.on_damage(self._damaged)

    def start(self) -> None:
        if self._alarms is not None:
            self._alarms.start(self._damaged, self._repair_filter)
        self._periodic.start()

    def close(self) -> None:
        if self._alarms is not None:
            self._alarms.close()
        self._gateways.close()
        self._retries.close()
        self._pause.close()
        self._periodic.stop()

    def adopt(self, instance_uuid: str, interfaces: tuple[Interface, ...], lan: Tap | None = None) -> None:
        """Take note of a guest that is here already; its networks, and its tap ``lan``, are put right soon."""
        if lan is not None:
            with self._lock:
                is_new = self._admitted.get(instance_uuid) != lan
                self._is_admission_due = self._is_admission_due or is_new
                self._admitted[instance_uuid] = lan
            if is_new:
                self._periodic.wake()
        for interface in interfaces:
            self._use(interface, instance_uuid)
            self._mark(interface.network_uuid)

    def join(self, instance_uuid: str, interface: Interface, *, is_new: bool = True) -> None:
        """Bring the network of ``interface`` up here, for a guest about to start.

        Args:
            is_new: it has never run: the network's gateway is required, too.

        Raises:
            NetworkError: it could not be brought up, or there is no such network.
            StoreUnavailable: etcd does not answer.
        """
        self._use(interface, instance_uuid)
        try:
            self._converge(interface.network_uuid, is_required=True, needs_gateway=is_new, is_scan=True)
        except CloudError as error:
            with self._serial(interface.vni):
                if self._unuse(interface.network_uuid, instance_uuid) and not isinstance(error, OnHold):
                    self._try_down(interface.vni)
            raise

    def admit(self, instance_uuid: str, tap: Tap) -> None:
        """Let a guest's tap on the operator's bridge pass what the guest may send; before the guest starts.

        Raises:
            NetworkError: the kernel refused it.
        """
        if self._is_held():
            raise OnHold(f"instance {instance_uuid} does not get a port: this host is on hold")
        with self._lock:
            self._admitted[instance_uuid] = tap
        try:
            self._admit()
        except NetworkError:
            with self._lock:
                self._admitted.pop(instance_uuid)
            raise

    def is_admitted(self, instance_uuid: str) -> bool:
        """Whether `admit` has been done for this guest."""
        with self._lock:
            return instance_uuid in self._admitted

    def dismiss(self, instance_uuid: str) -> None:
        """Take back what `admit` did.

        Raises:
            NetworkError: the kernel refused it.
        """
        with self._lock:
            if self._admitted.pop(instance_uuid, None) is None:
                return
        self._admit()

    def _admit(self) -> None:
        if self._is_held():
            return
        with self._admitting:
            with self._lock:
                taps = frozenset(self._admitted.values())
            self._reconciler.admit(taps)

    def starting(self, taps: Iterable[str]) -> AbstractContextManager[None]:
        """Around the start of a guest with ``taps``: see `NetworkReconciler.starting`."""
        return self._reconciler.starting(taps)

    def has_joined(self, instance_uuid: str, interface: Interface) -> bool:
        """Whether `join` has been done for this guest, and its network is up here."""
        with self._lock:
            is_user = instance_uuid in self._users.get(interface.network_uuid, set())
        return is_user and interface.vni in self._reconciler.present()

    def has_to_leave(self, instance_uuid: str, interface: Interface) -> bool:
        """Whether `leave` has something to do for this guest, as after a daemon that died on the way."""
        with self._lock:
            users = set(self._users.get(interface.network_uuid, set()))
        is_marked = self._remembered(interface.vni).exists()
        return instance_uuid in users or (not users and (is_marked or interface.vni in self._present()))

    def has_others(self, instance_uuid: str, assignment: Assignment | None = None) -> bool:
        """Whether this guest has joined networks that its assignment names no interface of; without one: any."""
        return bool(self._others(instance_uuid, assignment))

    def leave_others(self, instance_uuid: str, assignment: Assignment | None = None) -> None:
        """Leave those networks.

        Raises:
            NetworkError: something of one could not be removed.
        """
        for uuid, vni in self._others(instance_uuid, assignment).items():
            self._leave(instance_uuid, uuid, vni)

    def _others(self, instance_uuid: str, assignment: Assignment | None) -> dict[str, int]:
        named = () if assignment is None else assignment.spec.interfaces
        wanted = {interface.network_uuid for interface in named}
        with self._lock:
            return {
                uuid: self._vnis[uuid]
                for uuid, users in self._users.items()
                if instance_uuid in users and uuid not in wanted
            }

    def leave(self, instance_uuid: str, interface: Interface) -> None:
        """Take the network of ``interface`` down if ``instance_uuid`` was its last guest here.

        Raises:
            NetworkError: something of it could not be removed.
        """
        self._leave(instance_uuid, interface.network_uuid, interface.vni)

    def _leave(self, instance_uuid: str, uuid: str, vni: int) -> None:
        with self._serial(vni):
            with self._lock:
                is_user = instance_uuid in self._users.get(uuid, ())
            if not self._unuse(uuid, instance_uuid):
                return
            with self._lock:
                is_anothers = vni in self._vnis.values()
            if not is_anothers:
                self._take_down(vni, is_sure=is_user)

    def sweep(self, assigned: set[int]) -> None:
        """Take down what is left of networks that no guest here uses (a daemon died while leaving).

        Args:
            assigned: the VNIs of all assignments: their guests' own work brings them up and down.
        """
        if self._is_held():
            return
        # Only what this daemon has brought up: another's on this machine is not its own to remove.
        known = {int(path.name) for path in self._memory.iterdir() if path.name.isdigit()}
        try:
            known |= self._gateways.served()
        except NetworkError as error:
            log.warning("what the metadata service was left with stays: %s", error)
        for vni in known - assigned:
            self.sweep_one(vni)

    def sweep_one(self, vni: int) -> None:
        """Take down what is left of a network, if no guest here uses it."""
        if self._is_held():
            return
        with self._serial(vni):
            with self._lock:
                is_used = vni in self._vnis.values()
            if is_used:
                return
            try:
                if self._take_down(vni, is_sure=False):
                    log.info("removed what was left of network %d", vni)
            except NetworkError as error:
                log.warning("what is left of network %d stays: %s", vni, error)

    def _take_down(self, vni: int, *, is_sure: bool) -> bool:
        """Remove what is there of a network; return whether that was anything.

        Args:
            is_sure: no guest has it any more. Else guests that are not taken note of yet may have it, and it stays.

        Raises:
            NetworkError: something of it could not be removed.
        """
        guests = self._reconciler.guests(vni) - {gateway_name(vni)}
        if guests and not is_sure:
            return False
        if guests:  # whose they are is not known: they keep their gateway, too
            listed = ", ".join(sorted(guests))
            raise NetworkError(f"network {vni} still has ports here: {listed}", hint="stop the guests behind them")
        removed = (*self._gateways.remove(vni), *self._reconciler.remove(vni))
        if vni not in self._present():
            reach("network.down")
            with _written():
                self._remembered(vni).unlink(missing_ok=True)
        return bool(removed)

    def _try_down(self, vni: int) -> None:
        try:
            self._take_down(vni, is_sure=False)
        except NetworkError as error:
            log.warning("what is left of network %d stays until it is swept: %s", vni, error)

    def _present(self) -> frozenset[int]:
        return self._reconciler.present() | self._gateways.present()

    def _remembered(self, vni: int) -> Path:
        """The mark that this host has brought a network up; there before its first device."""
        return self._memory / str(vni)

    def _use(self, interface: Interface, instance_uuid: str) -> None:
        uuid = interface.network_uuid
        with _written():
            self._remembered(interface.vni).touch()
        reach("network.marked")
        with self._lock:
            self._users.setdefault(uuid, set()).add(instance_uuid)
            self._vnis[uuid] = interface.vni
            if uuid not in self._follows:
                self._follows[uuid] = (
                    self._watcher.follow(keys.ports(uuid), Port, lambda change: self._mark(uuid)),
                    self._watcher.follow(keys.network_hosts(uuid), NetworkHost, lambda change: self._mark(uuid)),
                )

    def _unuse(self, uuid: str, instance_uuid: str) -> bool:
        """Take note that a guest has no part in the network any more; return whether it was the last."""
        with self._lock:
            users = self._users.get(uuid, set())
            users.discard(instance_uuid)
            if users:
                return False
            self._users.pop(uuid, None)
            self._damaged_at.pop(self._vnis.pop(uuid, 0), None)
            self._failures.pop(uuid, None)
            self._marked.discard(uuid)
            follows = self._follows.pop(uuid, None)
        for follow in follows or ():
            follow.stop()
        return True

    def _mark(self, uuid: str) -> None:
        with self._lock:
            self._marked.add(uuid)
            if self._is_converging:
                return  # taken up after the pause that follows
            left_s = self._not_before - time.monotonic()
        self._wake_in(left_s)

    def _damaged(self, vni: int | None) -> None:
        """Put a network right soon (None: all); one that is damaged again and again, at intervals."""
        now = time.monotonic()
        with self._lock:
            uuids = [uuid for uuid, known in self._vnis.items() if vni in (known, None)]
            self._suspect.update(uuids)
            is_again = now < self._damaged_at.get(vni, -RETRY_S) + RETRY_S
            self._damaged_at[vni] = now
        for uuid in uuids:
            if is_again:
                self._retries.later(uuid, RETRY_S)
            else:
                self._mark(uuid)

    def _repair_filter(self) -> None:
        """Put back rules that somebody else has taken away."""
        if self._is_held():
            return
        try:
            if self._reconciler.repair_filter():
                log.warning("somebody changed the rules in our nftables tables; they are put back")
            self._gateways.repair()
        except NetworkError as error:
            log.error("the rules of the filter are not as they should be: %s", error)
            self._is_admission_due = True
            self._periodic.wake()

    def _wake_in(self, left_s: float) -> None:
        if left_s > 0:
            self._pause.later("", left_s)
        else:
            self._periodic.wake()

    def _converge_marked(self) -> None:
        with self._lock:
            began = time.monotonic()
            is_scan = began >= self._scan_at
            marked = set(self._users) if is_scan else self._marked
            suspect = self._suspect & marked
            self._suspect -= suspect
            self._marked = set()
            self._is_converging = True
        try:
            if is_scan:
                # What wakes us for it comes up to a tenth early.
                self._scan_at = began + self._scan_period_s * 0.85
            if is_scan or self._is_admission_due:
                self._admit_again()
            for uuid in sorted(marked):
                try:
                    self._converge(uuid, is_scan=is_scan or uuid in suspect)
                except CloudError as error:
                    log.warning("network %s is not as it should be: %s", uuid, error)
                    self._retries.later(uuid, RETRY_S)
                except Exception:
                    # One network must not keep the others from theirs.
                    log.exception("network %s is not as it should be", uuid)
                    self._retries.later(uuid, RETRY_S)
        finally:
            ended = time.monotonic()
            pause_s = min(LONGEST_PAUSE_S, PAUSES * (ended - began))
            with self._lock:
                self._is_converging = False
                self._not_before = ended + pause_s
                is_more = bool(self._marked)
            if is_more:
                self._wake_in(pause_s)

    def _converge(self, uuid: str, *, is_required: bool = False, needs_gateway: bool = False, is_scan: bool) -> None:
        if self._is_held():
            if is_required:
                raise OnHold(f"network {uuid} is not brought up: this host is on hold")
            return
        with self._lock:
            vni = self._vnis.get(uuid)
        if vni is None:
            return
        with self._serial(vni):
            with self._lock:
                if self._vnis.get(uuid) != vni:
                    return
                follows = self._follows[uuid]
            network = self._store.get(keys.network(uuid), Network)
            if network is not None and network.value.vni != vni:
                raise NetworkError(f"network {uuid} has VNI {network.value.vni}, and the assignment says {vni}")
            if network is None:
                if is_required:
                    raise NetworkError(f"there is no network {uuid}")
                return  # a missing key takes nothing from guests that run
            ports, hosts = follows
            if is_required or not ports.is_current or not hosts.is_current:
                found_ports = list(self._store.list(keys.ports(uuid), Port).items)
                found_hosts = list(self._store.list(keys.network_hosts(uuid), NetworkHost).items)
            else:  # what the watch has kept: a list on every event would cost a large network too much
                found_ports, found_hosts = list(ports.snapshot().values()), list(hosts.snapshot().values())
            all_ports, all_hosts = [item.value for item in found_ports], [item.value for item in found_hosts]
            target = wanted(network.value, self._provider, all_ports, all_hosts, self._bridges)
            for problem in target.problems:
                log.warning("network %s: %s; it is passed over", uuid, problem)
            with self._reconciler.session():
                if is_scan:
                    self._reconciler.ensure(target)
                else:
                    self._reconciler.follow(target)
                here = structs.replace(network.value, mtu=self._reconciler.mtu(target))
                self._say_mtu(network.value, here.mtu)
                if here.kind is NetworkKind.VIRTUAL:
                    self._serve(here, all_ports, all_hosts, is_scan=is_scan, needs_gateway=needs_gateway)

    def _say_mtu(self, network: Network, mtu: int) -> None:
        """Say once that a network is narrower here than elsewhere: what is sent to guests here is lost in silence."""
        is_said = self._narrow.get(network.uuid, network.mtu) == mtu
        self._narrow[network.uuid] = mtu
        if not is_said and mtu < network.mtu:
            log.warning(
                "network %s has an MTU of %d here, and %d elsewhere, as what carries it here is too narrow: guests are "
                "told by DHCP, and larger datagrams to them from other hosts are lost; give it %d more bytes",
                network.uuid, mtu, network.mtu, network.mtu - mtu,
            )  # fmt: skip
        elif not is_said:
            log.info("network %s has an MTU of %d here, as elsewhere", network.uuid, mtu)

    def _serve(
        self, network: Network, ports: list[Port], hosts: list[NetworkHost], *, is_scan: bool, needs_gateway: bool
    ) -> None:
        """Make the network's gateway what it is to be here."""
        try:
            if is_scan:
                self._gateways.ensure(network, ports, hosts)
            else:
                self._gateways.follow(network, ports, hosts)
        except CloudError as error:
            if needs_gateway:
                raise
            if self._failures.get(network.uuid) != str(error):
                self._failures[network.uuid] = str(error)
                log.error("network %s is not served as it should be: %s", network.uuid, error)
            self._retries.later(network.uuid, RETRY_S)
        else:
            if self._failures.pop(network.uuid, None) is not None:
                log.info("network %s is served again", network.uuid)

    def _admit_again(self) -> None:
        """Put right what is there for taps on the operator's bridge, and take away what nobody uses."""
        try:
            self._is_admission_due = False
            self._admit()
        except NetworkError as error:
            log.warning("the filter of taps on the operator's bridge is not as it should be: %s", error)
            self._is_admission_due = True
            self._retries.later("", RETRY_S)

    def _serial(self, vni: int) -> threading.Lock:
        """Return what is held while something of that network is brought up, changed or taken down."""
        with self._lock:
            return self._busy.setdefault(vni, threading.Lock())


@contextmanager
def _written() -> Iterator[None]:
    """Say what keeps a mark from being written or removed."""
    try:
        yield
    except OSError as error:
        raise NetworkError(f"{error.filename} cannot be written: {error.strerror}", hint="see that disk") from error
