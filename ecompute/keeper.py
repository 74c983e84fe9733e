"""What the host says of itself in placement and etcd: node, provider, inventory and traits.

`HostKeeper.keep` puts all of it right; start-up, a change of `/admin` or of the hold, and the timer
call the same. The host is opened for claims once everything was gone through and nothing is on hold.

Threads: one call of `keep` at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Node
from ecompute.cluster.errors import CloudError, CompareFailed
from ecompute.cluster.store import Put, Store, absent, unchanged
from ecompute.hold import Hold
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.inventory import Measured
from ecompute.registrar import Registrar

log = logging.getLogger(__name__)


class HostKeeper:
    """What one host says of itself. See the module."""

    def __init__(
        self,
        *,
        store: Store,
        registrar: Registrar,
        hold: Hold,
        instances: InstanceReconciler,
        traits: frozenset[str],
        measure: Callable[[], Measured],
        node: Callable[[str | None], Node],
    ) -> None:
        self._store = store
        self._registrar = registrar
        self._hold = hold
        self._instances = instances
        self._traits = traits
        self._measure = measure
        self._node = node
        self._is_registered = False
        self.is_open = False
        self.is_settled = False
        """Whether the last `keep` went through."""

    @property
    def is_held(self) -> bool:
        return self._hold.reason is not None

    def keep(self) -> None:
        """Look whether to hold, and put node, provider, inventory and traits right.

        The host is opened for claims once everything was gone through and nothing is on hold.
        """
        self.is_settled = False
        before = self._hold.reason
        reason = self._hold.examine()
        if before is not None and reason is None:
            self._instances.rescan()
        if self._is_registered or self._has_node():
            self._write_node(reason)  # at once: placement may be away, and a hold is to be seen
        is_closed = reason is not None or not (self.is_open or self._instances.has_converged())
        measured = self._measure()
        self._registrar.register(measured, self._traits, is_closed=is_closed)
        if not self._is_registered:
            self._is_registered = True
            self._write_node(reason)  # not before: one whose provider is refused would leave a host that never was
        if self.is_open is is_closed:
            log.info("the host %s", "takes no new instances" if is_closed else "is open for new instances")
        self.is_open = not is_closed
        self.is_settled = True

    def close(self) -> None:
        """Reserve the VCPU, so that nothing new is sent here."""
        try:
            self._registrar.close(self._measure())
        except CloudError as error:
            log.warning("the host's VCPU could not be reserved: %s", error)

    def _has_node(self) -> bool:
        return self._store.get(keys.node(self._node(None).provider), Node) is not None

    def _write_node(self, reason: str | None) -> None:
        node = self._node(reason)
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
