"""What holds for every `Links`: for the kernel's, each test in a network namespace of its own, and for the fake."""

from __future__ import annotations

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ecompute.cluster.errors import NetworkError
from ecompute.network import names, terms
from ecompute.network.fake import FakeFilter, FakeLinks
from ecompute.network.filter import Filter, FilterState, NftFilter
from ecompute.network.links import Links, NetlinkLinks
from ecompute.network.present import Device, Kind
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.terms import FoundBridge, FoundNetwork, FoundVlan, FoundVxlan, Physical, WantedNetwork
from ecompute.network.underlay import Address

VNI = 0xABCDEF
BRIDGE, VXLAN, VLAN = names.bridge_name(VNI), names.vxlan_name(VNI), names.vlan_name(VNI)
LOCAL = "192.0.2.1"
MAC = "02:00:00:00:00:05"


@pytest.fixture(params=["fake", "netlink"])
def links(request: pytest.FixtureRequest) -> Links:
    if request.param == "fake":
        return FakeLinks()
    request.getfixturevalue("own_namespace")
    return NetlinkLinks()


@pytest.fixture
def rules(links: Links) -> Filter:
    return FakeFilter() if isinstance(links, FakeLinks) else NftFilter()


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def make(links: Links) -> None:
    for change in (
        terms.AddBridge(VNI, 1450),
        terms.Harden(BRIDGE),
        terms.AddVxlan(VNI, LOCAL, 1450),
        terms.Harden(VXLAN),
        terms.AttachVxlan(VNI),
        terms.SetUp(BRIDGE),
        terms.SetUp(VXLAN),
    ):
        links.apply(change)


def test_of_a_network_that_is_not_here_nothing_is_found(links: Links) -> None:
    assert links.found(VNI) == FoundNetwork(VNI)
    assert links.ours() == frozenset()


def test_a_new_bridge_is_tuned_and_down(links: Links) -> None:
    links.apply(terms.AddBridge(VNI, 1450))
    assert links.found(VNI).bridge == FoundBridge("bridge", names.bridge_mac(VNI), 1450, is_tuned=True)


def test_a_new_vxlan_device_is_down_alone_and_does_not_learn(links: Links) -> None:
    links.apply(terms.AddVxlan(VNI, LOCAL, 1450))
    assert links.found(VNI).vxlan == FoundVxlan("vxlan", VNI, LOCAL, 4789, False, True, 1450)


def test_a_network_that_was_made_is_found_whole(links: Links) -> None:
    make(links)
    assert links.found(VNI) == FoundNetwork(
        VNI,
        bridge=FoundBridge("bridge", names.bridge_mac(VNI), 1450, True, True, True),
        vxlan=FoundVxlan("vxlan", VNI, LOCAL, 4789, False, True, 1450, True, True, True),
    )
    assert links.ours() == {VNI}
    assert links.has_bridge(BRIDGE)
    assert not links.has_bridge(VXLAN)
    assert not links.has_bridge("nothing")


def test_what_of_ours_is_there_is_listed_with_the_network_that_it_is_part_of(links: Links) -> None:
    assert links.devices() == frozenset()
    make(links)
    on_it, loose = "ect00000000001", "ect00000000002"
    if isinstance(links, FakeLinks):
        links.plug(on_it, BRIDGE)
        links.plug(loose, "somebodys")
        links.plug("somebodys0", BRIDGE)
    else:
        for tap in (on_it, loose):
            ip(f"tuntap add {tap} mode tap")
        ip(f"link set {on_it} master {BRIDGE}")
        ip("link add ecb000001 type veth peer name ect00000000003")
        ip("link add ecx000002 type vxlan id 3 dstport 4789 local 192.0.2.1")
    assert links.devices() == {
        Device(BRIDGE, Kind.BRIDGE, VNI),
        Device(VXLAN, Kind.VXLAN, VNI),
        Device(on_it, Kind.TAP, VNI),
        Device(loose, Kind.TAP, None),
    }


