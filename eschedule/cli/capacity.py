"""``eschedule capacity``."""

from __future__ import annotations

import click

from eschedule.cli.output import format_option, show_rows
from eschedule.cli.settings import Settings

SMALL = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
FIELDS = ("fits", "best_host", "on_best", "hosts_with_room", "hosts", "like")
COLUMNS = ("fits", "best_host", "on_best", "hosts_with_room", "hosts")


@click.command()
@click.option("--like", default=SMALL, show_default=True, metavar="QUERY", help="What is to fit, as for `launch`.")
@format_option
@click.pass_obj
def capacity(settings: Settings, like: str, output: str) -> int:
    """Say how many more instances would fit: on all hosts, and on the one that takes the most.

    Instances that others launch meanwhile take from it, and limits of a namespace are not counted.

    \b
    Example:  eschedule capacity --like 'resources=VCPU:4,MEMORY_MB:8192,DISK_GB:40'
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.explain import look

        found = look(cloud, like)
        fits = found.capacity()
    row = {
        "fits": fits.total,
        "best_host": None if fits.best is None else fits.best.name,
        "on_best": fits.on_best,
        "hosts_with_room": fits.hosts_with_room,
        "hosts": len(found.hosts),
        "like": like,
    }
    if output in ("json", "yaml"):
        from eschedule.cli.output import show_one

        show_one(row, output, name="fits")
    else:
        show_rows([row], output, fields=FIELDS, columns=COLUMNS, name="fits")
    return 0
