"""One real placement for these tests; each registers a host of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ecompute.cluster.config import PlacementSettings
from ecompute.cluster.placement import Placement
from ecompute.dev.placement import PlacementProcess


@pytest.fixture
def client(placement: PlacementProcess) -> Iterator[Placement]:
    with Placement(PlacementSettings(endpoint=placement.endpoint)) as client:
        yield client
