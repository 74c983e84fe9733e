"""A network and the daemon's part of its metadata service; see `place`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from place import Net

from ecompute.network.metadata import HostMetadata


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Net(tmp_path / "state")
    yield made
    made.remove()


@pytest.fixture
def make_metadata(net: Net) -> Iterator[Callable[..., HostMetadata]]:
    """Make the daemon's part, as each start of the daemon does; at the end the service is ended."""
    made: list[HostMetadata] = []

    def make(**settings: float) -> HostMetadata:
        made.append(HostMetadata(net.state, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
    last = HostMetadata(net.state)
    for vni in last.served():
        last.leave(vni)
    last.served()  # ends one that serves nobody
