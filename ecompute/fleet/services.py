"""Ways to etcd and placement that all hosts of a fleet share.

Each daemon gets a part of its own in one store and one session, and closes it as if it were a whole.
`HostServices.cut` is what a kill does to it: nothing is sent or heard any more, whoever still tries.

Threads: any.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ecompute.cluster.config import Config
from ecompute.cluster.placement import Placement
from ecompute.cluster.placement.shared import SharedPlacement
from ecompute.cluster.store import SharedStore, Store

T = TypeVar("T", SharedStore, SharedPlacement)


class FleetServices:
    """One way to each service. Closed last."""

    def __init__(self, config: Config) -> None:
        self.store = Store(config.etcd)
        self.upkeep_store = None if config.upkeep is None else Store(config.upkeep)
        self.placement = Placement(config.placement)

    def close(self) -> None:
        self.store.close()
        if self.upkeep_store is not None:
            self.upkeep_store.close()
        self.placement.close()


class HostServices:
    """`ecompute.daemon.Services` for one life of one host."""

    def __init__(self, whole: FleetServices) -> None:
        self._whole = whole
        self._lock = threading.Lock()
        self._opened: list[SharedStore | SharedPlacement] = []

    def store(self, on_rollback: Callable[[str], None]) -> Store:
        return self._keep(SharedStore(self._whole.store, on_rollback=on_rollback))

    def upkeep_store(self, on_rollback: Callable[[str], None]) -> Store | None:
        whole = self._whole.upkeep_store
        return None if whole is None else self._keep(SharedStore(whole, on_rollback=on_rollback))

    def placement(self) -> Placement:
        return self._keep(SharedPlacement(self._whole.placement))

    def cut(self) -> None:
        with self._lock:
            opened = list(self._opened)
        for one in opened:
            one.close()

    def _keep(self, one: T) -> T:
        with self._lock:
            self._opened.append(one)
        return one
