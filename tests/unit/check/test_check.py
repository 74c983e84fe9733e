"""The preflight: what is wrong with a machine, and what to do about it."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from pathlib import Path

import pytest

from ecompute.check import PROGRAMS, Found, Result, checks, judge, libvirt_sockets, look
from ecompute.cluster.config import Config, EtcdSettings, InventorySettings, PlacementSettings
from ecompute.cluster.errors import StepFailed

WELL = Found(programs={name: f"/usr/bin/{name}" for name in PROGRAMS}, libvirt_socket="/run/libvirt/libvirt-sock")
CLUSTER = EtcdSettings(endpoints=("10.0.0.1:2379",))


def problems(found: Found, config: Config | None = None) -> dict[str, str]:
    return {r.name: r.problem for r in judge(found, config or Config()) if r.problem is not None}


def result(name: str, found: Found, config: Config | None = None) -> Result:
    return next(r for r in judge(found, config or Config()) if r.name == name)


def test_a_machine_on_which_all_is_well_has_no_problem() -> None:
    assert problems(WELL) == {}


@pytest.mark.parametrize(
    ("what", "name", "says"),
    [
        ({"programs": {}}, "qemu-img", "apt-get install qemu-utils"),
        ({"programs": {}}, "qemu-system-x86_64", "apt-get install qemu-system-x86"),
        ({"programs": {}}, "nft", "apt-get install nftables"),
        ({"programs": {}}, "dnsmasq", "apt-get install dnsmasq-base"),
        ({"is_admin": False}, "privileges", "run it as root"),
        ({"libvirt_socket": None}, "libvirt", "libvirt-daemon-system"),
        ({"has_tun": False}, "/dev/net/tun", "modprobe tun"),
        ({"has_vxlan": False}, "vxlan", "no such module"),
        ({"bridge_filters": ("bridge-nf-call-iptables",)}, "bridge-nf-call", "net.bridge.bridge-nf-call-iptables=0"),
        ({"has_default_route": False}, "underlay", "set underlay"),
        ({"free_disk_gb": 0}, "disk under /var/lib/ecompute", "less than 1 GB"),
        ({"measured": StepFailed("no")}, "inventory", "no"),
        ({"files": {Path("/ca.pem"): "is empty"}}, "file /ca.pem", "is empty"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(what: dict[str, object], name: str, says: str) -> None:
    found = problems(dataclasses.replace(WELL, **what))  # type: ignore[arg-type]
    assert says in found[name]


def test_without_kvm_guests_are_emulated_unless_kvm_was_asked_for() -> None:
    without = dataclasses.replace(WELL, has_kvm=False)
    assert "emulated" in result("/dev/kvm", without).note
    assert result("/dev/kvm", without, Config(accelerator="tcg")).is_ok
    assert "accelerator: auto" in problems(without, Config(accelerator="kvm"))["/dev/kvm"]


def test_what_cannot_be_seen_is_said_to_be_so() -> None:
    vxlan = result("vxlan", dataclasses.replace(WELL, has_vxlan=None))
    assert vxlan.is_ok
    assert "cannot be seen" in vxlan.note


def test_a_loopback_underlay_is_refused_where_there_may_be_other_hosts() -> None:
    assert problems(WELL, Config(underlay="127.0.0.1")) == {}
    assert "no other host reaches" in problems(WELL, Config(underlay="127.0.0.1", etcd=CLUSTER))["underlay"]
    assert problems(WELL, Config(underlay="10.0.0.7", etcd=CLUSTER)) == {}


def test_an_underlay_of_another_machine_is_refused() -> None:
    found = dataclasses.replace(WELL, is_underlay_here=False)
    assert "not an address of this machine" in problems(found, Config(underlay="10.0.0.7"))["underlay"]


def test_a_bridge_is_looked_for_only_where_one_is_configured() -> None:
    found = dataclasses.replace(WELL, missing_bridges=frozenset({"br0", "br2"}))
    assert problems(found) == {}
    assert "there is none" in problems(found, Config(bridge="br0"))["bridge br0"]
    several = problems(found, Config(bridge="br0", bridges={"lan": "br0", "dmz": "br1", "far": "br2"}))
    assert {"bridge br0", "bridge br2"} == {name for name in several if name.startswith("bridge ")}
    other = dataclasses.replace(WELL, no_bridges=frozenset({"lo"}))
    assert "lo is a device, and no bridge" in problems(other, Config(bridges={"lan": "lo"}))["bridge lo"]


def test_a_default_network_that_this_machine_is_on_itself_is_noted_and_one_over_the_underlay_refused() -> None:
    here = ipaddress.IPv4Network("10.10.0.0/16")
    elsewhere = (ipaddress.IPv4Network("192.0.2.0/24"), "eth0")
    found = dataclasses.replace(WELL, networks=(elsewhere, (here, "eth1")))
    assert problems(found) == {}
    assert "10.10.0.0/24 overlaps 10.10.0.0/16 on eth1, which guests will not reach" in (
        result("default_network", found).note
    )
    found = dataclasses.replace(WELL, networks=(elsewhere, (here, "eth0")))
    assert "overlaps 10.10.0.0/16 on eth0, the underlay; set another" in problems(found)["default_network"]
    assert problems(found, Config(default_network=ipaddress.IPv4Network("10.9.0.0/24"))) == {}


@pytest.mark.parametrize("config", [Config(), Config(underlay="192.0.2.7")])
def test_a_narrow_underlay_is_noted_with_what_guests_lose(config: Config) -> None:
    assert (
        "an MTU of 1400: guests here get no larger datagrams of others than 1350 bytes"
        in result("underlay", dataclasses.replace(WELL, underlay_mtu=1400), config).note
    )
    assert "MTU" not in result("underlay", WELL, config).note


def test_an_egress_device_is_looked_for_where_one_is_configured_and_missed_where_there_is_none() -> None:
    found = dataclasses.replace(WELL, is_egress_here=False)
    assert problems(found) == {}
    assert "there is no device wan0" in problems(found, Config(egress="wan0"))["egress"]
    assert "nothing is reached by lo" in problems(WELL, Config(egress="lo"))["egress"]
    assert "guests do not get out" in result("egress", dataclasses.replace(WELL, has_default_route=False)).note


def test_an_egress_device_without_arp_is_noted_with_what_it_is_lacking_for() -> None:
    found = dataclasses.replace(WELL, has_egress_arp=False)
    assert problems(found, Config(egress="wg0")) == {}
    assert "wg0 has no ARP: floating addresses need" in result("egress", found, Config(egress="wg0")).note
    assert "default route has no ARP" in result("egress", found).note


def test_what_others_drop_of_what_is_forwarded_is_noted_with_what_to_do() -> None:
    found = dataclasses.replace(WELL, dropping=("table ip filter",))
    assert problems(found) == {}
    assert "table ip filter drops" in result("forwarding", found).note
    assert "iptables -I FORWARD -i ecu+ -j ACCEPT" in result("forwarding", found).note


def test_a_host_without_name_servers_for_guests_is_told_so() -> None:
    assert "set dns" in result("dns", dataclasses.replace(WELL, resolvers=())).note


def test_more_disk_offered_than_is_free_is_noted() -> None:
    found = dataclasses.replace(WELL, free_disk_gb=6)
    name = "disk under /var/lib/ecompute"
    assert "10 GB are offered and 6 GB are free" in result(name, found).note
    assert result(name, found, Config(inventory=InventorySettings(disk_gb=5))).note == "6 GB are free"


@pytest.mark.parametrize(
    ("uri", "first"),
    [
        ("qemu:///system", "/run/libvirt/libvirt-sock"),
        ("qemu:///session", "/run/user/7/libvirt/libvirt-sock"),
        ("qemu+unix:///system?socket=/tmp/a%20b/sock", "/tmp/a b/sock"),
    ],
)
def test_the_socket_is_looked_for_where_the_uri_says(uri: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert libvirt_sockets(uri)[0] == Path(first)


def test_looking_at_this_machine_changes_nothing_and_ends(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path / "state", underlay="127.0.0.1", bridge="lo", bridges={"lan": "none0"})
    found = look(config)
    assert found.is_underlay_here
    assert (found.missing_bridges, found.no_bridges) == ({"none0"}, {"lo"})
    assert found.underlay_mtu > 0
    assert found.is_egress_here
    assert not config.state_dir.exists()
    assert {r.name for r in checks(config)} >= {"libvirt", "vxlan", "underlay", "bridge lo"}


def test_an_address_that_is_not_here_is_seen(tmp_path: Path) -> None:
    assert not look(Config(state_dir=tmp_path, underlay="203.0.113.1")).is_underlay_here


def test_a_listening_libvirt_is_found(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        config = Config(libvirt_uri=f"qemu+unix:///system?socket={path}")
        assert look(config).libvirt_socket == str(path)


def test_a_file_that_is_not_a_socket_is_no_libvirt(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    path.touch()
    assert look(Config(libvirt_uri=f"qemu+unix:///system?socket={path}")).libvirt_socket is None


def test_files_that_the_configuration_names_are_looked_at(tmp_path: Path) -> None:
    open_, closed, empty = tmp_path / "open", tmp_path / "closed", tmp_path / "empty"
    for path in (open_, closed):
        path.write_text("x")
    empty.touch()
    open_.chmod(0o644)
    closed.chmod(0o600)
    etcd = EtcdSettings(ca=open_, cert=tmp_path / "absent", key=open_, user="u", password_file=closed)
    found = look(Config(etcd=etcd, placement=PlacementSettings(token_file=empty))).files
    assert found.keys() == {tmp_path / "absent", open_, empty}
    assert "cannot be read" in found[tmp_path / "absent"]
    assert "everybody may read" in found[open_]
    assert found[empty] == "is empty"
