"""``eschedule hosts`` and ``eschedule host …``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import say
from eschedule.cli.enrol import enrol, revoke
from eschedule.cli.output import format_option, show_rows
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.cloud.hosts import HostView

CLASSES = (("vcpus", "VCPU"), ("memory_mb", "MEMORY_MB"), ("disk_gb", "DISK_GB"))
FIELDS = (
    "name",
    "uuid",
    "state",
    *(field for column, _ in CLASSES for field in (column, f"{column}_used")),
    "accelerator",
    "underlay",
    "hypervisor",
    "version",
    "hold",
)
COLUMNS = ("name", "state", *(column for column, _ in CLASSES), "accelerator", "underlay", "uuid")


def describe(host: HostView) -> dict[str, Any]:
    """Return one host as all formats show it: `FIELDS`, in order. Capacities are what may be claimed in all."""
    row: dict[str, Any] = {"name": host.node.name, "uuid": host.node.provider, "state": host.state}
    for column, resource_class in CLASSES:
        room = host.room.get(resource_class)
        row[column] = None if room is None else room.capacity
        row[f"{column}_used"] = None if room is None else room.used
    return row | {
        "accelerator": host.node.accelerator,
        "underlay": host.node.underlay,
        "hypervisor": host.node.hypervisor,
        "version": host.node.version,
        "hold": host.node.hold,
    }


@click.group()
def host() -> None:
    """Look after one host.

    \b
    Example:  eschedule host enrol host-1 --ca ca
    """


host.add_command(enrol)
host.add_command(revoke)


@click.command()
@format_option
@click.pass_obj
def hosts(settings: Settings, output: str) -> int:
    """List the hosts: their state, and how much of each resource is used, of how much.

    A host is up, down (its daemon does not answer), draining, in maintenance, or on hold (the data
    in etcd is not what it knew; see its log).

    \b
    Example:  eschedule hosts
              eschedule hosts -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts

        rows = [describe(host) for host in Hosts(cloud).all()]
    if output != "table":
        show_rows(rows, output, fields=FIELDS, columns=COLUMNS)
        return 0
    if not rows:
        say("no host has registered; `ecompute run` on a machine makes it one")
        return 0
    show_rows([row | _for_people(row) for row in rows], output, fields=FIELDS, columns=COLUMNS)
    for row in rows:
        if row["hold"]:
            say(f"{row['name']} is on hold: {row['hold']}")
    return 0


def _for_people(row: dict[str, Any]) -> dict[str, str]:
    return {
        column: f"{row[f'{column}_used']}/{row[column]}" if row[column] is not None else "" for column, _ in CLASSES
    }
