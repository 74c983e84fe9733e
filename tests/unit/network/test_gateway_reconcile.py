from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ecompute.cluster.documents import Network, Port
from ecompute.cluster.errors import NetworkError, Unavailable
from ecompute.network import gateway_reconcile
from ecompute.network import gateway_terms as terms
from ecompute.network.fake_gateways import FakeEgress, FakeGateways
from ecompute.network.gateway_memory import GatewayMemory
from ecompute.network.gateway_reconcile import GatewayReconciler
from ecompute.network.metadata import FakeMetadata
from ecompute.network.names import UP

VNI, ME = 0x10, "01234567-0000-4000-8000-000000000001"
FLOATING = "203.0.113.5"
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
PORT = Port(
    interface_uuid="i",
    instance_uuid="v",
    provider=ME,
    epoch=1,
    mac="02:00:00:00:00:05",
    addresses=("10.0.0.5/24",),
    floating=FLOATING,
)


class Host:
    def __init__(self, directory: Path) -> None:
        self.gateways = FakeGateways(ME)
        self.egress = FakeEgress()
        self.metadata = FakeMetadata()
        self.control_plane: Callable[[], frozenset[str]] = frozenset
        self.reconciler = GatewayReconciler(
            self.gateways,
            self.egress,
            ME,
            GatewayMemory(directory),
            upstream=tuple,
            control_plane=lambda: self.control_plane(),
            metadata=self.metadata,
        )

    def ensure(self) -> tuple[terms.GatewayChange, ...]:
        return self.reconciler.ensure(NETWORK, [PORT], [])

    def follow(self) -> tuple[terms.GatewayChange, ...]:
        return self.reconciler.follow(NETWORK, [PORT], [])

    @property
    def found(self) -> terms.FoundGateway:
        return self.gateways.networks[VNI]

    def assert_serves(self) -> None:
        assert self.found.service.is_running
        assert self.found.outer_lan is not None and self.found.outer_lan.is_up and self.found.outer_lan.is_attached
        assert VNI in self.metadata.callers

    def assert_leads_out(self) -> None:
        assert self.found.outer_up is not None and self.found.outer_up.is_up
        assert self.found.host_routes == {FLOATING}
        assert self.found.proxied == {(FLOATING, "egress0")}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.reconciler.close()


def _unknown() -> frozenset[str]:
    raise Unavailable("guests cannot be kept away from etcd")


def _refuse(kind: type[Any]) -> Callable[[Host], None]:
    def act(host: Host) -> None:
        host.gateways.refuses = lambda change: isinstance(change, kind) and getattr(change, "inner", UP) == UP

    return act


def _refuse_rules(host: Host) -> None:
    host.egress.refuses = True


def _forget_control_plane(host: Host) -> None:
    host.control_plane = _unknown


