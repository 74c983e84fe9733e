"""The configuration: what it means, and that every mistake is reported, with its line."""

from __future__ import annotations

import ipaddress
import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ecompute.cluster.config import (
    Config,
    EtcdSettings,
    ImageSettings,
    InventorySettings,
    PlacementSettings,
    RatioSettings,
    ReservedSettings,
    find,
    load,
    parse,
)
from ecompute.cluster.errors import InvalidConfig

FILE = Path("/etc/ecompute/compute.yaml")
SECTIONS = ("etcd", "upkeep", "placement", "inventory", "image", "inventory.reserved", "inventory.ratios")


def read(text: str) -> Config:
    return parse(text.encode(), FILE)


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(InvalidConfig) as raised:
        parse(text.encode() if isinstance(text, str) else text, FILE)
    return raised.value.problems


# --- what it means -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# only words\n", "---\n", "null\n", "etcd:\nlanes:\nimage: {}\n"])
def test_an_empty_file_is_the_defaults(text: str) -> None:
    assert read(text) == Config(path=FILE)


def test_a_missing_file_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "compute.yaml") == load(None) == Config()


def test_the_file_of_the_2019_project_still_works() -> None:
    config = read(
        "uuid: 5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee\n"
        "etcd:\n  host: ds1\nplacement:\n  endpoint: http://ds1:8080\nresize: false\nbridge: br0\n"
    )
    assert config == Config(
        path=FILE,
        uuid="5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee",
        etcd=EtcdSettings(endpoints=("ds1:2379",)),
        placement=PlacementSettings(endpoint="http://ds1:8080"),
        resize=False,
        bridge="br0",
    )


def test_every_key_arrives_where_it_belongs() -> None:
    config = read(
        """
uuid: 5A4CBD31-2CF8-4B7B-A1A9-0A6F3BD0C8EE
name: 4711
state_dir: /srv/guests
etcd: {endpoints: [10.0.0.1:2379, "[fd00::1]:2379"], ca: ca.pem, cert: c.pem, key: k.pem, user: host, password_file: /p}
upkeep: {cert: u.pem, key: /u.key}
placement: {endpoint: "https://placement.example/placement/", ca: /ca.pem, token_file: token}
inventory:
  vcpus: 4
  memory_mb: 8192
  disk_gb: 100
  reserved: {vcpus: 1, memory_mb: 1024, disk_gb: 10}
  ratios: {vcpus: 4, memory: 1.5, disk: 0.9}
image: {default: /images/small.img, allow_paths: [/images], allow_networks: [10.0.0.0/8, "fd00::/8"], max_gb: 5}
resize: no
bridge: br0
bridges: {lan: br0, rack-2: br1}
underlay: 10.9.8.7
default_network: 192.168.7.0/24
libvirt: qemu+unix:///system?socket=/run/x
accelerator: tcg
lanes: 3
rank: pack
"""
    )
    assert config == Config(
        path=FILE,
        uuid="5a4cbd31-2cf8-4b7b-a1a9-0a6f3bd0c8ee",
        name="4711",
        state_dir=Path("/srv/guests"),
        etcd=EtcdSettings(
            endpoints=("10.0.0.1:2379", "[fd00::1]:2379"),
            ca=Path("/etc/ecompute/ca.pem"),
            cert=Path("/etc/ecompute/c.pem"),
            key=Path("/etc/ecompute/k.pem"),
            user="host",
            password_file=Path("/p"),
        ),
        upkeep=EtcdSettings(
            endpoints=("10.0.0.1:2379", "[fd00::1]:2379"),
            ca=Path("/etc/ecompute/ca.pem"),
            cert=Path("/etc/ecompute/u.pem"),
            key=Path("/u.key"),
        ),
        placement=PlacementSettings(
            endpoint="https://placement.example/placement",
            ca=Path("/ca.pem"),
            token_file=Path("/etc/ecompute/token"),
        ),
        inventory=InventorySettings(
            vcpus=4,
            memory_mb=8192,
            disk_gb=100,
            reserved=ReservedSettings(vcpus=1, memory_mb=1024, disk_gb=10),
            ratios=RatioSettings(vcpus=4.0, memory=1.5, disk=0.9),
        ),
        images=ImageSettings(
            default="/images/small.img",
            allow_paths=(Path("/images"),),
            allow_networks=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")),
            max_gb=5,
        ),
        resize=False,
        bridge="br0",
        bridges={"lan": "br0", "rack-2": "br1"},
        underlay="10.9.8.7",
        default_network=ipaddress.IPv4Network("192.168.7.0/24"),
        libvirt_uri="qemu+unix:///system?socket=/run/x",
        accelerator="tcg",
        lanes=3,
        rank="pack",
    )


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("etcd: {port: 4001}", "127.0.0.1:4001"),
        ("etcd: {host: e.example}", "e.example:2379"),
        ("etcd: {host: 'fd00::1', port: 1}", "[fd00::1]:1"),
    ],
)
def test_host_and_port_make_an_endpoint(text: str, endpoint: str) -> None:
    assert read(text).etcd.endpoints == (endpoint,)


