from __future__ import annotations

import re
import uuid
from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.addressing import (
    check_address,
    check_mac,
    choose_address,
    gateway_address,
    is_unicast_mac,
    label,
    mac_address,
    parse_cidr,
)
from ecompute.cluster.errors import AddressesExhausted, InvalidInput

CIDR = "10.10.0.0/24"

cidrs = st.builds(
    lambda address, length: str(IPv4Network((address, length), strict=False)),
    st.integers(int(IPv4Address("10.0.0.0")), int(IPv4Address("10.255.255.255"))),
    st.integers(16, 29),
)


@given(cidrs, st.integers(0, 2**32), st.sets(st.integers(0, 20)))
def test_a_chosen_address_is_free_and_no_special_one(cidr: str, seed: int, taken_offsets: set[int]) -> None:
    network = IPv4Network(cidr)
    taken = {str(network.network_address + n) for n in taken_offsets}
    try:
        chosen = choose_address(cidr, taken, seed)
    except AddressesExhausted:
        assert network.num_addresses - 3 <= len(taken)
        return
    assert IPv4Address(chosen) in network
    assert chosen not in taken
    assert chosen not in {str(network.network_address), str(network.broadcast_address), gateway_address(cidr)}


def test_every_address_of_a_range_is_chosen_before_it_is_exhausted() -> None:
    taken: set[str] = set()
    for seed in range(5):
        taken.add(choose_address("10.0.0.8/29", taken, seed * 7))
    assert taken == {f"10.0.0.{n}" for n in (10, 11, 12, 13, 14)}
    with pytest.raises(AddressesExhausted, match=r"all 5 addresses of 10\.0\.0\.8/29 are taken"):
        choose_address("10.0.0.8/29", taken, 0)


def test_a_gateway_elsewhere_is_kept_free_and_the_first_address_is_not() -> None:
    taken = {f"10.0.0.{n}" for n in (10, 11, 12, 13)}
    assert choose_address("10.0.0.8/29", taken, 0, gateway="10.0.0.14") == "10.0.0.9"


def test_different_seeds_begin_at_different_addresses() -> None:
    assert len({choose_address(CIDR, set(), seed) for seed in range(100)}) > 90


def test_a_range_may_be_given_parsed() -> None:
    assert choose_address(IPv4Network(CIDR), set(), 5) == choose_address(CIDR, set(), 5)


def test_the_gateway_is_the_first_address() -> None:
    assert gateway_address("10.10.0.0/16") == "10.10.0.1"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("10.10.0.1/24", "bits set behind its prefix; the range is 10.10.0.0/24"),
        ("10.0.0.0/30", "a prefix of 30 bits"),
        ("10.0.0.0/15", "a prefix of 15 bits"),
        ("169.254.0.0/16", "link-local"),
        ("127.0.0.0/24", "loopback"),
        ("224.0.0.0/24", "multicast"),
        ("0.0.0.0/16", '"this" network'),
        ("250.0.0.0/16", "reserved"),
        ("10.0.0.0", "not an IPv4 range"),
        ("10.0.0.0/", "not an IPv4 range"),
        ("10.0.0.0/255.255.255.0", "not an IPv4 range"),
        ("10.0.0.0/-1", "not an IPv4 range"),
        ("10.0.0.0/33", "not an IPv4 range"),
        ("10.0.0.0/٢٤", "not an IPv4 range"),
        ("fd00::/64", "not an IPv4 range"),
        ("", "not an IPv4 range"),
    ],
)
def test_a_range_that_cannot_be_meant_is_refused_in_one_line(text: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_cidr(text)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("10.11.0.1", "outside of"),
        ("10.10.0.0", "network's own"),
        ("10.10.0.255", "broadcast"),
        ("10.10.0.1", "gateway's"),
        ("10.10.0", "not an IPv4 address"),
    ],
)
def test_an_address_that_no_port_may_have_is_refused(address: str, what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        check_address(CIDR, address)
    assert check_address(CIDR, "10.10.0.7") == "10.10.0.7"


@given(st.uuids())
def test_a_mac_is_unicast_locally_administered_and_always_the_same(interface: uuid.UUID) -> None:
    mac = mac_address(str(interface))
    assert is_unicast_mac(mac)
    assert int(mac[:2], 16) & 0b11 == 0b10
    assert mac == mac_address(str(interface).upper())


def test_a_mac_needs_a_uuid() -> None:
    with pytest.raises(InvalidInput, match="not a uuid"):
        mac_address("eth0")


@pytest.mark.parametrize(
    "text",
    ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00", "02-00-00-00-00-01", "x", ""],
)
def test_what_no_interface_can_have_is_no_unicast_mac(text: str) -> None:
    assert not is_unicast_mac(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("01:00:5e:00:00:01", "is a multicast MAC"),
        ("ff:ff:ff:ff:ff:ff", "is a multicast MAC"),
        ("00:00:00:00:00:00", "no interface's"),
        ("52:54:00:12:34", "is not a MAC"),
        ("52-54-00-12-34-56", "is not a MAC"),
        ("52:54:00:12:34:5g", "is not a MAC"),
        ("", "is not a MAC"),
        ("06:ec:00:00:10:00", "kept for devices of the hosts"),
        ("06:EC:01:00:10:00", "kept for devices of the hosts"),
        ("fe:54:00:12:34:56", "kept for devices of the hosts"),
    ],
)
def test_a_mac_that_no_guest_may_have_is_refused_in_one_line(text: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_mac(text)
    assert what in str(caught.value)


@given(st.uuids())
def test_a_mac_that_we_make_is_one_that_may_be_asked_for(interface: uuid.UUID) -> None:
    mac = mac_address(str(interface))
    assert check_mac(mac.upper()) == mac


@pytest.mark.parametrize(
    ("name", "is_label"),
    [
        ("web", "web"),
        ("Web Server_1", "web-server-1"),
        ("--a--", "a"),
        ("a" * 70, "a" * 63),
        ("a" * 62 + "-b", "a" * 62),
        ("\n\0;", None),
        ("", None),
        (None, None),
    ],
)
def test_a_label_is_as_near_to_the_name_as_can_be(name: str | None, is_label: str | None) -> None:
    assert label(name) == is_label


@given(st.text())
def test_what_is_left_of_a_name_is_a_label_and_stays_one(name: str) -> None:
    found = label(name)
    assert found is None or re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", found)
    assert label(found) == found


small_ranges = st.integers(26, 29).map(lambda length: f"10.0.0.0/{length}")


@given(small_ranges, st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_a_range_is_given_out_whole_and_nothing_twice_whatever_the_order(cidr: str, rng: Random, seed: int) -> None:
    network = IPv4Network(cidr)
    hosts = {str(address) for address in network.hosts()} - {gateway_address(cidr)}
    given_out: set[str] = set()
    for n in range(len(hosts)):
        chosen = choose_address(cidr, given_out, rng.getrandbits(32) if n % 2 else seed)
        assert chosen not in given_out
        given_out.add(chosen)
    assert given_out == hosts
    with pytest.raises(AddressesExhausted):
        choose_address(cidr, given_out, seed)


@given(small_ranges, st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_a_choice_depends_on_what_is_taken_and_not_on_who_came_first(cidr: str, rng: Random, seed: int) -> None:
    hosts = [str(address) for address in IPv4Network(cidr).hosts()]
    first = rng.sample(hosts, len(hosts) // 2)
    second = rng.sample(first, len(first))
    assert choose_address(cidr, set(first), seed) == choose_address(cidr, set(second), seed)
