"""A network's devices, entries and rules come back whatever was done to them, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ecompute.cluster.errors import NetworkError
from ecompute.network import names, terms
from ecompute.network.filter import FilterState
from ecompute.network.reconcile import NetworkReconciler
from ecompute.network.terms import FoundNetwork

VNI = 0x1234
BRIDGE, VXLAN = names.bridge_name(VNI), names.vxlan_name(VNI)
MAC = "02:00:00:00:00:02"
FORGED = "02:66:66:66:66:66"


class Killed(Exception):
    pass


class Dying:
    """Whatever changes the host dies after the n-th change, and stays dead: so no undo runs either."""

    def __init__(self, alive: Any, budget: list[int]) -> None:
        self._alive = alive
        self._budget = budget

    def __getattr__(self, name: str) -> Any:
        if name == "apply_entries":  # a batch may be cut anywhere
            return lambda changes: [self.apply(change) for change in changes]
        attribute = getattr(self._alive, name)
        if name not in ("apply", "put", "drop"):
            return attribute

        def until_dead(*arguments: Any) -> Any:
            if self._budget[0] == 0:
                raise Killed
            self._budget[0] -= 1
            return attribute(*arguments)

        return until_dead


def dying(host: Any, survived: int) -> NetworkReconciler:
    budget = [survived]
    parts: Any = Dying(host.links, budget), Dying(host.rules, budget)
    return NetworkReconciler(*parts)


@pytest.fixture
def guests(hosts: Any) -> Any:
    for host in hosts:
        host.ensure()
    guests = hosts[0].add_guest(1), hosts[1].add_guest(2)
    for host in hosts:
        host.ensure()
    return guests


HARMS = {
    "the bridge deleted": f"ip link delete {BRIDGE}",
    "the bridge down": f"ip link set {BRIDGE} down",
    "the bridge with spanning tree": f"ip link set {BRIDGE} type bridge stp_state 1",
    "the bridge with snooping": f"ip link set {BRIDGE} type bridge mcast_snooping 1",
    "the bridge with another MAC": f"ip link set {BRIDGE} address 02:11:11:11:11:11",
    "the bridge with another MTU": f"ip link set {BRIDGE} mtu 1300",
    "the bridge with ARP": f"sysctl -q -w net.ipv4.conf.{BRIDGE}.arp_ignore=0",
    "the bridge with IPv6": f"sysctl -q -w net.ipv6.conf.{BRIDGE}.disable_ipv6=0",
    "the VXLAN device deleted": f"ip link delete {VXLAN}",
    "the VXLAN device down": f"ip link set {VXLAN} down",
    "the VXLAN device detached": f"ip link set {VXLAN} nomaster",
    "the VXLAN device with another MTU": f"ip link set {VXLAN} mtu 1300",
    "the bridge with an MTU too small for IPv6": f"ip link set {BRIDGE} mtu 1000",
    "the VXLAN device with an MTU too small for IPv6": f"ip link set {VXLAN} mtu 1000",
    "the VXLAN device learning": f"ip link set {VXLAN} type vxlan id {VNI} learning",
    "the entry of a peer deleted": f"bridge fdb del {names.ZEROS} dev {VXLAN} dst 192.0.2.2",
    "the entry of a guest deleted": f"bridge fdb del {MAC} dev {VXLAN} dst 192.0.2.2",
    "the entry of a guest moved": f"bridge fdb replace {MAC} dev {VXLAN} dst 192.0.2.77",
    "a forged peer added": f"bridge fdb append {names.ZEROS} dev {VXLAN} dst 192.0.2.66",
    "a forged guest added": f"bridge fdb add 02:66:66:66:66:66 dev {VXLAN} dst 192.0.2.66",
    "the VXLAN device down, and with it its neighbours": f"ip link set {VXLAN} down",
    "the VXLAN device with addresses of its own": f"sysctl -q -w net.ipv6.conf.{VXLAN}.addr_gen_mode=0",
    "the VXLAN device that takes advertisements": f"sysctl -q -w net.ipv6.conf.{VXLAN}.accept_ra=2",
    "the VXLAN device without IPv6": f"sysctl -q -w net.ipv6.conf.{VXLAN}.disable_ipv6=1",
    "every device a router": "sysctl -q -w net.ipv6.conf.all.forwarding=0; sysctl -q -w net.ipv6.conf.all.forwarding=1",
    "the VXLAN device that answers for nobody": (
        f"ip link delete {VXLAN}; ip link add {VXLAN} type vxlan id {VNI} dstport 4789 local 192.0.2.1 nolearning"
    ),
    "a neighbour deleted": f"ip neighbour del 10.50.0.2 dev {VXLAN}",
    "an IPv6 neighbour deleted": f"ip -6 neighbour del fd00:50::2 dev {VXLAN}",
    "a neighbour with another MAC": f"ip neighbour replace 10.50.0.2 lladdr {FORGED} dev {VXLAN} nud permanent",
    "a forged neighbour": f"ip neighbour add 10.50.0.66 lladdr {FORGED} dev {VXLAN} nud permanent",
    "a tap detached": "ip link set ect00000000001 nomaster",
    "a tap with IPv6": "sysctl -q -w net.ipv6.conf.ect00000000001.disable_ipv6=0",
    "the filter deleted": "nft delete table bridge ecompute",
    "the filter flushed": "nft flush ruleset",
    "the filter with a hole": "nft insert rule bridge ecompute input accept",
    "a tap's rules deleted": "nft flush chain bridge ecompute n001234.ect00000000001",
    "a tap let through": "nft insert rule bridge ecompute n001234.ect00000000001 accept",
    "a forged member added": "nft add element inet ecompute n001234.members '{ 192.0.2.66 }'",
    "a member deleted": "nft delete element inet ecompute n001234.members '{ 192.0.2.2 }'",
    "everything": f"nft flush ruleset; ip link delete {VXLAN}; ip link delete {BRIDGE}",
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_what_was_harmed_by_hand_is_put_back(hosts: Any, guests: Any, harm: str) -> None:
    host = hosts[0]
    wanted = host.wanted()
    assert host.ensure(wanted) == ()
    whole = host.do(lambda: host.links.found(VNI, wanted.tap_names))
    host.space.run("sh", "-ec", harm)
    assert host.ensure(wanted) != ()
    assert host.ensure(wanted) == ()
    assert host.do(lambda: host.links.found(VNI, wanted.tap_names)) == whole
    assert host.do(host.rules.state) is FilterState.WHOLE
    assert guests[0].ping(guests[1].ip)


def test_entries_of_others_are_left(hosts: Any, guests: Any) -> None:
    host = hosts[0]
    for added in (
        f"02:77:00:00:00:01 dev {VXLAN} dst 192.0.2.9 extern_learn",
        f"02:77:00:00:00:02 dev {VXLAN} dst 192.0.2.9 port 5555",
        f"02:77:00:00:00:03 dev {VXLAN} dst 192.0.2.9 vni 77",
        f"02:77:00:00:00:04 dev {VXLAN} dst 192.0.2.9 static",
        f"02:77:00:00:00:05 dev {VXLAN} dst 192.0.2.9 dynamic",
        f"02:77:00:00:00:06 dev {VXLAN} master static",
    ):
        host.space.run("bridge", "fdb", "add", *added.split())

    def foreign() -> list[str]:
        lines = host.space.run("bridge", "fdb", "show", "dev", VXLAN).splitlines()
        return sorted(line for line in lines if line.startswith("02:77"))

    before = foreign()
    assert len(before) == 6
    assert host.ensure() == ()
    host.ensure(host.wanted())
    host.ensure()
    assert foreign() == before


def test_joining_and_leaving_leave_every_foreign_device_and_rule_as_it_was(hosts: Any) -> None:
    host = hosts[0]
    host.space("link add br0 type bridge")
    host.space("link add other type vxlan id 99 dstport 4789 local 192.0.2.1")
    host.space("link set other master br0")
    host.space("link set br0 up")
    host.space.run("bridge", "fdb", "append", names.ZEROS, "dev", "other", "dst", "192.0.2.3")
    host.space.run("nft", "add table inet firewall; add chain inet firewall c; add rule inet firewall c accept")

    def everything() -> list[str]:
        return [
            host.space("link show"),
            host.space("-brief -4 address show"),
            host.space("-4 route show table all"),
            host.space.run("bridge", "fdb", "show"),
            host.space.run("nft", "list", "ruleset"),
            host.space.run("sysctl", "net.ipv4.conf.br0", "net.ipv4.conf.other", "net.ipv4.ip_forward"),
        ]

    before = everything()
    host.ensure()
    during = host.space.run("nft", "list", "ruleset")
    assert "table inet firewall" in during
    host.remove()
    assert everything() == before


def test_a_vxlan_device_on_a_foreign_bridge_comes_back_to_ours(hosts: Any) -> None:
    host = hosts[0]
    host.ensure()
    host.space("link add br0 type bridge")
    host.space(f"link set {VXLAN} master br0")
    assert host.ensure() == (terms.AttachVxlan(VNI),)
    assert host.do(lambda: host.links.has_bridge("br0"))


def test_another_underlay_address_makes_the_vxlan_device_anew(hosts: Any, guests: Any) -> None:
    host, other = hosts
    for space, address in ((host.space, "192.0.2.101"), (other.space, "192.0.2.2")):
        space(f"address replace {address}/24 dev under0")
    host.underlay = "192.0.2.101"
    host.ensure()
    other.ensure()
    assert host.do(lambda: host.links.found(VNI)).vxlan.local == "192.0.2.101"
    assert guests[0].ping(guests[1].ip)


def test_an_underlay_whose_mtu_is_made_smaller_is_followed_by_devices_and_taps(hosts: Any, guests: Any) -> None:
    host = hosts[0]
    host.space("link set under0 mtu 1400")
    assert host.ensure() == (
        terms.TuneBridge(VNI, 1350),
        terms.SetMtu(VXLAN, 1350),
        terms.SetMtu(guests[0].port, 1350),
    )
    assert host.ensure() == ()
    assert guests[0].ping(guests[1].ip, size_bytes=1350 - 20 - 8 - 4)
    host.space("link set under0 mtu 1500")
    assert len(host.ensure()) == 3
    assert guests[0].ping(guests[1].ip, size_bytes=1450 - 20 - 8 - 4)


def test_killed_after_any_change_of_joining_the_next_daemon_brings_it_up(hosts: Any) -> None:
    host, other = hosts
    other.ensure()
    far = other.add_guest(2)
    near = host.plan_guest(1)
    other.ensure()
    changes = host.ensure()
    whole = host.do(lambda: host.links.found(VNI))
    assert len(changes) >= 9
    for survived in range(len(changes)):
        host.remove()
        with pytest.raises(Killed):
            host.do(lambda n=survived: dying(host, n).ensure(host.wanted()))
        host.ensure()
        assert host.ensure() == ()
        assert host.do(lambda: host.links.found(VNI)) == whole
    assert host.plug(near).ping(far.ip)


def test_killed_after_any_change_of_leaving_the_next_daemon_leaves_nothing(hosts: Any) -> None:
    host = hosts[0]
    before = host.space("-details link show")
    host.ensure()
    for survived in range(3):
        host.ensure()
        with pytest.raises(Killed):
            host.do(lambda n=survived: dying(host, n).remove(VNI))
        host.remove()
        assert host.do(host.links.ours) == frozenset()
        assert host.do(lambda: host.links.found(VNI)) == FoundNetwork(VNI)
        assert host.space.run("nft", "list", "ruleset") == ""
        assert host.space("-details link show") == before


def test_a_half_made_network_is_closed(hosts: Any) -> None:
    """Whatever is up has the filter before it and is hardened, at every step."""
    host = hosts[0]
    count = len(host.ensure())
    for survived in range(count):
        host.remove()
        with pytest.raises(Killed):
            host.do(lambda n=survived: dying(host, n).ensure(host.wanted()))
        found = host.do(lambda: host.links.found(VNI))
        for device in (found.bridge, found.vxlan):
            if device is not None and device.is_up:
                assert device.is_hardened
                assert host.do(host.rules.state) is FilterState.WHOLE


def test_a_network_with_a_guest_behind_it_is_not_removed(hosts: Any, guests: Any) -> None:
    with pytest.raises(NetworkError, match="still has ports: ect00000000001"):
        hosts[0].remove()
    assert guests[0].ping(guests[1].ip)


def test_two_networks_never_meet_even_with_the_same_addresses(hosts: Any, guests: Any) -> None:
    host, _ = hosts
    for one in hosts:
        one.ensure(replace(one.wanted(), vni=VNI + 1, taps=frozenset()))
    stranger = host.add_guest(3)
    host.space(f"link set {stranger.port} master {names.bridge_name(VNI + 1)}")
    assert not stranger.ping(guests[0].ip, timeout_s=0.6)
    assert not stranger.ping(guests[1].ip, timeout_s=0.6)
    assert guests[0].ping(guests[1].ip)
    host.space(f"link delete {stranger.port}")
    host.remove(VNI + 1)
    assert guests[0].ping(guests[1].ip)
    assert host.do(host.rules.state) is FilterState.WHOLE