def test_the_mtu_is_set(links: Links) -> None:
    make(links)
    links.apply(terms.SetMtu(VXLAN, 1400))
    links.apply(terms.TuneBridge(VNI, 1400))
    found = links.found(VNI)
    assert found.bridge is not None
    assert found.vxlan is not None
    assert (found.bridge.mtu, found.vxlan.mtu) == (1400, 1400)


def test_a_made_device_is_not_made_again(links: Links) -> None:
    make(links)
    for change in (terms.AddBridge(VNI, 1450), terms.AddVxlan(VNI, LOCAL, 1450)):
        with pytest.raises(NetworkError, match="File exists"):
            links.apply(change)


def test_zeros_have_an_entry_for_every_peer(links: Links) -> None:
    make(links)
    for underlay in ("192.0.2.2", "192.0.2.3", "192.0.2.3"):
        links.apply(terms.PutEntry(VNI, names.ZEROS, underlay))
    assert links.found(VNI).entries == {(names.ZEROS, "192.0.2.2"), (names.ZEROS, "192.0.2.3")}
    links.apply(terms.DropEntry(VNI, names.ZEROS, "192.0.2.2"))
    assert links.found(VNI).entries == {(names.ZEROS, "192.0.2.3")}


def test_a_mac_of_a_port_is_sent_to_one_host_the_last_one(links: Links) -> None:
    make(links)
    for underlay in ("192.0.2.2", "192.0.2.3", "192.0.2.3"):
        links.apply(terms.PutEntry(VNI, MAC, underlay))
    assert links.found(VNI).entries == {(MAC, "192.0.2.3")}


def test_an_address_elsewhere_has_one_mac_the_last_one(links: Links) -> None:
    make(links)
    for address in ("10.50.0.5", "fd00::5"):
        for mac in (MAC, "02:00:00:00:00:06", "02:00:00:00:00:06"):
            links.apply(terms.PutNeighbour(VNI, address, mac))
    links.apply(terms.PutNeighbour(VNI, "fe80::5", MAC))
    links.apply(terms.DropNeighbour(VNI, "fe80::5"))
    assert links.found(VNI).neighbours == {("10.50.0.5", "02:00:00:00:00:06"), ("fd00::5", "02:00:00:00:00:06")}


def test_hardening_a_vxlan_device_takes_its_ipv6_neighbours(links: Links) -> None:
    make(links)
    for address in ("10.50.0.5", "fd00::5"):
        links.apply(terms.PutNeighbour(VNI, address, MAC))
    links.apply(terms.Harden(VXLAN))
    found = links.found(VNI)
    assert found.neighbours == {("10.50.0.5", MAC)}
    assert found.vxlan is not None
    assert found.vxlan.is_hardened


def test_devices_alone_are_found_without_what_is_on_them(links: Links) -> None:
    assert links.glance(VNI) == FoundNetwork(VNI)
    make(links)
    links.apply(terms.PutEntry(VNI, MAC, "192.0.2.2"))
    links.apply(terms.PutNeighbour(VNI, "10.50.0.5", MAC))
    found, devices = links.found(VNI), links.glance(VNI)
    assert devices == FoundNetwork(VNI, bridge=found.bridge, vxlan=found.vxlan)


def test_a_device_made_anew_has_another_index(links: Links) -> None:
    make(links)
    before = links.glance(VNI).vxlan
    links.apply(terms.DeleteVxlan(VNI))
    links.apply(terms.AddVxlan(VNI, LOCAL, 1450))
    after = links.glance(VNI).vxlan
    assert before is not None
    assert after is not None
    assert before.index != after.index


def test_what_is_gone_already_can_be_dropped_and_deleted(links: Links) -> None:
    links.apply(terms.DeleteBridge(VNI))
    links.apply(terms.DeleteVxlan(VNI))
    make(links)
    links.apply(terms.DropEntry(VNI, MAC, "192.0.2.2"))
    links.apply(terms.DropNeighbour(VNI, "10.50.0.5"))
    links.apply(terms.DropNeighbour(VNI, "fd00::5"))
    assert links.found(VNI).entries == frozenset()
    assert links.found(VNI).neighbours == frozenset()


