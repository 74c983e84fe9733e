"""Floating and routed addresses: who reaches them, as whom their guest is seen, and what is left when they go."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from msgspec.structs import replace
from served import INTERNET, PORT, QUIET_S, Guest, Host, World, asks, dnsmasqs, pings, serving, wait_for

from ecompute.network.announce import frames

FLOATING, OTHER = "203.0.113.50", "203.0.113.60"
ROUTED = "203.0.113.70"


def add(host: Host, services: ExitStack, name: str, number: int, **others: Any) -> Guest:
    guest = host.add_guest(name, number, **others)
    guest.settle()
    services.enter_context(serving(guest.space))
    return guest


def test_a_floating_address_works_from_outside_and_its_guest_is_seen_by_it(world: World, services: ExitStack) -> None:
    guest = add(world.hosts[0], services, "web", 5, floating=FLOATING)
    services.enter_context(serving(world.internet))
    assert asks(world.internet, FLOATING, PORT) == "203.0.113.1"
    assert pings(world.internet, FLOATING)
    assert guest.ask(INTERNET) == FLOATING
    with world.internet.entered(), socket.create_connection((FLOATING, PORT), timeout=5) as connection:
        assert connection.recv(100) == b"203.0.113.1"


@pytest.mark.parametrize("whose", ["its router's", "its own", "its own on the wire outside"])
def test_a_host_keeps_its_own_and_its_routers_addresses_whoever_is_given_them(
    world: World, services: ExitStack, whose: str
) -> None:
    host = world.hosts[0]
    address = {"its router's": "192.0.2.1", "its own": host.underlay, "its own on the wire outside": host.near}[whose]
    guest = add(host, services, "web", 5, floating=address)
    assert pings(host.space, "192.0.2.1"), "it reaches its router"
    assert address not in host.space("neighbour show proxy")
    assert f"{address} via" not in host.space("route show")
    assert pings(host.space, INTERNET)
    assert pings(world.internet, host.underlay)
    assert guest.dhcp()["ip"] == guest.ip


@pytest.mark.parametrize("where", ["the same host", "another host", "itself"])
def test_guests_of_the_same_network_reach_it(world: World, services: ExitStack, where: str) -> None:
    first, second = world.hosts
    guest = add(first, services, "web", 5, floating=FLOATING)
    if where == "the same host":
        other = add(first, services, "db", 6)
        assert other.ask(FLOATING) == "10.0.0.1"
    elif where == "another host":
        other = add(second, services, "db", 6)
        assert other.ask(FLOATING) == second.near
    else:
        other = guest
        assert other.ask(FLOATING) == "10.0.0.1"
    assert other.ping(FLOATING)


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("has_own", [False, True])
def test_guests_of_another_network_reach_it(world: World, services: ExitStack, where: int, has_own: bool) -> None:
    guest = add(world.hosts[0], services, "web", 5, floating=FLOATING)
    second = replace(world.network, uuid="m", vni=77)
    other = add(world.hosts[where], services, "db", 5, network=second, floating=OTHER if has_own else None)
    seen = OTHER if has_own else "10.0.0.1" if where == 0 else world.hosts[1].near
    assert other.ask(FLOATING) == seen
    assert other.ping(FLOATING)
    assert not other.ping("10.0.0.99", timeout_s=QUIET_S)
    if has_own:
        assert guest.ask(OTHER) == FLOATING


def test_a_routed_address_is_not_translated_in_either_direction(world: World, services: ExitStack) -> None:
    first, second = world.hosts
    guest = add(first, services, "web", 5, routed=(ROUTED,))
    services.enter_context(serving(world.internet))
    assert asks(world.internet, ROUTED, PORT) == "203.0.113.1"
    with guest.space.entered():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(5)
        asking.bind((ROUTED, 0))
        asking.sendto(b"who am I", (INTERNET, PORT))
        assert asking.recv(100).decode() == ROUTED
    # By its other address it is hidden as any other guest.
    assert guest.ask(INTERNET) == first.underlay
    neighbour = add(first, services, "db", 6)
    assert neighbour.ask(ROUTED) == "10.0.0.6"
    far = add(second, services, "far", 7)
    assert far.ask(ROUTED) == second.near


@pytest.mark.parametrize("kind", ["floating", "routed"])
@pytest.mark.parametrize("is_by_dhcp", [False, True])
def test_without_nat_such_an_address_leads_out_all_the_same_and_nothing_else_does(
    make_world: Callable[..., World], services: ExitStack, kind: str, is_by_dhcp: bool
) -> None:
    world = make_world(has_nat=False, has_dns=False)
    services.enter_context(serving(world.internet))
    given = {"floating": FLOATING} if kind == "floating" else {"routed": (FLOATING,)}
    guest = add(world.hosts[0], services, "web", 5, **given)
    other = add(world.hosts[0], services, "db", 6)
    if is_by_dhcp:
        said = guest.dhcp()
        guest.space("route flush default")
        guest.space(f"route add default via {said['router']}")
        other.space("route flush default")
        assert "router" not in other.dhcp()
    assert asks(world.internet, FLOATING, PORT) == "203.0.113.1"
    if kind == "floating":
        assert guest.ask(INTERNET) == FLOATING
    else:
        assert guest.ask(INTERNET, timeout_s=QUIET_S) == ""
    assert other.ask(INTERNET, timeout_s=QUIET_S) == ""


def test_attached_and_detached_while_it_runs(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    guest = add(host, services, "web", 5)
    services.enter_context(serving(world.internet))
    assert asks(world.internet, FLOATING, PORT, timeout_s=QUIET_S) == ""
    before = host.everything()
    world.change(guest, floating=FLOATING)
    assert asks(world.internet, FLOATING, PORT) == "203.0.113.1"
    assert guest.ask(INTERNET) == FLOATING
    world.change(guest, floating=None)
    assert asks(world.internet, FLOATING, PORT, timeout_s=QUIET_S) == ""
    assert guest.ask(INTERNET) == host.underlay
    assert _without_tables(host.everything()) == _without_tables(before)


def test_a_flow_that_goes_on_ends_when_its_address_goes_to_another_guest(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    guest = add(host, services, "web", 5, floating=FLOATING)
    other = add(host, services, "db", 6)
    services.enter_context(serving(world.internet))
    with world.internet.entered():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        connection = socket.create_connection((FLOATING, PORT), timeout=5)
    with other.space.entered():
        outward = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking, connection, outward:
        asking.settimeout(1)
        outward.settimeout(5)
        assert _ask(asking, FLOATING) == "203.0.113.1"
        assert _ask(outward, INTERNET) == host.underlay
        connection.sendall(b"still there")
        guest.port, other.port = replace(guest.port, floating=None), replace(other.port, floating=FLOATING)
        world.ensure()
        # The same flow now reaches the other guest; what that one had begun before goes on as it was.
        guest.space("link set eth0 down")
        assert _ask(asking, FLOATING) == "203.0.113.1"
        assert _ask(outward, INTERNET) == host.underlay
        assert other.ask(INTERNET) == FLOATING


def _ask(asking: socket.socket, address: str) -> str:
    for _ in range(5):
        asking.sendto(b"who am I", (address, PORT))
        try:
            return asking.recv(100).decode()
        except TimeoutError:
            continue
    return ""


def test_it_moves_with_its_guest_and_is_announced_by_the_new_host(world: World, services: ExitStack) -> None:
    first, second = world.hosts
    guest = add(first, services, "web", 5, floating=FLOATING)
    keeper, other = add(first, services, "keeper", 8), add(second, services, "other", 9)
    assert pings(world.internet, FLOATING)

    def known() -> str:
        said: str = world.internet("neighbour show " + FLOATING)
        return said.split("lladdr ")[1].split()[0]

    assert known() == first.space.mac("eth0")
    # The guest's place is on the other host now, as after a migration.
    first.guests.remove(guest)
    second.guests.append(guest)
    guest.port = replace(guest.port, provider=second.provider, epoch=2)
    first.space(f"link delete {guest.tap}")
    world.ensure()
    second.space.veth(guest.tap, guest.space, "eth0")
    second.space(f"link set {guest.tap} mtu 1450 master ecb001234 up")
    guest.space(f"link set eth0 address {guest.port.mac} mtu 1450 up")
    guest.settle()
    world.ensure()
    # Nobody has asked again: it was announced.
    assert known() == second.space.mac("eth0")
    assert pings(world.internet, FLOATING)
    assert FLOATING not in first.space("route show") + first.space("neighbour show proxy")
    assert keeper.ping(FLOATING)
    assert other.ping(FLOATING)


def test_a_neighbour_that_hears_of_the_host_before_once_more_ends_with_the_new_one(
    world: World, services: ExitStack
) -> None:
    first, second = world.hosts
    add(second, services, "web", 5, floating=FLOATING)
    assert pings(world.internet, FLOATING)
    # The guest has just come from the first host, which answers until it has heard of that.
    old, new = first.space.mac("eth0"), second.space.mac("eth0")
    with first.space.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))

        def is_taken_in() -> bool:
            wire.send(frames(FLOATING, old)[1])
            return old in world.internet(f"neighbour show {FLOATING}")

        wait_for(is_taken_in, "the first host is believed")
    wait_for(lambda: new in world.internet(f"neighbour show {FLOATING}"), "it was announced again", timeout_s=20)
    assert pings(world.internet, FLOATING)


def test_an_address_that_has_gone_is_not_announced_again(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    guest = add(host, services, "web", 5, floating=FLOATING)
    add(host, services, "db", 6, floating=OTHER)
    world.change(guest, floating=None)
    with world.internet.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with wire:
        wire.settimeout(20)
        heard: set[str] = set()
        while OTHER not in heard:
            heard.add(socket.inet_ntoa(wire.recv(100)[28:32]))
    assert FLOATING not in heard


def test_guests_are_served_while_the_egress_device_is_down(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    host.space.veth("out", world.internet, "second")
    world.internet("link set second master wan up")
    host.egress = "out"
    host.restart()
    guest = add(host, services, "web", 5, floating=FLOATING)
    assert guest.dhcp()["ip"] == "10.0.0.5"
    for pid in dnsmasqs(host.directory):
        os.kill(pid, signal.SIGKILL)
    host.restart()
    host.ensure(world.network)
    other = add(host, services, "db", 6)
    assert other.dhcp()["ip"] == "10.0.0.6"
    assert other.resolve("web") == ["10.0.0.5", "fd00:1::5"]
    host.space("link set out up")
    host.space("address add 203.0.113.33/24 dev out")
    wait_for(lambda: pings(world.internet, FLOATING, timeout_s=1), "it is reached by the device that is up again")


def test_where_nobody_asks_for_addresses_they_lead_in_all_the_same(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    host.space("tuntap add out mode tun")
    host.space("link set out up")
    host.egress = "out"
    host.restart()
    guest = add(host, services, "web", 5, floating=FLOATING)
    other = add(host, services, "db", 6)
    assert guest.dhcp()["ip"] == "10.0.0.5"
    assert other.ask(FLOATING) == "10.0.0.1"
    assert host.space("neighbour show proxy") == ""
    assert host.ensure(world.network) == ()


def test_another_mac_of_the_egress_device_is_announced(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    add(host, services, "web", 5, floating=FLOATING)
    assert pings(world.internet, FLOATING)
    assert host.ensure(world.network) == ()
    host.space("link set eth0 address 02:11:22:33:44:55")
    assert [type(change).__name__ for change in host.ensure(world.network)] == ["PutProxy"]
    assert "02:11:22:33:44:55" in world.internet(f"neighbour show {FLOATING}")
    assert pings(world.internet, FLOATING)


def test_another_egress_device_takes_over(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    guest = add(host, services, "web", 5, floating=FLOATING)
    services.enter_context(serving(world.internet))
    assert pings(world.internet, FLOATING)
    host.space.veth("eth1", world.internet, "second")
    world.internet("link set second master wan up")
    host.space("link set eth1 up")
    host.space("address add 192.0.2.77/24 dev eth1")
    host.space("route replace default via 192.0.2.1 dev eth1")
    host.ensure(world.network)
    assert guest.ask(INTERNET) == FLOATING
    assert host.space("neighbour show proxy").split() == [FLOATING, "dev", "eth1", "proxy"]
    assert host.space.run("sysctl", "-n", "net.ipv4.conf.eth0.forwarding").strip() == "0"
    assert host.space.run("sysctl", "-n", "net.ipv4.conf.eth1.forwarding").strip() == "1"
    wait_for(lambda: pings(world.internet, FLOATING, timeout_s=1), "it is reached by the new device")


def test_a_host_without_a_way_out_serves_what_is_inside(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    host.space("route delete default")
    guest = add(host, services, "web", 5, floating=FLOATING)
    other = add(host, services, "db", 6)
    assert guest.dhcp()["ip"] == "10.0.0.5"
    assert guest.resolve("db") == ["10.0.0.6", "fd00:1::6"]
    assert other.ask(FLOATING) == "10.0.0.1"
    assert guest.ask(INTERNET, timeout_s=QUIET_S) == ""
    assert host.space.run("sysctl", "-n", "net.ipv4.conf.eth0.forwarding").strip() == "0"


def test_a_host_that_is_a_router_already_stays_one(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    host.space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    guest = add(host, services, "web", 5, floating=FLOATING)
    behind = world.make("behind")
    host.space.veth("lan0", behind, "eth0")
    host.space("link set lan0 up")
    host.space("address add 172.16.0.1/24 dev lan0")
    behind("link set eth0 up")
    behind("address add 172.16.0.2/24 dev eth0")
    behind("route add default via 172.16.0.1")
    world.internet("route add 172.16.0.0/24 via 192.0.2.11")
    assert pings(world.internet, "172.16.0.2")
    host.remove_guest(guest)
    host.leave(world.network.vni)
    assert host.space.run("sysctl", "-n", "net.ipv4.conf.eth0.forwarding").strip() == "1"


def test_a_host_that_became_a_router_when_it_was_started_anew_stays_one(world: World, services: ExitStack) -> None:
    host = world.hosts[0]

    def forwarding() -> str:
        return host.space.run("sysctl", "-n", "net.ipv4.conf.eth0.forwarding").strip()

    guest = add(host, services, "web", 5, floating=FLOATING)
    assert forwarding() == "1"
    assert 'iifname "eth0" drop' in host.space.run("nft", "list", "ruleset")
    # Now it is the operator who has set that, as the machine came up.
    host.boot_id = "second"
    host.restart()
    host.ensure(world.network)
    assert 'iifname "eth0" drop' not in host.space.run("nft", "list", "ruleset")
    host.remove_guest(guest)
    host.leave(world.network.vni)
    assert forwarding() == "1"


def test_a_host_that_was_no_router_does_not_become_one_for_others(world: World, services: ExitStack) -> None:
    host = world.hosts[0]
    behind = world.make("behind")
    host.space.veth("lan0", behind, "eth0")
    host.space("link set lan0 up")
    host.space("address add 172.16.0.1/24 dev lan0")
    behind("link set eth0 up")
    behind("address add 172.16.0.2/24 dev eth0")
    behind("route add default via 172.16.0.1")
    world.internet("route add 172.16.0.0/24 via 192.0.2.11")
    add(host, services, "web", 5, floating=FLOATING)
    assert pings(world.internet, FLOATING)
    assert not pings(world.internet, "172.16.0.2", timeout_s=QUIET_S)


def _without_tables(everything: list[str]) -> list[str]:
    """Without the rules, whose sets and handles differ, and without what is told of names."""
    return [*everything[:5], *everything[6:7]]


def test_no_neighbour_is_answered_for_that_nobody_has(world: World, services: ExitStack) -> None:
    add(world.hosts[0], services, "web", 5, floating=FLOATING)
    assert not pings(world.internet, "203.0.113.51", timeout_s=QUIET_S)
    assert "lladdr" not in world.internet("neighbour show 203.0.113.51")
