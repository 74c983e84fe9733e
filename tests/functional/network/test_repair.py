"""A network's gateway comes back whatever was done to it, and a daemon killed at any step leaves nothing that stays."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
from served import GATEWAY, INTERNET, PORT, VNI, Guest, Host, World, asks, dnsmasqs, pings, serving, wait_for

from ecompute.network import netns

FLOATING, ROUTED = "203.0.113.50", "203.0.113.70"


@pytest.fixture
def guest(world: World) -> Guest:
    made = world.hosts[0].add_guest("web", 5, floating=FLOATING, routed=(ROUTED,))
    made.settle()
    return made


def everything(host: Host) -> list[str]:
    """Without the numbers that a thing made anew has anew."""
    text = [re.sub(r"(?<=ecg001234).*|@if\d+", "", part) for part in host.everything()[:-1]]
    return [*text, str(sorted(dnsmasqs(host.directory).values()))]


HARMS = {
    "the namespace removed": "ip netns delete {namespace}",
    "the gateway's device deleted": "ip link delete ecg001234",
    "the gateway's device down": "ip link set ecg001234 down",
    "the gateway's device off the bridge": "ip link set ecg001234 nomaster",
    "the gateway's device with another MTU": "ip link set ecg001234 mtu 1300",
    "the gateway's device with an MTU too small for IPv6": "ip link set ecg001234 mtu 1000",
    "the gateway's device with IPv6": "sysctl -qw net.ipv6.conf.ecg001234.disable_ipv6=0",
    "the uplink deleted": "ip link delete ecu001234",
    "the uplink down": "ip link set ecu001234 down",
    "the uplink that does not forward": "sysctl -qw net.ipv4.conf.ecu001234.forwarding=0",
    "the uplink without an address": "ip address flush dev ecu001234",
    "the uplink with another address": "ip address add 192.0.2.200/32 dev ecu001234",
    "the route to the uplink deleted": "ip route flush dev ecu001234",
    "the neighbour at the uplink deleted": "ip neighbour flush dev ecu001234 nud permanent",
    "the route to a floating address deleted": f"ip route delete {FLOATING}",
    "a proxied neighbour deleted": f"ip neighbour delete proxy {FLOATING} dev eth0",
    "the host's rules deleted": "nft delete table inet ecompute_gateway",
    "the host's rules of ARP deleted": "nft delete table arp ecompute_gateway",
    "the host's rules with a hole": "nft insert rule inet ecompute_gateway input accept",
    "an address taken from the rules": f"nft delete element inet ecompute_gateway addresses {{{{ {FLOATING} }}}}",
    "all rules flushed": "nft flush ruleset",
    "the egress device that does not forward": "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
    "the egress device that answers late": "sysctl -qw net.ipv4.neigh.eth0.proxy_delay=80",
    "inside: the gateway's address deleted": "{in} ip address delete 10.0.0.1/24 dev lan",
    "inside: a foreign address": "{in} ip address add 10.0.0.2/24 dev lan",
    "inside: all addresses gone": "{in} ip address flush dev lan",
    "inside: the device down": "{in} ip link set lan down",
    "inside: the device with another MAC": "{in} ip link set lan address 02:11:11:11:11:11",
    "inside: the device with another MTU": "{in} ip link set lan mtu 1300",
    "inside: the device with an MTU too small for IPv6": "{in} ip link set lan mtu 1000",
    "inside: the device renamed": "{in} ip link set lan down; {in} ip link set lan name other",
    "inside: the uplink's end down": "{in} ip link set dev up down",
    "inside: the default route deleted": "{in} ip route delete default",
    "inside: a foreign route": "{in} ip route add 192.0.2.0/24 dev lan",
    "inside: the routed address's route deleted": f"{{in}} ip route delete {ROUTED}",
    "inside: a neighbour with another MAC": f"{{in}} ip neighbour replace {ROUTED} lladdr 02:66:66:66:66:66 dev lan",
    "inside: the rules deleted": "{in} nft delete table inet ecompute",
    "inside: the rules with a hole": "{in} nft insert rule inet ecompute input accept",
    "inside: another translation": "{in} nft add element inet ecompute floating {{ 203.0.113.9 : 10.0.0.9 }}",
    "inside: no forwarding": "{in} sysctl -qw net.ipv4.conf.lan.forwarding=0",
    "dnsmasq killed": "kill -9 {pid}",
    "dnsmasq ended": "kill {pid}",
    "dnsmasq's files deleted": "rm -r {files}",
    "dnsmasq's pid file deleted": "kill -9 {pid}; rm {files}/pid",
    "a pid file that names another": "kill -9 {pid}; echo 1 > {files}/pid",
    "everything": "ip netns delete {namespace}; nft flush ruleset; ip link delete ecg001234; ip link delete ecu001234; "
    "ip neighbour delete proxy {floating} dev eth0",
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_what_was_harmed_by_hand_is_put_back_and_nobody_else_notices(world: World, guest: Guest, harm: str) -> None:
    host, second = world.hosts
    far = second.add_guest("db", 6)
    far.settle()
    assert host.ensure(world.network) == ()
    whole = everything(host)
    (pid,) = dnsmasqs(host.directory)
    command = harm.format(
        **{
            "namespace": host.namespace(),
            "in": f"ip netns exec {host.namespace()}",
            "pid": pid,
            "files": host.directory / "networks" / "001234",
            "floating": FLOATING,
        }
    )
    with serving(far.space):
        with guest.space.entered():
            connection = socket.create_connection((far.ip, PORT), timeout=10)
        with connection:
            assert connection.recv(100).decode() == guest.ip
            host.space.run("sh", "-c", command)
            host.ensure(world.network)
            assert host.ensure(world.network) == ()
            assert everything(host) == whole
            connection.sendall(b"still there")
            assert connection.recv(100) == b"still there"
    assert guest.ping(far.ip)
    assert guest.dhcp()["ip"] == "10.0.0.5"
    assert guest.resolve("db") == ["10.0.0.6", "fd00:1::6"]
    assert guest.ping(INTERNET)
    assert pings(world.internet, FLOATING)
    assert pings(world.internet, ROUTED)


class Killed(Exception):
    pass


def dying(survived: int) -> Callable[[Any], None]:
    """Die after the n-th change; nothing is undone."""
    left = [survived]

    def count(_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return count


def test_killed_after_any_change_of_joining_the_next_daemon_brings_it_up(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    whole = everything(host)
    host.do(lambda: host.gateways.remove(VNI))
    changes = host.ensure(world.network)
    assert len(changes) > 20
    for survived in range(len(changes)):
        host.do(lambda: host.gateways.remove(VNI))
        with pytest.raises(Killed):
            host.ensure(world.network, gateways=host.reconciler(dying(survived)))
        host.restart()
        host.ensure(world.network)
        assert host.ensure(world.network) == ()
        assert everything(host) == whole, changes[survived]
    assert guest.dhcp()["ip"] == "10.0.0.5"
    assert pings(world.internet, FLOATING)


def test_killed_after_any_change_of_leaving_the_next_daemon_leaves_nothing(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    changes = host.do(lambda: host.gateways.remove(VNI))
    nothing = everything(host)
    assert len(changes) > 5
    for survived in range(len(changes)):
        host.ensure(world.network)
        with pytest.raises(Killed):
            host.do(lambda n=survived: host.reconciler(dying(n)).remove(VNI))
        host.restart()
        host.do(lambda: host.gateways.remove(VNI))
        assert everything(host) == nothing, changes[survived]
        assert host.do(host.gateways.present) == frozenset()


def test_killed_while_an_address_moves_the_next_daemon_ends_in_the_same_place(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    world.change(guest, floating="203.0.113.51", routed=())
    whole = everything(host)
    world.change(guest, floating=FLOATING, routed=(ROUTED,))
    moved = guest.port
    for survived in range(9):
        world.change(guest, floating="203.0.113.51", routed=())
        guest.port = moved
        with pytest.raises(Killed):
            host.ensure(world.network, gateways=host.reconciler(dying(survived)))
        host.restart()
        world.change(guest, floating="203.0.113.51", routed=())
        assert everything(host) == whole
        assert pings(world.internet, "203.0.113.51")
    assert asks(world.internet, FLOATING, PORT, timeout_s=0.5) == ""


def test_guests_keep_all_of_it_while_the_daemon_is_gone_and_it_is_found_again(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    before = dnsmasqs(host.directory)
    host.gateways.close()
    assert guest.dhcp()["ip"] == "10.0.0.5"
    assert guest.ping(INTERNET)
    host.restart()
    changes = host.ensure(world.network)
    # All that a new daemon does: it announces what it answers for, and ends what does not follow from the rules.
    assert {type(change).__name__ for change in changes} == {"PutProxy", "EndFlows"}
    assert host.ensure(world.network) == ()
    assert dnsmasqs(host.directory) == before


def test_a_dnsmasq_that_ends_is_told_at_once_and_follow_starts_it_again(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    damaged: list[int] = []
    host.gateways.on_damage(damaged.append)
    host.ensure(world.network)
    ports, members = world.ports(world.network), world.members(world.network)
    assert host.do(lambda: host.gateways.follow(world.network, ports, members)) == ()
    (pid,) = dnsmasqs(host.directory)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: damaged == [VNI], "the death is noticed")
    host.do(lambda: host.gateways.follow(world.network, ports, members))
    assert guest.dhcp()["ip"] == "10.0.0.5"


def test_a_stranger_with_the_number_of_a_pid_file_is_left_alone(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    (pid,) = dnsmasqs(host.directory)
    os.kill(pid, signal.SIGKILL)
    file = host.directory / "networks" / "001234" / "pid"
    file.write_text(f"{os.getpid()}\n")
    host.restart()
    host.ensure(world.network)
    assert guest.dhcp()["ip"] == "10.0.0.5"
    file.write_text(f"{os.getpid()}\n")
    host.restart()
    host.remove_guest(guest)
    host.leave(VNI)  # this process goes on
    assert not dnsmasqs(host.directory)


def test_a_file_in_the_place_of_a_namespace_does_not_hinder(world: World, guest: Guest) -> None:
    host = world.hosts[0]
    host.do(lambda: host.gateways.remove(VNI))
    netns.path_of(host.namespace()).touch()
    host.ensure(world.network)
    assert guest.ping(GATEWAY)
    host.do(lambda: host.gateways.remove(VNI))
    netns.path_of(host.namespace()).touch()
    host.do(lambda: host.gateways.remove(VNI))
    assert not netns.path_of(host.namespace()).exists()


def test_tables_devices_and_settings_of_others_are_as_they_were(world: World) -> None:
    host = world.hosts[0]
    host.space("link add br0 type bridge")
    host.space("link set br0 up")
    host.space.run("nft", "add table inet firewall; add chain inet firewall c; add rule inet firewall c accept")
    host.space("neighbour add proxy 192.0.2.150 dev eth0")
    host.space("route add 172.16.0.0/12 via 192.0.2.1")
    host.space("route add 169.254.55.55/32 via 192.0.2.1")
    before = host.everything()
    guest = host.add_guest("web", 5, floating=FLOATING)
    assert "table inet firewall" in host.space.run("nft", "list", "ruleset")
    host.remove_guest(guest)
    host.leave(VNI)
    assert host.everything() == before
