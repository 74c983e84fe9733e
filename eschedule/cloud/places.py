"""Reads the interfaces of an instance with their networks and ports. Safe from several threads."""

from __future__ import annotations

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance, Network, Port
from ecompute.cluster.store import Store
from eschedule.cloud.attaching import Place


def places(store: Store, instance: Instance) -> list[Place]:
    """Return the interfaces that ``instance`` is to have, in their order; those without a port are left out."""
    interfaces = instance.spec.interfaces
    uuids = list(dict.fromkeys(interface.network_uuid for interface in interfaces))
    networks = {
        item.value.uuid: item.value for item in store.get_many([keys.network(uuid) for uuid in uuids], Network).items
    }
    ports = {
        item.value.interface_uuid: item
        for item in store.get_many([keys.port(i.network_uuid, i.uuid) for i in interfaces], Port).items
    }
    return [
        Place(interface, networks[interface.network_uuid], ports[interface.uuid])
        for interface in interfaces
        if interface.network_uuid in networks and interface.uuid in ports
    ]
