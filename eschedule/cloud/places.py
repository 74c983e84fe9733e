"""Reads the interfaces of an instance with their networks and ports. Safe from several threads."""

from __future__ import annotations

from collections.abc import Sequence

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance, Interface, Network, Port
from ecompute.cluster.store import Store, Versioned
from eschedule.cloud.attaching import Place


def networks_and_ports(
    store: Store, interfaces: Sequence[Interface]
) -> tuple[dict[str, Network], dict[str, Versioned[Port]]]:
    """Return the networks of ``interfaces`` by uuid, and their ports by the interface's, those that are there."""
    uuids = dict.fromkeys(interface.network_uuid for interface in interfaces)
    networks = store.get_many([keys.network(uuid) for uuid in uuids], Network).items
    ports = store.get_many([keys.port(i.network_uuid, i.uuid) for i in interfaces], Port).items
    return {item.value.uuid: item.value for item in networks}, {item.value.interface_uuid: item for item in ports}


def places(store: Store, instance: Instance) -> list[Place]:
    """Return the interfaces that ``instance`` is to have, in their order; those without a port are left out."""
    interfaces = instance.spec.interfaces
    networks, ports = networks_and_ports(store, interfaces)
    return [
        Place(interface, networks[interface.network_uuid], ports[interface.uuid])
        for interface in interfaces
        if interface.network_uuid in networks and interface.uuid in ports
    ]
