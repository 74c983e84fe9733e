"""A hypervisor in memory, for tests and trials: no guests, but the same answers and the same refusals.

It renders each plan as the real one does, so that what would be refused is refused. It outlives the
daemon that uses it: whoever restarts the daemon in a test gives the next one the same object, or, with
`share`, another one on the same domains, as two daemons have two libvirt connections.

The methods under "what a test does to it" are not of the protocol.

Threads: any. Listeners are called one change after the other, from a thread that is there while there
are changes to tell.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

from ecompute.cluster.documents import Power
from ecompute.cluster.errors import HypervisorError, HypervisorUnavailable
from ecompute.cluster.timers import Serial
from ecompute.hypervisor import domain
from ecompute.hypervisor.api import FoundDomain, HostCapabilities, clings, foreign
from ecompute.hypervisor.domain import DomainPlan, FoundInterface, TapPlan

CALLS_KEPT = 10_000
CLOSE_S = 5.0

Before = Callable[[str, str, threading.Event], None]
"""Called before each call that reaches it, with the call's name, the domain's uuid, and what is set when
the connection is cut; may take its time, or raise what the call is to raise."""

log = logging.getLogger(__name__)

CAPABILITIES = HostCapabilities(
    cpu_model="fake",
    cpu_features=frozenset({"sse4.2", "avx2", "fpu"}),
    libvirt_version="0.0.0",
    qemu_version="0.0.0",
    emulated_features=frozenset({"sse4.2", "fpu"}),
)


@dataclass
class _Machine:
    """What several `FakeHypervisor` of one host share."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    domains: dict[str, FoundDomain] = field(default_factory=dict)
    plans: dict[str, DomainPlan] = field(default_factory=dict)
    plugged: dict[str, tuple[TapPlan, ...]] = field(default_factory=dict)
    """The interfaces of the domains that are on."""
    clinging: set[str] = field(default_factory=set)
    is_down: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    hung: dict[str, threading.Event] = field(default_factory=dict)
    watchers: list[FakeHypervisor] = field(default_factory=list)
    calls: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=CALLS_KEPT))


