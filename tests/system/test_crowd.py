"""Many at once."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

from cloud import Cluster

COUNT = 10
LINE = re.compile(r"NOTIFIED TARGET, ([0-9a-f-]{36}), OF INSTANCE ([0-9a-f-]{36})\n")


def test_ten_guests_asked_for_at_once_all_run_and_go(cluster: Cluster) -> None:
    query = cluster.query()
    with ThreadPoolExecutor(COUNT) as pool:
        asked = [pool.submit(cluster.eschedule, query, cluster.idle_image) for _ in range(COUNT)]
        lines = [LINE.search(one.result().stdout) for one in asked]
        uuids = [line[2] for line in lines if line is not None]
        assert len(set(uuids)) == COUNT
        cluster.agree(timeout_s=90)  # each has one running domain and one QEMU, on one host
        assert sorted(cluster.instances()) == sorted(uuids)
        listed = json.loads(cluster.eschedule("list", "-o", "json").stdout)
        assert {one["uuid"]: (one["state"], one["error"]) for one in listed} == dict.fromkeys(uuids, ("created", None))
        assert all(host.domains() for host in cluster.hosts), "they were to be spread"
        gone = [pool.submit(cluster.eschedule, "destroy", uuid) for uuid in uuids]
        assert [one.result() for one in gone] == [(0, "", "")] * COUNT
    cluster.agree()
    assert not cluster.instances()
