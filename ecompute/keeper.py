"""What the host says of itself in placement and etcd: node, provider, inventory, traits, aggregates.

`HostKeeper.keep` puts all of it right; start-up, a change of `/admin` or of the hold, and the timer
call the same. Whether the host takes new instances is decided by `ecompute.standing`; what is read
for that is read anew each time, since an event is a wake-up and a cache may be behind.

First the node says whether the host is closed, and why; then placement has it, trait before reserve.
Killed between two writes while it opens, it leaves a host that takes nothing yet: placement refuses
claims until the inventory is free. While it closes, every request that had read the old node fails,
and schedulers leave out one that is on hold, before placement knows. The next `keep` goes on. What
operators gave it is remembered before it stands in placement (see `Memory`).

Threads: one call of `keep` at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, AdminState, Assignment, InventoryFacts, Node, Role, Seen, Unreadable, Zone
from ecompute.cluster.errors import CloudError, CompareFailed
from ecompute.cluster.given import Said
from ecompute.cluster.store import Put, Store, absent, unchanged
from ecompute.hold import Hold
from ecompute.instances.memory import Memory
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.inventory import Measured
from ecompute.registrar import Registrar
from ecompute.standing import Door, Facts, Standing, standing

FIRST_WAIT_S = 5.0
LAST_WAIT_S = 120.0
"""A thousand hosts that wait for their claims do not keep placement from having them back."""

log = logging.getLogger(__name__)


class HostKeeper:
    """What one host says of itself. See the module."""

    def __init__(
        self,
        *,
        store: Store,
        registrar: Registrar,
        hold: Hold,
        memory: Memory,
        instances: InstanceReconciler,
        traits: Callable[[], frozenset[str]],
        measure: Callable[[], Measured],
        node: Callable[[str | None], Node],
    ) -> None:
        self._store = store
        self._registrar = registrar
        self._hold = hold
        self._memory = memory
        self._instances = instances
        self._traits = traits
        self._measure = measure
        self._node = node
        self._provider = node(None).provider
        self._is_registered = False
        self._has_converged = False
        """Whether everything was gone through, since the start or the last hold."""
        self._has_claims = False
        """Whether placement was seen to know the claims of all guests, and has not forgotten the host since."""
        self._turn = 0
        """Of `/admin` when the host was opened."""
        self._standing = Standing(Door.CLOSED, "it starts")
        self._unclaimed = 0
        self.is_open = False
        self.is_settled = False
        """Whether the last `keep` went through."""
        self.wait_s = 0.0
        """In how long `keep` is to be called again, since it waits for what nobody tells it of; 0: no need."""

    @property
    def is_held(self) -> bool:
        return self._hold.reason is not None

    def keep(self) -> None:
        """Look whether to hold, and put node, provider, inventory, traits and aggregates right."""
        self.is_settled = False
        before = self._hold.reason
        hold = self._hold.examine()
        if before is not None and hold is None:
            self._instances.rescan()
        measured = self._measure()
        if self._is_registered or self._has_node():
            self._write_node(hold, measured)  # at once: placement may be away, and a hold is to be seen
        admin = self._admin()
        facts = self._facts(hold, admin)
        self._standing, self._unclaimed = standing(facts), facts.unclaimed
        if self._is_registered:
            self._write_node(hold, measured)
        self._register(measured, None if hold is not None or admin is None else admin)
        if not self._is_registered:
            self._is_registered = True
            self._write_node(
                hold, measured
            )  # not before: one whose provider is refused would leave a host that never was
        self._has_stood(admin)
        self.is_settled = True

    def close(self) -> None:
        """Say that the daemon stops, and keep everything new off the host.

        What does not go through is the lead's: it closes who says so, and marks lost who does not.
        """
        for act in (self._say_stopped, self._registrar.close):
            try:
                act()
            except CloudError as error:
                log.warning("the host could not be closed for new instances: %s", error)

    def _say_stopped(self) -> None:
        found = self._store.get(keys.node(self._provider), Node)
        if found is not None:
            now = self._node(found.value.hold).reported_at
            node = structs.replace(found.value, closed="its daemon was stopped", stopped=now, reported_at=now)
            self._store.commit([unchanged(found)], [Put(found.key, node)])

    def _has_stood(self, admin: Admin | None) -> None:
        """Take note that placement has it as it was decided."""
        is_open = self._standing.door is Door.OPEN
        if is_open is not self.is_open:
            state = AdminState.ACTIVE if admin is None else admin.effective
            log.info(
                "the host %s",
                "is open for new instances"
                if is_open
                else f"takes no new instances: {self._standing.reason or f'it is {state}'}",
            )
        self.is_open = is_open
        if is_open and admin is not None:
            self._turn = admin.turn
        if self._standing.is_waiting:
            self.wait_s = min(LAST_WAIT_S, self.wait_s * 2 or FIRST_WAIT_S)
        else:
            self.wait_s = 0.0

    def _facts(self, hold: str | None, admin: Admin | None) -> Facts:
        """Return what is to be known; what would change nothing is not asked for."""
        self._has_converged = hold is None and (self._has_converged or self._instances.has_converged())
        is_open = self.is_open and admin is not None and admin.turn == self._turn
        facts = Facts(
            hold=hold,
            state=None if admin is None else admin.effective,
            has_converged=self._has_converged,
            is_open=is_open,
        )
        if standing(facts).reason is not None:
            return facts
        self._has_claims = self._has_claims and self._registrar.exists()
        if self._has_claims and (is_open or facts.state is not AdminState.ACTIVE):
            return facts
        assigned = [item.value for item in self._store.list(keys.assignments(self._provider), Assignment).items]
        guests = {assignment.uuid for assignment in assigned if assignment.role is Role.RUN}
        unclaimed = len(guests - self._registrar.claimants()) if guests and not self._has_claims else 0
        self._has_claims = not unclaimed
        return replace(facts, unclaimed=unclaimed, unremoved=self._unremoved(assigned))

    def _unremoved(self, assigned: list[Assignment]) -> int:
        ordered = {a.uuid: a.epoch for a in assigned if a.role is Role.ABSENT}
        if not ordered:
            return 0
        reported = [item.value for item in self._store.list(keys.seen_by(self._provider), Seen).items]
        gone = {seen.uuid: seen.epoch for seen in reported if seen.is_gone}
        return sum(gone.get(uuid) != epoch for uuid, epoch in ordered.items())

    def _admin(self) -> Admin | None:
        """Return what operators and the lead say; None if it cannot be read."""
        try:
            found = self._store.get(keys.admin(self._provider), Admin)
        except Unreadable as error:
            log.error("%s; the host stays closed", error)
            return None
        return Admin() if found is None else found.value

    def _register(self, measured: Measured, admin: Admin | None) -> None:
        """Have placement as it should be.

        Args:
            admin: None: what operators say is not known, or not to be believed.
        """
        door = self._standing.door
        if admin is None:
            self._registrar.register(measured, self._traits(), door=door)
            return
        given = frozenset(admin.traits)
        former = self._memory.given_traits() - given
        self._memory.remember_given_traits(given | former)
        zones = {zone.name: zone.aggregate for zone in self._zones()}
        if admin.zone is not None and admin.zone not in zones:
            log.error("the host is in zone %s, of which etcd knows nothing", admin.zone)
        said = Said(
            traits=given,
            former_traits=former,
            zone=None if admin.zone is None else zones.get(admin.zone),
            zones=frozenset(zones.values()),
        )
        self._registrar.register(measured, self._traits(), door=door, said=said)
        self._memory.remember_given_traits(given)

    def _zones(self) -> list[Zone]:
        return [item.value for item in self._store.list(keys.ZONES, Zone).items]

    def _has_node(self) -> bool:
        return self._store.get(keys.node(self._provider), Node) is not None

    def _write_node(self, hold: str | None, measured: Measured) -> None:
        offered = self._registrar.offered(measured)
        node = structs.replace(
            self._node(hold),
            closed=None if hold is not None else self._standing.reason,
            unclaimed=self._unclaimed,
            inventory={name: InventoryFacts(**structs.asdict(item)) for name, item in sorted(offered.items())},
        )
        key = keys.node(node.provider)
        found = self._store.get(key, Node)
        if found is not None and _same(found.value, node):
            return
        try:
            self._store.commit([absent(key) if found is None else unchanged(found)], [Put(key, node)])
        except CompareFailed:
            log.warning("somebody else writes %s: is another daemon running with this uuid?", key)


def _same(found: Node, node: Node) -> bool:
    return structs.replace(found, reported_at=node.reported_at) == node
