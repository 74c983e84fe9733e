"""``eschedule events``."""

from __future__ import annotations

import click

from eschedule.cli.main import Settings
from eschedule.cli.output import FORMATS, show_rows

COLUMNS = ("at", "writer", "type", "message", "seconds")


@click.command()
@click.argument("instance")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C, or until the instance is gone.")
@click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="The format.")
@click.pass_obj
def events(settings: Settings, instance: str, follow: bool, output: str) -> int:
    """Show what happened to an instance, oldest first.

    Each writer keeps its last 32 events of an instance; they go with it.

    \b
    Example:  eschedule events -f web-1
    """
    import msgspec

    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.hosts import Hosts
    from eschedule.cloud.instances import Instances

    cloud = Cloud.from_file(settings.config)
    try:
        instances = Instances(cloud)
        found = instances.find(instance, settings.namespace).value
        names = Hosts(cloud).names()
        rows = [
            {**msgspec.to_builtins(e), "writer": names.get(e.writer, e.writer)} for e in instances.events(found.uuid)
        ]
        if not follow:
            show_rows(rows, output, columns=COLUMNS, name="type")
            return 0
        try:
            for event in instances.follow_events(found.uuid):
                writer = names.get(event.writer, event.writer)
                if output == "json":
                    click.echo(msgspec.json.encode({**msgspec.to_builtins(event), "writer": writer}).decode())
                else:
                    took = f" ({event.seconds:.1f} s)" if event.seconds is not None else ""
                    click.echo(f"{event.at}  {writer}  {event.type}  {event.message}{took}")
        except KeyboardInterrupt:
            return 130
        return 0
    finally:
        cloud.close()
