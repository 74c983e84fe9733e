"""All instances of a host, on an etcd, with the rest of the machine in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ecompute.cluster import keys
from ecompute.cluster.documents import Assignment, Resources, Role, Spec
from ecompute.cluster.errors import Refused
from ecompute.cluster.store import Put, Store

PROVIDER = "00000000-0000-0000-0000-00000000000a"
WAIT_S = 20.0


def assignment() -> Put:
    spec = Spec(resources=Resources(vcpus=1, memory_mb=64, disk_gb=1), image="http://images.example/x")
    made = str(uuid.uuid4())
    return Put(
        keys.assignment(PROVIDER, made),
        Assignment(uuid=made, namespace="system", name="web", role=Role.RUN, generation=1, epoch=1, spec=spec),
    )


@pytest.mark.parametrize("then", [True, Refused("no"), RuntimeError("nobody foresaw this")], ids=repr)
def test_what_fails_or_waits_after_an_outage_does_not_keep_the_host_from_having_gone_through_all(
    store: Store, start: Callable[[], Any], then: BaseException | bool, eventually: Callable[..., None]
) -> None:
    store.commit([], [assignment()])
    host = start()
    instances = host.instances
    eventually(lambda: host.asked and instances._has_scanned.is_set() and instances._lanes.is_idle(), timeout_s=WAIT_S)
    assert not instances.has_converged(), "placement is to say whether it may be built"
    asked, host.answer = host.asked, then
    instances.rescan()
    eventually(lambda: host.asked > asked and instances.has_converged(), timeout_s=WAIT_S)
