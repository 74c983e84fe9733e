"""Takes a look at this host: libvirt, the disk, the devices and the lanes, then etcd.

In bulk, and beside the lanes: one call to libvirt, one range of etcd, one reading of the directory and
of the devices, whatever the number of guests. Nothing is touched.

Threads: any; a look takes as long as libvirt does.
"""

from __future__ import annotations

from collections.abc import Callable

from ecompute.audit.compare import Assigned, OwnLook
from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment
from ecompute.cluster.store import Store, Versioned
from ecompute.hypervisor.api import Hypervisor
from ecompute.instances.actuate import Actuator
from ecompute.instances.memory import Memory
from ecompute.instances.reconciler import InstanceReconciler
from ecompute.network.present import Device


class Looker:
    """Looks for one host.

    Args:
        devices: lists what of ours is there in the host's network.
    """

    def __init__(
        self,
        *,
        store: Store,
        provider: str,
        hypervisor: Hypervisor,
        actuator: Actuator,
        memory: Memory,
        instances: InstanceReconciler,
        devices: Callable[[], frozenset[Device]],
    ) -> None:
        self._store = store
        self._provider = provider
        self._hypervisor = hypervisor
        self._actuator = actuator
        self._memory = memory
        self._instances = instances
        self._devices = devices

    def look(self) -> OwnLook:
        """Return what is here and what ought to be.

        Raises:
            Unavailable, NetworkError: it cannot be said.
        """
        at_work, stuck = self._instances.at_work()
        domains = {uuid: found.power for uuid, found in self._hypervisor.list().items() if found.is_ours}
        files = self._actuator.with_files()
        disks = frozenset(uuid for uuid in files if self._actuator.files(uuid).disk.exists())
        strays = self._actuator.strays()
        devices = self._devices()
        fetching = self._actuator.fetching()
        listing = self._store.list(keys.assignments(self._provider), Assignment)
        legible = {i.value.uuid: i for i in listing.items if _is_about_what_it_names(i)}
        others = (item.key for item in listing.items if not _is_about_what_it_names(item))
        # Looked at twice: who was at work when it began may have ended since, and the other way round.
        now_at_work, now_stuck = self._instances.at_work()
        return OwnLook(
            assigned={uuid: self._assigned(item, is_fetching=uuid in fetching) for uuid, item in legible.items()},
            unreadable=frozenset({*(key for key, _ in listing.unreadable), *others}),
            domains=domains,
            disks=disks,
            files=frozenset(files),
            strays=strays,
            devices=devices,
            at_work=at_work | now_at_work,
            stuck=stuck & now_stuck,
        )

    def _assigned(self, item: Versioned[Assignment], *, is_fetching: bool) -> Assigned:
        assignment = item.value
        is_in_gang = assignment.gang is not None and self._memory.record(assignment.uuid) is None
        return Assigned(
            role=assignment.role,
            mod_revision=item.mod_revision,
            vnis=frozenset(i.vni for i in assignment.spec.interfaces if i.physical is None or i.vlan is not None),
            taps=self._actuator.taps(assignment),
            is_waiting=is_fetching or is_in_gang,
        )


def _is_about_what_it_names(item: Versioned[Assignment]) -> bool:
    return item.value.uuid == keys.last(item.key) and keys.is_uuid(item.value.uuid)
