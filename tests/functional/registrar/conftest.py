"""One real placement for these tests; each registers a host of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.placement import Placement
from ecompute.dev.placement import start_placement


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Placement]:
    process = start_placement(tmp_path_factory.mktemp("placement"))
    try:
        with Placement(PlacementSettings(endpoint=process.endpoint)) as client:
            yield client
    finally:
        process.stop()
