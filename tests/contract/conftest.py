"""cloud-init's own code, from its Debian package: fetched and unpacked for the tests, never installed.

Installing it would pull in twenty packages and enable boot services on the machine. Its dependencies
come from PyPI with the ``dev`` extra.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "cloud-init"
FETCH_TIMEOUT_S = 120


@pytest.fixture(scope="session")
def cloud_init_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of what is in the package."""
    package_tree = CACHE / "package"
    if not package_tree.exists():
        scratch = tmp_path_factory.mktemp("cloud-init")
        run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "cloud-init"], scratch)
        (package,) = scratch.glob("cloud-init_*.deb")
        run(["dpkg-deb", "-x", str(package), "unpacked"], scratch)
        CACHE.mkdir(parents=True, exist_ok=True)
        # Another run may have been faster; then its tree is as good.
        beside = CACHE / f"package.{os.getpid()}"
        shutil.copytree(scratch / "unpacked", beside, symlinks=True)
        try:
            beside.rename(package_tree)
        except OSError:
            shutil.rmtree(beside)
    return package_tree


@pytest.fixture(scope="session")
def cloud_init(cloud_init_package: Path) -> Path:
    """The directory of cloud-init's Python packages, to be put on the path of another process."""
    return cloud_init_package / "usr/lib/python3/dist-packages"


def run(arguments: list[str], directory: Path) -> None:
    done = subprocess.run(arguments, cwd=directory, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    if done.returncode != 0:
        pytest.fail(
            f"cloud-init's package cannot be had, so that it cannot read what we write: {' '.join(arguments)}: "
            f"{done.stderr.strip()} (`apt-get update` may help)",
            pytrace=False,
        )