def test_a_tap_that_has_gone_with_its_guest_needs_no_change(links: Links) -> None:
    make(links)
    before = links.found(VNI)
    links.apply(terms.AttachTap(BRIDGE, "ect00000000009"))
    links.apply(terms.Harden("ect00000000009"))
    assert links.found(VNI) == before
    with pytest.raises(NetworkError):
        links.apply(terms.Harden("ecb00ffff"))


def test_without_its_bridge_a_vxlan_device_is_not_attached(links: Links) -> None:
    make(links)
    links.apply(terms.DeleteBridge(VNI))
    found = links.found(VNI)
    assert found.bridge is None
    assert found.vxlan is not None
    assert not found.vxlan.is_attached
    assert links.ours() == {VNI}


def test_entries_and_neighbours_go_with_their_vxlan_device(links: Links) -> None:
    make(links)
    links.apply(terms.PutEntry(VNI, MAC, "192.0.2.2"))
    links.apply(terms.PutNeighbour(VNI, "10.50.0.5", MAC))
    links.apply(terms.PutNeighbour(VNI, "fd00::5", MAC))
    links.apply(terms.DeleteVxlan(VNI))
    for _ in range(2):
        assert (links.found(VNI).entries, links.found(VNI).neighbours) == (frozenset(), frozenset())
        if links.glance(VNI).vxlan is None:
            links.apply(terms.AddVxlan(VNI, LOCAL, 1450))


@pytest.mark.parametrize(
    "change",
    [
        terms.AttachVxlan(VNI),
        terms.TuneBridge(VNI, 1450),
        terms.SetUp(BRIDGE),
        terms.SetMtu(VXLAN, 1450),
        terms.Harden(BRIDGE),
        terms.PutEntry(VNI, MAC, "192.0.2.2"),
        terms.PutNeighbour(VNI, "10.50.0.5", MAC),
    ],
)
def test_a_change_to_a_device_that_is_not_there_says_so(links: Links, change: terms.LinkChange) -> None:
    with pytest.raises(NetworkError, match=r"(?i)no such|no device"):
        links.apply(change)
    with pytest.raises(NetworkError, match="no device"):
        links.harden("ect1")


def test_calls_in_one_session_and_in_several_threads_agree(links: Links) -> None:
    make(links)
    expected = {(f"02:00:00:00:00:{n:02x}", f"192.0.2.{n}") for n in range(10, 40)}

    def put(entry: tuple[str, str]) -> None:
        with links.session(), links.session():
            links.apply(terms.PutEntry(VNI, *entry))
            assert entry in links.found(VNI).entries

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(put, sorted(expected)))
    assert links.found(VNI).entries == expected


def test_a_configured_underlay_address_must_be_this_hosts(links: Links) -> None:
    with pytest.raises(NetworkError, match=r"198\.51\.100\.9 is not an address of this host"):
        links.underlay("198.51.100.9")


def test_without_a_default_route_the_underlay_address_is_asked_for(links: Links) -> None:
    with pytest.raises(NetworkError, match="no default route"):
        links.underlay(None)


def test_a_network_comes_and_goes_and_nothing_is_left(links: Links, rules: Filter) -> None:
    wanted = WantedNetwork(
        "n",
        VNI,
        1450,
        LOCAL,
        peers=frozenset({"192.0.2.2", "192.0.2.3"}),
        entries=frozenset({(MAC, "192.0.2.2")}),
        neighbours=frozenset({("10.50.0.5", MAC), ("fd00::5", MAC)}),
    )
    reconciler = NetworkReconciler(links, rules)
    reconciler.ensure(wanted)
    assert reconciler.ensure(wanted) == ()
    assert links.found(VNI).entries == wanted.forwarding()
    assert links.found(VNI).neighbours == wanted.neighbours
    assert rules.state() is FilterState.WHOLE
    reconciler.remove(VNI)
    assert reconciler.remove(VNI) == ()
    assert links.found(VNI) == FoundNetwork(VNI)
    assert rules.state() is FilterState.ABSENT


