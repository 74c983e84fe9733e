from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.addressing import is_unicast_mac
from ecompute.cluster.documents import Network, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network import gateway_terms as terms
from ecompute.network import names
from ecompute.network.dnsmasq import Paths
from ecompute.network.fake_gateways import FakeGateways
from ecompute.network.gateway import (
    addresses_of,
    choose_transit,
    needs_uplink,
    neighbours_of,
    plan,
    routes_of,
    told_only,
    wanted,
)
from ecompute.network.gateway_terms import FoundGateway, FoundOuter, GatewayChange, WantedGateway, WantedUplink
from ecompute.network.names import LAN, UP

VNI = 0x10
ME, OTHER = "01234567-0000-4000-8000-000000000001", "another"
PATHS = Paths(Path("/var/lib/ecompute/networks/000010"))
TRANSIT = "169.254.7.7"
NETWORK = Network(
    uuid="n",
    namespace="system",
    name="default",
    cidr="10.0.0.0/24",
    vni=VNI,
    mtu=1450,
    gateway="10.0.0.1",
    has_dhcp=True,
    has_nat=True,
    has_dns=True,
    created_at="",
)


def port(number: int, provider: str = ME, **others: object) -> Port:
    made = Port(
        interface_uuid=f"i{number}",
        instance_uuid="v",
        provider=provider,
        epoch=1,
        mac=f"02:00:00:00:00:{number:02x}",
        addresses=(f"10.0.0.{number}/24",),
    )
    return Port(**{**{name: getattr(made, name) for name in made.__struct_fields__}, **others})  # type: ignore[arg-type]


def made(*ports: Port, network: Network = NETWORK, transit: str | None = TRANSIT) -> WantedGateway:
    return wanted(network, ME, ports, PATHS, transit=transit)


# --- wanted --------------------------------------------------------------------------------------


def test_names_and_macs_are_each_networks_own() -> None:
    biggest = 2**24 - 1
    for name in (names.gateway_name(biggest), names.uplink_name(biggest)):
        assert len(name) <= 15
    macs = {make(vni) for make in (names.gateway_mac, names.uplink_mac, names.uplink_outer_mac) for vni in (1, biggest)}
    assert len(macs) == 6
    assert all(is_unicast_mac(mac) for mac in macs)
    assert made().namespace == "ec-000010-01234567"


def test_the_gateway_has_its_addresses_and_those_of_the_metadata() -> None:
    assert made().addresses == {"10.0.0.1/24", "169.254.169.254/32", "fe80::a9fe:a9fe/64"}
    six = Network(**{**_fields(NETWORK), "cidr6": "fd00:1::/64", "gateway6": "fd00:1::1"})
    assert made(network=six).addresses - made().addresses == {"fd00:1::1/64"}


def test_a_floating_address_is_translated_to_the_first_one_of_its_port_and_leads_in() -> None:
    gateway = made(port(5, addresses=("fd00::5/64", "10.0.0.5/24", "10.0.0.50/24"), floating="203.0.113.5"))
    assert gateway.rules.floating == {("203.0.113.5", "10.0.0.5")}
    assert gateway.uplink == WantedUplink(TRANSIT, frozenset({"203.0.113.5"}))


def test_a_routed_address_from_outside_leads_to_its_ports_mac_and_is_not_translated() -> None:
    gateway = made(port(5, routed=("203.0.113.5", "10.0.0.99")))
    assert gateway.routed == {("203.0.113.5", "02:00:00:00:00:05")}
    assert gateway.rules.routed == {"203.0.113.5"}
    assert gateway.rules.floating == frozenset()
    assert gateway.uplink == WantedUplink(TRANSIT, frozenset({"203.0.113.5"}))


