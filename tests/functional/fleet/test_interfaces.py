"""Interfaces asked of the daemon's own code: it makes the guest so, reports it, and what left is given back."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ecompute.cluster import keys
from ecompute.cluster.documents import Instance, State
from ecompute.cluster.store import Store, Versioned
from ecompute.fleet import Fleet
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FloatingAddresses, Target
from eschedule.cloud.instances import Instances
from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.cloud.interface_views import Standing, views
from eschedule.cloud.interfaces import Interfaces
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.cloud.pools import Pools
from eschedule.scheduler.launch import Launcher
from eschedule.scheduler.request import LaunchRequest

IMAGE = "http://images.example/small.qcow2"
TIMEOUT_S = 60.0
BACK = InterfaceRequest(network="back")


def launched(cloud: Cloud) -> Instance:
    """Return an instance that runs."""
    query = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"
    uuid = Launcher(cloud).launch(LaunchRequest(query=query, image=IMAGE, name="web-1")).uuid
    instances = Instances(cloud)
    view = instances.wait(
        instances.find(uuid, "system"), until=frozenset({State.CREATED, State.ERROR}), timeout_s=TIMEOUT_S
    )
    assert view is not None and view.state is State.CREATED
    return view.instance.value


def now(store: Store, instance: Instance) -> Versioned[Instance]:
    found = store.get(keys.instance(instance.uuid), Instance)
    assert found is not None
    return found


def test_interfaces_come_and_go_while_the_guest_runs(
    make_fleet: Callable[..., Fleet], cloud: Cloud, store: Store, eventually: Callable[..., None]
) -> None:
    fleet = make_fleet(hosts=1)
    (host,) = fleet.hosts
    guest = launched(cloud)
    back = Networks.of(cloud).create("system", NetworkRequest(name="back", cidr="10.1.0.0/24")).value
    Pools(cloud).create("public", "203.0.113.0/30")
    FloatingAddresses(cloud).create("system", target=Target("web-1"))
    interfaces = Interfaces(cloud)
    first = guest.spec.interfaces[0]
    interfaces.wait(interfaces.add("web-1", "system", BACK), timeout_s=TIMEOUT_S)
    assert [view.standing for view in views(store, now(store, guest))] == [Standing.PRESENT] * 2
    assert host.machine.links.ours() == {first.vni, back.vni}
    assert len(host.machine.filter.taps(back.vni)) == 1
    after = interfaces.wait(interfaces.remove("web-1", "system", first.uuid), timeout_s=TIMEOUT_S)
    assert (len(after.spec.interfaces), after.leaving) == (1, ())
    assert store.keys(keys.ports(first.network_uuid))[0] == store.keys(keys.network_hosts(first.network_uuid))[0] == []
    assert [one.floating.interface_uuid for one in FloatingAddresses(cloud).all("system")] == [None]
    eventually(lambda: host.machine.links.ours() == {back.vni}, timeout_s=TIMEOUT_S)
    interfaces.wait(
        interfaces.remove("web-1", "system", after.spec.interfaces[0].uuid), timeout_s=TIMEOUT_S
    )  # the last one
    assert now(store, guest).value.with_ports == ()
    eventually(lambda: not host.machine.links.ours(), timeout_s=TIMEOUT_S)
    Networks.of(cloud).delete("back", "system")
    assert not [key for key in store.keys(keys.NETWORKS)[0] if back.uuid in key]


def test_a_host_that_dies_in_between_does_it_when_it_is_back(
    make_fleet: Callable[..., Fleet], cloud: Cloud, store: Store
) -> None:
    fleet = make_fleet(hosts=1)
    (host,) = fleet.hosts
    guest = launched(cloud)
    Networks.of(cloud).create("system", NetworkRequest(name="back", cidr="10.1.0.0/24"))
    interfaces = Interfaces(cloud)
    fleet.kill(host)
    added = interfaces.add("web-1", "system", BACK)
    asked = interfaces.remove("web-1", "system", guest.spec.interfaces[0].uuid)
    assert len(now(store, guest).value.with_ports) == 2
    threading.Timer(0.5, host.start).start()
    after = interfaces.wait(asked, timeout_s=TIMEOUT_S)
    assert after.spec.interfaces == added.spec.interfaces[1:]
    assert store.keys(keys.ports(guest.spec.interfaces[0].network_uuid))[0] == []