def test_a_bridge_of_the_operator_that_is_not_there_is_said_by_no_mtu(links: Links) -> None:
    assert links.found(VNI, physical=Physical("br0")).carrier_mtu is None
    assert not links.has_bridge("br0")
    with pytest.raises(NetworkError, match=r"(?i)no such|no device"):
        links.apply(terms.AttachTap("br0", "ect00000000001"))


def operators_bridge(links: Links) -> None:
    if isinstance(links, FakeLinks):
        links.bridges = {"br0"}
    else:
        ip("link add br0 type bridge")


def add_tap(links: Links, name: str, bridge: str) -> None:
    if isinstance(links, FakeLinks):
        links.plug(name, bridge)
    else:
        ip(f"tuntap add {name} mode tap")
        ip(f"link set {name} master {bridge}")


def test_taps_of_an_untagged_physical_network_are_on_the_operators_bridge(links: Links) -> None:
    operators_bridge(links)
    first, second = "ect00000000001", "ect00000000002"
    for name in (first, second):
        add_tap(links, name, "br0")
    found = links.found(VNI, [first, "ect00000000009"], physical=Physical("br0"))
    assert [port.name for port in found.ports] == [first]
    assert (found.loose, found.carrier_mtu) == (frozenset(), 1500)
    assert [port.name for port in links.found(VNI, [first]).loose] == [first]
    links.apply(terms.Harden(first))
    (port,) = links.found(VNI, [first], physical=Physical("br0")).ports
    assert port.is_hardened
    links.apply(terms.AttachTap("br0", first))
    assert links.ours() == frozenset()


def test_a_tap_has_an_mtu_that_is_set_and_one_that_is_gone_has_none(links: Links) -> None:
    make(links)
    add_tap(links, "ect00000000001", BRIDGE)
    links.apply(terms.SetMtu("ect00000000001", 1350))
    (port,) = links.found(VNI).ports
    assert port.mtu == 1350
    links.apply(terms.SetMtu("ect00000000002", 1350))


def test_on_a_vlan_of_the_operators_bridge_a_device_and_a_bridge_of_ours_come_and_go(links: Links) -> None:
    operators_bridge(links)
    try:
        links.apply(terms.AddVlan(VNI, "br0", 5))
    except NetworkError as error:
        if "not supported" not in str(error):
            raise
        pytest.skip(f"this kernel has no VLAN devices: {error}")
    for change in (
        terms.AddBridge(VNI, 1450),
        terms.Harden(BRIDGE),
        terms.Harden(VLAN),
        terms.SetMtu(VLAN, 1450),
        terms.AttachVlan(VNI),
        terms.SetUp(BRIDGE),
        terms.SetUp(VLAN),
    ):
        links.apply(change)
    found = links.found(VNI, physical=Physical("br0", 5))
    assert found == FoundNetwork(
        VNI,
        bridge=FoundBridge("bridge", names.bridge_mac(VNI), 1450, True, True, True),
        vlan=FoundVlan("vlan", "br0", 5, 1450, True, True, True),
        carrier_mtu=1500,
    )
    assert links.ours() == {VNI}
    assert {device.kind for device in links.devices()} == {Kind.BRIDGE, Kind.VLAN}
    with pytest.raises(NetworkError, match="File exists"):
        links.apply(terms.AddVlan(VNI, "br0", 5))
    links.apply(terms.DeleteBridge(VNI))
    after = links.found(VNI).vlan
    assert after is not None
    assert not after.is_attached
    links.apply(terms.DeleteVlan(VNI))
    links.apply(terms.DeleteVlan(VNI))
    assert links.found(VNI) == FoundNetwork(VNI)


# --- the kernel's only ---------------------------------------------------------------------------


@pytest.fixture
def netlink(own_namespace: None) -> NetlinkLinks:
    return NetlinkLinks()


