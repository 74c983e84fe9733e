"""From a guest's place on its bridge no address or service of any host answers, and guests reach each other."""

from __future__ import annotations

from typing import Any

import pytest

from ecompute.network import names

VNI = 0x1234
BRIDGE, VXLAN = names.bridge_name(VNI), names.vxlan_name(VNI)


@pytest.fixture
def guests(hosts: Any) -> Any:
    """A guest on each of two hosts."""
    for host in hosts:
        host.ensure()
    guests = hosts[0].add_guest(1), hosts[1].add_guest(2)
    for host in hosts:
        host.ensure()
    return guests


def soften(host: Any) -> None:
    """Undo the hardening of every device."""
    for device in (BRIDGE, VXLAN, *(guest.port for guest in host.guests)):
        host.space.set(f"ipv4/conf/{device}/arp_ignore", 0)
        host.space.set(f"ipv6/conf/{device}/disable_ipv6", 0)


def test_guests_on_two_hosts_reach_each_other(guests: Any) -> None:
    assert guests[0].ping(guests[1].ip)
    assert guests[1].ping(guests[0].ip)


def test_a_packet_as_large_as_the_networks_mtu_passes(guests: Any) -> None:
    assert guests[0].ping(guests[1].ip, size_bytes=1450 - 20 - 8 - 4)


def test_nothing_of_any_host_answers_a_guest(hosts: Any, guests: Any, attack: Any) -> None:
    assert guests[0].ping(guests[1].ip)
    assert attack(guests[0], list(hosts)) == {}
    assert guests[0].ping(guests[1].ip)


def test_nothing_answers_even_on_devices_that_lost_their_hardening(hosts: Any, guests: Any, attack: Any) -> None:
    for host in hosts:
        soften(host)
    # What is heard is what the host's IPv6 says of itself when it is switched on: neither is an answer.
    assert attack(guests[0], list(hosts)).keys() <= {"heard"}
    for host in hosts:
        host.ensure()
    assert attack(guests[0], list(hosts)) == {}


def test_without_filter_and_hardening_the_same_attack_is_answered(hosts: Any, guests: Any, attack: Any) -> None:
    """Else the tests above would prove nothing."""
    host = hosts[0]
    host.space.run("nft", "flush", "ruleset")
    soften(host)
    got = attack(guests[0], [host])
    assert got.keys() >= {"heard", "datagrams", "echo requests", "IPv6 echo requests", "neighbour solicitations"}


def test_hardening_alone_leaves_arp_and_ipv6_silent(hosts: Any, guests: Any, attack: Any) -> None:
    for host in hosts:
        host.space.run("nft", "flush", "ruleset")
    got = attack(guests[0], list(hosts))
    assert "IPv6 echo requests" not in got
    assert "neighbour solicitations" not in got


def test_a_port_that_an_operator_put_on_the_bridge_reaches_nothing_through_it(hosts: Any, attack: Any) -> None:
    host = hosts[0]
    host.ensure()
    guest = host.add_guest(1, port="plain0")
    host.space.set("ipv6/conf/plain0/disable_ipv6", 1)
    got = attack(guest, [host], has_reserved=False)
    assert got == {}
