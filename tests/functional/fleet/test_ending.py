"""A fleet is ended while its hosts still start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ecompute.cluster.config import Config, EtcdSettings, PlacementSettings
from ecompute.cluster.errors import CloudError, Conflict
from ecompute.cluster.store import Store
from ecompute.daemon import StateLock
from ecompute.fleet import Fleet, FleetSettings

NOBODY = "127.0.0.1:9"
TIMEOUT_S = 45.0


class Starting:
    """A fleet that is started beside the test."""

    def __init__(self, config: Config, directory: Path, hosts: int) -> None:
        self.fleet = Fleet(FleetSettings(config=config, directory=directory, hosts=hosts, prefix="ends"))
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.fleet.start()
        except CloudError as error:
            self.error = error

    def has_ended(self) -> bool:
        self.thread.join(TIMEOUT_S)
        return not self.thread.is_alive()


def test_it_ends_while_etcd_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    started = Starting(Config(etcd=EtcdSettings(endpoints=(NOBODY,))), tmp_path, hosts=20)
    eventually(lambda: "waiting for etcd" in caplog.text, timeout_s=TIMEOUT_S)
    started.fleet.end()
    assert started.has_ended()
    assert started.error is None
    started.fleet.stop()


def test_it_ends_while_placement_is_away(
    config: Config, store: Store, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    away = replace(config, placement=PlacementSettings(endpoint=f"http://{NOBODY}"))
    started = Starting(away, tmp_path, hosts=1)
    eventually(lambda: started.fleet.hosts[0].is_running, timeout_s=TIMEOUT_S)
    started.fleet.end()
    assert started.has_ended()
    assert started.error is None
    started.fleet.stop()


def test_the_others_do_not_wait_when_one_cannot_be_started(tmp_path: Path) -> None:
    (tmp_path / "ends-07").mkdir()
    with StateLock(tmp_path / "ends-07" / "lock"):
        started = Starting(Config(etcd=EtcdSettings(endpoints=(NOBODY,))), tmp_path, hosts=20)
        assert started.has_ended()
    assert isinstance(started.error, Conflict)
    assert not any(host.is_running for host in started.fleet.hosts)
