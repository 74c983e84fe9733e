"""What a host does for its own guests' network: DHCP, names, the way out, and what is truly off."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from served import GATEWAY, INTERNET, PORT, QUIET_S, World, dnsmasqs, serving, wait_for

from ecompute.network import nat


def test_dhcp_gives_a_guest_its_own_address_and_all_it_has_to_know(world: World) -> None:
    guest = world.hosts[0].add_guest("web", 5)
    said = guest.dhcp()
    assert {name: said[name] for name in ("ip", "mask", "mtu", "dns", "router", "domain", "hostname", "lease")} == {
        "ip": "10.0.0.5",
        "mask": "24",
        "mtu": "1450",
        "dns": GATEWAY,
        "router": GATEWAY,
        "domain": "default.internal",
        "hostname": "web",
        "lease": "86400",
    }
    assert said["staticroutes"] == f"169.254.169.254/32 {GATEWAY} 0.0.0.0/0 {GATEWAY}"
    assert said["search"] == "default.internal"
    assert said["serverid"] == GATEWAY


def test_guests_of_a_host_with_a_narrow_underlay_are_told_what_passes_there(world: World) -> None:
    wide, narrow = world.hosts
    world.internet("link set h2 mtu 1400")
    narrow.space("link set eth0 mtu 1400")
    guest, other = narrow.add_guest("web", 5), wide.add_guest("db", 6)
    assert (guest.dhcp()["mtu"], other.dhcp()["mtu"]) == ("1350", "1450")
    guest.settle()
    guest.space("link set eth0 mtu 1350")
    other.settle()
    with serving(guest.space), other.space.entered(), socket.create_connection((guest.ip, PORT), timeout=5) as way:
        way.recv(100)  # who asks
        way.sendall(b"z" * 20000)
        assert _echoed(way, 20000)


def _echoed(way: socket.socket, size: int) -> bool:
    while size > 0 and (data := way.recv(1 << 16)):
        size -= len(data)
    return size == 0


@pytest.mark.parametrize("name", [b"version", b"servers", b"cachesize"])
def test_a_guest_is_not_told_what_answers_for_names(world: World, name: bytes) -> None:
    guest = world.hosts[0].add_guest("web", 5)
    guest.settle()
    question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"".join(
        bytes([len(label)]) + label for label in (name, b"bind", b"")
    )
    with guest.space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.sendto(question + struct.pack("!2H", 16, 3), (GATEWAY, 53))  # TXT, CHAOS
        with suppress(TimeoutError):
            assert struct.unpack_from("!H", udp.recv(512), 6) == (0,), "an answer"


def test_a_guest_is_given_nothing_by_another_hosts_dhcp(world: World) -> None:
    first, second = world.hosts
    guest, other = first.add_guest("web", 5), second.add_guest("db", 6)
    assert other.dhcp()["ip"] == "10.0.0.6"
    # With its own host's ended, and kept so, nobody answers: the other one's hears nothing.
    (pid,) = _dnsmasqs(first)
    os.kill(pid, 9)
    assert guest.dhcp(tries=2) == {}
    first.ensure(world.network)
    assert guest.dhcp()["ip"] == "10.0.0.5"


def test_a_stranger_on_the_network_is_given_nothing(world: World) -> None:
    guest = world.hosts[0].add_guest("web", 5)
    guest.space("link set eth0 address 02:00:00:00:00:99")
    assert guest.dhcp(tries=2) == {}


def test_dhcp_of_ipv6_gives_a_guest_its_own_address_and_no_router(world: World) -> None:
    guest = world.hosts[0].add_guest("web", 5)
    guest.space.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad")
    guest.space.run("sh", "-c", "ip link set eth0 down; ip link set eth0 up")
    wait_for(lambda: "fe80" in guest.space("-6 address show dev eth0 -tentative"), "a link-local address")
    with guest.space.entered():
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with client:
        client.bind(("::", 546))
        index = int(guest.space("-o link show eth0").split(":")[0])
        identity = struct.pack("!HHHH", 1, 10, 3, 1) + bytes.fromhex(guest.port.mac.replace(":", ""))
        wanted = struct.pack("!HHIII", 3, 12, 1, 0, 0) + struct.pack("!HHH", 6, 2, 23)
        for _ in range(10):  # RFC 8415: SOLICIT, and ADVERTISE in answer
            client.sendto(b"\x01abc" + identity + wanted, ("ff02::1:2", 547, 0, index))
            if select.select([client], [], [], 1)[0]:
                break
        said = client.recv(2048)
    assert said[:4] == b"\x02abc"
    assert socket.inet_pton(socket.AF_INET6, "fd00:1::5") in said
    assert struct.pack("!HH", 23, 16) + socket.inet_pton(socket.AF_INET6, "fd00:1::1") in said
    assert "default" not in guest.space("-6 route show")
    assert "fd00" not in guest.space("-6 address show dev eth0")
    assert guest.ping("fe80::a9fe:a9fe%eth0")


def test_names_of_all_the_networks_guests_are_known_on_every_host(world: World) -> None:
    first, second = world.hosts
    guest = first.add_guest("web", 5)
    second.add_guest("Data Base", 6)
    guest.settle()
    for name in ("data-base", "data-base.default.internal"):
        assert guest.resolve(name) == ["10.0.0.6", "fd00:1::6"]
    assert guest.resolve("web") == ["10.0.0.5", "fd00:1::5"]
    assert guest.resolve("10.0.0.6") == ["data-base.default.internal"]
    assert guest.resolve("fd00:1::6") == ["data-base.default.internal"]
    assert guest.resolve("nobody.default.internal") == []


def test_a_name_that_comes_or_goes_elsewhere_is_told_without_starting_anew(world: World) -> None:
    first, second = world.hosts
    guest = first.add_guest("web", 5)
    guest.settle()
    before = _dnsmasqs(first)
    other = second.add_guest("db", 6)
    wait_for(lambda: guest.resolve("db") == ["10.0.0.6", "fd00:1::6"], "the new name is known")
    second.remove_guest(other)
    second.leave(world.network.vni)
    first.ensure(world.network)
    wait_for(lambda: guest.resolve("db") == [], "the name is forgotten")
    assert _dnsmasqs(first) == before


def test_other_names_are_asked_of_the_servers_outside(world: World) -> None:
    guest = world.hosts[0].add_guest("web", 5)
    guest.settle()
    with world.internet.entered():
        upstream = subprocess.Popen(
            f"dnsmasq -k -z -h -R -u root --pid-file= -A /example.org/198.51.100.7 -a {INTERNET}".split(),
            stderr=subprocess.DEVNULL,
        )
    try:
        wait_for(lambda: guest.resolve("www.example.org") == ["198.51.100.7"], "the server outside is asked", 20)
    finally:
        upstream.kill()
        upstream.wait()


def test_guests_get_out_behind_their_own_hosts_address(world: World) -> None:
    first, second = world.hosts
    guests = first.add_guest("web", 5), second.add_guest("db", 6)
    with serving(world.internet):
        for guest, host in zip(guests, (first, second), strict=True):
            guest.settle()
            assert guest.ping(INTERNET)
            assert guest.ask(INTERNET) == host.underlay
        assert first.space.run("nft", "list", "table", "inet", "ecompute_gateway")


def test_a_large_packet_from_outside_is_cut_down_for_the_guest(world: World) -> None:
    guest = world.hosts[0].add_guest("web", 5)
    guest.settle()
    with guest.space.entered():
        done = subprocess.run(
            ["busybox", "ping", "-c", "1", "-W", "5", "-s", "4000", INTERNET], capture_output=True, check=False
        )
    assert done.returncode == 0


def test_two_networks_with_the_same_addresses_do_not_meet(world: World) -> None:
    host = world.hosts[0]
    guest = host.add_guest("web", 5)
    second = type(world.network)(
        **{**{name: getattr(world.network, name) for name in world.network.__struct_fields__}, "uuid": "m", "vni": 77}
    )
    other = host.add_guest("web", 5, network=second)
    stranger = host.add_guest("stranger", 6, network=second)
    for one in (guest, other, stranger):
        one.settle()
    assert stranger.ping("10.0.0.5")
    assert not guest.ping("10.0.0.6", timeout_s=QUIET_S)
    assert guest.resolve("stranger") == []
    assert stranger.resolve("stranger") == ["10.0.0.6", "fd00:1::6"]
    with serving(world.internet):
        assert guest.ask(INTERNET) == other.ask(INTERNET) == host.underlay


@pytest.mark.parametrize("off", ["has_dhcp", "has_dns", "has_nat"])
def test_what_is_off_is_truly_off(make_world: Callable[..., World], off: str) -> None:
    world = make_world(**{off: False})
    guest = world.hosts[0].add_guest("web", 5)
    listening = world.hosts[0].inside("ss", "-Hlnu") if off != "has_nat" else ""
    said = guest.dhcp(tries=2)
    guest.settle()
    assert guest.ping(GATEWAY)
    if off == "has_dhcp":
        assert said == {}
        assert ":67 " not in listening and ":547 " not in listening
    else:
        assert said["ip"] == "10.0.0.5"
    if off == "has_dns":
        assert "dns" not in said
        assert guest.resolve("web") == []
        assert ":53 " not in listening
        assert ":53 " not in world.hosts[0].inside("ss", "-Hlnt")
    else:
        assert guest.resolve("web") == ["10.0.0.5", "fd00:1::5"]
    with serving(world.internet):
        if off == "has_nat":
            assert "router" not in said
            assert said["staticroutes"] == f"169.254.169.254/32 {GATEWAY}"
            assert guest.ask(INTERNET, timeout_s=QUIET_S) == ""
            assert not guest.ping(INTERNET, timeout_s=QUIET_S)
            assert not guest.ping("192.0.2.1", timeout_s=QUIET_S)
        else:
            assert guest.ask(INTERNET) == world.hosts[0].underlay


def test_with_all_of_it_off_there_is_a_gateway_and_no_way_out(make_world: Callable[..., World]) -> None:
    world = make_world(has_dhcp=False, has_dns=False, has_nat=False)
    host = world.hosts[0]
    guest = host.add_guest("web", 5)
    guest.settle()
    assert guest.ping(GATEWAY)
    assert "ecu" not in host.space("link show")
    assert "ecompute_gateway" not in host.space.run("nft", "list", "tables")
    assert _dnsmasqs(host) == {}


def test_the_gateway_answers_on_every_host_and_only_its_own_guests(world: World) -> None:
    first, second = world.hosts
    guests = first.add_guest("web", 5), second.add_guest("db", 6)
    for guest in guests:
        guest.settle()
        assert guest.ping(GATEWAY)
        assert guest.ping("169.254.169.254")
        neighbour = guest.space("neighbour show 10.0.0.1")
        assert "06:ec:01:00:12:34" in neighbour
    assert guests[0].ping("10.0.0.6")
    # One host gone: the other's guests notice nothing.
    second.space("link set eth0 down")
    second.gateways.close()
    assert guests[0].ping(GATEWAY)
    assert guests[0].dhcp()["ip"] == "10.0.0.5"
    with serving(world.internet):
        assert guests[0].ask(INTERNET) == first.underlay
    second.space("link set eth0 up")
    second.space("route replace default via 192.0.2.1")


def test_when_the_last_guest_has_gone_nothing_is_left(world: World) -> None:
    host = world.hosts[0]
    before = host.everything()
    guest = host.add_guest("web", 5, floating="203.0.113.50", routed=("203.0.113.51",))
    assert host.everything() != before
    host.remove_guest(guest)
    host.leave(world.network.vni)
    assert host.everything() == before


def _dnsmasqs(host: Any) -> dict[int, str]:
    found: dict[int, str] = dnsmasqs(host.directory)
    return found


def test_the_address_of_a_guest_that_went_is_given_to_the_next_one(world: World) -> None:
    host = world.hosts[0]
    host.add_guest("keeper", 9)
    former = host.add_guest("former", 5)
    assert former.dhcp()["ip"] == "10.0.0.5"
    host.remove_guest(former)
    assert host.add_guest("next", 5, mac="02:00:00:34:00:99").dhcp()["ip"] == "10.0.0.5"


def test_one_guest_does_not_take_the_flows_of_all(world: World) -> None:
    """Datagrams from 20,000 ports, in the namespaces of the test: few of them become flows."""
    host = world.hosts[0]
    greedy, other = host.add_guest("greedy", 5), host.add_guest("other", 6)
    for guest in (greedy, other):
        guest.settle()

    def flows() -> int:
        return int(host.space.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))

    with serving(world.internet):
        assert other.ask(INTERNET) == host.underlay
        before, began = flows(), time.monotonic()
        with greedy.space.entered():
            for port in range(1024, 21_024):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.bind(("", port))
                    asking.sendto(b"?", (INTERNET, 9))
        took_s = time.monotonic() - began
        assert 0 < flows() - before <= nat.FLOWS_AT_ONCE + nat.FLOWS_A_SECOND * (took_s + 1)
        assert other.ask(INTERNET) == host.underlay
