"""``eschedule launch --count`` and ``--members``, for real."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Gang, State
from ecompute.cluster.store import Store


@pytest.mark.parametrize("output", ["table", "json", "name"])
def test_all_of_a_gang_are_shown(tool: Any, make_host: Callable[..., Any], query: str, output: str) -> None:
    make_host()
    done = tool("launch", query, "--name", "web", "--count", "3", "-o", output)
    assert done.returncode == 0, done.stderr
    names = ["web-1", "web-2", "web-3"]
    if output == "json":
        assert [row["name"] for row in json.loads(done.stdout)] == names
        assert done.stderr == ""
    elif output == "name":
        assert done.stdout.split() == names
    else:
        header, *rows = done.stdout.splitlines()
        assert header.split() == ["NAME", "UUID", "STATE", "POWER", "ADDRESSES", "HOST"]
        assert [row.split()[0] for row in rows] == names
        assert done.stderr == "next: eschedule wait web-1\n"


def test_a_wait_is_for_all_of_them(tool: Any, make_host: Callable[..., Any], query: str, store: Store) -> None:
    host = make_host()
    process = tool.start("launch", query, "--name", "web", "--count", "3", "--wait", "-o", "json")
    deadline = time.monotonic() + 60
    while len(committed := [gang for gang in gangs(store) if gang.state == "committed"]) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first, second, third = committed[0].members
    host.report(first, State.CREATED)
    host.report(second, State.CREATED)
    host.report(third, State.ERROR, error="no such image")
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [row["state"] for row in json.loads(said)] == ["created", "created", "error"]
    assert errors.startswith("error: web-3 failed: no such image; see `eschedule events ")
    assert errors.count("\n") == 1


def gangs(store: Store) -> list[Gang]:
    return [item.value for item in store.list(keys.GANGS, Gang).items]


@pytest.mark.parametrize("count", ["0", "-1", "201", "1000000"])
def test_a_count_that_cannot_be_is_one_line(
    tool: Any, make_host: Callable[..., Any], query: str, all_keys: Callable[[], set[str]], count: str
) -> None:
    make_host()
    done = tool("launch", query, "--name", "web", f"--count={count}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {count} instances cannot be launched at once; --count 1 to 200\n"
    assert all_keys() == set()


def test_a_gang_that_does_not_fit_is_one_line(
    tool: Any, make_host: Callable[..., Any], query: str, all_keys: Callable[[], set[str]]
) -> None:
    make_host(vcpus=4)
    done = tool("launch", query, "--count", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 5 instances do not fit together: there is room for 4 of them; ")
    assert all_keys() == set()


def test_members_of_a_file_are_launched_together(
    tool: Any, make_host: Callable[..., Any], trait: str, tmp_path: Path, store: Store
) -> None:
    host = make_host()
    file = tmp_path / "gang.yaml"
    file.write_text(
        f"""
- name: db
  query: resources=VCPU:2,MEMORY_MB:128,DISK_GB:3&required={trait}
  tags: [db]
- name: web
  host: {host.name}
- name: job
  query: resources=VCPU:1,MEMORY_MB:64,DISK_GB:1&required={trait}
  user_data: |
    #cloud-config
"""
    )
    done = tool("launch", "--members", str(file), "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["name"], row["cpus"], row["disk_gb"]) for row in rows] == [("db", 2, 3), ("web", 1, 1), ("job", 1, 1)]
    (gang,) = gangs(store)
    assert gang.members == tuple(row["uuid"] for row in rows)
    assert host.claims().keys() == set(gang.members)


def test_a_bad_member_is_named_with_its_line_and_nothing_is_claimed(
    tool: Any, make_host: Callable[..., Any], tmp_path: Path, all_keys: Callable[[], set[str]]
) -> None:
    make_host()
    file = tmp_path / "gang.yaml"
    file.write_text("- name: web-1\n- name: web-2\n  cpus: 0\n")
    done = tool("launch", "--members", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {file}: line 3: web-2: cpus: must be 1 to 2147483647, not 0\n"
    missing = tool("launch", "--members", str(tmp_path / "none.yaml"))
    assert missing.returncode == 2 and "cannot be read" in missing.stderr
    both = tool("launch", "--members", str(file), "--count", "2")
    assert both.returncode == 2 and "--members does not go with --count or --name" in both.stderr
    assert all_keys() == set()
