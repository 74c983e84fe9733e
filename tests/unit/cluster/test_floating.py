"""Floating addresses: chosen out of pools, and said by both who has them and whose they are."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import Floating, Pool, Port
from ecompute.cluster.errors import AddressesExhausted, InvalidInput
from ecompute.cluster.floating import (
    attached,
    beginning,
    choose,
    freed,
    is_attached,
    is_said,
    overlapping,
    parse_address,
    parse_range,
    pool_of,
    size,
    without,
)

PORT = Port(interface_uuid="i", instance_uuid="u", provider="p", epoch=1, mac="m", addresses=("10.0.0.5/24",))

ranges = st.builds(
    lambda address, length: str(IPv4Network((address, length), strict=False)),
    st.integers(int(IPv4Address("192.0.0.0")), int(IPv4Address("203.255.255.255"))),
    st.integers(16, 32),
)
ips = st.sampled_from([f"203.0.113.{n}" for n in range(6)])


def pool(cidr: str, name: str = "public") -> Pool:
    return Pool(name=name, cidr=cidr, created_at="")


def floating(ip: str) -> Floating:
    return Floating(ip=ip, pool="public", namespace="system", created_at="")


@given(ranges, st.integers(0, 2**32), st.sets(st.integers(0, 20)))
def test_a_chosen_address_is_a_free_one_of_the_pool(cidr: str, seed: int, offsets: set[int]) -> None:
    network = IPv4Network(cidr)
    taken = {str(network.network_address + n) for n in offsets}
    try:
        chosen = choose(pool(cidr), taken, seed)
    except AddressesExhausted:
        assert network.num_addresses <= len(taken)
        return
    assert IPv4Address(chosen) in network
    assert chosen not in taken
    assert pool_of(chosen, [pool("10.0.0.0/16"), pool(cidr)]) == pool(cidr)


@given(st.integers(28, 32), st.lists(st.integers(0, 2**32), min_size=16, max_size=16))
def test_a_pool_gives_out_all_of_its_addresses_and_then_says_so(length: int, seeds: list[int]) -> None:
    whole = pool(f"203.0.113.0/{length}")
    taken: set[str] = set()
    for seed in seeds[: size(whole)]:
        taken.add(choose(whole, taken, seed))
    assert taken == {str(ip) for ip in IPv4Network(whole.cidr)}
    with pytest.raises(AddressesExhausted, match=rf"all {len(taken)} addresses of pool public \(203\.0\.113\.0/"):
        choose(whole, taken, 0)


@given(ranges, ranges)
def test_pools_overlap_where_they_have_an_address_in_common(one: str, other: str) -> None:
    first, second = IPv4Network(one), IPv4Network(other)
    is_common = first.network_address in second or second.network_address in first
    assert (overlapping(first, [pool(other)]) is not None) == is_common


@given(ranges, st.integers(0, 2**32))
def test_all_addresses_of_a_pool_begin_as_it_says(cidr: str, seed: int) -> None:
    start = beginning(pool(cidr))
    assert choose(pool(cidr), set(), seed).startswith(start)
    assert start.count(".") == min(IPv4Network(cidr).prefixlen // 8, 3)


def test_a_pool_that_cannot_be_read_has_no_address() -> None:
    assert overlapping(IPv4Network("203.0.113.0/24"), [pool("what")]) is None
    assert pool_of("203.0.113.1", [pool("")]) is None
    assert (beginning(pool("what")), size(pool("what"))) == ("", 0)


@given(st.lists(st.tuples(ips, st.booleans()), max_size=6, unique_by=lambda pair: pair[0]))
def test_what_is_attached_is_said_by_both_and_what_is_freed_by_neither(handed: list[tuple[str, bool]]) -> None:
    port, attached_ = PORT, []
    for ip, is_routed in handed:
        if not is_routed and port.floating is not None:
            continue
        target, port = attached(floating(ip), port, "n", is_routed=is_routed)
        attached_.append(target)
    assert all(is_attached(one) and is_said(port, one) for one in attached_)
    for one in attached_:
        port = without(port, one.ip)
        assert not is_said(port, one)
        assert freed(one) == floating(one.ip)
    assert port == PORT


def test_an_address_of_another_interface_is_not_said_by_the_port() -> None:
    target, port = attached(floating("203.0.113.1"), PORT, "n", is_routed=False)
    assert not is_said(Port(**{f: getattr(port, f) for f in port.__struct_fields__} | {"instance_uuid": "v"}), target)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("203.0.113.1/24", "bits set behind its prefix; the range is 203.0.113.0/24"),
        ("203.0.0.0/15", "a prefix of 15 bits; use /16 to /32"),
        ("203.0.113.0", "not an IPv4 range; write it like 203.0.113.0/24"),
        ("127.0.0.0/24", "loopback: no guest can use it; use another range, like 203.0.113.0/24"),
        ("2001:db8::/64", "not an IPv4 range"),
    ],
)
def test_a_range_that_no_pool_can_have_is_refused_in_one_line(text: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_range(text)
    assert what in str(caught.value)


@pytest.mark.parametrize("text", ["", "203.0.113", "203.0.113.0/24", "::1", "203.0.113.1\n", "a/b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="not an IPv4 address"):
        parse_address(text)
