"""``UPDATE_GOLDEN=1 pytest tests/unit/network`` writes the golden files anew; read the difference."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.documents import Network, Port
from ecompute.network.dnsmasq import Files, Paths, render, without_former
from ecompute.network.resolvers import Resolvers, parse, upstream

GOLDEN = Path(__file__).parents[2] / "golden" / "network" / "dnsmasq"
ME = "host-1"
PATHS = Paths(Path("/var/lib/ecompute/networks/000010"), "dnsmasq")


def network(**others: object) -> Network:
    fields = {
        "uuid": "n",
        "namespace": "system",
        "name": "default",
        "cidr": "10.0.0.0/24",
        "vni": 0x10,
        "mtu": 1450,
        "gateway": "10.0.0.1",
        "has_dhcp": True,
        "has_nat": True,
        "has_dns": True,
        "domain": "default.system.internal",
        "created_at": "",
    }
    return Network(**{**fields, **others})  # type: ignore[arg-type]


def port(number: int, name: str | None, provider: str = ME, **others: object) -> Port:
    fields = {
        "interface_uuid": f"i{number}",
        "instance_uuid": "v",
        "provider": provider,
        "epoch": 1,
        "mac": f"02:00:00:00:00:{number:02x}",
        "addresses": (f"10.0.0.{number}/24", f"fd00:1::{number}/64"),
        "name": name,
    }
    return Port(**{**fields, **others})  # type: ignore[arg-type]


PORTS = [
    port(5, "web"),
    port(6, "db", "host-2"),
    port(7, "45m"),
    port(8, "Ünïcode Machine!", floating="203.0.113.8"),
    port(9, None, routed=("203.0.113.9",)),
]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("everything", {"cidr6": "fd00:1::/64", "gateway6": "fd00:1::1"}),
        ("no-nat", {"has_nat": False}),
        ("no-dns", {"has_dns": False, "cidr6": "fd00:1::/64", "gateway6": "fd00:1::1"}),
        ("no-dhcp", {"has_dhcp": False, "domain": None}),
    ],
)
def test_the_files_are_the_golden_ones(name: str, others: dict[str, object]) -> None:
    files = render(network(**others), ME, PORTS, PATHS, ("192.0.2.53", "198.51.100.53"))
    assert files is not None
    for kind in ("conf", "leases", "names"):
        path, text = GOLDEN / f"{name}.{kind}", getattr(files, kind)
        if os.environ.get("UPDATE_GOLDEN"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), path


def test_without_dhcp_and_dns_there_is_none() -> None:
    assert render(network(has_dhcp=False, has_dns=False), ME, PORTS, PATHS) is None


def test_an_order_of_the_ports_makes_no_other_files() -> None:
    assert render(network(), ME, PORTS, PATHS) == render(network(), ME, PORTS[::-1], PATHS)


def test_what_a_running_one_must_be_started_anew_for_is_told_from_what_it_is_told() -> None:
    files = rendered(PORTS)
    assert rendered(PORTS[:-1]).conf_digest == files.conf_digest
    assert rendered(PORTS[:-1]).told_digest != files.told_digest
    assert replace(files, conf="other").conf_digest != files.conf_digest


def rendered(ports: list[Port], **others: object) -> Files:
    files = render(network(**others), ME, ports, PATHS)
    assert files is not None
    return files


LEASE = re.compile(
    r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2},10\.0\.0\.\d+(,\[fd00:1::[0-9a-f]+\])?"
    r"(,(?!\d+[smhdw]?(,|$)|infinite|ignore)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?(,set:out)?"
)
NAME = re.compile(r"[0-9a-f.:]+ (?P<name>[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)\.default\.system\.internal (?P=name)")


@given(st.lists(st.none() | st.text(max_size=80) | st.sampled_from(["infinite", "ignore", "3600", "1w"]), max_size=5))
def test_no_name_gets_anything_but_a_label_into_a_file(names: list[str | None]) -> None:
    files = rendered([port(number, name) for number, name in enumerate(names, 2)], cidr6="fd00:1::/64")
    leases, known = files.leases.splitlines(), files.names.splitlines()
    assert len(leases) == len(names)
    assert all(LEASE.fullmatch(line) for line in leases), leases
    assert all(NAME.fullmatch(line) for line in known), known
    assert files.conf == rendered([], cidr6="fd00:1::/64").conf


@given(st.text(max_size=80))
def test_no_domain_gets_anything_but_labels_into_a_file(domain: str) -> None:
    conf = rendered(PORTS, domain=domain).conf.splitlines()
    bare = rendered(PORTS, domain=None).conf.splitlines()
    assert len(conf) - len(bare) in (0, 3)
    added = set(conf) - set(bare)
    assert all(re.fullmatch(r"[a-z-]+=(option:domain-search,|/)?[a-z0-9.-]+/?", line) for line in added)


@pytest.mark.parametrize(
    "others",
    [
        {"mac": "02:00:00:00:00:05\nserver=6.6.6.6"},
        {"mac": "ff:ff:ff:ff:ff:ff"},
        {"addresses": ("10.0.0.5\n/24",)},
        {"addresses": ("192.0.2.5/24",)},
        {"addresses": ()},
    ],
)
def test_a_port_that_no_lease_can_be_of_has_none(others: dict[str, object]) -> None:
    assert rendered([port(5, "web", **others)]).leases == ""


def test_name_servers_are_those_that_others_reach(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\nnameserver ::1\n")
    real.write_text("# comment\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver 192.0.2.53\nnameserver\n")
    assert upstream((), [stub, real]) == ("192.0.2.53",)
    assert upstream(("198.51.100.1",), [real]) == ("198.51.100.1",)
    assert upstream((), [stub, tmp_path / "none"]) == ()


def test_a_file_that_is_empty_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    resolvers = Resolvers((), [file])
    assert resolvers.upstream() == ()
    for server in ("192.0.2.53", "192.0.2.54"):
        file.write_text(f"nameserver {server}\n")
        assert resolvers.upstream() == (server,)
        file.write_text("")
        assert resolvers.upstream() == (server,)
    file.unlink()
    assert resolvers.upstream() == ("192.0.2.54",)


@given(st.text())
def test_a_resolv_conf_of_any_kind_is_read(text: str) -> None:
    parse(text)


def test_leases_of_an_address_that_is_somebody_elses_now_are_not_kept() -> None:
    kept = (
        "1700000000 02:00:00:00:00:01 10.0.0.5 web *\n"
        "1700000000 02:00:00:00:00:03 10.0.0.7 * *\n"
        "duid 00:01:00:01:2e:aa:bb:cc:02:00:00:00:00:ff\n"
        "1700000000 7 fd00:1::7 * 00:03:00:01:02:00:00:00:00:03\n"
    )
    former = "1700000000 02:00:00:00:00:09 10.0.0.6 * *\n1700000000 8 fd00:1::6 * 0:4\n1700000000 8 fd00:1::8 * 0:4\n"
    before = "02:00:00:00:00:03,10.0.0.7,[fd00:1::7]\n02:00:00:00:00:09,[fd00:1::6]\n"
    after = (
        "02:00:00:00:00:01,10.0.0.5,web,set:out\n02:00:00:00:00:02,10.0.0.6,[fd00:1::6],db\n"
        "02:00:00:00:00:03,10.0.0.7,[fd00:1::7]\n02:00:00:00:00:04,[fd00:1::8]\n"
    )
    assert without_former(kept + former, before, after) == kept
    assert without_former(kept, before, "") == kept, "of a guest that is gone: it goes when it ends"
    assert without_former("", "", after) == ""
    assert without_former("garbage\n\n\0 x y\n", before, after) == "garbage\n\n\0 x y\n"
