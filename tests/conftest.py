"""Fixtures for all tests: the real services, each started once a run.

Property tests try the same examples in every run, so that a red run is red again:
``HYPOTHESIS_PROFILE=explore`` tries others, and ten times as many.

With ``-n 3`` (pytest-xdist) three workers run a file each, side by side; each is a run in itself, with services of
its own. What takes longest comes first, so that the workers end together.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from ecompute.cluster.config import EtcdSettings
from ecompute.cluster.store import DeletePrefix, Store
from ecompute.dev.etcd import EtcdProcess, start_etcd
from ecompute.dev.placement import PlacementProcess, start_placement

# A shared machine may be slow at any time: no example is judged by the clock.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# A shell without job control starts what ends in & deaf to Ctrl-C, and so would be all that we start:
# tests interrupt commands.
signal.signal(signal.SIGINT, signal.default_int_handler)

ORDER = ("system", "functional", "model", "contract", "unit")
"""The parts of the tests, those with the longest files first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        parts = (n for n, part in enumerate(ORDER) if Path(__file__).with_name(part) in item.path.parents)
        return next(parts, len(ORDER))

    items.sort(key=place)


_STDERR = pytest.StashKey[int]()
HEED_S = 60.0
"""How long a test may take to end once its time is up."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # what is said of a test that hangs must not be captured with it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that does not heed its timeout, since it waits in a library, ends its process; the other workers go on."""
    marker = item.get_closest_marker("timeout")
    timeout_s = float(marker.args[0] if marker is not None and marker.args else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(timeout_s + HEED_S, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give workers a file at a time, in the order above: files share what takes long to start."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def remove_node(self, node: Any) -> str | None:
            """A worker has ended: leave the rest of its files to the others, but not the test that ended it."""
            files = self.assigned_work.pop(node)
            left = [(tests, name) for tests in files.values() for name, is_done in tests.items() if not is_done]
            if not left:
                return None
            tests, running = left[0]
            tests[running] = True
            self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
            for other in self.assigned_work:
                self._reschedule(other)
            return running

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """The etcd of this run, for tests that leave it running; those that do not start their own."""
    with start_etcd(tmp_path_factory.mktemp("etcd"), is_durable=False) as process:
        yield process


@pytest.fixture(scope="session")
def placement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementProcess]:
    """The placement of this run; tests that share it make providers of their own."""
    with start_placement(tmp_path_factory.mktemp("placement")) as process:
        yield process


@pytest.fixture
def store(etcd: EtcdProcess) -> Iterator[Store]:
    """A store on `etcd`, with no key in it."""
    with Store(EtcdSettings(endpoints=(etcd.endpoint,))) as opened:
        opened.commit([], [DeletePrefix("/")])
        yield opened


@pytest.fixture(scope="session")
def eventually() -> Callable[..., None]:
    """``eventually(lambda: …, timeout_s=20)`` waits until it is true, and fails when time is up."""

    def wait(condition: Callable[[], object], *, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not so within {timeout_s:g} s"
            time.sleep(0.02)

    return wait