@pytest.fixture
def uplink(netlink: NetlinkLinks) -> None:
    ip("link set lo up")
    ip("link add up0 mtu 1400 type veth peer name far0")
    ip("address add 198.51.100.7/24 dev up0")
    ip("address add 198.51.100.8/24 dev up0")
    ip("link set up0 up")
    ip("link set far0 up")


@pytest.mark.parametrize(
    ("route", "source"),
    [
        ("default via 198.51.100.1", "198.51.100.7"),
        ("default via 198.51.100.1 src 198.51.100.8", "198.51.100.8"),
        ("default dev up0", "198.51.100.7"),
        ("default nexthop via 198.51.100.1 dev up0 nexthop via 198.51.100.2 dev up0", "198.51.100.7"),
    ],
)
def test_the_underlay_address_is_the_default_routes_source(
    netlink: NetlinkLinks, uplink: None, route: str, source: str
) -> None:
    ip(f"route add {route}")
    assert netlink.underlay(None) == Address(source, "up0", 1400)


def test_of_two_default_routes_the_one_with_the_lower_metric_counts(netlink: NetlinkLinks, uplink: None) -> None:
    ip("route add default via 198.51.100.1 src 198.51.100.7 metric 200")
    ip("route add default via 198.51.100.1 src 198.51.100.8 metric 100")
    assert netlink.source_address().ip == "198.51.100.8"


def test_a_half_of_all_addresses_is_no_default_route(netlink: NetlinkLinks, uplink: None) -> None:
    ip("route add 0.0.0.0/1 via 198.51.100.1")
    with pytest.raises(NetworkError, match="no default route"):
        netlink.source_address()


def test_a_default_route_to_loopback_is_refused(netlink: NetlinkLinks, uplink: None) -> None:
    ip("route add default dev lo")
    with pytest.raises(NetworkError, match="leads to loopback"):
        netlink.source_address()


def test_a_default_route_over_a_device_without_an_address_is_refused(netlink: NetlinkLinks, uplink: None) -> None:
    ip("address flush dev up0")
    ip("route add default dev up0")
    with pytest.raises(NetworkError, match="up0 has no IPv4 address"):
        netlink.source_address()


def test_a_configured_underlay_address_comes_with_its_device(netlink: NetlinkLinks, uplink: None) -> None:
    assert netlink.underlay("198.51.100.8") == Address("198.51.100.8", "up0", 1400)
    assert netlink.underlay("127.0.0.1").is_loopback


def test_a_tap_is_hardened_once(netlink: NetlinkLinks) -> None:
    ip("tuntap add ect00000000001 mode tap")
    assert netlink.harden("ect00000000001")
    assert not netlink.harden("ect00000000001")
    ip("link set ect00000000001 up")
    shown = subprocess.run(["ip", "-6", "address", "show"], check=True, capture_output=True, text=True).stdout
    assert "fe80" not in shown


def test_a_tap_beside_its_bridge_is_found_loose_and_attached(netlink: NetlinkLinks) -> None:
    make(netlink)
    ip("tuntap add ect00000000001 mode tap")
    asked = ("ect00000000001", "ect00000000002")
    assert netlink.found(VNI, asked).loose == {terms.FoundPort("ect00000000001", False, 1500)}
    netlink.apply(terms.AttachTap(BRIDGE, "ect00000000001"))
    found = netlink.found(VNI, asked)
    assert (found.loose, found.ports) == (frozenset(), {terms.FoundPort("ect00000000001", False, 1500)})