def test_the_named_file_comes_before_the_working_directorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, here = tmp_path / "other.yaml", tmp_path / "compute.yaml"
    named.touch()
    here.touch()
    monkeypatch.chdir(tmp_path)
    assert find(named) == named
    assert find(None) == Path("compute.yaml")


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no such file"):
        find(tmp_path / "compute.yaml")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        load(tmp_path)


def test_relative_paths_start_at_the_files_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compute.yaml").write_text("state_dir: guests\n")
    monkeypatch.chdir(tmp_path)
    assert load(find()).state_dir == tmp_path / "guests"


# --- the example ---------------------------------------------------------------------------------


def example() -> str:
    return (Path(__file__).parents[3] / "compute.yaml.example").read_text(encoding="utf-8")


def uncommented(text: str) -> str:
    """Take the # from every setting; what explains has one space behind it."""
    return re.sub(r"^#(?=(  )*[a-z_]+:)", "", text, flags=re.MULTILINE)


def test_the_example_as_it_is_says_nothing() -> None:
    assert read(example()) == Config(path=FILE)


def test_the_example_with_every_line_uncommented_is_the_defaults() -> None:
    assert read(uncommented(example())) == Config(path=FILE)


def test_the_example_names_every_key_once_and_explains_it() -> None:
    told: dict[str, list[str]] = {}
    for section in ("", *SECTIONS):
        nested = {"zzzzzz": 1}
        for part in reversed(section.split(".") if section else []):
            nested = {part: nested}  # type: ignore[dict-item]
        [problem] = problems(yaml.safe_dump(nested))
        told[section] = problem.split("known here are ")[1].split(", ")
    known = {f"{section}.{key}" if section else key for section, keys in told.items() for key in keys}

    def named(value: object, where: str) -> set[str]:
        if not isinstance(value, dict):
            return {where}
        below = {name for key, child in value.items() for name in named(child, f"{where}.{key}" if where else key)}
        return below | ({where} if where else set())

    assert named(yaml.safe_load(uncommented(example())), "") == known
    lines = example().splitlines()
    for before, line in itertools.pairwise(lines):
        is_setting = uncommented(line) != line
        is_section = line.rstrip().endswith(":")
        assert not is_setting or before.startswith("# ") or is_section, f"no comment above {line!r}"


