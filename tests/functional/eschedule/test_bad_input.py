"""What cannot be meant, by the command: one line that says what would be right, and nothing claimed or written."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eschedule.cloud.connection import Cloud
from eschedule.scheduler.launch import Launcher

SHAPE = "MEMORY_MB:64,DISK_GB:1"
NOWHERE = "0d1b9c6e-93f5-4c38-a2b5-0e6f5d3c1f77"

LAUNCHES = {
    "an unknown class": (["resources=VCPU:1,CUSTOM_NO_SUCH:1," + SHAPE], "CUSTOM_NO_SUCH", "known include"),
    "a class nearly right": (["resources=VCPUS:1," + SHAPE], "VCPU", "VCPU"),
    "an unknown trait": ([f"resources=VCPU:1,{SHAPE}&required=CUSTOM_NO_SUCH"], "CUSTOM_NO_SUCH", "known include"),
    "an unknown aggregate": ([f"resources=VCPU:1,{SHAPE}&member_of={NOWHERE}"], NOWHERE, "eschedule host list"),
    "a negative amount": ([f"resources=VCPU:-1,{SHAPE}"], "VCPU", "whole number"),
    "no amount": ([f"resources=VCPU:0,{SHAPE}"], "VCPU is zero", "leave it out"),
    "half an amount": ([f"resources=VCPU:1.5,{SHAPE}"], "VCPU", "whole number"),
    "2^31 of it": ([f"resources=VCPU:{2**31},{SHAPE}"], "VCPU", "at most 2147483647"),
    "a negative option": (["--cpus", "-1"], "'-1' is not an amount of VCPU", "whole number"),
    "an option of 2^31": (["--memory", str(2**31)], "more MEMORY_MB than can be", "at most 2147483647"),
    "half an option": (["--disk", "1.5"], "1.5", "integer"),
    "a count of 0": (["--count", "0"], "0 instances", "--count 1 to 200"),
    "a count of a million": (["--count", "1000000"], "1000000 instances", "--count 1 to 200"),
    "a group that is not there": (["--group", "nobody"], "no group 'nobody'", "eschedule group list"),
    "a host that is not there": (["--host", "nobody"], "no host 'nobody'", "eschedule hosts"),
    "a uuid that is none": (["--uuid", "4711"], "4711", "uuid"),
    "an expiry in the past": (["--expires", "2020-01-01T00:00:00Z"], "2020-01-01", "2h"),
    "an expiry that is none": (["--expires", "yesterday"], "yesterday", "2h"),
}

OTHERS = {
    "a quota that cannot be": (["quota", "set", "team-a", "--vcpus", "-1"], "-1", "whole number"),
    "a quota of 2^31": (["quota", "set", "team-a", "--vcpus", str(2**31)], str(2**31), "2147483647"),
    "half a quota": (["quota", "set", "team-a", "--vcpus", "1.5"], "1.5", "whole number"),
    "a quota of no namespace": (["quota", "show", "a/b"], "a/b", "letters"),
    "a group that is shown and not there": (["group", "show", "nobody"], "no group 'nobody'", "eschedule group list"),
    "a group that is deleted and not there": (["group", "delete", "nobody"], "no group 'nobody'", "group list"),
    "an explanation of nothing": (["explain", "resources=VCPU:0"], "VCPU is zero", "leave it out"),
    "room for an unknown class": (["capacity", "--like", "resources=CUSTOM_NO_SUCH:1"], "CUSTOM_NO_SUCH", ""),
}


def told(done: Any, what: str, hint: str) -> None:
    """One line, on standard error, that names what is wrong and what would be right."""
    assert done.returncode in (1, 2), done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert what in done.stderr and hint in done.stderr, done.stderr


@pytest.mark.parametrize("case", LAUNCHES)
def test_a_launch_that_cannot_be_meant_claims_nothing(
    case: str, tool: Any, make_host: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    host = make_host()
    words, what, hint = LAUNCHES[case]
    told(tool("launch", *words), what, hint)
    assert host.claims() == {}
    assert all_keys() == set()


@pytest.mark.parametrize("case", [case for case in LAUNCHES if case not in ("a count of 0", "a count of a million")])
def test_a_gang_of_which_one_member_cannot_be_meant_claims_nothing(
    case: str, tool: Any, tmp_path: Path, make_host: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    host = make_host()
    words, _, _ = LAUNCHES[case]
    if len(words) == 1:
        bad: dict[str, Any] = {"query": words[0]}
    else:
        bad = {words[0].removeprefix("--"): yaml.safe_load(words[1]) if words[1][-1].isdigit() else words[1]}
    file = tmp_path / "gang.yaml"
    file.write_text(yaml.safe_dump([{"name": "web-1"}, {"name": "web-2", **bad}]))
    told(tool("launch", "--members", str(file)), "web-2", "")
    assert host.claims() == {}
    assert all_keys() == set()


def test_a_uuid_in_use_claims_nothing_more(
    tool: Any,
    cloud: Cloud,
    query: str,
    make_host: Callable[..., Any],
    make_request: Callable[..., Any],
    all_keys: Callable[[], set[str]],
) -> None:
    host = make_host()
    taken = Launcher(cloud).launch(make_request()).uuid
    before = all_keys()
    told(tool("launch", query, "--uuid", taken), f"{taken} is in use", "choose another uuid")
    assert host.claims().keys() == {taken}
    assert all_keys() == before
    told(tool("launch", query, "--uuid", str(uuid.uuid4()), "--idempotency-key", "one"), "uuid", "give one of both")
    assert all_keys() == before


@pytest.mark.parametrize("case", OTHERS)
def test_other_commands_that_cannot_be_meant_change_nothing(
    case: str, tool: Any, make_host: Callable[..., Any], all_keys: Callable[[], set[str]]
) -> None:
    make_host()
    words, what, hint = OTHERS[case]
    told(tool(*words), what, hint)
    assert all_keys() == set()


def test_a_namespace_without_a_limit_says_how_to_set_one(tool: Any, make_host: Callable[..., Any]) -> None:
    make_host()
    done = tool("quota", "show", "team-a")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "namespace team-a has no limit; `eschedule quota set team-a --vcpus N` sets one\n"
