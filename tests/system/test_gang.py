"""A gang of guests."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

from cloud import Cluster, wait_for

from ecompute.cluster import keys
from ecompute.cluster.asking import NOTHING, PRESENCE, ask
from ecompute.cluster.documents import Assignment, Operation

COUNT = 4


def test_a_gang_whose_members_are_apart_runs_on_two_hosts_and_goes(cluster: Cluster) -> None:
    cluster.eschedule("group", "create", "apart", "--policy", "anti-affinity")
    options = ("--name", "gang", "--count", 2, "--group", "apart", "--image", cluster.idle_image, "--wait")
    done = cluster.eschedule("launch", cluster.query(), *options, "-o", "json")
    rows = json.loads(done.stdout)
    assert [(row["name"], row["state"]) for row in rows] == [("gang-1", "created"), ("gang-2", "created")]
    assert {row["provider"] for row in rows} == {host.provider for host in cluster.hosts}
    cluster.agree()
    cluster.destroy(*(row["uuid"] for row in rows))
    cluster.eschedule("group", "delete", "apart")
    cluster.agree()


def test_no_guest_of_a_gang_begins_before_all_of_them_are_told(cluster: Cluster) -> None:
    """Its scheduler stops before the commit: the hosts look at what they were told, and leave it alone."""
    arguments = ("launch", cluster.query(), "--name", "gang", "--count", COUNT, "--image", cluster.idle_image)
    with cluster.eschedule_running(*arguments, failpoint="gang.uncommitted:stop") as process:
        wait_for(lambda: _is_stopped(process), timeout_s=60, what="the scheduler has stopped")
        assert len(cluster.instances()) == COUNT
        for uuid in cluster.instances():
            (host,) = [
                one for one in cluster.hosts if cluster.store.get(keys.assignment(one.provider, uuid), Assignment)
            ]
            # Answered in the instance's own lane: by then it has gone through its assignment.
            question = Operation(kind=PRESENCE, instance_uuid=uuid)
            answered = ask(cluster.store, host.provider, question, timeout_s=30)
            assert answered is not None and answered.answer not in (None, NOTHING)
        assert not any(host.domains() for host in cluster.hosts)
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    cluster.agree(timeout_s=90)
    assert sum(len(host.domains()) for host in cluster.hosts) == COUNT
    cluster.destroy(*cluster.instances())


def _is_stopped(process: subprocess.Popen[str]) -> bool:
    return " T " in Path(f"/proc/{process.pid}/stat").read_text()