# --- mistakes ------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once_in_the_order_of_their_lines() -> None:
    found = problems(
        "lanes: 99\n"
        "etcdd: {}\n"
        "etcd:\n"
        "  hots: a\n"
        "  port: http\n"
        "lanes: 3\n"
        "resize: maybe\n"
        "inventory:\n"
        "  ratios:\n"
        "    memory_mb: 2\n"
    )
    assert found == [
        "line 1: lanes: must be 1 to 12, not 99",
        "line 2: etcdd: unknown key; did you mean etcd?",
        "line 4: etcd.hots: unknown key; did you mean etcd.host?",
        "line 5: etcd.port: must be a whole number, 1 to 65535, without quotes",
        "line 6: lanes: stands here a second time; the first is on line 1",
        "line 7: resize: must be true or false, not text",
        "line 10: inventory.ratios.memory_mb: unknown key; did you mean inventory.ratios.memory?",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uuid: abc", "must be a uuid"),
        ("uuid: 00000000-0000-0000-0000-000000000000", "must be a uuid"),
        ("name: true", "must be text, not true or false"),
        ('name: "a\\nb"', "control characters"),
        ("name: ''", "1 to 200"),
        ("state_dir: ''", "must be a path"),
        ("etcd: [a]", "must be keys and values, not a list"),
        ("etcd: {host: 'a:1'}", "without a port"),
        ("etcd: {host: 10.0.0.300}", "host name or an address"),
        ("etcd: {port: 0}", "1 to 65535"),
        ("etcd: {port: 010}", "whole number"),
        ("etcd: {port: '2379'}", "without quotes"),
        ("etcd: {port: 1:30}", "whole number"),
        ("etcd: {endpoints: []}", "at least one"),
        ("etcd: {endpoints: a:1}", "must be a list"),
        ("etcd: {endpoints: [a]}", "must be host:port"),
        ("etcd: {endpoints: ['http://a:1']}", "without http://"),
        ("etcd: {endpoints: ['fd00::1:2379']}", "must be host:port"),
        ("etcd: {endpoints: [a:1, a:1]}", "twice"),
        ("etcd: {endpoints: [a:99999]}", "must be host:port"),
        ("etcd: {endpoints: [a:1], host: a}", "stands beside etcd.endpoints"),
        ("etcd: {cert: a, ca: a}", "needs etcd.key"),
        ("etcd: {key: a}", "needs etcd.cert"),
        ("etcd: {cert: a, key: b}", "needs etcd.ca"),
        ("etcd: {user: a}", "needs etcd.password_file"),
        ("upkeep: {cert: a}", "needs upkeep.key"),
        ("upkeep: {user: a}", "needs upkeep.password_file"),
        ("{etcd: {host: a}, upkeep: {cert: a, key: b}}", "needs etcd.ca"),
        ("upkeep: {host: a}", "unknown key"),
        ("etcd: {password_file: a}", "needs etcd.user"),
        ("placement: {endpoint: ds1}", "must be an http"),
        ("placement: {endpoint: 'http://'}", "must be an http"),
        ("placement: {endpoint: 'http://a:99999'}", "must be an http"),
        ("placement: {endpoint: 'http://a/?b=c'}", "must end with its path"),
        ("placement: {ca: a}", "needs an https"),
        ("inventory: {vcpus: 0}", "must be 1 to"),
        ("inventory: {vcpus: 1.5}", "whole number"),
        ("inventory: {vcpus: -1}", "must be 1 to"),
        ("inventory: {vcpus: 99999999999999999999999}", "whole number"),
        ("inventory: {vcpus: 2, reserved: {vcpus: 3}}", "reserves 3 of only 2"),
        ("inventory: {memory_mb: 256}", "reserves 512 of only 256"),
        ("inventory: {ratios: {vcpus: 0}}", "above 0"),
        ("inventory: {ratios: {vcpus: -1.0}}", "above 0"),
        ("inventory: {ratios: {vcpus: .inf}}", "above 0"),
        ("inventory: {ratios: {vcpus: .nan}}", "above 0"),
        ("image: {default: images/a}", "absolute path"),
        ("image: {default: 'file:///a'}", "absolute path"),
        ("image: {allow_paths: /a}", "must be a list"),
        ("image: {allow_networks: [10.0.0.1/8]}", "the network of 10.0.0.1/8 is 10.0.0.0/8"),
        ("image: {allow_networks: [all]}", "must be a network"),
        ("image: {max_gb: 0}", "must be 1 to"),
        ("bridge: a-name-that-is-too-long", "at most 15"),
        ("bridge: a/b", "name of a device"),
        ("bridges: br0", "must be names and bridges, such as {lan: br0}"),
        ("bridges: {Lan: br0}", "cannot be the name of a physical network"),
        ("bridges: {lan: a/b}", "name of a device"),
        ("bridges: {lan: br0, lan: br1}", "names lan twice"),
        ("underlay: 10.0.0.1/24", "without a prefix"),
        ("underlay: fd00::7", "must be an IPv4 address"),
        ("underlay: 0.0.0.0", "address of this host"),
        ("default_network: 10.0.0.0/31", "prefix of /16 to /29"),
        ("default_network: fd00::/64", "IPv4"),
        ("default_network: 127.0.0.0/16", "meaning of its own"),
        ("default_network: 169.254.0.0/16", "meaning of its own"),
        ("libvirt: xen:///", "such as qemu:///system"),
        ("libvirt: qemu+ssh://other/system", "must not name a host"),
        ("accelerator: hvf", "auto, kvm or tcg"),
        ("rank: best", "spread or pack"),
        ("lanes: 13", "1 to 12"),
        ("lanes: !!python/object:os.system 1", "whole number"),
        ("[a]: 1", "a key must be a word"),
        ("hello", "must be keys and values"),
        ("<<: {lanes: 1}", "unknown key"),
    ],
)
def test_a_bad_value_says_what_is_wanted(text: str, says: str) -> None:
    [problem] = problems(text)
    assert problem.startswith("line 1: ")
    assert says in problem


