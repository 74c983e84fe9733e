"""The hosts of the cloud: what etcd and placement say of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ecompute.cluster import keys
from ecompute.cluster.documents import Admin, AdminState, Alive, Node
from eschedule.cloud.connection import Cloud


@dataclass(frozen=True)
class Room:
    """Of one resource class."""

    capacity: int
    used: int


@dataclass(frozen=True)
class HostView:
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
    """Safe from several threads."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def names(self) -> dict[str, str]:
        """Return {provider: host name}."""
        return {item.value.provider: item.value.name for item in self._cloud.store.list(keys.NODES, Node).items}

    def all(self) -> Iterator[HostView]:
        """Yield every host that has ever registered, by name."""
        store = self._cloud.store
        nodes = store.list(keys.NODES, Node).items
        alive = {keys.last(item.key) for item in store.list(keys.ALIVE, Alive).items}
        admins = {keys.last(item.key): item.value.state for item in store.list(keys.ADMIN, Admin).items}
        for item in sorted(nodes, key=lambda item: (item.value.name, item.value.provider)):
            node = item.value
            yield HostView(
                node=node,
                is_alive=node.provider in alive,
                admin_state=admins.get(node.provider, AdminState.ACTIVE),
                room=self._room(node.provider),
            )

    def _room(self, provider: str) -> dict[str, Room]:
        placement = self._cloud.placement
        if placement.provider(provider) is None:
            return {}
        usages = placement.usages(provider)
        return {
            name: Room(inventory.capacity, usages.get(name, 0))
            for name, inventory in placement.inventories(provider).inventories.items()
        }