def test_an_address_of_the_host_or_its_router_leads_to_no_guest(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.ensure()
    host.assert_leads_out()
    host.egress.addresses = frozenset({FLOATING})
    with caplog.at_level(logging.WARNING):
        host.ensure()
    host.assert_serves()
    assert (host.found.host_routes, host.found.proxied) == (frozenset(), frozenset())
    assert f"{FLOATING} is this host's own, or its router's" in caplog.text
    host.egress.addresses = frozenset()
    host.ensure()
    host.assert_leads_out()


HARMS = {
    "no proxy": _refuse(terms.PutProxy),
    "no route": _refuse(terms.PutHostRoute),
    "no transit": _refuse(terms.PutTransit),
    "no uplink": _refuse(terms.SetOuterUp),
    "no rules": _refuse_rules,
    "no control plane": _forget_control_plane,
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_fails_of_the_way_out_keeps_no_guest_from_being_served(
    host: Host, harm: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_reconcile, "RETRY_S", 600)
    HARMS[harm](host)
    with caplog.at_level(logging.WARNING):
        host.ensure()
        host.follow()
    host.assert_serves()
    assert len([line for line in caplog.messages if line.startswith("the way out of network n")]) == 1
    host.gateways.refuses = lambda change: False
    host.egress.refuses = False
    host.control_plane = frozenset
    host.follow()
    host.assert_leads_out()
    assert host.ensure() == ()


@pytest.mark.parametrize("harm", ["no rules", "no control plane"])
def test_without_the_rules_that_guard_the_host_nothing_is_opened(host: Host, harm: str) -> None:
    HARMS[harm](host)
    host.ensure()
    assert host.found.outer_up is None or not host.found.outer_up.is_up


def test_what_fails_of_the_way_out_is_tried_again(host: Host, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> None:
    monkeypatch.setattr(gateway_reconcile, "RETRY_S", 0.01)
    told: list[int] = []
    host.reconciler.on_damage(told.append)
    HARMS["no proxy"](host)
    host.ensure()
    eventually(lambda: told == [VNI])


def test_a_name_that_takes_long_to_look_up_keeps_no_other_network_waiting(host: Host) -> None:
    is_asked, is_answered = threading.Event(), threading.Event()

    def slow() -> frozenset[str]:
        host.control_plane = frozenset
        is_asked.set()
        assert is_answered.wait(20)
        return frozenset({"192.0.2.99"})

    host.control_plane = slow
    thread = threading.Thread(target=host.ensure)
    thread.start()
    assert is_asked.wait(20)
    other = structs.replace(NETWORK, uuid="m", vni=VNI + 1)
    host.reconciler.ensure(other, [], [])
    assert host.gateways.networks[VNI + 1].outer_up is not None
    is_answered.set()
    thread.join()
    assert host.egress.rules is not None and host.egress.rules.refused == {"192.0.2.99"}


def test_a_network_goes_while_the_control_plane_has_no_address(host: Host) -> None:
    host.ensure()
    host.reconciler.ensure(structs.replace(NETWORK, uuid="m", vni=VNI + 1), [], [])
    host.control_plane = _unknown
    with pytest.raises(NetworkError, match="the rules of this host are not put back"):
        host.reconciler.repair()
    for vni in (VNI, VNI + 1):
        assert host.egress.rules is not None
        host.reconciler.remove(vni)
    assert host.gateways.devices() == frozenset()
    assert host.egress.rules is None


def test_a_dnsmasq_that_does_not_start_is_an_error_and_keeps_nothing_else_from_being_done(host: Host) -> None:
    host.gateways.refuses = lambda change: isinstance(change, terms.StartService)
    with pytest.raises(NetworkError):
        host.ensure()
    host.assert_leads_out()
    assert VNI in host.metadata.callers


def test_on_a_device_without_arp_nothing_is_answered_and_the_rest_works(host: Host) -> None:
    host.egress.has_arp = False
    host.ensure()
    assert (host.found.host_routes, host.found.proxied) == ({FLOATING}, frozenset())
    host.assert_serves()
    host.egress.has_arp = True
    host.ensure()
    host.assert_leads_out()
    host.egress.has_arp = False
    host.ensure()
    assert host.found.proxied == frozenset()


# --- killed over the rules of the host -------------------------------------------------------------


class Killed(Exception):
    pass


class Dying(FakeEgress):
    """The daemon dies right before or right after the rules of the host go."""

    def __init__(self, *, is_after: bool) -> None:
        super().__init__()
        self._is_after = is_after

    def remove(self) -> None:
        if self._is_after:
            super().remove()
        raise Killed


def daemon(gateways: FakeGateways, egress: FakeEgress, directory: Path) -> GatewayReconciler:
    return GatewayReconciler(
        gateways,
        egress,
        ME,
        GatewayMemory(directory),
        upstream=tuple,
        control_plane=frozenset,
        metadata=FakeMetadata(),
    )


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_the_rules_of_the_host_go_with_the_last_network_although_the_daemon_died_over_them(
    tmp_path: Path, is_after: bool
) -> None:
    gateways, egress = FakeGateways(ME), Dying(is_after=is_after)
    first = daemon(gateways, egress, tmp_path)
    first.ensure(NETWORK, [PORT], [])
    with pytest.raises(Killed):
        first.remove(VNI)
    left = FakeEgress()
    left.rules = egress.rules
    daemon(gateways, left, tmp_path).remove(VNI)
    assert left.rules is None


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_the_rules_of_the_host_go_with_the_last_uplink_although_the_daemon_died_over_them(
    tmp_path: Path, is_after: bool
) -> None:
    network = structs.replace(NETWORK, has_nat=False, has_dns=False)
    gateways, egress = FakeGateways(ME), Dying(is_after=is_after)
    first = daemon(gateways, egress, tmp_path)
    first.ensure(network, [PORT], [])
    detached = structs.replace(PORT, floating=None)
    with pytest.raises(Killed):
        first.ensure(network, [detached], [])
    left = FakeEgress()
    left.rules = egress.rules
    assert is_after or left.rules is not None
    daemon(gateways, left, tmp_path).ensure(network, [detached], [])
    assert left.rules is None


def test_the_memory_of_a_network_that_is_left_goes_with_what_a_killed_daemon_had_begun_to_write(
    tmp_path: Path,
) -> None:
    (tmp_path / str(VNI)).touch()
    (tmp_path / f"{VNI}.new").write_text("{")
    daemon(FakeGateways(ME), FakeEgress(), tmp_path).remove(VNI)
    assert [path.name for path in tmp_path.iterdir()] == [str(VNI)]
