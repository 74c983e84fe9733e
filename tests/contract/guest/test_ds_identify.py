"""cloud-init's first look at a guest: which of its sources it then asks, and that it asks any."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ecompute.guest import metadata, nocloud
from ecompute.hypervisor.domain import ASSET_TAG

QEMU = {"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)", "product_uuid": "6f1c1b0e"}


def identify(package: Path, root: Path, *, label: str | None, asset_tag: str) -> tuple[int, str]:
    """Return the status of ``ds-identify`` and the list of sources that it writes."""
    dmi = root / "sys/class/dmi/id"
    for directory in (dmi, root / "run/cloud-init", root / "proc/1", root / "etc/cloud", root / "usr/lib/cloud-init"):
        directory.mkdir(parents=True)
    for name, text in {**QEMU, "chassis_asset_tag": asset_tag}.items():
        (dmi / name).write_text(text + "\n")
    (root / "proc/cmdline").write_text("ro quiet\n")
    (root / "proc/uptime").write_text("1.0 1.0\n")
    (root / "proc/1/environ").write_text("")
    programs = root / "bin"
    programs.mkdir()
    found = "" if label is None else f"DEVNAME=/dev/vdb\nLABEL={label}\nTYPE=iso9660\nUUID=2020-01-01-00-00-00-00\n"
    for name, said in {"blkid": found, "systemd-detect-virt": "kvm\n"}.items():
        (programs / name).write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["sh", package / "usr/lib/cloud-init/ds-identify", "--force"],
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PATH_ROOT": str(root),
            "DI_UNAME_MACHINE": "x86_64",
            "DI_LOG": str(root / "log"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    written = root / "run/cloud-init/cloud.cfg"
    return done.returncode, written.read_text() if written.exists() else ""


def test_a_guest_without_a_drive_asks_the_metadata_service(cloud_init_package: Path, tmp_path: Path) -> None:
    status, written = identify(cloud_init_package, tmp_path, label=None, asset_tag=ASSET_TAG)
    assert status == 0
    assert "datasource_list: [ OpenStack, None ]" in written


def test_without_our_mark_it_would_ask_nobody(cloud_init_package: Path, tmp_path: Path) -> None:
    status, written = identify(cloud_init_package, tmp_path, label=None, asset_tag="")
    assert status == 1
    assert "notfound=disabled" in written


@pytest.mark.parametrize(("label", "source"), [(metadata.LABEL, "ConfigDrive"), (nocloud.LABEL, "NoCloud")])
def test_a_drive_is_read_first(cloud_init_package: Path, tmp_path: Path, label: str, source: str) -> None:
    status, written = identify(cloud_init_package, tmp_path, label=label, asset_tag=ASSET_TAG)
    assert status == 0
    assert f"datasource_list: [ {source}, " in written
