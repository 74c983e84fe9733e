"""The console script, for real: what it prints, where, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs

from ecompute.cluster import keys
from ecompute.cluster.documents import Event, Gang, Instance, Policy, Scope, Seen, State, timestamp
from ecompute.cluster.store import Put, Store, unchanged
from eschedule.cli import event, host, instance
from eschedule.cloud.connection import Cloud
from eschedule.cloud.groups import Groups
from eschedule.cloud.hosts import Hosts
from eschedule.cloud.quotas import Quotas

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202enever\r"


def is_safe(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture
def a_host(make_host: Callable[..., Any]) -> Any:
    return make_host()


@pytest.fixture
def guest(tool: Any, a_host: Any, query: str) -> dict[str, Any]:
    """An instance that its host reports as running."""
    done = tool("launch", query, "--name", "web-1", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    shown: dict[str, Any] = json.loads(done.stdout)
    a_host.report(shown["uuid"], State.CREATED)
    return shown


# --- formats -------------------------------------------------------------------------------------


def test_an_empty_cloud_is_an_empty_list_in_every_format(tool: Any, store: Store) -> None:
    for command, fields in (("list", instance.FIELDS), ("hosts", host.FIELDS)):
        printed = {output: tool(command, "-o", output) for output in ("table", "json", "yaml", "csv", "name")}
        assert {done.returncode for done in printed.values()} == {0}
        assert printed["json"].stdout == "[]\n"
        assert yaml.safe_load(printed["yaml"].stdout) == []
        assert printed["csv"].stdout == ",".join(fields) + "\n"
        assert printed["name"].stdout == printed["table"].stdout == ""
        assert printed["table"].stderr.count("\n") == 1, "a person is told what to do"
        assert printed["json"].stderr == ""


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        (("list",), instance.FIELDS),
        (("show", "web-1"), instance.FIELDS),
        (("hosts",), host.FIELDS),
        (("events", "web-1"), event.FIELDS),
    ],
    ids=lambda value: value[0],
)
def test_programs_get_the_same_fields_in_every_format(
    tool: Any, guest: dict[str, Any], args: tuple[str, ...], fields: tuple[str, ...]
) -> None:
    as_json = json.loads(tool(*args, "-o", "json").stdout)
    as_yaml = yaml.safe_load(tool(*args, "-o", "yaml").stdout)
    as_csv = list(csv.DictReader(io.StringIO(tool(*args, "-o", "csv").stdout)))
    assert as_json == as_yaml
    rows = as_json if isinstance(as_json, list) else [as_json]
    assert [tuple(row) for row in rows] == [fields] * len(rows) == [tuple(row) for row in as_csv]
    assert len(rows) == 1


def test_the_amounts_of_a_host_are_numbers(tool: Any, guest: dict[str, Any]) -> None:
    (row,) = json.loads(tool("hosts", "-o", "json").stdout)
    assert (row["vcpus"], row["vcpus_used"], row["memory_mb_used"], row["disk_gb_used"]) == (8, 1, 64, 1)
    assert re.search(r"  up +1/8 +64/65536 +1/1000 ", tool("hosts").stdout)


def test_names_are_for_the_next_command(tool: Any, guest: dict[str, Any]) -> None:
    assert tool("list", "-o", "name").stdout == "web-1\n"
    assert tool("show", guest["uuid"][:6], "-o", "name").stdout == "web-1\n"


def test_a_diagnosis_is_for_people_and_for_programs(tool: Any, guest: dict[str, Any], a_host: Any) -> None:
    done = tool("doctor", "web-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"web-1, namespace system ({guest['uuid']})"
    for word in ("wanted", "claimed", "assigned", "seen", "found", "host"):
        assert re.search(f"^{word} ", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "waits for: nothing"
    a_host.sleep()
    done = tool("doctor", "web-1", "-o", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["is_waiting"], told["host"]["is_alive"]) == (1, True, False)
    assert told["wanted"] == {"state": "initial", "generation": 1, "epoch": 1, "error": None}
    assert told["claimed"] == {a_host.provider: {"VCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1}}


@pytest.mark.parametrize("output", ["table", "json"])
def test_nothing_that_a_host_wrote_commands_the_terminal(
    tool: Any, guest: dict[str, Any], a_host: Any, store: Store, output: str
) -> None:
    a_host.node(hold=HOSTILE)
    a_host.report(guest["uuid"], State.ERROR, error=HOSTILE, addresses=(HOSTILE,))
    hostile = Event(n=0, at=HOSTILE, writer=a_host.provider, type=HOSTILE, message=HOSTILE)
    store.commit([], [Put(keys.event("instance", guest["uuid"], a_host.provider, 0), hostile)])
    for args in (("list",), ("show", "web-1"), ("events", "web-1"), ("doctor", "web-1"), ("hosts",)):
        done = tool(*args, "-o", output)
        assert is_safe(done.stdout), args
        assert is_safe(done.stderr), args
    for args in (("wait", "web-1"), (guest["uuid"],)):
        done = tool(*args)
        assert is_safe(done.stdout + done.stderr), args


def test_doctor_says_of_a_member_that_its_gang_is_not_committed(tool: Any, guest: dict[str, Any], store: Store) -> None:
    instance = store.get(keys.instance(guest["uuid"]), Instance)
    assert instance is not None
    gang = Gang(uuid=str(uuid.uuid4()), namespace="system", members=(guest["uuid"],), writer="me", made_at="")
    store.commit(
        [unchanged(instance)],
        [Put(keys.gang(gang.uuid), gang), Put(instance.key, structs.replace(instance.value, gang=gang.uuid))],
    )
    assert "the scheduler of its gang, to ask for all 1" in tool("doctor", "web-1").stdout


# --- the old grammar -----------------------------------------------------------------------------


def test_the_old_grammar_says_its_old_words(tool: Any, a_host: Any, query: str) -> None:
    done = tool(query)
    assert (done.returncode, done.stderr) == (0, "")
    said = re.fullmatch(
        re.escape(query) + r"\nNOTIFIED TARGET, (?P<provider>[0-9a-f-]{36}), OF INSTANCE (?P<uuid>[0-9a-f-]{36})\n",
        done.stdout,
    )
    assert said is not None
    assert said["provider"] == a_host.provider
    a_host.report(said["uuid"], State.CREATED)
    shown = json.loads(tool("show", said["uuid"], "-o", "json").stdout)
    assert tool(said["uuid"]).stdout == shown["addresses"][0] + "\n"
    other = tool(query, "http://images.example/other.qcow2")
    assert other.returncode == 0
    uuid_ = other.stdout.split()[-1]
    assert json.loads(tool("show", uuid_, "-o", "json").stdout)["image"] == "http://images.example/other.qcow2"


def test_no_room_in_its_old_words(tool: Any, make_host: Callable[..., Any], trait: str) -> None:
    make_host(vcpus=1)
    query = f"resources=VCPU:2,MEMORY_MB:64,DISK_GB:1&required={trait}"
    done = tool(query)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"{query}\nNO ALLOCATIONS LEFT\nFAIL: no allocation available\n"


@pytest.mark.parametrize("query", ["a=b", "resources=VCPU:0", "resources=VCPU:1,MEMORY_MB:1,DISK_GB:1,CUSTOM_NO:1"])
def test_a_refused_query_fails_in_its_old_words(tool: Any, a_host: Any, query: str) -> None:
    done = tool(query)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.fullmatch(re.escape(query) + r"\nFAIL: .+\n", done.stdout)


def test_an_unknown_uuid_has_no_address_and_is_not_found_to_destroy(tool: Any, store: Store) -> None:
    unknown = str(uuid.uuid4())
    done = tool(unknown)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"Instance {unknown} acquired no IP\n", "")
    done = tool("destroy", unknown)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"FAILED to find allocations for {unknown}\n", "")


def test_destroy_says_nothing(tool: Any, guest: dict[str, Any], a_host: Any) -> None:
    process = tool.start("destroy", guest["uuid"])
    try:
        deadline = 30
        while a_host.assigned(guest["uuid"]).role != "absent":
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
            deadline -= 0.1
            assert deadline > 0
        a_host.report(guest["uuid"], State.DELETED, is_gone=True)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
    assert a_host.claims() == {}


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("show", "nope"), 1),
        (("show", "a/b"), 1),
        (("show", ""), 1),
        (("show", "\udcff\x1b[31m"), 1),
        (("doctor", "00000000-0000-0000-0000-000000000000"), 1),
        (("events", "nope"), 1),
        (("wait", "nope"), 1),
        (("destroy", "nope"), 1),
        (("console", "nope"), 1),
        (("lst",), 2),
        (("list", "extra"), 2),
        (("list", "-o", "xml"), 2),
        (("--namespace", "a/b", "list"), 2),
        (("launch", "web-1"), 2),
        (("launch", "--name", "a/b"), 2),
        (("launch", "--name", "</domain>"), 2),
        (("launch", "--cpus", "0"), 2),
        (("launch", "--cpus", "-1"), 2),
        (("launch", "--cpus", "99999999999"), 2),
        (("launch", "--cpus", "1.5"), 2),
        (("launch", "resources=VCPU:1,MEMORY_MB:1,DISK_GB:1", "--cpus", "2"), 2),
        (("launch", "resources=VCPU:1,MEMORY_MB:1,DISK_GB:1", "http://a/b", "--image", "http://a/c"), 2),
        (("launch", "--image", "ftp://a/b"), 2),
        (("launch", "--user-data", "/nonexistent"), 2),
        (("launch", "--user-data", "/dev"), 2),
        (("launch", "--user-data", "/dev/zero"), 2),
        (("launch", "--ssh-key", "/dev/null"), 2),
        (("wait", "web-1", "--timeout", "nan"), 2),
        (("wait", "web-1", "--timeout", "-1"), 2),
        (("console", "web-1", "--bytes", "0"), 2),
        (("completion", "csh"), 2),
    ],
    ids=str,
)
def test_bad_input_is_one_line_that_says_what_to_do(
    tool: Any, a_host: Any, all_keys: Callable[[], set[str]], args: tuple[str, ...], status: int
) -> None:
    done = tool(*args)
    assert done.returncode == status
    assert done.stdout == ""
    assert re.fullmatch(r"error: .+; .+\n", done.stderr)
    assert is_safe(done.stderr)
    assert (a_host.claims(), all_keys()) == ({}, set())


def test_user_data_from_standard_input_is_checked(tool: Any, a_host: Any, all_keys: Callable[[], set[str]]) -> None:
    for bad in (b"a\x00b", b"\xff\xfe", b"x" * 65537):
        done = tool("launch", "--user-data", "-", stdin=bad)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: user data .+; .+\n", done.stderr)
    assert all_keys() == set()


def test_a_bad_configuration_is_told_with_all_its_lines(tool: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("etcd:\n  hots: a\n  port: x\nfoo: 1\n")
    done = tool("--config", str(bad), "list")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert [re.match(rf"error: {re.escape(str(bad))}: line (\d+): ", line)[1] for line in lines] == ["2", "3", "4"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"[", b"- 1"])
def test_a_configuration_that_cannot_be_read_is_one_line(tool: Any, tmp_path: Path, content: bytes | None) -> None:
    bad = tmp_path / "bad.yaml"
    if content is not None:
        bad.write_bytes(content)
    done = tool("--config", str(bad), "list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {bad}: ")


@pytest.mark.parametrize("args", [("list",), ("hosts",), ("launch",), ("resources=VCPU:1,MEMORY_MB:1,DISK_GB:1",)])
def test_services_that_are_down_are_named_with_their_place_and_since_when(
    tool: Any, tmp_path: Path, args: tuple[str, ...]
) -> None:
    down = tmp_path / "down.yaml"
    down.write_text("etcd: {host: 127.0.0.1, port: 1}\nplacement: {endpoint: 'http://127.0.0.1:1'}\n")
    done = tool("--config", str(down), *args)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: (etcd at 127\.0\.0\.1:1|placement at http://127\.0\.0\.1:1) does not answer since \d{4}-.+; .+\n",
        done.stderr,
    )


def test_an_error_that_nobody_foresaw_is_one_line_too(tool: Any, store: Store, a_host: Any) -> None:
    done = tool("list", HOME="/", TMPDIR="/nonexistent", ECOMPUTE_NAMESPACE="\udcff")
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [("events", "-f", "web-1"), ("wait", "web-2"), ("destroy", "web-2")], ids=str)
def test_an_interrupt_ends_with_130_and_no_traceback(
    tool: Any, guest: dict[str, Any], query: str, args: tuple[str, ...], eventually: Callable[..., None]
) -> None:
    assert tool("launch", query, "--name", "web-2").returncode == 0
    master, slave = pty.openpty()
    with subprocess.Popen(tool.command(*args), stdout=slave, stderr=slave, env=tool.env()) as process:
        os.close(slave)
        said = os.read(master, 1 << 16)  # it has begun, and says so
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        said += drain(master)
    assert b"Traceback" not in said
    if args[0] == "wait":
        assert b"`eschedule wait " in said


def drain(master: int) -> bytes:
    said = b""
    try:
        while data := os.read(master, 1 << 16):
            said += data
    except OSError:  # how a terminal says that nobody is at its other end
        pass
    os.close(master)
    return said


def test_a_terminal_shows_progress_and_a_file_does_not(tool: Any, guest: dict[str, Any], query: str) -> None:
    assert tool("launch", query, "--name", "web-2").returncode == 0
    done = tool("wait", "web-2", "--timeout", "0.5")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: web-2 \(.+\) is still initial after 0\.5 s; .+eschedule doctor .+\n", done.stderr)
    master, slave = pty.openpty()
    with subprocess.Popen(
        tool.command("wait", "web-2", "--timeout", "0.5"), stdout=subprocess.PIPE, stderr=slave, env=tool.env()
    ):
        os.close(slave)
        said = drain(master).decode()
    assert "\rweb-2 is initial: claimed on " in said
    assert " s)" in said


def test_a_pipe_that_nobody_reads_any_more_is_no_error(tool: Any, guest: dict[str, Any]) -> None:
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        tool.command("list", "-o", "json"), stdout=write, stderr=subprocess.PIPE, env=tool.env()
    ) as process:
        os.close(write)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_disk_is_one_line(tool: Any, guest: dict[str, Any]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(tool.command("list"), stdout=full, stderr=subprocess.PIPE, env=tool.env(), timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(rb"error: standard output cannot be written: No space left on device; .+\n", done.stderr)


def test_closed_outputs_are_no_error(tool: Any, guest: dict[str, Any]) -> None:
    command = " ".join(tool.command("list"))
    done = subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], env=tool.env(), timeout=60)
    assert done.returncode == 0


# --- waiting for what fails ----------------------------------------------------------------------


def test_a_wait_for_what_failed_exits_1_with_the_reason(tool: Any, guest: dict[str, Any], a_host: Any) -> None:
    a_host.report(guest["uuid"], State.ERROR, error="the image is no image", is_gone=True)
    done = tool("wait", "web-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: web-1 failed: the image is no image; see `eschedule events {guest['uuid']}`\n"
    assert a_host.claims() == {}


def test_destroy_on_a_host_that_is_away_does_not_wait_for_it(tool: Any, guest: dict[str, Any], a_host: Any) -> None:
    a_host.sleep()
    done = tool("destroy", "web-1")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "web-1: its host does not answer, and will remove it when it is back\n"
    assert a_host.assigned(guest["uuid"]).role == "absent"


def test_a_console_that_does_not_exist_says_so(tool: Any, guest: dict[str, Any]) -> None:
    done = tool("console", "web-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: web-1: it has no console log on this host; has it started yet?")


def test_a_report_of_another_host_is_not_believed(tool: Any, guest: dict[str, Any], store: Store) -> None:
    stranger = Seen(uuid=guest["uuid"], generation=9, epoch=9, state=State.ERROR, reported_at=timestamp(0))
    store.commit([], [Put(keys.seen(str(uuid.uuid4()), guest["uuid"]), stranger)])
    assert json.loads(tool("show", "web-1", "-o", "json").stdout)["state"] == "created"


# --- completion ----------------------------------------------------------------------------------


def test_bash_completes_the_names_of_instances(tool: Any, guest: dict[str, Any], query: str) -> None:
    assert tool("launch", query, "--name", "db-1").returncode == 0

    def complete(*words: str) -> list[str]:
        done = tool(
            _ESCHEDULE_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(("eschedule", *words)),
            COMP_CWORD=str(len(words)),
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert complete("show", "w") == ["web-1"]
    assert complete("destroy", "web-1", "d") == ["db-1"]
    assert complete("events", guest["uuid"][:13]) == [guest["uuid"]]
    assert complete("--namespace", "nobody", "show", "w") == []
    assert complete("console", "nope") == []


def test_bash_completes_the_names_of_hosts_zones_groups_and_limited_namespaces(
    tool: Any, cloud: Cloud, make_host: Callable[..., Any]
) -> None:
    host = make_host()
    hosts = Hosts(cloud)
    hosts.set(hosts.find(host.name), zone="north")
    Groups(cloud).create("system", "web", Policy.SOFT_AFFINITY, Scope.HOST)
    Quotas(cloud).set("team-a", {"VCPU": 4})

    def complete(*words: str) -> list[str]:
        done = tool(
            _ESCHEDULE_COMPLETE="bash_complete", COMP_WORDS=" ".join(["eschedule", *words]), COMP_CWORD=str(len(words))
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("host", "show", "host-") == [host.name]
    assert complete("host", "set", host.name, "--zone", "n") == ["north"]
    assert complete("host", "zones", "--remove", "n") == ["north"]
    assert complete("explain", "resources=VCPU:1", "--group", "w") == ["web"]
    assert complete("quota", "set", "t") == ["team-a"]
    Quotas(cloud).set("team-a", {"VCPU": None})
