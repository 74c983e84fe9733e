"""``eschedule events``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import INTERRUPTED, say
from eschedule.cli.output import Row, Stream, format_option, show_rows
from eschedule.cli.parameters import instance_argument
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from ecompute.cluster.documents import Event

FIELDS = ("at", "writer", "type", "message", "seconds", "n")
COLUMNS = ("at", "writer", "type", "seconds", "message")


def describe(event: Event, hosts: dict[str, str]) -> dict[str, Any]:
    """Return one event as all formats show it: `FIELDS`, in order.

    Args:
        hosts: {provider: host name}.
    """
    return {
        "at": event.at,
        "writer": hosts.get(event.writer, event.writer),
        "type": event.type,
        "message": event.message,
        "seconds": event.seconds,
        "n": event.n,
    }


@click.command()
@instance_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C, or until the instance is gone.")
@format_option
@click.pass_obj
def events(settings: Settings, instance: str, follow: bool, output: str) -> int:
    """Show what happened to an instance, oldest first.

    Each writer keeps its last 32 events of an instance; they go with it. Followed, json is one
    object a line.

    \b
    Example:  eschedule events web-1
              eschedule events -f web-1
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts
        from eschedule.cloud.instances import Instances

        instances = Instances(cloud)
        found = instances.find(instance, settings.namespace).value
        hosts = Hosts(cloud).names()
        if not follow:
            rows = [describe(event, hosts) for event in instances.events(found)]
            show_rows(rows, output, fields=FIELDS, columns=COLUMNS, name="type")
            return 0
        stream = Stream(output, fields=FIELDS, name="type", line=_line)
        try:
            for event in instances.follow_events(found):
                stream.show(describe(event, hosts))
        except KeyboardInterrupt:
            return INTERRUPTED
        say(f"{found.name} is gone")
    return 0


def _line(row: Row) -> str:
    took = f" ({row['seconds']:.1f} s)" if row["seconds"] is not None else ""
    return f"{row['at']}  {row['writer']}  {row['type']}  {row['message']}{took}"
