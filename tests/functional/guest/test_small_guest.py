"""A guest boots from the small image, reads the drive that we wrote, and says so on its console."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ecompute.cluster.documents import Assignment, Interface, Resources, Role, Secrets, Spec
from ecompute.guest import configdrive, metadata

# The script runs from the drive; to mount it anew by its Joliet names it first has to get off it.
READ_AGAIN_BY_JOLIET = """#!/bin/sh
[ "$0" = /again ] || { cp "$0" /again; exec sh /again; }
umount /config && mount -t iso9660 -o ro,norock /dev/vdb /config && cd /config
find openstack -type f -exec sha256sum {} +
exit 7
"""
NO_NETWORK = ("-nic", "none")


def document(number: int, user_data: str | None, **changes: object) -> tuple[Assignment, Secrets]:
    fields: dict[str, object] = {
        "uuid": f"0b9d2c52-7a35-4f3e-9c44-3f0f6f6f000{number}",
        "network_uuid": "77a5f0c4-1f7e-4b77-a7fc-2b8b5a3d0001",
        "vni": 4711,
        "mac": f"52:54:00:12:34:0{number}",
        "addresses": (f"10.10.0.{number}/24",),
        "mtu": 1450,
    }
    spec = Spec(
        resources=Resources(vcpus=1, memory_mb=128, disk_gb=1),
        image="/x",
        ssh_keys=("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here", "ssh-rsa AAAA a\nguest: forged"),
        has_user_data=user_data is not None,
        interfaces=(Interface(**{**fields, **changes}),),  # type: ignore[arg-type]
    )
    asked = Assignment(
        uuid=f"6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a0{number}",
        namespace="system",
        name=f"Büro {number}\nguest: forged",
        role=Role.RUN,
        generation=1,
        epoch=1,
        spec=spec,
    )
    return asked, Secrets(user_data=user_data)


USER = "user,restrict=on,ipv6=off"
"""QEMU's own network; its router, which would advertise itself to a guest sooner or later, is off."""


def device(number: int, backend: str) -> tuple[str, ...]:
    return "-netdev", f"{backend},id=n", "-device", f"virtio-net-pci,netdev=n,mac=52:54:00:12:34:0{number},romfile="


def test_a_guest_says_what_the_drive_says_and_obeys_the_power_button(boot: Callable, tmp_path: Path) -> None:
    files = metadata.documents(
        *document(
            1,
            READ_AGAIN_BY_JOLIET,
            addresses=("10.10.0.5/24", "fd00:10::5/64"),
            gateway="10.10.0.1",
            nameservers=("10.10.0.2",),
        )
    )
    configdrive.write(tmp_path / "drive", files)
    guest = boot(tmp_path / "drive", device(1, USER))
    lines = guest.wait_for("guest: user-data exit 7")

    assert [line for line in lines if line.startswith("guest: ")] == [
        "guest: name Büro 1 guest: forged",
        "guest: hostname b-ro-1-guest-forged",
        "guest: uuid 6f1c1b0e-51f0-4d0e-8f0a-0d6a1f0f5a01",
        "guest: project system",
        "guest: interface eth0 52:54:00:12:34:01 mtu 1450",
        "guest: address 10.10.0.5/24",
        "guest: address fd00:10::5/64",
        "guest: gateway 10.10.0.1",
        "guest: nameserver 10.10.0.2",
        "guest: key ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@here",
        "guest: key ssh-rsa AAAA a guest: forged",
        "guest: booted",
        "guest: user-data exit 7",
    ]
    sums = {f"{hashlib.sha256(data).hexdigest()}  {path}" for path, data in files.items()}
    assert sums <= set(lines)

    guest.press_power_button()
    assert guest.child.wait(30), "the guest does not power off"
    assert "guest: powering off" in guest.lines()


def test_a_guest_without_a_drive_asks_dhcp_and_the_metadata_service(boot: Callable) -> None:
    lines = boot(None, device(1, f"{USER},net=10.77.0.0/24,dhcpstart=10.77.0.9")).wait_for("guest: booted")
    assert lines == [
        "guest: no config drive",
        "guest: interface eth0 52:54:00:12:34:01 mtu 1500",
        "guest: address 10.77.0.9/24",
        "guest: no metadata service",
        "guest: booted",
    ]


def test_an_interface_without_addresses_asks_dhcp_and_plain_user_data_is_not_run(
    boot: Callable, tmp_path: Path
) -> None:
    configdrive.write(tmp_path / "drive", metadata.documents(*document(1, "#cloud-config\n", addresses=())))
    guest = boot(tmp_path / "drive", device(1, f"{USER},net=10.77.0.0/24,dhcpstart=10.77.0.9"))
    lines = guest.wait_for("guest: user-data 14 bytes")
    assert "guest: address 10.77.0.9/24" in lines
    assert not [line for line in lines if line.startswith("guest: problem")]


def test_an_interface_that_is_not_there_is_a_problem_that_is_named(boot: Callable, tmp_path: Path) -> None:
    configdrive.write(tmp_path / "drive", metadata.documents(*document(1, None)))
    lines = boot(tmp_path / "drive", NO_NETWORK).wait_for("guest: booted")
    assert "guest: problem: no interface has 52:54:00:12:34:01" in lines


def test_two_guests_reach_each_other(boot: Callable, tmp_path: Path) -> None:
    wait_and_ping = "#!/bin/sh\nuntil ping -c 1 -W 1 10.10.0.2 > /dev/null; do :; done\nping -c 3 10.10.0.2\n"
    guests = {}
    for number, other, script in ((1, 2, wait_and_ping), (2, 1, None)):
        drive = tmp_path / f"drive-{number}"
        configdrive.write(drive, metadata.documents(*document(number, script)))
        wire = f"dgram,local.type=unix,local.path={tmp_path}/w{number},remote.type=unix,remote.path={tmp_path}/w{other}"
        guests[number] = boot(drive, device(number, wire))
    lines = guests[1].wait_for("guest: user-data exit 0")
    assert "3 packets transmitted, 3 packets received, 0% packet loss" in lines