def test_what_other_hosts_have_is_not_served_here() -> None:
    assert made(port(5, OTHER, floating="203.0.113.5"), port(6, OTHER, routed=("203.0.113.6",))) == made(
        port(5, OTHER), port(6, OTHER)
    )


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"floating": "127.0.0.1"}, "no guest can have '127.0.0.1' from outside"),
        ({"floating": "169.254.1.2"}, "no guest can have"),
        ({"floating": "224.0.0.1"}, "no guest can have"),
        ({"floating": "hello\nworld"}, "no guest can have"),
        ({"routed": ("fd00::1",)}, "no guest can have"),
        ({"floating": "203.0.113.5", "addresses": ("fd00::5/64",)}, "cannot be translated"),
    ],
)
def test_an_address_that_cannot_be_is_passed_over_and_said(others: dict[str, object], says: str) -> None:
    gateway = made(port(5, **others), port(6, floating="203.0.113.6"))
    assert [says in problem for problem in gateway.problems] == [True]
    assert gateway.rules.floating == {("203.0.113.6", "10.0.0.6")}


def test_an_address_never_has_two_owners_the_newer_holds() -> None:
    gateway = made(port(5, floating="203.0.113.5"), port(6, floating="203.0.113.5", epoch=2))
    assert gateway.rules.floating == {("203.0.113.5", "10.0.0.6")}
    assert len(gateway.problems) == 1


def test_a_range_that_is_none_is_an_error_that_names_the_network() -> None:
    with pytest.raises(NetworkError, match="network n cannot have a gateway"):
        made(network=Network(**{**_fields(NETWORK), "gateway": "10.0.0.0.1"}))


def test_an_uplink_is_there_where_something_leads_out() -> None:
    nothing = Network(**{**_fields(NETWORK), "has_nat": False, "has_dns": False})
    assert needs_uplink(NETWORK, ME, [])
    assert not needs_uplink(nothing, ME, [port(5), port(6, OTHER, floating="203.0.113.5")])
    assert needs_uplink(nothing, ME, [port(5, floating="203.0.113.5")])
    assert needs_uplink(nothing, ME, [port(5, routed=("203.0.113.5",))])


def test_transit_addresses_are_the_same_again_and_never_taken_twice() -> None:
    first = choose_transit(VNI, set())
    assert choose_transit(VNI, set()) == first
    taken = {first}
    for _ in range(300):
        taken.add(choose_transit(VNI, taken))
    assert len(taken) == 301
    assert "169.254.169.254" not in taken
    for vni in (0, 1, 2**24 - 1, 0x7F00, 0x7EFF):
        assert choose_transit(vni, ()).startswith("169.254.")


# --- plan ----------------------------------------------------------------------------------------

addresses = st.integers(1, 4).map(lambda number: f"203.0.113.{number}")
ports = st.lists(
    st.builds(
        port,
        st.integers(2, 9),
        st.sampled_from([ME, OTHER]),
        floating=st.none() | addresses,
        routed=st.lists(addresses, max_size=2).map(tuple),
        name=st.none() | st.text(max_size=4),
    ),
    max_size=5,
)
networks = st.builds(
    lambda dhcp, nat, dns, mtu: Network(
        **{**_fields(NETWORK), "has_dhcp": dhcp, "has_nat": nat, "has_dns": dns, "mtu": mtu}
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1450, 8950]),
)
egresses = st.sampled_from([None, "eth0", "eth1"])


@st.composite
def wanteds(draw: st.DrawFn) -> WantedGateway:
    network, given_ports = draw(networks), draw(ports)
    transit = draw(st.sampled_from([TRANSIT, "169.254.8.8"])) if needs_uplink(network, ME, given_ports) else None
    return made(*given_ports, network=network, transit=transit)


def _fields(network: Network) -> dict[str, object]:
    return {name: getattr(network, name) for name in network.__struct_fields__}


