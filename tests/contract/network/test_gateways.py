"""What holds for every `Gateways`: for this machine's, in a network namespace of the test's own, and for the fake."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ecompute.cluster.documents import Network, Port
from ecompute.cluster.errors import NetworkError
from ecompute.network import gateway, names, netns
from ecompute.network import gateway_terms as terms
from ecompute.network.fake_gateways import FakeGateways
from ecompute.network.gateway_terms import FoundGateway, FoundOuter, WantedGateway
from ecompute.network.gateways import Gateways, HostGateways
from ecompute.network.names import LAN, UP
from ecompute.network.present import Device, Kind

VNI = 0xABCDEF
CLONE_NEWNET = 0x40000000
EGRESS = "eth0"


class Subject:
    """Gateways, and what is wanted of one of them."""

    def __init__(self, gateways: Gateways, provider: str) -> None:
        self.gateways = gateways
        self.provider = provider

    @property
    def is_real(self) -> bool:
        return isinstance(self.gateways, HostGateways)

    @property
    def namespace(self) -> str:
        return gateway.namespace_name(VNI, self.provider)

    def wanted(self, *ports: Port, transit: str | None = "169.254.9.9", **others: Any) -> WantedGateway:
        network = Network(
            uuid="n",
            namespace="system",
            name="default",
            vni=VNI,
            created_at="",
            **{
                "mtu": 1450,
                "cidr": "10.0.0.0/24",
                "gateway": "10.0.0.1",
                "cidr6": "fd00:1::/64",
                "gateway6": "fd00:1::1",
                "has_dhcp": True,
                "has_nat": True,
                "has_dns": True,
                "domain": "default.internal",
                **others,
            },
        )
        paths = self.gateways.paths(VNI)
        return gateway.wanted(network, self.provider, ports or (self.port(),), paths, transit=transit)

    def port(self, **others: Any) -> Port:
        given = {"floating": "203.0.113.5", "routed": ("203.0.113.6",), **others}
        return Port(
            interface_uuid="i",
            instance_uuid="v",
            provider=self.provider,
            epoch=1,
            mac="02:00:00:00:00:05",
            addresses=("10.0.0.5/24", "fd00:1::5/64"),
            name="web",
            **given,
        )

    def found(self, wanted: WantedGateway | None) -> FoundGateway:
        known = [(f"203.0.113.{n}", EGRESS) for n in range(4, 9)]
        if wanted is None:
            return self.gateways.found(VNI, known=known)
        return self.gateways.found(VNI, wanted.rules, wanted.uplink and wanted.uplink.transit, known)

    def plan(self, wanted: WantedGateway | None) -> tuple[terms.GatewayChange, ...]:
        return gateway.plan(wanted, self.found(wanted), EGRESS)

    def ensure(self, wanted: WantedGateway | None) -> tuple[terms.GatewayChange, ...]:
        changes = self.plan(wanted)
        self.gateways.apply(changes)
        return changes


@pytest.fixture
def own_namespace() -> Iterator[None]:
    """This thread in a network namespace without a name, with a network's bridge and a way out."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            ip(f"link add {names.bridge_name(VNI)} type bridge")
            ip(f"link add {EGRESS} type veth peer name internet")
            ip(f"link set {EGRESS} up")
            ip("link set internet up")
            yield
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture(params=["fake", "host"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    provider = str(uuid4())
    if request.param == "fake":
        yield Subject(FakeGateways(provider), provider)
        return
    request.getfixturevalue("own_namespace")
    # Not below pytest's own directories, which nobody else may enter: dnsmasq would stay root there.
    with tempfile.TemporaryDirectory(prefix="ecompute-") as directory:
        Path(directory).chmod(0o711)
        gateways = HostGateways(provider, Path(directory) / "networks")
        made = Subject(gateways, provider)
        try:
            yield made
        finally:
            gateways.close()
            made.ensure(None)
            netns.remove(made.namespace)


def test_of_a_network_that_is_not_here_nothing_is_found(subject: Subject) -> None:
    assert subject.found(None) == FoundGateway(VNI)
    assert subject.gateways.devices() == frozenset()
    assert subject.plan(None) == ()


def test_what_was_made_is_found_whole_and_nothing_more_is_to_be_done(subject: Subject) -> None:
    wanted = subject.wanted()
    changes = subject.ensure(wanted)
    assert len(changes) > 20
    found = subject.found(wanted)
    assert subject.plan(wanted) == ()
    assert found.has_namespace
    assert found.outer_lan == FoundOuter("veth", True, 1450, True, True, True)
    assert found.outer_up == FoundOuter("veth", True, 65535, True, True, False)
    assert found.lan is not None and found.up is not None
    assert found.lan.addresses == {"10.0.0.1/24", "fd00:1::1/64", "169.254.169.254/32", "fe80::a9fe:a9fe/64"}
    assert found.lan.mac == "06:ec:01:ab:cd:ef"
    assert found.up.addresses == {"169.254.9.9/32"}
    assert found.routes == {("0.0.0.0/0", "169.254.0.1", UP), ("203.0.113.6/32", None, LAN)}
    assert found.neighbours == {
        (UP, "169.254.0.1", "06:ec:03:ab:cd:ef"),
        (LAN, "203.0.113.6", "02:00:00:00:00:05"),
    }
    assert found.has_rules and found.are_flows_ended and found.is_transit_known
    assert found.host_routes == {"203.0.113.5", "203.0.113.6"}
    assert found.proxied == found.announced == {("203.0.113.5", EGRESS), ("203.0.113.6", EGRESS)}
    assert found.service.is_running
    assert subject.gateways.devices() == {
        Device(subject.namespace, Kind.NAMESPACE, VNI),
        Device(names.gateway_name(VNI), Kind.VETH, VNI),
        Device(names.uplink_name(VNI), Kind.VETH, VNI),
    }


def test_every_change_made_twice_changes_nothing_more(subject: Subject) -> None:
    wanted = subject.wanted()
    for change in subject.plan(wanted):
        subject.gateways.apply([change])
        found = subject.found(wanted)
        if isinstance(change, terms.AddPair):
            with pytest.raises(NetworkError, match="File exists"):
                subject.gateways.apply([change])
        else:
            subject.gateways.apply([change])
        assert subject.found(wanted) == found
    assert subject.plan(wanted) == ()
    for change in subject.plan(None):
        subject.gateways.apply([change, change])
    assert subject.found(None) == FoundGateway(VNI)


def test_what_is_not_wanted_any_more_goes(subject: Subject) -> None:
    subject.ensure(subject.wanted())
    less = subject.wanted(
        subject.port(floating="203.0.113.7", routed=()), has_dns=False, cidr6=None, gateway6=None, mtu=1400
    )
    subject.ensure(less)
    assert subject.plan(less) == ()
    found = subject.found(less)
    assert found.proxied == {("203.0.113.7", EGRESS)}
    assert found.host_routes == {"203.0.113.7"}
    assert found.routes == {("0.0.0.0/0", "169.254.0.1", UP)}
    none = subject.wanted(subject.port(floating=None, routed=()), transit=None, has_dhcp=False, has_dns=False)
    subject.ensure(none)
    assert subject.plan(none) == ()
    found = subject.found(none)
    assert (found.outer_up, found.up, found.routes, found.proxied) == (None, None, frozenset(), frozenset())
    assert not found.service.is_running
    assert not found.service.has_files


def test_another_transit_address_takes_the_place_of_the_one_before(subject: Subject) -> None:
    subject.ensure(subject.wanted())
    other = subject.wanted(transit="169.254.8.8")
    subject.ensure(other)
    assert subject.plan(other) == ()
    assert not subject.found(subject.wanted()).is_transit_known


def test_what_needs_something_else_fails_without_it(subject: Subject) -> None:
    wanted = subject.wanted()
    with pytest.raises(NetworkError):
        subject.gateways.apply([terms.PutRules(VNI, wanted.rules)])
    with pytest.raises(NetworkError):
        subject.gateways.apply([terms.SetOuterUp(VNI, LAN)])
    subject.gateways.apply([terms.MakeNamespace(VNI)])
    with pytest.raises(NetworkError):
        subject.gateways.apply([terms.SettleInner(VNI, LAN, 1450)])
    if subject.is_real:
        ip(f"link delete {names.bridge_name(VNI)}")
    else:
        assert isinstance(subject.gateways, FakeGateways)
        subject.gateways.bridges = lambda vni: False
    with pytest.raises(NetworkError):
        subject.ensure(wanted)


def test_a_death_is_told_at_once_and_the_next_look_sees_it(subject: Subject) -> None:
    told, is_told = [], threading.Event()

    def tell(vni: int) -> None:
        told.append(vni)
        is_told.set()

    subject.gateways.on_death(tell)
    wanted = subject.wanted()
    subject.ensure(wanted)
    if isinstance(subject.gateways, FakeGateways):
        subject.gateways.kill_service(VNI)
    else:
        pid = int(subject.gateways.paths(VNI).pid.read_text())
        os.kill(pid, signal.SIGKILL)
    assert is_told.wait(5)
    assert told == [VNI]
    assert [type(change) for change in subject.plan(wanted)] == [terms.StartService]
    subject.ensure(wanted)
    subject.ensure(None)
    assert told == [VNI]  # what we end ourselves is no news


def test_names_that_change_are_told_and_nothing_is_started_anew(subject: Subject) -> None:
    subject.ensure(subject.wanted())
    more = subject.wanted(subject.port(), Port(**{**_fields(subject.port(floating=None, routed=())), **_ELSEWHERE}))
    assert subject.ensure(more) == (terms.TellService(VNI, more.files),)  # type: ignore[arg-type]
    assert subject.plan(more) == ()


_ELSEWHERE = {
    "interface_uuid": "j",
    "provider": "elsewhere",
    "mac": "02:00:00:00:00:06",
    "addresses": ("10.0.0.6/24",),
    "name": "db",
}


def _fields(port: Port) -> dict[str, Any]:
    return {name: getattr(port, name) for name in port.__struct_fields__}
