"""The clouds of the system tests; see `cloud` for what a test can do with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cloud import Cluster, remove_leftovers
from images import ImageServer

_KEY = pytest.StashKey[list[Cluster]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With a failure, show the end of the logs of its clouds."""
    report: pytest.TestReport = yield  # type: ignore[assignment,misc]
    if report.failed:
        item.stash[_FAILED] = True
        for cluster in item.stash.get(_KEY, []):
            report.sections += [(f"log {name}", text) for name, text in cluster.logs() if text.strip()]
    return report  # type: ignore[return-value]


_FAILED = pytest.StashKey[bool]()


class _Shared:
    """The cloud that is passed from test to test while it is clean."""

    def __init__(self, base: Path, *, has_outside: bool = False) -> None:
        self._base = base
        self._has_outside = has_outside
        self._cluster: Cluster | None = None

    def get(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(self._base, has_outside=self._has_outside)
        return self._cluster

    def lend(self, request: pytest.FixtureRequest) -> Iterator[Cluster]:
        """Yield it to a test, and see that the test leaves it clean."""
        cluster = self.get()
        request.node.stash.setdefault(_KEY, []).append(cluster)
        try:
            yield cluster
            if request.node.stash.get(_FAILED, False):
                self.throw_away()
                return
            left = cluster.instances()
            assert not left, f"the test has left instances: {left}"
            cluster.agree()
        except BaseException:
            self.throw_away()
            raise

    def throw_away(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.remove()


@pytest.fixture(scope="session")
def cloud_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the directories of the clouds of all workers lie; pytest keeps those of the last red runs."""
    if os.geteuid() != 0:
        pytest.skip("system tests need root: they make network namespaces and start libvirt")
    remove_leftovers()
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def _shared(cloud_base: Path) -> Iterator[_Shared]:
    shared = _Shared(cloud_base)
    yield shared
    shared.throw_away()


@pytest.fixture
def cluster(_shared: _Shared, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two hosts, shared. A test leaves them running, agreeing, and without instances."""
    yield from _shared.lend(request)


@pytest.fixture(scope="session")
def _shared_with_outside(cloud_base: Path) -> Iterator[_Shared]:
    shared = _Shared(cloud_base, has_outside=True)
    yield shared
    shared.throw_away()


@pytest.fixture
def outer_cluster(_shared_with_outside: _Shared, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The same with an egress network, and somebody on it (`outside`)."""
    yield from _shared_with_outside.lend(request)


@pytest.fixture
def make_cluster(cloud_base: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """``make_cluster(hosts=1, start=True, **settings)`` makes a cloud that the test may break."""
    made: list[Cluster] = request.node.stash.setdefault(_KEY, [])
    first = len(made)

    def make(*, hosts: int = 1, **settings: object) -> Cluster:
        cluster = Cluster(cloud_base, hosts=hosts, **settings)
        made.append(cluster)
        return cluster

    yield make
    for cluster in made[first:]:
        cluster.remove()


@pytest.fixture
def images(cluster: Cluster) -> Iterator[ImageServer]:
    """A server of good and bad images, which the hosts of `cluster` are allowed to fetch from."""
    server = ImageServer(cluster.image_address, cluster.image)
    yield server
    server.close()
