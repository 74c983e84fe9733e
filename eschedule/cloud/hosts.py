"""The hosts of the cloud: what etcd and placement say of each. Safe from several threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, AdminState, Alive, Node
from ecompute.cluster.errors import NotFound
from eschedule.cloud.connection import Cloud

PLACEMENT_THREADS = 8
"""How many hosts are asked about at once: placement has one answer a host."""


@dataclass(frozen=True)
class Room:
    """Of one resource class."""

    capacity: int
    used: int


@dataclass(frozen=True)
class HostView:
    """One host. Its ``room`` is by resource class; empty while placement does not know it."""

    node: Node
    is_alive: bool
    admin_state: AdminState
    room: dict[str, Room]

    @property
    def state(self) -> str:
        """One word, the worst that is known."""
        if self.node.hold is not None:
            return "hold"
        if self.admin_state is not AdminState.ACTIVE:
            return str(self.admin_state)
        return "up" if self.is_alive else "down"


class Hosts:
    """All hosts that have ever registered."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def names(self) -> dict[str, str]:
        """Return {provider: host name}."""
        return {item.value.provider: item.value.name for item in self._cloud.store.list(keys.NODES, Node).items}

    def name(self, provider: str) -> str:
        """Return the host's name; its provider's uuid, where it has never registered."""
        found = self._cloud.store.get(keys.node(provider), Node)
        return provider if found is None else found.value.name

    def all(self) -> Iterator[HostView]:
        """Yield every host that has ever registered, by name."""
        store = self._cloud.store
        listed = store.list(keys.NODES, Node).items
        nodes = sorted((item.value for item in listed), key=lambda node: (node.name, node.provider))
        alive = {keys.last(item.key) for item in store.list(keys.ALIVE, Alive).items}
        admins = {keys.last(item.key): item.value.state for item in store.list(keys.ADMIN, Admin).items}
        self._cloud.placement  # noqa: B018 - made here, and not by several threads at once
        pool = ThreadPoolExecutor(PLACEMENT_THREADS, thread_name_prefix="room")
        try:
            for node, room in zip(nodes, pool.map(self._room, (node.provider for node in nodes)), strict=True):
                yield HostView(
                    node=node,
                    is_alive=node.provider in alive,
                    admin_state=admins.get(node.provider, AdminState.ACTIVE),
                    room=room,
                )
        finally:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the rest

    def _room(self, provider: str) -> dict[str, Room]:
        placement = self._cloud.placement
        try:
            usages = placement.usages(provider)
            inventories = placement.inventories(provider).inventories
        except NotFound:
            return {}
        return {name: Room(inventory.capacity, usages.get(name, 0)) for name, inventory in inventories.items()}
