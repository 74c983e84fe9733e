"""Who deletes a device of ours or changes our rules is noticed at once, and nobody else is."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from netlab import VNI, Namespace

from ecompute.network import names
from ecompute.network.alarms import NetlinkAlarms, subscribed
from ecompute.network.guard import TABLE

DEADLINE_S = 10.0


class Heard:
    def __init__(self) -> None:
        self.devices: list[int | None] = []
        self.rules = 0
        self._changed = threading.Condition()

    def device(self, vni: int | None) -> None:
        with self._changed:
            self.devices.append(vni)
            self._changed.notify_all()

    def table(self) -> None:
        with self._changed:
            self.rules += 1
            self._changed.notify_all()

    def wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(until, DEADLINE_S)


@pytest.fixture
def heard(hosts: Any) -> Iterator[Heard]:
    host, heard = hosts[0], Heard()
    host.ensure()
    alarms = NetlinkAlarms(TABLE)
    host.do(lambda: alarms.start(heard.device, heard.table))
    try:
        yield heard
    finally:
        alarms.close()
        alarms.close()


def settled(space: Namespace, heard: Heard) -> None:
    """Wait until all that was done before has been told: the next change of ours is."""
    before = heard.rules
    space.run("nft", "add", "chain", "bridge", TABLE, "another")
    heard.wait(lambda: heard.rules > before)


@pytest.mark.parametrize("make", [names.gateway_name, names.uplink_name])
def test_an_end_of_a_gateways_pair_that_is_deleted_is_told(
    hosts: Any, heard: Heard, make: Callable[[int], str]
) -> None:
    hosts[0].space(f"link add {make(VNI)} type veth peer name lan")
    hosts[0].space(f"link delete {make(VNI)}")
    heard.wait(lambda: heard.devices == [VNI])


@pytest.mark.parametrize("device", [names.bridge_name(VNI), names.vxlan_name(VNI)])
def test_a_device_of_ours_that_is_deleted_is_told(hosts: Any, heard: Heard, device: str) -> None:
    hosts[0].space(f"link delete {device}")
    heard.wait(lambda: heard.devices == [VNI])


@pytest.mark.parametrize(
    "harm",
    ["flush ruleset", f"delete table bridge {TABLE}", f"insert rule inet {TABLE} input accept"],
)
def test_a_change_of_our_rules_is_told(hosts: Any, heard: Heard, harm: str) -> None:
    hosts[0].space.run("nft", *harm.split())
    heard.wait(lambda: heard.rules > 0)


def test_what_is_not_ours_is_told_to_nobody(hosts: Any, heard: Heard) -> None:
    space = hosts[0].space
    space("link add br9 type bridge")
    space("link delete br9")
    space.run("nft", "add", "table", "inet", "firewall")
    space.run("nft", "delete", "table", "inet", "firewall")
    settled(space, heard)
    assert (heard.devices, heard.rules) == ([], 1)


def test_many_changes_at_once_are_told_a_few_times(hosts: Any, heard: Heard) -> None:
    space = hosts[0].space
    space.run("nft", "; ".join(f"add chain bridge {TABLE} c{n}" for n in range(3000)))
    settled(space, heard)
    assert heard.rules <= 5


def test_where_the_kernel_could_not_tell_all_of_it_any_network_may_be_meant(hosts: Any) -> None:
    host, heard, is_free = hosts[0], Heard(), threading.Event()
    host.ensure()

    def small(protocol: int, group: int) -> socket.socket:
        netlink = subscribed(protocol, group)
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        return netlink

    def told(vni: int | None) -> None:
        heard.device(vni)
        assert is_free.wait(DEADLINE_S)

    alarms = NetlinkAlarms(TABLE, subscribe=small)
    host.do(lambda: alarms.start(told, heard.table))
    try:
        host.space("link add ecb000999 type bridge")
        host.space("link delete ecb000999")
        heard.wait(lambda: heard.devices != [])
        before = len(heard.devices)
        for _ in range(5):
            host.space("link add filling type bridge")
            host.space("link delete filling")
        host.space(f"link delete {names.vxlan_name(VNI)}")
        is_free.set()
        heard.wait(lambda: None in heard.devices[before:])
    finally:
        is_free.set()
        alarms.close()


def test_what_happens_all_the_time_keeps_nothing_from_being_told(hosts: Any) -> None:
    host, heard, is_over = hosts[0], Heard(), threading.Event()
    host.ensure()
    devices, noise = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def rustle() -> None:
        new_link = struct.pack("=IHHII", 16, 16, 0, 0, 0)
        while not is_over.wait(0.005):
            noise.send(new_link)

    alarms = NetlinkAlarms(TABLE, subscribe=lambda kind, group: devices if kind == 0 else subscribed(kind, group))
    rustling = threading.Thread(target=rustle)
    host.do(lambda: alarms.start(heard.device, heard.table))
    try:
        rustling.start()
        host.space.run("nft", "add", "chain", "bridge", TABLE, "another")
        heard.wait(lambda: heard.rules > 0)
    finally:
        is_over.set()
        rustling.join()
        alarms.close()
        noise.close()


def test_a_socket_that_fails_is_opened_again_and_any_network_may_be_meant_meanwhile(hosts: Any) -> None:
    host, heard, failing = hosts[0], Heard(), [True]
    host.ensure()

    def subscribe(protocol: int, group: int) -> socket.socket:
        if not failing:
            return subscribed(protocol, group)
        failing.pop()
        refused = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        refused.connect(("127.0.0.1", 9))
        refused.send(b"nobody is there")
        return refused

    alarms = NetlinkAlarms(TABLE, subscribe=subscribe)
    host.do(lambda: alarms.start(heard.device, heard.table))
    try:
        heard.wait(lambda: heard.devices == [None] and heard.rules == 1)
        host.space(f"link delete {names.vxlan_name(VNI)}")
        heard.wait(lambda: heard.devices == [None, VNI])
    finally:
        alarms.close()


def test_closed_it_leaves_no_thread(hosts: Any) -> None:
    before = threading.active_count()
    alarms = NetlinkAlarms(TABLE)
    hosts[0].do(lambda: alarms.start(lambda vni: None, lambda: None))
    assert threading.active_count() == before + 1
    alarms.close()
    assert threading.active_count() == before