class Host:
    """A fake of a host's gateways, and what is done to it."""

    def __init__(self) -> None:
        self.gateways = FakeGateways()
        self.known: set[tuple[str, str]] = set()

    def found(self, gateway: WantedGateway | None) -> FoundGateway:
        rules = None if gateway is None else gateway.rules
        transit = None if gateway is None or gateway.uplink is None else gateway.uplink.transit
        return self.gateways.found(VNI, rules, transit, self.known)

    def plan(self, gateway: WantedGateway | None, egress: str | None) -> tuple[GatewayChange, ...]:
        if gateway is not None and gateway.uplink is not None and egress is not None:
            self.known |= {(address, egress) for address in gateway.uplink.addresses}
        return plan(gateway, self.found(gateway), egress)

    def ensure(self, gateway: WantedGateway | None, egress: str | None) -> None:
        self.gateways.apply(self.plan(gateway, egress))

    def harm(self, what: str) -> None:
        gateways = self.gateways
        found = gateways.networks.get(VNI)
        if found is None:
            return
        if what == "namespace":
            gateways.apply([terms.RemoveNamespace(VNI)])
        elif what in (LAN, UP) and found.outer(what) is not None:
            gateways.apply([terms.DeletePair(VNI, what)])
        elif what == "strange" and found.has_namespace:
            gateways.networks[VNI] = replace(found, outer_lan=None)
        elif what == "down" and found.outer_up is not None:
            outer = replace(found.outer_up, is_up=False)
            gateways.networks[VNI] = replace(found, outer_up=outer, host_routes=frozenset(), is_transit_known=False)
        elif what == "loose" and found.outer_lan is not None:
            gateways.networks[VNI] = replace(found, outer_lan=replace(found.outer_lan, is_attached=False, mtu=9))
        elif what == "bare" and found.lan is not None:
            gateways.networks[VNI] = replace(
                found, lan=replace(found.lan, addresses=frozenset({"192.0.2.1/24"}), is_settled=False, is_up=False)
            )
        elif what == "rules":
            gateways.rules.pop(VNI, None)
        elif what == "routes":
            routes = frozenset({("192.0.2.0/24", None, LAN)} if found.lan is not None else ())
            gateways.networks[VNI] = replace(found, routes=routes, neighbours=frozenset(), host_routes=frozenset())
        elif what == "proxies":
            gateways.networks[VNI] = replace(found, proxied=frozenset(), announced=frozenset())
        elif what == "service" and found.service.conf is not None:
            gateways.kill_service(VNI)
        elif what == "deaf":
            gateways.networks[VNI] = replace(found, service=replace(found.service, told=None))


HARMS = (*("namespace", LAN, UP, "strange", "down", "loose", "bare", "rules", "routes", "proxies", "service", "deaf"),)
harms = st.lists(st.sampled_from(HARMS), max_size=3)


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """A host on which a gateway was brought up, by a daemon that may have died in between, and then harmed."""
    host = Host()
    if draw(st.booleans()):
        changes = host.plan(draw(wanteds()), draw(egresses))
        host.gateways.apply(changes[: draw(st.integers(0, len(changes)))])
    for harm in draw(harms):
        host.harm(harm)
    return host


def assert_is(gateway: WantedGateway, egress: str | None, host: Host) -> None:
    found = host.found(gateway)
    assert found.has_namespace
    for inner in (LAN,) if gateway.uplink is None else (LAN, UP):
        outer, device = found.outer(inner), found.inner(inner)
        mtu = gateway.mtu_of(inner)
        assert outer == FoundOuter("veth", True, mtu, True, True, is_attached=inner == LAN)
        assert device is not None
        assert (device.mtu, device.is_up, device.is_settled) == (mtu, True, True)
        assert device.addresses == addresses_of(gateway, inner)
    assert found.routes == routes_of(gateway)
    assert found.neighbours == neighbours_of(gateway)
    assert host.gateways.rules[VNI] == gateway.rules
    assert host.gateways.files.get(VNI) == gateway.files
    assert found.service.is_running == (gateway.files is not None)
    leading_in = frozenset() if gateway.uplink is None else gateway.uplink.addresses
    assert (found.outer_up is None) == (gateway.uplink is None)
    assert found.host_routes == leading_in
    assert found.proxied == {(address, egress) for address in leading_in if egress is not None}


