"""Interfaces given to an instance that is there, and by those who die on the way; and addresses routed to it."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import (
    AddressLock,
    Admin,
    Floating,
    Instance,
    Interface,
    Port,
    Role,
    State,
)
from ecompute.cluster.errors import (
    AddressTaken,
    CloudError,
    Conflict,
    InvalidInput,
    MacTaken,
    NotFound,
    Refused,
)
from ecompute.cluster.events import INSTANCE, LEAD, Events, read
from ecompute.cluster.store import Delete, Put, Store, Versioned
from ecompute.cluster.upkeep.audit import Audit
from ecompute.cluster.upkeep.decide import GRACE_S
from ecompute.cluster.upkeep.finish import Finisher
from eschedule.cloud.connection import Cloud
from eschedule.cloud.floating import FloatingAddresses, Target
from eschedule.cloud.instances import Instances
from eschedule.cloud.interface_request import LIMIT, InterfaceRequest
from eschedule.cloud.interface_views import Standing, views
from eschedule.cloud.interfaces import Interfaces
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.networks import Networks
from eschedule.cloud.pools import Pools
from eschedule.cloud.routes import Routes
from eschedule.scheduler.launch import Launcher

BACK = InterfaceRequest(network="back")


@pytest.fixture
def host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def back(cloud: Cloud, host: Any) -> str:
    """A network called back; its uuid."""
    return Networks.of(cloud).create("system", NetworkRequest(name="back", cidr="10.1.0.0/24")).value.uuid


@pytest.fixture
def guest(cloud: Cloud, host: Any, back: str, make_request: Callable[..., Any]) -> str:
    """An instance that runs, with one interface on the default network, called web-1."""
    made = Launcher(cloud).launch(make_request(name="web-1")).uuid
    host.report(made, State.CREATED)
    return made


@pytest.fixture
def interfaces(cloud: Cloud) -> Interfaces:
    return Interfaces(cloud)


def instance_of(store: Store, guest: str) -> Versioned[Instance]:
    found = store.get(keys.instance(guest), Instance)
    assert found is not None
    return found


def port_of(store: Store, interface: Interface) -> Port:
    found = store.get(keys.port(interface.network_uuid, interface.uuid), Port)
    assert found is not None
    return found.value


def below(store: Store, network: str) -> list[str]:
    """Return what lies below a network and does not rest."""
    resting = {item.key for item in store.list(keys.addresses(network), AddressLock).items if item.value.is_resting}
    return [key for key in store.keys(keys.network_prefix(network))[0] if key not in resting]


# --- added ---------------------------------------------------------------------------------------


def test_its_host_is_told_of_one_more_with_all_that_goes_with_it(
    interfaces: Interfaces, guest: str, host: Any, back: str, store: Store
) -> None:
    asked = interfaces.add("web-1", "system", InterfaceRequest(network="back", address="10.1.0.5", model="e1000"))
    _, added = asked.spec.interfaces
    assigned = host.assigned(guest)
    assert (assigned.role, assigned.generation, assigned.spec) == (Role.RUN, 2, asked.spec)
    assert instance_of(store, guest).value == asked
    assert (added.network_uuid, added.addresses, added.model) == (back, ("10.1.0.5/24",), "e1000")
    port = port_of(store, added)
    assert (port.instance_uuid, port.provider, port.mac, port.name) == (guest, host.provider, added.mac, "web-1")
    assert below(store, back) == [
        keys.address(back, "10.1.0.5"),
        keys.network_host(back, host.provider),
        keys.mac(back, added.mac),
        keys.port(back, added.uuid),
    ]
    standings = [view.standing for view in views(store, instance_of(store, guest))]
    assert standings == [Standing.ASKED, Standing.ASKED], "of the generation nothing is known yet"
    threading.Timer(0.3, host.report, (guest, State.CREATED)).start()
    interfaces.wait(asked, timeout_s=30)
    shown = views(store, instance_of(store, guest))
    assert [(view.standing, view.network) for view in shown] == [
        (Standing.PRESENT, "default"),
        (Standing.PRESENT, "back"),
    ]
    assert [event.type for event in read(store, INSTANCE, guest)] == ["requested", "interface.asked"]


@pytest.mark.parametrize("has_way_out", [False, True])
def test_the_gateway_of_a_network_without_nat_is_told_where_nothing_else_leads_out(
    interfaces: Interfaces, host: Any, cloud: Cloud, make_request: Callable[..., Any], has_way_out: bool
) -> None:
    Networks.of(cloud).create("system", NetworkRequest(name="back", cidr="10.1.0.0/24", has_nat=False))
    request = make_request(name="web-1") if has_way_out else make_request(name="web-1", interfaces=())
    guest = Launcher(cloud).launch(request).uuid
    host.report(guest, State.CREATED)
    added = interfaces.add("web-1", "system", BACK).spec.interfaces[-1]
    assert added.gateway == (None if has_way_out else "10.1.0.1")


def test_added_and_removed_it_is_as_before(
    interfaces: Interfaces, guest: str, host: Any, back: str, store: Store, cloud: Cloud
) -> None:
    before = instance_of(store, guest).value
    added = interfaces.add("web-1", "system", BACK).spec.interfaces[-1]
    interfaces.remove("web-1", "system", added.uuid)
    host.report(guest, State.CREATED)
    Instances(cloud).finish(guest)
    after = instance_of(store, guest).value
    assert structs.replace(after, generation=1) == before
    assert below(store, back) == []
    Networks.of(cloud).delete("back", "system")


@pytest.mark.parametrize(
    ("asked", "error", "what"),
    [
        (InterfaceRequest(network="nope"), NotFound, "there is no network 'nope' in namespace system"),
        (InterfaceRequest(network="back", address="10.2.0.1"), InvalidInput, "outside of 10.1.0.0/24"),
        (InterfaceRequest(network="back", address="10.1.0.1"), InvalidInput, "gateway's"),
        (InterfaceRequest(network="back", model="floppy"), InvalidInput, "'floppy' is no model of an interface"),
        (InterfaceRequest(network="back", mac="01:00:5e:00:00:01"), InvalidInput, "01:00:5e:00:00:01"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    interfaces: Interfaces,
    guest: str,
    host: Any,
    back: str,
    store: Store,
    asked: InterfaceRequest,
    error: type[CloudError],
    what: str,
) -> None:
    with pytest.raises(error, match=what):
        interfaces.add("web-1", "system", asked)
    assert host.assigned(guest).generation == 1
    assert below(store, back) == []


def test_what_another_has_is_taken_and_a_ninth_is_too_many(
    interfaces: Interfaces, guest: str, back: str, store: Store
) -> None:
    added = interfaces.add("web-1", "system", InterfaceRequest(network="back", address="10.1.0.5")).spec.interfaces[-1]
    with pytest.raises(AddressTaken):
        interfaces.add("web-1", "system", InterfaceRequest(network="back", address="10.1.0.5"))
    with pytest.raises(MacTaken, match=f"{added.mac} is the MAC of another of its interfaces"):
        interfaces.add("web-1", "system", InterfaceRequest(network="default", mac=added.mac))
    while len(instance_of(store, guest).value.spec.interfaces) < LIMIT:
        interfaces.add("web-1", "system", BACK)
    with pytest.raises(Refused, match=f"web-1 has {LIMIT} interfaces, which is all that one may have"):
        interfaces.add("web-1", "system", BACK)
    interfaces.remove("web-1", "system", added.uuid)
    with pytest.raises(Refused, match="which is all that one may have"):
        interfaces.add("web-1", "system", BACK)


def test_an_instance_that_cannot_be_told_gets_none(
    interfaces: Interfaces, guest: str, host: Any, back: str, store: Store, cloud: Cloud
) -> None:
    store.commit([], [Put(keys.admin(host.provider), Admin(lost_since="noon"))])
    with pytest.raises(Refused, match="is lost since noon: nothing is changed there"):
        interfaces.add("web-1", "system", BACK)
    store.commit([], [Delete(keys.admin(host.provider))])
    host.report(guest, State.CREATING)
    with pytest.raises(Conflict, match="web-1 is not built yet"):
        interfaces.add("web-1", "system", BACK)
    host.report(guest, State.CREATED)
    Instances(cloud).destroy(instance_of(store, guest))
    with pytest.raises(Conflict, match="web-1 is being destroyed"):
        interfaces.add("web-1", "system", BACK)
    assert below(store, back) == []


def test_a_physical_network_needs_its_bridge_on_the_host(
    interfaces: Interfaces, guest: str, host: Any, cloud: Cloud
) -> None:
    from ecompute.cluster.given import physnet_trait

    Networks.of(cloud).create("system", NetworkRequest(name="rack", physical="rack"))
    with pytest.raises(Refused, match=rf"host {host.name} has no bridge for network rack \(rack\)"):
        interfaces.add("web-1", "system", InterfaceRequest(network="rack"))
    cloud.placement.set_traits(host.provider, {host.trait, physnet_trait("rack")})
    added = interfaces.add("web-1", "system", InterfaceRequest(network="rack")).spec.interfaces[-1]
    assert (added.physical, added.addresses) == ("rack", ())


# --- at once -------------------------------------------------------------------------------------


def at_once(make_cloud: Callable[[], Cloud], acts: list[Callable[[Cloud], Any]]) -> list[Any]:
    def one(act: Callable[[Cloud], Any], cloud: Cloud) -> Any:
        try:
            return act(cloud)
        except CloudError as error:
            return error

    clouds = [make_cloud() for _ in acts]
    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(one, acts, clouds))


def test_several_that_are_added_and_removed_at_once_are_all_of_them(
    guest: str, make_cloud: Callable[[], Cloud], store: Store, back: str
) -> None:
    first = instance_of(store, guest).value.spec.interfaces[0].uuid
    acts: list[Callable[[Cloud], Any]] = [lambda cloud: Interfaces(cloud).add("web-1", "system", BACK)] * 4
    acts.append(lambda cloud: Interfaces(cloud).remove("web-1", "system", first))
    results = at_once(make_cloud, acts)
    assert not [result for result in results if isinstance(result, CloudError)]
    value = instance_of(store, guest).value
    assert (value.generation, len(value.spec.interfaces), len(value.leaving)) == (6, 4, 1)
    assert len({interface.addresses for interface in value.spec.interfaces}) == 4
    assert sum("/ports/" in key for key in below(store, back)) == 4


def test_an_add_against_a_destroy_and_against_the_end_of_its_network_leaves_nothing(
    guest: str, make_cloud: Callable[[], Cloud], store: Store, back: str, host: Any, cloud: Cloud
) -> None:
    def destroy(other: Cloud) -> None:
        Instances(other).destroy(instance_of(store, guest))

    results = at_once(
        make_cloud,
        [
            lambda cloud: Interfaces(cloud).add("web-1", "system", BACK),
            lambda cloud: Networks.of(cloud).delete("back", "system"),
            destroy,
        ],
    )
    assert results[2] is None
    assert isinstance(results[0], Instance | Conflict | NotFound)
    host.report(guest, State.DELETED, is_gone=True)
    Instances(cloud).finish(guest)
    assert below(store, back) == []
    assert not [key for key in store.keys("/")[0] if guest in key and "/addresses/" not in key]


# --- routed --------------------------------------------------------------------------------------


def test_an_address_of_the_network_is_handed_on_and_taken_back(
    guest: str, cloud: Cloud, store: Store, interfaces: Interfaces
) -> None:
    routes = Routes(cloud)
    made = routes.add("default", "web-1", "system")
    own = instance_of(store, guest).value.spec.interfaces[0]
    assert port_of(store, own).routed == (made.ip,)
    lock = store.get(keys.address(own.network_uuid, made.ip), AddressLock)
    assert lock is not None and lock.value == AddressLock(interface_uuid=own.uuid, instance_uuid=guest)
    assert routes.add("default", "web-1", "system", ip=made.ip).ip == made.ip, "once more"
    with pytest.raises(AddressTaken):
        routes.add("default", "web-1", "system", ip=own.addresses[0].split("/")[0])
    with pytest.raises(NotFound, match="web-1 has no interface on network back"):
        routes.add("back", "web-1", "system")
    with pytest.raises(Refused, match="is the own address of interface"):
        routes.remove("default", own.addresses[0].split("/")[0], "system")
    routes.remove("default", made.ip, "system")
    assert port_of(store, own).routed == ()
    lock = store.get(keys.address(own.network_uuid, made.ip), AddressLock)
    assert lock is not None and lock.value.is_resting and lock.lease
    with pytest.raises(NotFound, match="is handed to nobody on network default"):
        routes.remove("default", made.ip, "system")
    assert routes.add("default", "web-1", "system", ip=made.ip).ip == made.ip, "that very one is taken over"
    for _ in range(3):
        routes.add("default", "web-1", "system")
    with pytest.raises(Conflict, match="has 4 routed addresses, which is all it may have"):
        routes.add("default", "web-1", "system")
    types = [event.type for event in read(store, INSTANCE, guest)]
    assert types[1:4] == ["address.routed", "address.unrouted", "address.routed"]


def test_what_is_routed_goes_with_its_interface(
    guest: str, cloud: Cloud, store: Store, interfaces: Interfaces, host: Any
) -> None:
    made = Routes(cloud).add("default", "web-1", "system")
    own = instance_of(store, guest).value.spec.interfaces[0]
    interfaces.remove("web-1", "system", own.uuid)
    with pytest.raises(NotFound):
        Routes(cloud).add("default", "web-1", "system")
    host.report(guest, State.CREATED)
    Instances(cloud).finish(guest)
    lock = store.get(keys.address(own.network_uuid, made.ip), AddressLock)
    assert lock is not None and lock.value.is_resting
    assert below(store, own.network_uuid) == []


def test_one_address_routed_by_sixteen_is_had_by_one(
    guest: str, make_cloud: Callable[[], Cloud], cloud: Cloud, make_request: Callable[..., Any], store: Store
) -> None:
    for n in range(2, 4):
        Launcher(cloud).launch(make_request(name=f"web-{n}"))
    acts = [
        lambda cloud, n=n: Routes(cloud).add("default", f"web-{1 + n % 3}", "system", ip="10.10.0.200")
        for n in range(16)
    ]
    results = at_once(make_cloud, acts)
    made = [result for result in results if not isinstance(result, CloudError)]
    assert len({route.interface_uuid for route in made}) == 1
    assert all(isinstance(result, AddressTaken) for result in results if result not in made)
    ports = [item.value for item in store.each(keys.NETWORKS, Port) if "/ports/" in item.key]
    assert sorted(port.routed for port in ports) == [(), (), ("10.10.0.200",)]


# --- killed --------------------------------------------------------------------------------------


@pytest.fixture
def tidy(store: Store, cloud: Cloud, host: Any, clock: Any) -> Callable[[], None]:
    """Return what lets the lead and the audit run, then ends all, and sees that nothing is left."""

    def run() -> None:
        audit = Audit(store, cloud.placement, list, clock)
        for item in store.list(keys.INSTANCES, Instance).items:
            host.report(item.value.uuid, State.CREATED)
            Finisher(store, cloud.placement, Events(store, LEAD)).finish(item.value.uuid)
        audit.look(is_full=True)
        clock.now_s += GRACE_S + 1
        assert audit.look(is_full=True).misfits == ()
        for item in store.list(keys.INSTANCES, Instance).items:
            assert item.value.leaving == ()
            Instances(cloud).destroy(item)
            host.report(item.value.uuid, State.DELETED, is_gone=True)
            Finisher(store, cloud.placement, Events(store, LEAD)).finish(item.value.uuid)
        for network in Networks.of(cloud).all("system"):
            assert below(store, network.uuid) == []
        for item in store.list(keys.FLOATING, Floating).items:
            assert item.value.interface_uuid is None
            FloatingAddresses(cloud).delete(item.value.ip, "system")
        assert host.claims() == {}
        assert not store.keys(keys.INSTANCES)[0] and not store.keys(keys.EVENTS)[0]

    return run


POINTS = [
    ("interface.before", ("interface", "add", "web-1", "-n", "back", "--wait")),
    ("interface.added", ("interface", "add", "web-1", "-n", "back", "--wait")),
    ("interface.before", ("interface", "remove", "web-1", "INTERFACE", "--wait")),
    ("interface.leaving", ("interface", "remove", "web-1", "INTERFACE", "--wait")),
    ("finish.begin", ("interface", "remove", "web-1", "INTERFACE", "--wait")),
    ("finish.let_go", ("interface", "remove", "web-1", "INTERFACE", "--wait")),
    ("route.before", ("network", "route", "default", "web-1")),
    ("route.made", ("network", "route", "default", "web-1")),
    ("route.before", ("network", "unroute", "default", "10.10.0.200")),
    ("route.removed", ("network", "unroute", "default", "10.10.0.200")),
    ("floating.attached", ("floating", "attach", "203.0.113.2", "web-1", "--routed")),
    ("floating.detached", ("floating", "detach", "203.0.113.1")),
]


@pytest.mark.parametrize(("failpoint", "args"), POINTS, ids=lambda value: value if isinstance(value, str) else value[1])
def test_killed_anywhere_nothing_is_left_once_the_lead_has_run(
    guest: str,
    cloud: Cloud,
    store: Store,
    host: Any,
    tool: Any,
    tidy: Callable[[], None],
    failpoint: str,
    args: tuple[str, ...],
) -> None:
    Pools(cloud).create("public", "203.0.113.0/29")
    FloatingAddresses(cloud).create("system", ip="203.0.113.1", target=Target("web-1"))
    FloatingAddresses(cloud).create("system", ip="203.0.113.2")
    Routes(cloud).add("default", "web-1", "system", ip="10.10.0.200")
    own = instance_of(store, guest).value.spec.interfaces[0].uuid
    words = [own if word == "INTERFACE" else word for word in args]
    running = tool.start(*words, ECOMPUTE_FAILPOINT=failpoint)
    try:
        while running.poll() is None:  # its host does what it is asked
            host.report(guest, State.CREATED)
    finally:
        running.kill()
        out, _ = running.communicate()
    assert (running.returncode, out) == (-signal.SIGKILL, "")
    tidy()


def test_a_hundred_at_random_fit_together_in_the_end(
    guest: str, cloud: Cloud, store: Store, host: Any, make_request: Callable[..., Any], tidy: Callable[[], None]
) -> None:
    rng = random.Random(7)
    Pools(cloud).create("public", "203.0.113.0/29")
    interfaces, addresses, routes = Interfaces(cloud), FloatingAddresses(cloud), Routes(cloud)
    launcher, instances = Launcher(cloud), Instances(cloud)

    def some() -> Instance:
        return rng.choice([item.value for item in store.list(keys.INSTANCES, Instance).items])

    def ip() -> str:
        return f"203.0.113.{rng.randrange(8)}"

    def destroy() -> None:
        gone = some()
        instances.destroy(instance_of(store, gone.uuid))
        host.report(gone.uuid, State.DELETED, is_gone=True)
        instances.finish(gone.uuid)

    def report() -> None:
        one = some()
        host.report(one.uuid, State.CREATED)
        instances.finish(one.uuid)

    def remove() -> None:
        one = some()
        interfaces.remove(one.uuid, "system", rng.choice(one.with_ports).uuid)

    acts: list[Callable[[], object]] = [
        lambda: host.report(launcher.launch(make_request()).uuid, State.CREATED),
        destroy,
        report,
        lambda: interfaces.add(some().uuid, "system", rng.choice([BACK, InterfaceRequest()])),
        remove,
        lambda: addresses.create("system"),
        lambda: addresses.create("system", target=Target(some().uuid, is_routed=rng.random() < 0.5)),
        lambda: addresses.attach(ip(), "system", Target(some().uuid, network=rng.choice(["back", "default"]))),
        lambda: addresses.detach(ip(), "system"),
        lambda: addresses.delete(ip(), "system"),
        lambda: routes.add(rng.choice(["back", "default"]), some().uuid, "system"),
    ]
    done = 0
    for _ in range(100):
        try:
            rng.choice(acts)()
            done += 1
        except (CloudError, IndexError):
            continue
    assert done > 30
    tidy()


# --- the tool ------------------------------------------------------------------------------------


def test_the_tool_adds_and_routes(tool: Any, guest: str, host: Any, store: Store) -> None:
    done = tool("interface", "add", "web-1", "-n", "back@10.1.0.9", "-o", "json")
    row = json.loads(done.stdout)
    assert (done.returncode, row["state"], row["network"], row["addresses"]) == (0, "asked", "back", ["10.1.0.9"])
    host.report(guest, State.CREATED)
    shown = json.loads(tool("interface", "show", "web-1", row["uuid"], "-o", "json").stdout)
    assert shown["state"] == "present"
    routed = json.loads(tool("network", "route", "back", "web-1", "--address", "10.1.0.77", "-o", "json").stdout)
    assert (routed["address"], routed["instance"], routed["interface_uuid"]) == ("10.1.0.77", "web-1", row["uuid"])
    assert json.loads(tool("show", "web-1", "-o", "json").stdout)["routed"] == ["10.1.0.77"]
    assert tool("network", "unroute", "back", "10.1.0.77").returncode == 0
    for args in (
        ("-n", "back@10.1.0.9"),
        ("-N", "network_uuid=back,model=floppy"),
        ("-n", "nope"),
        ("-n", "back", "-N", "back"),
    ):
        bad = tool("interface", "add", "web-1", *args)
        assert bad.returncode in (1, 2) and bad.stderr.count("\n") == 1
