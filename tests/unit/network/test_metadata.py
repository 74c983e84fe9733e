"""A metadata service that cannot live: how often it is started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecompute.guest.told import Callers
from ecompute.network import metadata as module
from ecompute.network.metadata import HostMetadata

RETRY_S = 1.0
DEADLINE_S = 60.0
DIES_AT_ONCE = """
import os, socket, sys
state = sys.argv[sys.argv.index("--state-dir") + 1]
with open(os.path.join(state, "starts"), "a") as file:
    file.write("+")
if os.path.exists(os.path.join(state, "metadata", "socket")):
    os.unlink(os.path.join(state, "metadata", "socket"))
desk = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
desk.bind(os.path.join(state, "metadata", "socket"))
desk.listen()
if os.fork() == 0:
    desk.accept()[0].recv(1)  # it is asked something
    os._exit(1)
os._exit(0)
"""


@pytest.fixture
def metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostMetadata]:
    program = tmp_path / "program" / "md_server"
    program.mkdir(parents=True)
    (program / "__init__.py").touch()
    (program / "__main__.py").write_text(DIES_AT_ONCE)
    monkeypatch.setenv("PYTHONPATH", str(program.parent))
    monkeypatch.setattr(module, "RETRY_S", RETRY_S)
    made = HostMetadata(tmp_path)
    yield made
    made.close()


def test_a_service_that_dies_at_once_is_started_seldom_however_many_networks_there_are(
    metadata: HostMetadata, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    for vni in range(1, 9):
        metadata.serve(vni, "none", Callers(network_uuid="n"))
    starts = tmp_path / "starts"
    while not starts.exists() or len(starts.read_text()) < 4:
        assert time.monotonic() < began_s + DEADLINE_S
        time.sleep(0.05)
    # At once again, and then after pauses of which each is twice the one before.
    assert time.monotonic() - began_s > RETRY_S + 2 * RETRY_S
