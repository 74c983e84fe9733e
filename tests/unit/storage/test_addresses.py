from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecompute.cluster.errors import Unavailable
from ecompute.storage.fetch import addresses


def objection(text: str, *allowed: str) -> str | None:
    return addresses.objection(addresses.parse(text), [ipaddress.ip_network(network) for network in allowed])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "private"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("169.254.169.254", "link-local"),
        ("100.64.0.1", "special-purpose"),
        ("192.0.0.1", "special-purpose"),
        ("198.18.0.1", "special-purpose"),
        ("224.0.0.1", "multicast"),
        ("240.0.0.1", "private|reserved"),
        ("255.255.255.255", "private|reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fc00::1", "private"),
        ("fec0::1", "special-purpose"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "private"),
        ("2001::1", "special-purpose"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::127.0.0.1", "reserved"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b:1::1", "special-purpose"),
        ("2002:7f00:1::1", "loopback"),
        ("2002:a00:1::1", "private"),
    ],
)
def test_an_address_inside_is_refused(text: str, kind: str) -> None:
    found = objection(text)
    assert found is not None
    assert re.search(kind, found)


@pytest.mark.parametrize("text", ["1.1.1.1", "151.101.2.132", "2a04:4e42::644", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1"])
def test_an_address_of_the_internet_passes(text: str) -> None:
    assert objection(text) is None


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("127.0.0.1", "127.0.0.0/8"),
        ("10.1.2.3", "10.0.0.0/8"),
        ("::1", "::1/128"),
        ("::ffff:10.1.2.3", "10.0.0.0/8"),
        ("64:ff9b::10.1.2.3", "10.0.0.0/8"),
        ("fd00::5", "fd00::/8"),
    ],
)
def test_an_allowed_network_overrules(text: str, network: str) -> None:
    assert objection(text, network) is None
    assert objection("192.168.7.7", network) is not None


@settings(deadline=None)  # a busy machine is no failure
@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_judged_as_what_it_maps(address: ipaddress.IPv4Address) -> None:
    assert objection(f"::ffff:{address}") == objection(str(address))
    assert objection(f"64:ff9b::{address}") == objection(str(address))


@settings(deadline=None)  # a busy machine is no failure
@given(st.ip_addresses())
def test_what_passes_is_global_unicast(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if objection(str(address)) is None:
        assert not address.is_multicast
        assert not address.is_loopback
        assert not address.is_link_local
        assert not address.is_unspecified


def test_a_literal_address_needs_no_name_server() -> None:
    assert addresses.resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert addresses.resolve("::1", 80) == ["::1"]


def test_a_host_that_is_no_name_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        addresses.resolve("a" * 300, 80)
