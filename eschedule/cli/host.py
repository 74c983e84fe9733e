"""``eschedule hosts``."""

from __future__ import annotations

import click

from eschedule.cli.main import Settings
from eschedule.cli.output import format_option, show_rows

COLUMNS = ("name", "state", "vcpus", "memory_mb", "disk_gb", "accelerator", "underlay", "uuid")


@click.command()
@format_option
@click.pass_obj
def hosts(settings: Settings, output: str) -> int:
    """List the hosts, their state, and how much of each resource is used.

    \b
    Example:  eschedule hosts
    """
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.hosts import Hosts

    cloud = Cloud.from_file(settings.config)
    rows = []
    try:
        for host in Hosts(cloud).all():
            used = {
                column: f"{host.room[name].used}/{host.room[name].capacity}" if name in host.room else None
                for column, name in (("vcpus", "VCPU"), ("memory_mb", "MEMORY_MB"), ("disk_gb", "DISK_GB"))
            }
            rows.append(
                {
                    "name": host.node.name,
                    "uuid": host.node.provider,
                    "state": host.state,
                    **used,
                    "accelerator": host.node.accelerator,
                    "underlay": host.node.underlay,
                    "hypervisor": host.node.hypervisor,
                    "version": host.node.version,
                    "hold": host.node.hold,
                }
            )
    finally:
        cloud.close()
    if not rows and output == "table":
        click.echo("no host has registered; `ecompute run` on a machine makes it one", err=True)
        return 0
    show_rows(rows, output, columns=COLUMNS)
    for row in rows if output == "table" else ():
        if row["hold"]:
            click.echo(f"{row['name']} is on hold: {row['hold']}", err=True)
    return 0