def test_the_leads_user_shows_the_hosts_certificate_where_it_has_none() -> None:
    config = read("etcd: {ca: a, cert: b, key: c, user: h, password_file: p}\nupkeep: {user: u, password_file: q}\n")
    assert config.upkeep == EtcdSettings(
        ca=FILE.parent / "a", cert=FILE.parent / "b", key=FILE.parent / "c", user="u", password_file=FILE.parent / "q"
    )


def test_a_bad_endpoint_beside_host_reports_both() -> None:
    assert len(problems("etcd:\n  endpoints: [a]\n  host: b\n")) == 2


@pytest.mark.parametrize(
    "text", [b"a: [", b"a: \t- b", b"\xff\xfe\xfa", b"a: \x00", b"[" * 20_000, b"--- {}\n--- {}\n", b"a: *b", b"%"]
)
def test_what_is_not_yaml_is_one_problem_with_a_line(text: bytes) -> None:
    [problem] = problems(text)
    assert problem.startswith("line ")


def test_an_alias_to_itself_ends() -> None:
    assert problems("etcd: &a {host: x, port: *a}\n")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "compute.yaml"
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(InvalidConfig, match="has more than"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "etcd:\n  password: hunter2\n",
        "placement: {token: hunter2}\n",
        "placement: {endpoint: 'http://me:hunter2@host:1'}\n",
        "placement: {endpoint: 'ftp://me:hunter2@host:1'}\n",
        "image: {default: 'https://me:hunter2@host/a'}\n",
        "etcd: {endpoints: ['me:hunter2@host:1']}\n",
        "libvirt: qemu+ssh://me:hunter2@host/system\n",
        "hunter2@: 1\n",
    ],
)
def test_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidConfig) as raised:
        read(text)
    assert "hunter2" not in str(raised.value) + repr(raised.value.problems)


KEYS = st.sampled_from(sorted(set(re.findall(r"^#? *([a-z_]+):", example(), re.MULTILINE))))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_whatever_the_file_says_it_is_a_configuration_or_a_list_of_problems(document: dict[str, object]) -> None:
    try:
        read(yaml.safe_dump(document, allow_unicode=True))
    except InvalidConfig as error:
        assert error.problems
        assert all(problem.startswith("line ") and problem.isprintable() for problem in error.problems)


@given(st.binary(max_size=200))
def test_whatever_bytes_the_file_has_nothing_else_is_raised(data: bytes) -> None:
    try:
        parse(data, FILE)
    except InvalidConfig as error:
        assert error.problems
