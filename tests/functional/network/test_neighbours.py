"""Between guests on several hosts nothing is flooded: questions are answered at home, frames go to one host."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from frames import BROADCAST, ETH_P_ALL, ETH_P_ARP, arp_request, drain, frame, neighbour_solicitation
from netlab import VNI

from ecompute.network import names

VXLAN = names.vxlan_name(VNI)
SETTLING_S = 30.0
QUIET_S = 1.5


@pytest.fixture
def three(make_hosts: Callable[[int], Any]) -> Any:
    """Three hosts with a guest each, and all that etcd would say of them."""
    hosts = make_hosts(3)
    for host in hosts:
        host.ensure()
    for n, host in enumerate(hosts, 1):
        host.add_guest(n)
    for host in hosts:
        host.ensure()
    return hosts


@contextmanager
def carried(hosts: Any) -> Iterator[Callable[[], list[list[bytes]]]]:
    """Yield what returns the frames that came to each host in VXLAN packets since it was called last."""
    with ExitStack() as stack:
        wires = []
        for host in hosts:
            with host.space.entered():
                wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
            wire.bind(("under0", 0))
            wires.append(wire)
        yield lambda: [[inner for got in drain(wire, 0.05) if (inner := inside(got))] for wire in wires]


def inside(packet: bytes) -> bytes | None:
    """The frame in a VXLAN packet."""
    if packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_UDP:
        return None
    return packet[50:] if struct.unpack_from("!H", packet, 36) == (names.VXLAN_PORT,) else None


def settle(seen: Callable[[], list[list[bytes]]]) -> None:
    """Wait until the guests' kernels have said which groups they have joined, and nothing comes any more."""
    deadline = time.monotonic() + SETTLING_S
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET_S:
        assert time.monotonic() < deadline, "it is never quiet"
        if any(seen()):
            quiet_since = time.monotonic()


def ask(guest: Any, sent: bytes) -> None:
    with guest.space.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(sent)


def test_in_steady_state_nothing_is_flooded_and_questions_do_not_travel(three: Any) -> None:
    first, second, _ = (host.guests[0] for host in three)
    with carried(three) as seen:
        settle(seen)
        assert first.ping(second.ip)
        assert first.ping6(second.ip6)
        seen()
        for _ in range(5):
            for guest, other in ((first, second), (second, first)):
                # As the guest's kernel does when it has forgotten, and when it makes sure.
                guest.space("neighbour flush dev eth0")
                ask(guest, frame(other.mac, guest.mac, ETH_P_ARP, arp_request(guest.mac, guest.ip, other.ip)))
                assert guest.ping(other.ip)
                assert guest.ping6(other.ip6)
        at_first, at_second, at_third = seen()
        assert at_third == []
        for guest, frames in ((first, at_first), (second, at_second)):
            assert len(frames) >= 20
            assert {got[:6].hex(":") for got in frames} == {guest.mac}
            assert {got[12:14] for got in frames} == {b"\x08\x00", b"\x86\xdd"}


def test_a_guests_own_refresh_of_what_it_knows_is_answered_at_home(three: Any) -> None:
    first, second, _ = (host.guests[0] for host in three)
    for guest in (first, second):
        for family in ("ipv4", "ipv6"):
            guest.space.set(f"{family}/neigh/eth0/base_reachable_time_ms", 100)
            guest.space.set(f"{family}/neigh/eth0/delay_first_probe_time", 1)
    with carried(three) as seen:
        settle(seen)
        ends = time.monotonic() + 4
        while time.monotonic() < ends:
            assert first.ping(second.ip)
            assert first.ping6(second.ip6)
        states = first.space("neighbour show dev eth0")
        at_first, at_second, at_third = seen()
        assert at_third == []
        assert all(got[12:14] != b"\x08\x06" for got in at_first + at_second)
        assert "FAILED" not in states


def test_a_question_that_nobody_can_answer_ends_at_home(three: Any) -> None:
    first = three[0].guests[0]
    with carried(three) as seen:
        settle(seen)
        ask(first, frame(BROADCAST, first.mac, ETH_P_ARP, arp_request(first.mac, first.ip, "10.50.0.99")))
        ask(first, neighbour_solicitation(first.mac, first.ip6, "fd00:50::99"))
        assert seen() == [[], [], []]


def test_link_local_addresses_of_guests_elsewhere_are_answered_for(three: Any) -> None:
    first, second, _ = (host.guests[0] for host in three)
    assert first.ping6(names.link_local(second.mac))


def test_a_guest_that_leaves_is_not_answered_for_any_more(three: Any) -> None:
    first, gone = three[0].guests[0], three[1].guests.pop()
    for host in three:
        host.ensure()
    first.space("neighbour flush dev eth0")
    assert not first.ping(gone.ip, timeout_s=0.6)
    assert "10.50.0.2" not in three[0].space(f"neighbour show dev {VXLAN}")


def test_neighbours_of_others_are_left(three: Any) -> None:
    host = three[0]
    for added in (
        "10.50.0.71 lladdr 02:77:00:00:00:01 nud reachable",
        "10.50.0.72 lladdr 02:77:00:00:00:02 nud noarp",
        "10.50.0.73 lladdr 02:77:00:00:00:03 nud permanent extern_learn",
        "fd00:50::71 lladdr 02:77:00:00:00:04 nud noarp",
    ):
        host.space(f"neighbour add {added} dev {VXLAN}")
    assert host.ensure() == ()
    shown = host.space(f"neighbour show nud all dev {VXLAN}")
    assert shown.count("02:77:00:00:00:") == 4


def test_a_large_network_is_read_whole(hosts: Any) -> None:
    """Its entries do not fit into one answer of the kernel."""
    host = hosts[0]
    wanted = host.wanted()
    many = [(f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}", f"10.50.{n >> 8}.{n & 255}") for n in range(3000)]
    entries = frozenset((mac, "192.0.2.2") for mac, _ in many)
    neighbours = frozenset((ip, mac) for mac, ip in many)
    large = type(wanted)(**{**vars(wanted), "entries": entries, "neighbours": neighbours})
    host.ensure(large)
    found = host.do(lambda: host.links.found(VNI))
    assert (found.entries, found.neighbours) == (large.forwarding(), neighbours)
    assert host.ensure(large) == ()
