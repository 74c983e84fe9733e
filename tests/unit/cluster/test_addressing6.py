"""IPv6 ranges and addresses of networks."""

from __future__ import annotations

import uuid
from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.addressing6 import check_address6, derive_address6, gateway_address6, parse_cidr6
from ecompute.cluster.errors import InvalidInput

CIDR = IPv6Network("fd5c:1f4e:73a2:1::/64")

ranges = st.integers(0, 2**56 - 1).map(lambda n: IPv6Network(((0xFD << 120) | (n << 64), 64)))


@given(ranges, st.uuids())
def test_an_interface_has_one_address_in_each_range_and_no_special_one(cidr: IPv6Network, interface: uuid.UUID) -> None:
    address = derive_address6(cidr, str(interface))
    assert IPv6Address(address) in cidr
    assert address == derive_address6(cidr, str(interface).upper())
    assert check_address6(cidr, address) == address
    assert address != gateway_address6(cidr)


def test_no_two_of_many_interfaces_have_the_same_address() -> None:
    assert len({derive_address6(CIDR, str(uuid.UUID(int=n))) for n in range(10_000)}) == 10_000


@given(ranges)
def test_a_range_is_read_as_it_is_written(cidr: IPv6Network) -> None:
    assert parse_cidr6(str(cidr)) == cidr
    assert parse_cidr6(cidr.exploded.upper()) == cidr


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("fd00::1/64", "bits set behind its prefix; the range is fd00::/64"),
        ("fd00::/63", "a prefix of 63 bits; a network has a /64"),
        ("fd00::/128", "a prefix of 128 bits"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("::/64", "loopback"),
        ("fc00::/64", "no range for hosts"),
        ("4000::/64", "no range for hosts"),
        ("fd00::%eth0/64", "not an IPv6 range"),
        ("fd00::", "not an IPv6 range"),
        ("fd00::/ffff::", "not an IPv6 range"),
        ("fd00::/٦٤", "not an IPv6 range"),
        ("10.0.0.0/24", "not an IPv6 range"),
        ("", "not an IPv6 range"),
        ("x\ny/64", "not an IPv6 range"),
    ],
)
def test_a_range_that_cannot_be_meant_is_refused_in_one_line(text: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_cidr6(text)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("fd5c:1f4e:73a2:1::", "the routers' address"),
        ("fd5c:1f4e:73a2:1::1", "the gateway's address"),
        ("fd5c:1f4e:73a2:1:fdff:ffff:ffff:ff80", "an anycast address"),
        ("fd5c:1f4e:73a2:1:fdff:ffff:ffff:ffff", "an anycast address"),
        ("fd5c:1f4e:73a2:2::5", "outside of"),
        ("fd5c:1f4e:73a2:1::5%eth0", "not an IPv6 address"),
        ("10.0.0.5", "not an IPv6 address"),
    ],
)
def test_an_address_that_no_port_may_have_is_refused(address: str, what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        check_address6(CIDR, address)


def test_an_address_that_is_asked_for_is_kept_in_its_usual_form() -> None:
    assert check_address6(CIDR, "FD5C:1F4E:73A2:1:0:0:0:5") == "fd5c:1f4e:73a2:1::5"
    assert check_address6(CIDR, "fd5c:1f4e:73a2:1::1", gateway="fd5c:1f4e:73a2:1::2") == "fd5c:1f4e:73a2:1::1"
