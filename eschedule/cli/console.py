"""``eschedule console``."""

from __future__ import annotations

import click

from eschedule.cli.main import Settings

ANSWER_TIMEOUT_S = 10.0


@click.command()
@click.argument("instance")
@click.option("--log", "is_log", is_flag=True, default=True, help="What the guest wrote so far (the default).")
@click.option(
    "--bytes", "limit_bytes", type=click.IntRange(1, 65536), default=65536, show_default=True, help="At most."
)
@click.pass_obj
def console(settings: Settings, instance: str, is_log: bool, limit_bytes: int) -> int:
    """Show the end of what a guest wrote on its serial console.

    \b
    Example:  eschedule console --log web-1
    """
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.consoles import console_log
    from eschedule.cloud.instances import Instances

    cloud = Cloud.from_file(settings.config)
    try:
        found = Instances(cloud).find(instance, settings.namespace)
        text = console_log(cloud, found.value, limit_bytes=limit_bytes, timeout_s=ANSWER_TIMEOUT_S)
    finally:
        cloud.close()
    # A guest may write anything: what could command a terminal is shown, not sent.
    click.echo("".join(c if c.isprintable() or c in "\n\t" else ("" if c == "\r" else "�") for c in text), nl=False)
    return 0