class FakeHypervisor:
    """`ecompute.hypervisor.api.Hypervisor` without a hypervisor.

    Args:
        provider_uuid: whose domains are ours.
        needs_disks: a domain whose root disk is not there cannot start, as in earnest.
        before: see `Before`.
        on_taps: told that taps come, or go.
    """

    def __init__(
        self,
        provider_uuid: str,
        *,
        needs_disks: bool = True,
        before: Before = lambda call, uuid, is_cut: None,
        on_taps: Callable[[tuple[TapPlan, ...], bool], None] = lambda taps, is_there: None,
    ) -> None:
        self._provider = provider_uuid
        self._needs_disks = needs_disks
        self._before = before
        self._on_taps = on_taps
        self._machine = _Machine()
        self._begin()

    def share(self) -> Self:
        """Return another connection to the same domains."""
        other = object.__new__(type(self))
        other._provider, other._needs_disks, other._machine = self._provider, self._needs_disks, self._machine
        other._before, other._on_taps = self._before, self._on_taps
        other._begin()
        return other

    def _begin(self) -> None:
        self._listeners: list[Callable[[str], None]] = []
        self._telling: Serial[tuple[str, Callable[[str], None] | None]] = Serial("fake-hypervisor", self._tell)
        self._is_cut = threading.Event()
        with self._machine.lock:
            self._machine.watchers.append(self)

    # --- the protocol ---

    def list(self) -> dict[str, FoundDomain]:
        self._enter("list", "")
        with self._machine.lock:
            return dict(self._machine.domains)

    def get(self, uuid: str) -> FoundDomain | None:
        self._enter("get", uuid)
        with self._machine.lock:
            found = self._machine.domains.get(uuid)
            if found is None:
                return None
            plan = self._machine.plans.get(uuid)
            taps = self._machine.plugged.get(uuid, () if plan is None else plan.interfaces)
            return replace(found, interfaces=frozenset(FoundInterface(tap.mac, tap.tap, tap.bridge) for tap in taps))

    def define(self, plan: DomainPlan) -> None:
        domain.render(plan)
        if plan.provider != self._provider:
            raise HypervisorError(f"domain {plan.uuid} is planned for provider {plan.provider}, not for this host")
        self._enter("define", plan.uuid)
        with self._machine.lock:
            found = self._ours(plan.uuid)
            self._machine.plans[plan.uuid] = plan
            self._machine.domains[plan.uuid] = found or FoundDomain(
                plan.uuid, Power.OFF, True, self._provider, domain.domain_name(plan.uuid)
            )
        self._changed(plan.uuid)

    def start(self, uuid: str) -> None:
        self._enter("start", uuid)
        with self._machine.lock:
            found = self._ours(uuid)
            if found is None:
                raise HypervisorError(f"cannot start domain {uuid}: it is not defined")
            disk = self._machine.plans[uuid].root_disk
            if self._needs_disks and not disk.exists():
                raise HypervisorError(f"cannot start domain {uuid}: Cannot access storage file '{disk}'")
            if found.power not in (Power.ON, Power.PAUSED):
                self._machine.domains[uuid] = replace(found, power=Power.ON)
                self._machine.plugged[uuid] = self._machine.plans[uuid].interfaces
                self._on_taps(self._machine.plugged[uuid], True)
        self._changed(uuid)

    def stop(self, uuid: str) -> None:
        self._enter("stop", uuid)
        with self._machine.lock:
            found = self._ours(uuid)
            if found is None or found.power not in (Power.ON, Power.PAUSED):
                return
            self._machine.domains[uuid] = replace(found, power=Power.OFF)
            self._unplug(uuid)
        self._changed(uuid)

    def attach(self, uuid: str, interface: TapPlan) -> None:
        domain.render_interface(interface)
        self._enter("attach", uuid)
        with self._machine.lock:
            if self._ours(uuid) is None:
                raise HypervisorError(f"cannot give domain {uuid} an interface: it is not defined")
            plan = self._machine.plans[uuid]
            if interface.tap not in (tap.tap for tap in plan.interfaces):
                self._machine.plans[uuid] = replace(plan, interfaces=(*plan.interfaces, interface))
            plugged = self._machine.plugged.get(uuid)
            if plugged is not None and interface.tap not in (tap.tap for tap in plugged):
                self._machine.plugged[uuid] = (*plugged, interface)
                self._on_taps((interface,), True)

    def detach(self, uuid: str, tap: str) -> None:
        self._enter("detach", uuid)
        with self._machine.lock:
            if self._ours(uuid) is None:
                return
            plan = self._machine.plans[uuid]
            self._machine.plans[uuid] = replace(plan, interfaces=tuple(i for i in plan.interfaces if i.tap != tap))
            plugged = self._machine.plugged.get(uuid, ())
            going = tuple(i for i in plugged if i.tap == tap)
            if going and uuid in self._machine.clinging:
                raise clings(uuid, tap)
            if going:
                self._machine.plugged[uuid] = tuple(i for i in plugged if i.tap != tap)
                self._on_taps(going, False)

    def undefine(self, uuid: str) -> None:
        self._enter("undefine", uuid)
        with self._machine.lock:
            found = self._ours(uuid)
            if found is None:
                return
            if found.power in (Power.ON, Power.PAUSED):
                raise HypervisorError(f"cannot undefine domain {uuid}: it is running", hint="stop it first")
            del self._machine.domains[uuid]
            self._machine.plans.pop(uuid, None)
        self._changed(uuid)

    def on_change(self, listener: Callable[[str], None]) -> None:
        self._listeners.append(listener)
        self._telling.put(("", listener))

    def capabilities(self) -> HostCapabilities:
        self._enter("capabilities", "")
        return CAPABILITIES

    def release_thread(self) -> None:
        """Nothing is held."""

    def close(self) -> None:
        with self._machine.lock:
            if self in self._machine.watchers:
                self._machine.watchers.remove(self)
        self._telling.close(CLOSE_S)

    # --- what a test does to it ---

    @property
    def calls(self) -> tuple[tuple[str, str], ...]:
        """All calls so far that reached it: name and uuid."""
        with self._machine.lock:
            return tuple(self._machine.calls)

    def plan(self, uuid: str) -> DomainPlan:
        """The plan that the domain was last defined with."""
        with self._machine.lock:
            return self._machine.plans[uuid]

    def fail(self, call: str, message: str) -> None:
        """Let each ``call`` (``start``, …) fail with ``message``; with ``""``, no more."""
        with self._machine.lock:
            self._machine.failures[call] = message

    def hang(self, uuid: str) -> Callable[[], None]:
        """Let calls that change the domain hang, until the function returned is called."""
        event = threading.Event()
        with self._machine.lock:
            self._machine.hung[uuid] = event

        def release() -> None:
            with self._machine.lock:
                self._machine.hung.pop(uuid, None)
            event.set()

        return release

    def cling(self, uuid: str, is_so: bool = True) -> None:
        """Let the guest not let go of an interface."""
        with self._machine.lock:
            (self._machine.clinging.add if is_so else self._machine.clinging.discard)(uuid)

    def cut(self) -> None:
        """As if the process with this connection had been killed: no call of it does anything any more."""
        self._is_cut.set()

    def go_down(self) -> None:
        """As if libvirtd had ended; guests run on."""
        with self._machine.lock:
            self._machine.is_down = True

    def come_back(self) -> None:
        with self._machine.lock:
            self._machine.is_down = False
        self._changed("")

    def set_power(self, uuid: str, power: Power) -> None:
        """As if the guest had powered itself off, crashed, …"""
        with self._machine.lock:
            self._machine.domains[uuid] = replace(self._machine.domains[uuid], power=power)
            if power not in (Power.ON, Power.PAUSED):
                self._unplug(uuid)
        self._changed(uuid)

    def remove_by_hand(self, uuid: str) -> None:
        """As an operator with another tool would."""
        with self._machine.lock:
            self._unplug(uuid)
            del self._machine.domains[uuid]
            self._machine.plans.pop(uuid, None)
        self._changed(uuid)

    def add_foreign(self, uuid: str, name: str, *, provider: str | None = None, power: Power = Power.ON) -> None:
        """A domain that is not ours: of no provider, or of another."""
        with self._machine.lock:
            self._machine.domains[uuid] = FoundDomain(uuid, power, False, provider, name)
        self._changed(uuid)

    # --- inside ---

    def _enter(self, call: str, uuid: str) -> None:
        with self._machine.lock:
            if self._machine.is_down or self._is_cut.is_set():
                raise HypervisorUnavailable("the fake hypervisor is down")
            self._machine.calls.append((call, uuid))
            hung = self._machine.hung.get(uuid) if call not in ("get", "list") else None
            failure = self._machine.failures.get(call)
        if hung is not None:
            hung.wait()
        self._before(call, uuid, self._is_cut)
        if self._is_cut.is_set():
            raise HypervisorUnavailable("the connection to the fake hypervisor was cut")
        if failure:
            raise HypervisorError(f"cannot {call} domain {uuid}: {failure}")

    def _unplug(self, uuid: str) -> None:
        """Its guest has ended."""
        if taps := self._machine.plugged.pop(uuid, ()):
            self._on_taps(taps, False)

    def _ours(self, uuid: str) -> FoundDomain | None:
        found = self._machine.domains.get(uuid)
        if found is not None and not found.is_ours:
            raise foreign(uuid)
        return found

    def _changed(self, uuid: str) -> None:
        with self._machine.lock:
            watchers = list(self._machine.watchers)
        for watcher in watchers:
            watcher._telling.put((uuid, None))

    def _tell(self, item: tuple[str, Callable[[str], None] | None]) -> None:
        uuid, only = item
        for listener in [only] if only is not None else list(self._listeners):
            try:
                listener(uuid)
            except Exception:
                log.exception("a listener for domain %s failed", uuid or "changes")
