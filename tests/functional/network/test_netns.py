"""Namespaces with names are there for everybody, are entered by nobody who has to stay outside, and go."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from ecompute.cluster.errors import NetworkError
from ecompute.network import netns

OWN = Path("/proc/thread-self/ns/net")


@pytest.fixture
def name() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = f"ec-test-{os.getpid()}"
    netns.remove(made)
    yield made
    netns.remove(made)


def here() -> netns.Identity | None:
    return netns.identity_at(OWN)


def test_what_is_done_inside_is_done_there_and_nowhere_else(name: str) -> None:
    outside = here()
    netns.make(name)
    assert netns.identity(name) not in (None, outside)
    assert netns.in_namespace(name, here) == netns.identity(name)
    program = netns.in_namespace(
        name, lambda: subprocess.run(["readlink", OWN], capture_output=True, text=True, check=True).stdout
    )
    assert program.strip() == f"net:[{netns.identity(name)[1]}]"  # type: ignore[index]
    assert here() == outside


def test_a_namespace_is_seen_by_others(name: str) -> None:
    netns.make(name)
    assert name in netns.taken() and netns.identity(name) is not None
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert name in [line.split()[0] for line in listed.splitlines()]
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)


def test_one_that_is_there_is_not_made_again(name: str) -> None:
    netns.make(name)
    before = netns.identity(name)
    netns.make(name)
    assert netns.identity(name) == before


def test_a_file_without_a_mount_is_no_namespace_and_becomes_one(name: str) -> None:
    netns.path_of(name).touch()
    assert netns.identity(name) is None
    with pytest.raises(NetworkError, match=f"entering the network namespace {name}: there is none"):
        netns.in_namespace(name, here)
    netns.make(name)
    assert netns.in_namespace(name, here) == netns.identity(name)


def test_a_removed_one_leaves_nothing_however_often_it_was_mounted(name: str) -> None:
    netns.make(name)
    subprocess.run(["mount", "--bind", netns.path_of(name), netns.path_of(name)], check=True)
    netns.remove(name)
    assert not netns.path_of(name).exists()
    netns.remove(name)


def test_what_fails_inside_fails_outside(name: str) -> None:
    netns.make(name)
    with pytest.raises(ZeroDivisionError):
        netns.in_namespace(name, lambda: 1 // 0)


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b"])
def test_a_name_is_a_name(bad: str) -> None:
    with pytest.raises(NetworkError, match="cannot name a network namespace"):
        netns.make(bad)


def test_nothing_is_forked_and_nothing_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    for call in ("fork", "forkpty", "posix_spawn"):
        monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)

    def use() -> list[str]:
        with IPRoute(strict_check=True) as netlink:
            return [link.get_attr("IFLA_IFNAME") for link in netlink.link("dump")]

    netns.make(name)
    assert netns.in_namespace(name, use) == ["lo"]
    tasks, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        netns.remove(name)
        netns.make(name)
        netns.in_namespace(name, use)
    assert threading.active_count() == tasks
    assert len(os.listdir("/proc/self/fd")) <= descriptors
