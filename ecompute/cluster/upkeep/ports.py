"""What goes when a port goes: the port, and the floating and routed addresses that are handed to its interface.

Reads, and adds to what a transaction compares and does; the caller commits it. The port is compared as
it was read, so that nothing is handed to an interface while it goes: of the two, one comes too late.

Safe from several threads.
"""

from __future__ import annotations

from ecompute.cluster import keys
from ecompute.cluster.documents import Floating, Interface, Port
from ecompute.cluster.floating import freed, is_target
from ecompute.cluster.store import Compare, Delete, Op, Put, Store, absent, unchanged


def take_port(
    store: Store, interface: Interface, instance_uuid: str, compares: list[Compare], operations: list[Op]
) -> Port | None:
    """Delete the port of ``interface``, and free the floating addresses that it names; return it, if there is one."""
    key = keys.port(interface.network_uuid, interface.uuid)
    port = store.get(key, Port)
    if port is None:
        compares.append(absent(key))
        return None
    compares.append(unchanged(port))
    operations.append(Delete(key))
    handed = [ip for ip in (port.value.floating, *port.value.routed) if ip is not None]
    for floating in store.get_many([keys.floating(ip) for ip in handed], Floating).items:
        if is_target(floating.value, interface.uuid, instance_uuid):
            compares.append(unchanged(floating))
            operations.append(Put(floating.key, freed(floating.value)))
    return port.value
