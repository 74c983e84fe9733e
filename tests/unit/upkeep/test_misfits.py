"""What does not fit of interfaces, ports, locks, members and floating addresses, and how it is put right."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.addressing import label, mac_address
from ecompute.cluster.documents import (
    AddressLock,
    Document,
    Floating,
    Instance,
    Interface,
    Leaving,
    MacLock,
    Network,
    NetworkHost,
    Port,
    Resources,
    Seen,
    Spec,
    State,
)
from ecompute.cluster.floating import is_attached, is_said
from ecompute.cluster.store import Delete, Put, Versioned
from ecompute.cluster.upkeep.misfits import Holder, Kind, Known, Misfit, Wires, misfits, port_key, strays, unattached


def uuid(n: int) -> str:
    return str(UUID(int=n))


NETWORK, OTHER_NETWORK = uuid(1), uuid(2)
HOSTS = (uuid(11), uuid(12))
GUESTS = {uuid(20 + n): [uuid(30 + 2 * n + i) for i in range(2)] for n in range(3)}


def address(interface: str) -> str:
    return f"10.0.0.{UUID(interface).int}/24"


@dataclass
class Etcd:
    """Documents with revisions, enough to carry out repairs."""

    documents: dict[str, Document] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    revision: int = 1

    def put(self, key: str, document: Document) -> None:
        self.revision += 1
        self.documents[key], self.revisions[key] = document, self.revision

    def delete(self, key: str) -> None:
        self.documents.pop(key, None)
        self.revisions.pop(key, None)

    def read(self, key: str) -> Versioned[object]:
        return Versioned(key, self.documents[key], self.revisions[key], self.revisions[key], 0)

    def of(self, kind: type, prefix: str = "/") -> list:
        return [
            self.read(key) for key, it in sorted(self.documents.items()) if type(it) is kind and key.startswith(prefix)
        ]

    def apply(self, misfit: Misfit) -> None:
        for compare in misfit.compares:
            revision = self.revisions.get(compare.name, 0)
            assert compare.holds_for(revision, revision), "it was made of what is there"
        for operation in misfit.operations:
            if isinstance(operation, Put):
                self.put(operation.key, operation.document)
            else:
                assert isinstance(operation, Delete)
                self.delete(operation.key)


def order(*, leaving: bool = False) -> Etcd:
    """Return a cloud in which all fits: three guests with an interface on each of two networks, on two hosts."""
    etcd = Etcd()
    for network in (NETWORK, OTHER_NETWORK):
        etcd.put(
            keys.network(network),
            Network(uuid=network, namespace="n", name="net", cidr="10.0.0.0/24", vni=1, mtu=1450, created_at=""),
        )
    for n, (guest, own) in enumerate(GUESTS.items()):
        host = HOSTS[n % 2]
        interfaces = tuple(
            Interface(uuid=one, network_uuid=network, vni=1, mac=mac_address(one), addresses=(address(one),), mtu=1450)
            for one, network in zip(own, (NETWORK, OTHER_NETWORK), strict=True)
        )
        kept, gone = (interfaces[:1], interfaces[1:]) if leaving else (interfaces, ())
        spec = Spec(resources=Resources(vcpus=1, memory_mb=1, disk_gb=1), image="i", interfaces=kept)
        etcd.put(
            keys.instance(guest),
            Instance(
                uuid=guest,
                namespace="n",
                name=f"Web-{n}",
                state=State.INITIAL,
                generation=2,
                provider=host,
                spec=spec,
                leaving=tuple(Leaving(interface=one, generation=2) for one in gone),
                created_at="",
            ),
        )
        etcd.put(keys.seen(host, guest), Seen(uuid=guest, generation=2, epoch=1, state=State.CREATED, reported_at=""))
        for interface in interfaces:
            network, one = interface.network_uuid, interface.uuid
            port = Port(
                interface_uuid=one,
                instance_uuid=guest,
                provider=host,
                epoch=1,
                mac=interface.mac,
                addresses=interface.addresses,
                name=label(f"Web-{n}"),
            )
            if network == NETWORK:
                handed = f"203.0.113.{n}", f"203.0.113.{100 + n}", f"10.0.0.{200 + n}"
                port = structs.replace(port, floating=handed[0], routed=handed[2:0:-1])
                for ip, is_routed in zip(handed[:2], (False, True), strict=True):
                    etcd.put(
                        keys.floating(ip),
                        Floating(
                            ip=ip,
                            pool="p",
                            namespace="n",
                            network_uuid=network,
                            interface_uuid=one,
                            instance_uuid=guest,
                            is_routed=is_routed,
                            created_at="",
                        ),
                    )
                etcd.put(keys.address(network, handed[2]), AddressLock(interface_uuid=one, instance_uuid=guest))
            etcd.put(keys.port(network, one), port)
            lock = keys.address(network, interface.addresses[0].split("/")[0])
            etcd.put(lock, AddressLock(interface_uuid=one, instance_uuid=guest))
            etcd.put(keys.mac(network, interface.mac), MacLock(interface_uuid=one, instance_uuid=guest))
            etcd.put(keys.network_host(network, host), NetworkHost(provider=host, underlay="192.0.2.1"))
    return etcd


def look(etcd: Etcd) -> set[Misfit]:
    holders = {item.value.uuid: Holder.of(item) for item in etcd.of(Instance)}
    seen = {item.value.uuid: item for item in etcd.of(Seen)}
    floating = {keys.last(item.key): item for item in etcd.of(Floating)}
    known = Known(holders, floating, seen, dict.fromkeys(HOSTS, "192.0.2.1"))
    ports: dict = {key: None for item in floating.values() if (key := port_key(item.value)) is not None}
    found: set[Misfit] = set()
    for network in etcd.of(Network):
        uuid = network.value.uuid
        wires = Wires(
            network,
            etcd.of(Port, keys.ports(uuid)),
            etcd.of(AddressLock, keys.addresses(uuid)),
            etcd.of(MacLock, keys.macs(uuid)),
            etcd.of(NetworkHost, keys.network_hosts(uuid)),
        )
        found.update(misfits(wires, known))
        ports.update({port.key: port for port in wires.ports if port.key in ports})
    found.update(unattached(known, ports))
    return found


def settle(etcd: Etcd) -> set[Misfit]:
    """Look and repair until nothing is left that can be repaired; return what is left."""
    for _ in range(8):
        found = look(etcd)
        able = sorted((one for one in found if one.operations), key=lambda one: (one.kind, one.subject))
        if not able:
            return found
        etcd.apply(able[0])
        for one in able[1:]:
            if all(c.holds_for(*[etcd.revisions.get(c.name, 0)] * 2) for c in one.compares):
                etcd.apply(one)
    raise AssertionError("it does not come to an end")


def test_where_all_fits_nothing_is_found() -> None:
    assert look(order()) == set()
    assert look(order(leaving=True)) == set()


PLACES = sorted(order().documents)
BELOW = [key for key in PLACES if not key.startswith(("/instances/", "/seen/")) and len(keys.parts(key)) != 2]
FLOATING = [key for key in PLACES if key.startswith("/floating/")]


@given(st.sets(st.sampled_from(BELOW), max_size=12), st.booleans())
def test_what_is_lost_is_put_there_again(lost: set[str], leaving: bool) -> None:
    etcd, before = order(leaving=leaving), order(leaving=leaving).documents
    for key in lost:
        etcd.delete(key)
    assert settle(etcd) == set()
    after = etcd.documents
    assert all(before[key] == it for key, it in after.items() if not isinstance(it, Port | Floating))
    for key, it in before.items():
        if isinstance(it, Instance | Network | Seen) or (isinstance(it, Port) and not leaving):
            assert key in after


@given(st.sets(st.sampled_from(FLOATING), max_size=6), st.data())
def test_attached_addresses_agree_with_ports_whatever_was_written(changed: set[str], data: st.DataObject) -> None:
    etcd = order()
    for key in changed:
        value = etcd.documents[key]
        assert isinstance(value, Floating)
        target = data.draw(st.sampled_from([None, uuid(99), *(own[0] for own in GUESTS.values())]))
        network = None if target is None else NETWORK
        is_routed = data.draw(st.booleans())
        etcd.put(key, structs.replace(value, interface_uuid=target, network_uuid=network, is_routed=is_routed))
    assert settle(etcd) == set()
    ports = {item.value.interface_uuid: item.value for item in etcd.of(Port)}
    attached = [item.value for item in etcd.of(Floating) if is_attached(item.value)]
    assert all(is_said(ports[one.interface_uuid or ""], one) for one in attached)
    said = sorted(ip for port in ports.values() for ip in (port.floating, *port.routed) if ip and ip.startswith("203."))
    assert said == sorted(one.ip for one in attached)


@given(st.sampled_from([key for key in PLACES if "/addresses/" in key or "/macs/" in key]))
def test_a_lock_that_another_has_is_an_operator_s_matter(key: str) -> None:
    etcd = order()
    value = etcd.documents[key]
    assert isinstance(value, AddressLock | MacLock)
    guest, own = next((guest, own) for guest, own in GUESTS.items() if guest != value.instance_uuid)
    etcd.put(key, structs.replace(value, interface_uuid=own[0], instance_uuid=guest))
    before = dict(etcd.documents)
    found = look(etcd)
    kinds = {one.kind for one in found}
    assert kinds in ({Kind.TAKEN, Kind.LOCK}, {Kind.STRANGE, Kind.LOCK}), "nobody's port has it, and so it goes"
    assert settle(etcd) == set()
    assert etcd.documents.keys() >= before.keys() - {key}


def test_a_port_too_many_goes_only_when_its_host_has_said_so() -> None:
    etcd = order()
    guest = next(iter(GUESTS))
    key = keys.instance(guest)
    value = etcd.documents[key]
    assert isinstance(value, Instance)
    spec = structs.replace(value.spec, interfaces=value.spec.interfaces[:1])
    etcd.put(key, structs.replace(value, spec=spec, generation=3))
    assert look(etcd) == set(), "its host may not have done it yet"
    seen = keys.seen(value.provider, guest)
    report = etcd.documents[seen]
    assert isinstance(report, Seen)
    for change in ({"generation": 3, "error": "it does not let go"}, {"generation": 3, "epoch": 2}):
        etcd.put(seen, structs.replace(report, **change))
        assert look(etcd) == set()
    etcd.put(seen, structs.replace(report, generation=3))
    assert {one.kind for one in look(etcd)} == {Kind.PORT}
    assert settle(etcd) == set()
    gone = GUESTS[guest][1]
    assert not [key for key in etcd.documents if gone in key or address(gone).split("/")[0] in key]


def test_what_is_being_destroyed_is_left_to_its_end() -> None:
    etcd = order()
    guest, own = next(iter(GUESTS.items()))
    value = etcd.documents[keys.instance(guest)]
    assert isinstance(value, Instance)
    etcd.put(keys.instance(guest), structs.replace(value, state=State.DELETING))
    etcd.delete(keys.port(NETWORK, own[0]))
    assert look(etcd) == set()


def test_keys_of_an_instance_that_is_not_there_are_others_to_judge() -> None:
    etcd = order()
    guest = next(iter(GUESTS))
    etcd.delete(keys.instance(guest))
    assert look(etcd) == set()


def test_strange_documents_keep_no_one_from_looking() -> None:
    etcd = order()
    strange = Floating(
        ip="203.0.113.9",
        pool="p",
        namespace="n",
        network_uuid="a/b",
        interface_uuid="",
        instance_uuid="",
        created_at="",
    )
    etcd.put(keys.floating("203.0.113.9"), strange)
    assert {one.kind for one in look(etcd)} == {Kind.FLOATING}
    assert settle(etcd) == set()
    assert strays(Wires(etcd.of(Network)[0]), {}) == []
