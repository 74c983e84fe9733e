"""What a host sees of itself when it audits: with its real parts, on machines in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from ecompute.audit.compare import What, suspects
from ecompute.cluster import keys
from ecompute.cluster.documents import (
    Assignment,
    Gang,
    GangState,
    Incarnation,
    Interface,
    Network,
    NetworkHost,
    Port,
    Resources,
    Role,
    Spec,
    timestamp,
)
from ecompute.cluster.store import Delete, Put, Store, Versioned, unchanged
from ecompute.hypervisor.fake import FakeHypervisor
from ecompute.network.names import bridge_name, tap_name, vxlan_name
from ecompute.network.terms import AddBridge

PROVIDER = "00000000-0000-0000-0000-00000000000a"
NETWORK = "00000000-0000-0000-0000-00000000000b"
VNI = 5
WAIT_S = 20.0

Kinds = Callable[[Any], set[tuple[What, str]]]


class Guest:
    def __init__(self, store: Store, *, gang: str | None = None) -> None:
        self.store = store
        self.uuid = str(uuid.uuid4())
        self.interface = str(uuid.uuid4())
        self.key = keys.assignment(PROVIDER, self.uuid)
        mac, addresses = "02:00:00:00:00:01", ("10.0.0.5/24",)
        interface = Interface(
            uuid=self.interface, network_uuid=NETWORK, vni=VNI, mac=mac, addresses=addresses, mtu=1450
        )
        spec = Spec(
            resources=Resources(vcpus=1, memory_mb=64, disk_gb=1),
            image="http://images.example/x",
            interfaces=(interface,),
        )
        assignment = Assignment(
            uuid=self.uuid,
            namespace="system",
            name="web",
            role=Role.RUN,
            generation=1,
            epoch=1,
            spec=spec,
            gang=gang,
        )
        port = Port(
            interface_uuid=self.interface,
            instance_uuid=self.uuid,
            provider=PROVIDER,
            epoch=1,
            mac=mac,
            addresses=addresses,
        )
        store.commit([], [Put(self.key, assignment), Put(keys.port(NETWORK, self.interface), port)])

    @property
    def assigned(self) -> Versioned[Assignment]:
        found = self.store.get(self.key, Assignment)
        assert found is not None
        return found


@pytest.fixture
def network(store: Store) -> None:
    made = Network(
        uuid=NETWORK, namespace="system", name="n", cidr="10.0.0.0/24", vni=VNI, mtu=1450, created_at=timestamp(0)
    )
    store.commit(
        [],
        [
            Put(keys.network(NETWORK), made),
            Put(keys.network_host(NETWORK, PROVIDER), NetworkHost(provider=PROVIDER, underlay="192.0.2.1")),
        ],
    )


@pytest.fixture
def host(start: Callable[[], Any], network: None) -> Any:
    started = start()
    started.answer = True
    started.source.gate.set()
    return started


@pytest.fixture
def guest(host: Any, store: Store, eventually: Callable[..., None]) -> Guest:
    made = Guest(store)
    eventually(lambda: made.uuid in host.hypervisor.list() and host.instances.has_converged(), timeout_s=WAIT_S)
    return made


@pytest.fixture
def kinds(eventually: Callable[..., None]) -> Kinds:
    """Return what says what one look suspects, one while which no lane is at work."""

    def look(host: Any) -> set[tuple[What, str]]:
        looks = []

        def is_quiet() -> bool:
            looks.append(host.look())
            return not looks[-1].at_work

        eventually(is_quiet, timeout_s=WAIT_S)
        return {(suspect.what, suspect.subject) for suspect in suspects(looks[-1])}

    return look


def test_a_host_whose_guests_are_as_they_are_wanted_suspects_nothing(host: Any, guest: Guest, kinds: Kinds) -> None:
    assert host.look().files == {guest.uuid}
    assert kinds(host) == set()


def test_an_image_on_its_way_and_a_gang_that_is_not_committed_are_no_missing_guests(
    start: Callable[[], Any], network: None, store: Store, eventually: Callable[..., None], kinds: Kinds
) -> None:
    host = start()
    host.answer = True
    gang = str(uuid.uuid4())
    record = Gang(
        uuid=gang, namespace="system", writer="a test", state=GangState.WRITING, members=(), made_at=timestamp(0)
    )
    store.commit([], [Put(keys.gang(gang), record)])
    fetching, waiting = Guest(store), Guest(store, gang=gang)
    eventually(lambda: host.source.requests and host.instances.has_converged(), timeout_s=WAIT_S)
    assert host.look().assigned.keys() == {fetching.uuid, waiting.uuid}
    assert kinds(host) == set()


def test_a_guest_whose_assignment_went_is_suspected_and_nothing_that_it_uses(
    host: Any, guest: Guest, store: Store, kinds: Kinds
) -> None:
    store.commit([unchanged(guest.assigned)], [Delete(guest.key)])
    assert kinds(host) == {(What.GUEST, guest.uuid)}
    assert tap_name(guest.interface) in {device.name for device in host.look().devices}


def test_an_assignment_that_cannot_be_read_is_suspected_by_its_key(
    host: Any, guest: Guest, store: Store, kinds: Kinds
) -> None:
    other = keys.assignment(PROVIDER, str(uuid.uuid4()))
    store.commit([], [Put(other, guest.assigned.value), Put(guest.key, Incarnation(id="x", made_by="x", made_at="x"))])
    assert kinds(host) == {(What.UNREADABLE, guest.key), (What.UNREADABLE, other)}


def test_files_and_devices_that_nobody_has_a_use_for_are_suspected(host: Any, guest: Guest, kinds: Kinds) -> None:
    nobodys = str(uuid.uuid4())
    (host.files / nobodys).mkdir()
    (host.files / nobodys / "console.log").touch()
    (host.files / "lost+found").mkdir()
    host.links.taps["ect00000000009"] = True
    host.links.apply(AddBridge(9, 1450))
    assert kinds(host) == {
        (What.FILES, nobodys),
        (What.FILES, "lost+found"),
        *((What.DEVICE, name) for name in ("ect00000000009", bridge_name(9))),
    }


def test_a_guest_that_is_cut_off_or_without_its_disk_is_suspected(host: Any, guest: Guest, kinds: Kinds) -> None:
    host.links.unplug(tap_name(guest.interface))
    assert kinds(host) == {(What.NETWORK, guest.uuid)}
    (host.files / guest.uuid / "disk.qcow2").unlink()
    assert kinds(host) == {(What.MISSING, guest.uuid)}


def test_a_lane_that_is_woken_for_it_takes_away_what_was_to_be_removed(
    host: Any, guest: Guest, store: Store, eventually: Callable[..., None], kinds: Kinds
) -> None:
    hypervisor: FakeHypervisor = host.hypervisor
    hypervisor.fail("stop", "not now")
    found = guest.assigned
    store.commit([unchanged(found)], [Put(guest.key, structs.replace(found.value, role=Role.ABSENT, generation=2))])
    eventually(lambda: kinds(host) == {(What.REMOVAL, guest.uuid)}, timeout_s=WAIT_S)
    hypervisor.fail("stop", "")
    host.instances.wake(guest.uuid)
    eventually(lambda: guest.uuid not in hypervisor.list() and kinds(host) == set(), timeout_s=WAIT_S)
    assert not {d.name for d in host.look().devices} & {bridge_name(VNI), vxlan_name(VNI)}
