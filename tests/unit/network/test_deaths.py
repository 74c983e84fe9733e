from __future__ import annotations

import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ecompute.network.deaths import Deaths


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
def deaths(told: list[int]) -> Iterator[Deaths]:
    deaths = Deaths(told.append)
    yield deaths
    deaths.close()


@pytest.fixture
def begin() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    begun: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen(["sleep", "60"]))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many more and no others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    filler = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare, default=0) + 64, before[1]))
    try:
        while True:
            try:
                filler.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for one in spare:
            os.close(one)
        yield
    finally:
        for one in filler:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_who_may_open_nothing_more_hears_of_those_that_are_watched(
    deaths: Deaths, told: list[int], begin: Callable[[], subprocess.Popen[bytes]], eventually: Callable[..., None]
) -> None:
    first, second = begin(), begin()
    deaths.watch(1, first.pid)
    with descriptors_left(1):
        deaths.watch(2, second.pid)
        first.kill()
        eventually(lambda: told == [1])
        second.kill()
        eventually(lambda: told == [1, 2])


def test_one_that_cannot_be_watched_is_no_error_and_can_be_watched_later(
    deaths: Deaths, told: list[int], begin: Callable[[], subprocess.Popen[bytes]], eventually: Callable[..., None]
) -> None:
    process = begin()
    for left in (0, 1):
        with descriptors_left(left):
            deaths.watch(1, process.pid)
    deaths.watch(1, process.pid)
    process.kill()
    eventually(lambda: told == [1])


def test_one_that_is_forgotten_is_told_to_nobody_and_nothing_stays_open(
    deaths: Deaths, told: list[int], begin: Callable[[], subprocess.Popen[bytes]], eventually: Callable[..., None]
) -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    first, second, third = begin(), begin(), begin()
    for number, process in enumerate((first, second, third)):
        deaths.watch(number, process.pid)
    deaths.watch(0, second.pid)
    deaths.forget(0)
    deaths.forget(1)
    for process in (first, second, third):
        process.kill()
    eventually(lambda: told == [2])
    eventually(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads))
