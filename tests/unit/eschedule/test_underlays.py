"""What hosts say of their underlays, and what a network's making takes from it."""

from __future__ import annotations

import pytest

from ecompute.cluster.documents import Node, timestamp
from ecompute.cluster.errors import InvalidInput
from eschedule.cloud.network_request import NetworkRequest
from eschedule.cloud.underlays import Underlay, believed, check_underlays, mtu_of

WEB = NetworkRequest("web", "10.1.0.0/24")


def node(name: str, underlay: str, mtu: int = 1500) -> Node:
    return Node(
        provider="p",
        name=name,
        underlay=underlay,
        underlay_mtu=mtu,
        accelerator="tcg",
        hypervisor="none",
        version="0",
        reported_at=timestamp(0),
    )


def underlays(*said: tuple[str, int]) -> list[Underlay]:
    return believed(node(f"host-{number}", *one) for number, one in enumerate(said, 1))[0]


def test_what_no_underlay_can_be_is_passed_over_and_said() -> None:
    odd = ["", "not\nan address", "fd00::1", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
    found, notes = believed(
        [
            node("good", "192.0.2.7"),
            *(node("bad", one) for one in odd),
            *(node("bad", "192.0.2.8", mtu) for mtu in (-5, 0, 20, 575, 65537, 10**12)),
        ]
    )
    assert [one.host for one in found] == ["good"]
    assert len(notes) == len(odd) + 6
    assert all(note.startswith("host bad is passed over: its underlay cannot ") and "\n" not in note for note in notes)
    assert mtu_of(WEB, found) == (1450, [])


def test_a_range_with_a_hosts_own_address_is_refused_whatever_else_it_is() -> None:
    known = underlays(("192.0.2.7", 1500), ("198.51.100.8", 1500), ("198.51.100.9", 1500))
    assert check_underlays(WEB, known) == []
    assert check_underlays(NetworkRequest("lan", physical="lan"), known) == []
    for request in (NetworkRequest("web", "192.0.2.0/24"), NetworkRequest("lan", "192.0.2.0/24", physical="lan")):
        with pytest.raises(InvalidInput, match=r"192\.0\.2\.0/24 overlaps the underlay: host host-1 is 192\.0\.2\.7"):
            check_underlays(request, known)


@pytest.mark.parametrize(("inside", "others"), [(1, 1), (1, 2), (2, 3)])
def test_few_hosts_that_say_they_are_in_the_default_range_keep_nobody_from_it(inside: int, others: int) -> None:
    known = underlays(*[("10.1.0.7", 1500)] * inside, *[("192.0.2.7", 1500)] * others)
    notes = check_underlays(WEB, known, is_default=True)
    assert notes[0] == "10.1.0.0/24 overlaps the underlay that host host-1 says it has, 10.1.0.7"
    assert len(notes) == inside


@pytest.mark.parametrize(("inside", "others"), [(1, 0), (2, 1)])
def test_a_default_range_that_most_hosts_are_in_is_refused(inside: int, others: int) -> None:
    known = underlays(*[("10.1.0.7", 1500)] * inside, *[("192.0.2.7", 1500)] * others)
    with pytest.raises(InvalidInput, match="overlaps the underlay: host host-1 is"):
        check_underlays(WEB, known, is_default=True)


def test_the_mtu_is_what_the_narrowest_underlay_leaves() -> None:
    assert mtu_of(WEB, underlays(("192.0.2.7", 9000), ("192.0.2.8", 1500))) == (1450, [])
    assert mtu_of(WEB, []) == (1450, [])
    lan = NetworkRequest("lan", physical="lan", mtu=9000)
    assert mtu_of(lan, underlays(("192.0.2.8", 1500))) == (9000, [])
    assert mtu_of(WEB, underlays(("192.0.2.7", 1500), ("192.0.2.8", 1400))) == (
        1350,
        ["the MTU is 1350 for all: host host-2 has the narrowest underlay, 1400"],
    )


def test_an_underlay_that_leaves_less_than_a_network_needs_is_refused_with_its_host() -> None:
    known = underlays(("192.0.2.7", 1500), ("192.0.2.8", 600))
    with pytest.raises(InvalidInput, match="underlay of host host-2 leaves an MTU of 550, and a network needs 576"):
        mtu_of(WEB, known)
    six = NetworkRequest("web", "10.1.0.0/24", cidr6="fd00::/64")
    with pytest.raises(InvalidInput, match="underlay of host host-1 leaves an MTU of 1270, and IPv6 needs 1280"):
        mtu_of(six, underlays(("192.0.2.8", 1320)))


def test_a_default_network_passes_over_a_host_that_is_too_narrow_unless_all_are() -> None:
    assert mtu_of(WEB, underlays(("192.0.2.7", 1500), ("192.0.2.8", 600)), is_default=True) == (
        1450,
        ["host host-2 is passed over: an underlay of 600 leaves no network an MTU of 576"],
    )
    with pytest.raises(InvalidInput, match="leaves an MTU of 550"):
        mtu_of(WEB, underlays(("192.0.2.8", 600)), is_default=True)