def test_ports_of_a_bridge_are_found_without_its_vxlan_device(netlink: NetlinkLinks) -> None:
    make(netlink)
    ip("tuntap add ect00000000001 mode tap")
    ip(f"link set ect00000000001 master {BRIDGE}")
    assert netlink.found(VNI).ports == {terms.FoundPort("ect00000000001", False, 1500)}
    netlink.harden("ect00000000001")
    assert netlink.found(VNI).ports == {terms.FoundPort("ect00000000001", True, 1500)}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        (BRIDGE, "type veth peer name x"),
        (BRIDGE, f"type vxlan id {VNI} dstport 4789"),
        (BRIDGE, "tuntap"),
        (VXLAN, "type veth peer name x"),
        (VXLAN, "type bridge"),
        (VXLAN, "type vxlan id 5 dstport 4789"),
        (VXLAN, "type vxlan dstport 4789 external"),
        (VXLAN, "tuntap"),
    ],
)
def test_a_foreign_device_with_our_name_is_an_error_and_stays(netlink: NetlinkLinks, name: str, made: str) -> None:
    ip(f"tuntap add {name} mode tap" if made == "tuntap" else f"link add {name} {made}")
    rules = NftFilter()
    reconciler = NetworkReconciler(netlink, rules)
    before = netlink.found(VNI)
    for action in (lambda: reconciler.ensure(WantedNetwork("n", VNI, 1450, LOCAL)), lambda: reconciler.remove(VNI)):
        with pytest.raises(NetworkError, match="rename or remove it"):
            action()
    assert netlink.found(VNI) == before
    assert netlink.ours() == frozenset()
    assert rules.state() is FilterState.ABSENT


def test_a_vni_that_a_foreign_device_has_is_an_error_and_leaves_nothing_of_ours(netlink: NetlinkLinks) -> None:
    ip(f"link add other type vxlan id {VNI} dstport 4789")
    reconciler = NetworkReconciler(netlink, NftFilter())
    with pytest.raises(NetworkError, match=r"AddVxlan.*File exists"):
        reconciler.ensure(WantedNetwork("n", VNI, 1450, LOCAL))
    assert netlink.ours() == frozenset()
    assert NftFilter().state() is FilterState.ABSENT


def test_netlink_neither_forks_nor_starts_threads_nor_keeps_descriptors(
    netlink: NetlinkLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    for name in ("fork", "forkpty", "posix_spawn"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    make(netlink)
    tasks, descriptors = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    def use() -> None:
        netlink.apply(terms.PutEntry(VNI, MAC, "192.0.2.2"))
        netlink.found(VNI)
        netlink.addresses()
        netlink.ours()

    for _ in range(3):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        use()
    assert len(os.listdir("/proc/self/task")) <= tasks
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_entries_and_neighbours_by_the_hundred_are_put_and_dropped_at_once(links: Links) -> None:
    links.apply(terms.AddVxlan(VNI, LOCAL, 1450))
    count = 300
    macs = [f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(count)]
    addresses = [f"10.50.{n >> 8}.{n & 255}" for n in range(count)] + [f"fd00::{n:x}" for n in range(1, count)]
    entries = {*((mac, "192.0.2.2") for mac in macs), (names.ZEROS, "192.0.2.2"), (names.ZEROS, "192.0.2.3")}
    neighbours = {(address, MAC) for address in addresses}
    put = [
        *(terms.PutEntry(VNI, *one) for one in sorted(entries)),
        *(terms.PutNeighbour(VNI, *one) for one in sorted(neighbours)),
    ]
    for _ in range(2):
        links.apply_entries(put)
        assert (links.found(VNI).entries, links.found(VNI).neighbours) == (entries, neighbours)
    links.apply_entries([terms.PutEntry(VNI, macs[0], "192.0.2.3"), terms.DropEntry(VNI, macs[1], "192.0.2.2")])
    assert links.found(VNI).entries == entries - {(mac, "192.0.2.2") for mac in macs[:2]} | {(macs[0], "192.0.2.3")}
    drop: list[terms.EntryChange] = [terms.DropNeighbour(VNI, address) for address in addresses]
    for _ in range(2):
        links.apply_entries(drop)
        assert links.found(VNI).neighbours == frozenset()


def test_an_entry_among_others_that_is_refused_is_an_error(links: Links) -> None:
    with pytest.raises(NetworkError):
        links.apply_entries([terms.DropNeighbour(VNI, "10.50.0.5"), terms.PutNeighbour(VNI, "10.50.0.5", MAC)])
