"""What a network may be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.errors import InvalidInput
from eschedule.cloud.network_request import NetworkRequest, check, check_domain, check_name


def test_all_is_on_and_the_gateway_is_the_first_address() -> None:
    assert check(NetworkRequest("web", "10.1.0.0/24")) == NetworkRequest(
        "web", "10.1.0.0/24", has_dhcp=True, has_nat=True, has_dns=True, gateway="10.1.0.1"
    )


@given(st.booleans(), st.booleans(), st.booleans())
def test_what_is_said_to_be_off_is_off(has_dhcp: bool, has_nat: bool, has_dns: bool) -> None:
    found = check(NetworkRequest("web", "10.1.0.0/24", has_dhcp=has_dhcp, has_nat=has_nat, has_dns=has_dns))
    assert (found.has_dhcp, found.has_nat, found.has_dns) == (has_dhcp, has_nat, has_dns)


def test_on_a_physical_network_all_is_off_and_a_range_is_a_wish() -> None:
    bare = check(NetworkRequest("lan", physical="lan"))
    assert (bare.has_dhcp, bare.has_nat, bare.has_dns, bare.gateway, bare.mtu) == (False, False, False, None, 1500)
    whole = check(NetworkRequest("lan", "10.1.0.0/24", physical="lan", vlan=5, gateway="10.1.0.254", mtu=9000))
    assert (whole.vlan, whole.gateway, whole.mtu) == (5, "10.1.0.254", 9000)
    assert check(NetworkRequest("lan", "10.1.0.0/24", physical="lan", gateway="10.1.0.1")).gateway == "10.1.0.1"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"cidr": "10.1.0.5/24"}, "has bits set behind its prefix; the range is 10.1.0.0/24"),
        ({"cidr": "10.1.0.0/30"}, "prefix of 30 bits; use /16 to /29"),
        ({"cidr": "10.0.0.0/8"}, "prefix of 8 bits"),
        ({"cidr": "169.254.0.0/24"}, "link-local"),
        ({"cidr": "127.0.0.0/24"}, "loopback"),
        ({"cidr": "224.1.0.0/24"}, "multicast"),
        ({"cidr": None}, "a network needs an IPv4 range"),
        ({"cidr6": "fd00::/48"}, "a network has a /64"),
        ({"cidr6": "fe80::/64"}, "link-local"),
        ({"vlan": 5}, "name that with --physical too"),
        ({"gateway": "10.1.0.5"}, "for a physical network"),
        ({"mtu": 1400}, "for a physical network"),
        ({"physical": "LAN"}, "cannot be the name of a physical network"),
        ({"physical": "lan", "vlan": 0}, "0 is no VLAN"),
        ({"physical": "lan", "vlan": 4095}, "4095 is no VLAN"),
        ({"physical": "lan", "has_dhcp": True}, "DHCP of a physical network is the operator's"),
        ({"physical": "lan", "has_nat": True}, "NAT of a physical network is the operator's"),
        ({"physical": "lan", "has_dns": True}, "DNS of a physical network is the operator's"),
        ({"physical": "lan", "mtu": 100}, "an MTU of 100 is none; 576 to 65535"),
        ({"physical": "lan", "mtu": 1000, "cidr6": "fd00::/64"}, "1280 to 65535"),
        ({"physical": "lan", "gateway": "10.2.0.1"}, "outside of"),
        ({"physical": "lan", "gateway": "10.1.0.255"}, "broadcast"),
        ({"physical": "lan", "cidr": None, "gateway": "10.1.0.1"}, "a gateway was given, and no range"),
        ({"domain": "a..b"}, "is no domain"),
        ({"domain": "_x"}, "is no domain"),
        ({"domain": "ä.b"}, "is no domain"),
        ({"name": "none"}, "-n none is no interface"),
        ({"name": "a@b"}, "cannot be a network's name"),
        ({"name": "8a0f7f52-57f0-4b3e-93f6-1a9f3e6b1c11"}, "cannot be a network's name"),
    ],
    ids=str,
)
def test_what_no_network_can_be_is_refused_in_one_line(values: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidInput, match=what) as caught:
        check(NetworkRequest(**{"name": "web", "cidr": "10.1.0.0/24"} | values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "a/b", "a=b", "a b", "-a", "a-", "a" * 64, "\N{LATIN SMALL LETTER LONG S}", "\N{KELVIN SIGN}", "a\n"]
)
def test_a_name_is_one_that_a_command_line_and_a_key_can_hold(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


def test_a_domain_is_kept_as_dns_has_it() -> None:
    assert check_domain(" Lab.Internal. ") == "lab.internal"
