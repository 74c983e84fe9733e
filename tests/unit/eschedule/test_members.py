"""The members of a gang as a file tells them."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eschedule.cloud.interface_request import InterfaceRequest
from eschedule.scheduler.members import READS, InvalidMembers, read_members
from eschedule.scheduler.request import LaunchRequest

DEFAULT = LaunchRequest(query="resources=VCPU:1,MEMORY_MB:256,DISK_GB:1", image="http://images.example/a.qcow2")


def read(text: str) -> list[LaunchRequest]:
    return read_members("gang.yaml", text.encode(), DEFAULT)


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidMembers) as caught:
        read(text)
    return caught.value.problems


def test_members_differ_in_what_they_say_and_are_alike_in_the_rest() -> None:
    web, db, any_ = read(
        """
- name: web
  cpus: 2
  tags: [front, web]
  affinities: {db: 50}
- name: db
  query: resources=VCPU:4,MEMORY_MB:1024,DISK_GB:9&required=HW_CPU_X86_AVX2
  image: http://images.example/db.qcow2
  host: rack-1
  group: dbs
  expires: 2h
  pack: true
  configdrive: nocloud
  user_data: |
    #cloud-config
    hostname: db
- {}
"""
    )
    assert (web.name, web.query, web.image) == ("web", "resources=VCPU:2,MEMORY_MB:256,DISK_GB:1", DEFAULT.image)
    assert (web.tags, web.affinities) == (("front", "web"), (("db", 50),))
    assert db.query.startswith("resources=VCPU:4") and db.image.endswith("db.qcow2")
    assert (db.host, db.group, db.expires, db.is_packed) == ("rack-1", "dbs", "2h", True)
    assert db.user_data == "#cloud-config\nhostname: db\n"
    assert (db.config_drive, web.config_drive) == ("nocloud", "openstack")
    assert any_ == DEFAULT


def test_every_bad_member_is_named_with_its_line() -> None:
    assert problems(
        """- name: web-1
- name: web-2
  cpus: 0
- name: web-3
  colour: blue
- name: web_4!
- name: web-5
  image: ftp://images.example/a
"""
    ) == [
        "line 3: web-2: cpus: must be 1 to 2147483647, not 0",
        "line 5: web-3: colour: unknown key; known here are name, query, cpus, memory, disk, image, host, pack, group, "
        "tags, affinities, expires, ssh_keys, user_data, configdrive, networks",
        "line 6: web_4!: 'web_4!' cannot be an instance's name; use letters, digits and hyphens, at most 63, as in a "
        "host name",
        "line 7: web-5: 'ftp://images.example/a' is no image URL; use http://, https:// or an absolute path",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: holds no members"),
        ("[]", "line 1: has 0 members, and 1 to 200 are possible"),
        ("[" + "{}," * 201 + "]", "line 1: has 201 members"),
        ("members: 3", "line 1: must be a list of members"),
        ("- web-1", "line 1: a member without a name: the file: must be keys and values"),
        ("- {name: a", "line 1: is not YAML"),
        ("- {cpus: 1, query: 'resources=VCPU:1'}", "line 1: a member without a name: query and cpus were given"),
        ("- {memory: 4294967296}", "must be 1 to 2147483647"),
        ("- {cpus: 1.5}", "must be a whole number"),
        ("- {cpus: -1}", "must be 1 to"),
        ("- {query: 'resources=VCPU:1'}", "asks for no DISK_GB and no MEMORY_MB"),
        ("- {name: a, name: b}", "stands here a second time"),
        ("- {affinities: {db: 101}}", "must be -100 to 100"),
    ],
)
def test_a_bad_file_is_refused_in_words(text: str, says: str) -> None:
    assert any(says in problem for problem in problems(text)), problems(text)


def test_two_members_of_one_name_are_refused_at_the_second() -> None:
    assert problems("- name: a\n- name: b\n- name: a\n") == ["line 3: a: another member has that name"]


def test_so_many_mistakes_that_nobody_reads_them_are_counted() -> None:
    with pytest.raises(InvalidMembers, match="line 1: ") as caught:
        read("\n".join("- cpus: 0" for _ in range(30)))
    assert len(caught.value.problems) == 30


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(sorted(READS)), VALUES, max_size=4), max_size=4))
def test_whatever_a_file_says_it_is_read_or_refused_in_words(members: list[dict[str, object]]) -> None:
    try:
        read(yaml.safe_dump(members))
    except InvalidMembers as error:
        assert error.problems and all(problem.startswith("line ") for problem in error.problems)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_words(data: bytes) -> None:
    try:
        read_members("gang.yaml", data, DEFAULT)
    except InvalidMembers as error:
        assert error.problems


def test_networks_are_written_as_on_the_command_line_or_as_keys_and_values() -> None:
    both, bare, empty, usual = read(
        """
- networks:
  - web@10.0.0.5
  - {network: db, address: [10.1.0.5, "fd00::5"], macaddress: "52:54:00:00:00:01", model: e1000}
- networks: none
- networks: []
- name: usual
"""
    )
    assert both.interfaces == (
        InterfaceRequest("web", "10.0.0.5"),
        InterfaceRequest("db", "10.1.0.5", "fd00::5", "52:54:00:00:00:01", "e1000"),
    )
    assert (bare.interfaces, empty.interfaces, usual.interfaces) == ((), (), DEFAULT.interfaces)


@pytest.mark.parametrize(
    ("networks", "what"),
    [
        ("web", "must be a list"),
        ("[web@x]", "is no address"),
        ("[{network: web, colour: red}]", "says nothing of an interface"),
        ("[[web]]", "must be text"),
        ("[{network: {a: b}}]", "must be text"),
        ("[web@10.0.0.5, web@10.0.0.5]", "is asked for 2 times"),
    ],
)
def test_networks_that_cannot_be_are_told_with_their_line(networks: str, what: str) -> None:
    (problem,) = problems(f"- name: web-1\n  networks: {networks}\n")
    assert problem.startswith("line 2: web-1: networks: ")
    assert what in problem
