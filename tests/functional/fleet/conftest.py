"""Fleets on the services of this run."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ecompute.cluster.config import Config, EtcdSettings, ImageSettings, PlacementSettings
from ecompute.cluster.placement import Placement
from ecompute.cluster.store import Store
from ecompute.dev.etcd import EtcdProcess
from ecompute.dev.placement import PlacementProcess
from ecompute.fleet import Fleet, FleetSettings
from eschedule.cloud.connection import Cloud

IMAGE = "http://images.example/small.qcow2"


@pytest.fixture
def config(etcd: EtcdProcess, placement: PlacementProcess) -> Config:
    return Config(
        etcd=EtcdSettings(endpoints=(etcd.endpoint,)),
        placement=PlacementSettings(endpoint=placement.endpoint),
        images=ImageSettings(default=IMAGE),
    )


@pytest.fixture
def make_fleet(config: Config, store: Store, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Return a maker of fleets that run: ``make_fleet(hosts=5)``. What they leave in placement goes with the test."""
    made: list[Fleet] = []

    def make(**values: Any) -> Fleet:
        settings = {"prefix": f"f{uuid.uuid4().hex[:8]}", "vcpus": 8, "memory_mb": 16_384, "disk_gb": 100} | values
        fleet = Fleet(FleetSettings(config=config, directory=tmp_path / "fleet", **settings))
        made.append(fleet)
        return fleet.start()

    yield make
    for fleet in made:
        fleet.stop()
    with Placement(config.placement) as client:
        for fleet in made:
            for host in fleet.hosts:
                if host.provider and client.provider(host.provider) is not None:
                    for consumer in client.provider_allocations(host.provider):
                        client.release(consumer)
                    client.delete_provider(host.provider)


@pytest.fixture
def cloud(config: Config, store: Store) -> Iterator[Cloud]:
    with Cloud(config) as opened:
        yield opened
