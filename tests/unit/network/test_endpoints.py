from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from ecompute.cluster.errors import Unavailable
from ecompute.network.endpoints import FIRST_RETRY_S, KEPT_S, RETRY_S, Endpoints


class Names:
    """What can be looked up, and when it is; ``work`` is what was put beside."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.addresses: dict[str, str] = {"etcd": "192.0.2.1", "placement": "192.0.2.2"}
        self.asked: list[str] = []
        self.work: list[Callable[[], None]] = []
        self.now = 0.0
        self.start()

    def start(self) -> None:
        """As when the daemon is started."""
        self.endpoints = Endpoints(
            ["etcd:2379", "placement:8778"],
            self.memory,
            clock=lambda: self.now,
            look_up=self.look_up,
            beside=self.work.append,
        )

    def look_up(self, host: str) -> frozenset[str]:
        self.asked.append(host)
        if host not in self.addresses:
            raise OSError(-3, "Temporary failure in name resolution")
        return frozenset({self.addresses[host]})

    def known(self) -> set[str]:
        return set(self.endpoints.addresses())


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path / "memory" / "endpoints.json")


def test_what_is_known_is_given_at_once_and_looked_up_again_beside(names: Names) -> None:
    assert names.known() == {"192.0.2.1", "192.0.2.2"}
    names.addresses["etcd"] = "192.0.2.3"
    names.now += KEPT_S
    for _ in range(2):
        assert names.known() == {"192.0.2.1", "192.0.2.2"}
    (work,) = names.work
    work()
    assert names.known() == {"192.0.2.2", "192.0.2.3"}
    assert names.asked == ["etcd", "placement"] * 2


def test_a_name_that_cannot_be_looked_up_now_stays_as_it_was_and_that_is_said_once(
    names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    names.known()
    del names.addresses["etcd"]
    with caplog.at_level(logging.WARNING):
        for pause in (KEPT_S, RETRY_S):
            names.now += pause
            names.known()
            names.work.pop()()
    assert names.known() == {"192.0.2.1", "192.0.2.2"}
    assert [message.split(";")[0] for message in caplog.messages] == ["the name etcd cannot be looked up"]


def test_what_was_known_holds_over_a_new_start(names: Names) -> None:
    names.known()
    names.addresses.clear()
    names.start()
    assert names.known() == {"192.0.2.1", "192.0.2.2"}
    assert names.asked == ["etcd", "placement"], "nobody waits for a look-up"


def test_what_never_could_be_looked_up_is_not_passed_over(names: Names) -> None:
    del names.addresses["etcd"]
    for _ in range(2):
        with pytest.raises(Unavailable, match="guests cannot be kept away from etcd"):
            names.known()
    assert names.asked == ["etcd", "placement"], "not at every question"
    names.addresses["etcd"] = "192.0.2.1"
    names.now += FIRST_RETRY_S
    assert names.known() == {"192.0.2.1", "192.0.2.2"}


def test_a_memory_that_cannot_be_read_is_none(names: Names) -> None:
    names.memory.parent.mkdir()
    names.memory.write_bytes(b"nonsense")
    assert names.known() == {"192.0.2.1", "192.0.2.2"}