@given(wanteds(), hosts(), egresses)
def test_the_plan_leads_from_what_is_found_to_what_is_wanted_and_then_is_empty(
    gateway: WantedGateway, host: Host, egress: str | None
) -> None:
    host.ensure(gateway, egress)
    assert_is(gateway, egress, host)
    assert host.plan(gateway, egress) == ()


@given(wanteds(), hosts(), egresses, st.data())
def test_a_plan_cut_off_anywhere_is_finished_by_the_next(
    gateway: WantedGateway, host: Host, egress: str | None, data: st.DataObject
) -> None:
    changes = host.plan(gateway, egress)
    host.gateways.apply(changes[: data.draw(st.integers(0, len(changes)))])
    host.ensure(gateway, egress)
    assert_is(gateway, egress, host)


@given(wanteds(), hosts(), egresses)
def test_where_only_names_differ_telling_them_is_all_there_is_to_do(
    left: WantedGateway, host: Host, egress: str | None
) -> None:
    assert told_only(left, left) == ()
    assert told_only(left, replace(left, mtu=left.mtu - 1)) is None
    if left.files is None:
        return
    more = replace(left, files=replace(left.files, names=left.files.names + "10.0.0.9 another\n"))
    changes = told_only(left, more)
    assert changes == (terms.TellService(VNI, more.files),)
    host.ensure(left, egress)
    host.gateways.apply(changes)
    assert_is(more, egress, host)
    assert told_only(left, replace(more, files=None)) is None
    assert told_only(left, replace(more, files=replace(more.files, conf="another"))) is None


@given(hosts(), st.data())
def test_removal_leaves_nothing_and_may_be_cut_off_anywhere(host: Host, data: st.DataObject) -> None:
    changes = host.plan(None, None)
    host.gateways.apply(changes[: data.draw(st.integers(0, len(changes)))])
    host.ensure(None, None)
    assert host.gateways.networks.get(VNI, FoundGateway(VNI)) == FoundGateway(VNI)
    assert host.gateways.devices() == frozenset()
    assert host.plan(None, None) == ()


@given(wanteds(), hosts(), egresses)
def test_no_device_goes_up_without_its_settings_and_the_rules(
    gateway: WantedGateway, host: Host, egress: str | None
) -> None:
    for change in host.plan(gateway, egress):
        if isinstance(change, terms.SetInnerUp | terms.SetOuterUp):
            found = host.found(gateway)
            assert found.has_rules
            outer, device = found.outer(change.inner), found.inner(change.inner)
            assert outer is not None and device is not None
            assert device.is_settled
            assert isinstance(change, terms.SetInnerUp) or outer.is_settled
        host.gateways.apply([change])


@given(wanteds(), hosts(), egresses)
def test_a_host_answers_only_for_addresses_to_which_it_has_a_route(
    gateway: WantedGateway, host: Host, egress: str | None
) -> None:
    for change in host.plan(gateway, egress):
        if isinstance(change, terms.PutProxy):
            assert change.address in host.found(gateway).host_routes
        if isinstance(change, terms.DropHostRoute):
            assert change.address not in {address for address, _ in host.found(gateway).proxied}
        host.gateways.apply([change])


@pytest.mark.parametrize("inner", [LAN, UP])
def test_a_device_of_another_kind_with_our_name_is_not_touched(inner: str) -> None:
    foreign = FoundOuter("dummy")
    found = FoundGateway(VNI, outer_lan=foreign) if inner == LAN else FoundGateway(VNI, outer_up=foreign)
    for gateway in (made(), None):
        with pytest.raises(NetworkError, match="is a device of kind 'dummy', not our veth"):
            plan(gateway, found)
