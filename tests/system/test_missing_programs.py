"""A program that networks need is missing: what is said, what is left, and what becomes of it once it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cloud import Cluster, wait_for

from ecompute.check import PROGRAMS

NEEDED = {"nft": PROGRAMS["nft"], "dnsmasq": PROGRAMS["dnsmasq"]}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Make a directory with all programs of this machine, from which one can be taken."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for path in (Path(place) for place in os.environ["PATH"].split(os.pathsep)):
        for program in path.iterdir() if path.is_dir() else ():
            if not (directory / program.name).is_symlink():
                (directory / program.name).symlink_to(program)
    return directory


@pytest.mark.parametrize("program", NEEDED)
def test_without_it_a_build_fails_in_one_line_leaves_nothing_and_with_it_the_next_one_goes_well(
    make_cluster: Callable[..., Cluster], programs: Path, program: str
) -> None:
    cluster = make_cluster(start=False)
    (host,) = cluster.hosts
    (programs / program).unlink()
    checked = subprocess.run(
        [sys.executable, "-m", "ecompute", "--config", host.directory / "compute.yaml", "check"],
        env={**os.environ, "PATH": str(programs)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 1
    (line,) = [line for line in checked.stdout.splitlines() if "not on PATH" in line]
    assert program in line and f"apt-get install {NEEDED[program]}" in line
    host.start(programs=programs)
    failed = cluster.launch_idle(host=host, wait=False)
    cluster.wait_state(failed.uuid, "error")
    error = cluster.show(failed.uuid)["error"]
    assert error == f"the program {program} is missing; install the package {NEEDED[program]}"
    cluster.agree()
    (programs / program).symlink_to(str(shutil.which(program)))
    well = cluster.launch_idle(host=host)
    cluster.agree()
    cluster.destroy(failed.uuid, well.uuid)
    cluster.agree()


def test_a_network_whose_dnsmasq_cannot_be_started_again_says_so_once_and_comes_up_when_it_can(
    cluster: Cluster, programs: Path
) -> None:
    host = cluster.hosts[0]
    guest = cluster.launch_idle(host=host)
    cluster.agree()
    host.restart(programs=programs)
    (programs / "dnsmasq").unlink()
    said = len(host.log)
    (pid,) = host.run("pgrep", "-f", f"dnsmasq --conf-file={host.state}/").stdout.split()
    subprocess.run(["kill", "-9", pid], check=True)
    wait_for(lambda: "the program dnsmasq is missing" in host.log[said:], what="it says what it lacks")
    (programs / "dnsmasq").symlink_to(str(shutil.which("dnsmasq")))
    wait_for(lambda: "is served again" in host.log[said:], what="it says that it lacks it no more")
    assert host.log[said:].count("the program dnsmasq is missing") == 1
    cluster.agree()
    cluster.destroy(guest.uuid)
    host.restart()
