"""Networks on three hosts with booted guests: what tenants rely on, and that no host is needed for another's guests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import permutations
from pathlib import Path

import outside
import pytest
import shell
from cloud import Cluster, Guest, wait_for
from outside import ELSEWHERE, POOL, PORT

from ecompute.dev.hosts import ip

OUTER = f"http://{ELSEWHERE}:{PORT}/"
WITHOUT = {21: "dhcp", 22: "nat", 23: "dns"}


@pytest.fixture(scope="module")
def cloud(cloud_base: Path) -> Iterator[Cluster]:
    with Cluster(cloud_base, hosts=3, has_outside=True) as cluster:
        yield cluster


def network(cloud: Cluster, name: str, *options: str, cidr: str = "10.20.0.0/24") -> str:
    made = cloud.eschedule("network", "create", name, cidr, "-o", "json", *options)
    uuid: str = json.loads(made.stdout)["uuid"]
    return uuid


def launch(cloud: Cluster, name: str, host: int, net: str, *options: str) -> Guest:
    return cloud.launch(
        "-n", net, "--configdrive", "none", *options, host=cloud.hosts[host], name=name, user_data=shell.SCRIPT
    )


def reaches(guest: Guest, address: str) -> bool:
    status, _ = shell.sh(guest, f"ping -c 2 -W 2 {address}")
    return status == 0


def asked(guest: Guest, url: str) -> str:
    return shell.succeeds(guest, f"timeout 10 wget -q -O - {url}").strip()


def test_all_of_it_works_on_three_hosts_and_without_the_first(cloud: Cluster) -> None:
    red, blue = network(cloud, "red"), network(cloud, "blue")
    reds = [launch(cloud, f"red-{place}", host, red) for place, host in enumerate((0, 0, 1, 2))]
    blues = [
        launch(cloud, f"blue-{place}", host, f"{blue}@{guest.address}")
        for place, (host, guest) in enumerate(zip((1, 2), reds[:2], strict=True))
    ]
    for guest in (*reds, *blues):
        shell.wait_ready(guest)
        said = guest.host.console(guest.uuid)
        assert f"guest: address {guest.address}/24\n" in said, "DHCP gave another address"
        assert "guest: gateway 10.20.0.1\n" in said
        assert "guest: problem" not in said
    cloud.eschedule("floating", "pool", "create", "outer", "--cidr", POOL)
    floats = {}
    for guest in (reds[0], reds[3]):
        made = json.loads(cloud.eschedule("floating", "create", "--pool", "outer", "-o", "json").stdout)
        cloud.eschedule("floating", "attach", made["address"], guest.uuid)
        floats[guest.uuid] = made["address"]

    for one, other in permutations(reds, 2):
        assert reaches(one, other.address), f"{one.name} on {one.host.name} does not reach {other.name}"
    # The same addresses on the other network belong to other guests, who tell their own names.
    for guest in (*reds, *blues):
        assert json.loads(asked(guest, "http://169.254.169.254/openstack/latest/meta_data.json"))["uuid"] == guest.uuid
        assert asked(guest, "http://169.254.169.254/latest/meta-data/local-ipv4") == guest.address
        assert asked(guest, "'http://[fe80::a9fe:a9fe%eth0]/latest/meta-data/local-ipv4'") == guest.address
    assert not reaches(blues[0], reds[3].address), "two networks with one range meet"
    for guest, name, address in ((reds[0], "red-3", reds[3].address), (reds[3], "red-0", reds[0].address)):
        assert address in shell.succeeds(guest, f"nslookup {name}")

    def outside_works(guests: list[Guest]) -> None:
        for guest in guests:
            seen = asked(guest, OUTER)
            if guest.uuid in floats:
                assert seen == floats[guest.uuid], f"{guest.name} is seen as {seen} from outside"
            else:
                assert seen in {str(outside.NETWORK[11 + n]) for n in range(3)}, f"{guest.name} is seen as {seen}"

    def floats_work(guests: list[Guest], asking: list[Guest]) -> None:
        for guest in guests:
            address = floats[guest.uuid]
            done = cloud.outside.run(
                "busybox", "timeout", "10", "busybox", "wget", "-q", "-O", "-", f"http://{address}:{shell.PORT}/x"
            )
            assert "404" in done.stderr, f"{guest.name} is not reached at {address} from outside: {done.stderr}"
            for other in asking:
                assert "404" in shell.fails(other, f"timeout 10 wget -O - http://{address}:{shell.PORT}/x"), other.name

    outside_works([*reds, *blues])
    floats_work([reds[0], reds[3]], [*reds, blues[0]])
    cloud.agree()

    first = cloud.hosts[0]
    for uuid in first.domains():
        with suppress(Exception):
            first.domain(uuid).destroy()
    first.kill()
    cloud.underlay.cut(first.netns)
    ip("-n", first.netns, "link", "set", "eth1", "down")
    left = [reds[2], reds[3], *blues]
    for one, other in permutations(left[:2], 2):
        assert reaches(one, other.address)
    for guest in left:
        assert asked(guest, "http://169.254.169.254/latest/meta-data/local-ipv4") == guest.address
    assert reds[2].address in shell.succeeds(reds[3], "nslookup red-2")
    outside_works(left)
    floats_work([reds[3]], [reds[2], blues[0]])
    newcomer = launch(cloud, "red-new", 2, red)
    shell.wait_ready(newcomer)
    assert reaches(newcomer, reds[2].address)

    cloud.underlay.mend(first.netns)
    ip("-n", first.netns, "link", "set", "eth1", "up")
    ip("-n", first.netns, "route", "replace", "default", "via", outside.GATEWAY, "dev", "eth1")
    first.start()
    cloud.destroy(*cloud.instances())
    for address in floats.values():
        cloud.eschedule("floating", "delete", address)
    for uuid in (red, blue):
        cloud.eschedule("network", "delete", uuid)
    cloud.eschedule("floating", "pool", "delete", "outer")
    cloud.agree()


def test_a_guest_finds_just_what_its_network_has(cloud: Cluster) -> None:
    without = {what: network(cloud, what, f"--no-{what}", cidr=f"10.{n}.0.0/24") for n, what in WITHOUT.items()}
    guests = {
        "dhcp": launch(cloud, "silent", 0, without["dhcp"], "--configdrive", "openstack"),
        "nat": launch(cloud, "inner", 1, without["nat"]),
        "dns": launch(cloud, "nameless", 2, without["dns"]),
    }
    for what, guest in guests.items():
        shell.wait_ready(guest)
        said = guest.host.console(guest.uuid)
        assert f"guest: address {guest.address}/24\n" in said
        assert ("guest: gateway" in said) == (what != "nat")
        assert ("guest: nameserver" in said) == (what != "dns")
        assert "guest: problem" not in said
        assert asked(guest, "http://169.254.169.254/latest/meta-data/local-ipv4") == guest.address
        gets_lease = "timeout 20 udhcpc -i eth0 -f -n -q -t 3 -T 2 -s /bin/true"
        (shell.fails if what == "dhcp" else shell.succeeds)(guest, gets_lease)
        gateway = f"{guest.address.rsplit('.', 1)[0]}.1"
        resolves = f"timeout 20 nslookup {guest.name} {gateway}"
        (shell.fails if what == "dns" else shell.succeeds)(guest, resolves)
        assert reaches(guest, gateway)
        if what == "nat":
            shell.succeeds(guest, f"ip route replace default via {gateway}")  # nobody told it
            shell.fails(guest, f"timeout 5 wget -q -O - {OUTER}")
            assert not reaches(guest, ELSEWHERE)
        else:
            assert asked(guest, OUTER) == str(outside.NETWORK[10 + int(guest.host.name.removeprefix("host-"))])
    cloud.agree()
    cloud.destroy(*(guest.uuid for guest in guests.values()))
    for uuid in without.values():
        cloud.eschedule("network", "delete", uuid)
    cloud.agree()


def test_what_somebody_deletes_by_hand_is_put_back(cloud: Cluster) -> None:
    net = network(cloud, "mended")
    near, far = launch(cloud, "near", 0, net), launch(cloud, "far", 1, net)
    for guest in (near, far):
        shell.wait_ready(guest)
    vni = near.host.domain(near.uuid).XMLDesc().split("<source bridge='ecb")[1].split("'")[0]
    namespace = f"ec-{vni}-{near.host.provider[:8]}"

    def harm(*argv: str) -> None:
        near.host.run(*argv)

    harms: list[Callable[[], object]] = [
        lambda: ip("netns", "delete", namespace),
        lambda: harm("ip", "link", "delete", f"ecx{vni}"),
        lambda: harm("bridge", "fdb", "flush", "dev", f"ecx{vni}"),
        lambda: harm("nft", "delete", "table", "bridge", "ecompute"),
        lambda: harm("nft", "delete", "table", "inet", "ecompute"),
        lambda: _kill_dnsmasq(namespace),
    ]
    for do in harms:
        do()
        near.host.restart()  # a scan of everything
        wait_for(lambda: _works(near, far), timeout_s=60, what=f"all works again after {do}")
    cloud.destroy(near.uuid, far.uuid)
    cloud.eschedule("network", "delete", net)
    cloud.agree()


def _works(near: Guest, far: Guest) -> bool:
    with suppress(AssertionError, subprocess.TimeoutExpired):
        return (
            reaches(far, near.address)
            and reaches(near, far.address)
            and near.address in shell.succeeds(near, "nslookup near")
            and asked(near, "http://169.254.169.254/latest/meta-data/local-ipv4") == near.address
        )
    return False


def _kill_dnsmasq(namespace: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    for pid in listed.stdout.split():
        command = subprocess.run(["ps", "-o", "comm=", "-p", pid], capture_output=True, text=True, check=False).stdout
        if command.strip() == "dnsmasq":
            subprocess.run(["kill", "-9", pid], check=True)
