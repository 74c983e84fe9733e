"""``eschedule console``."""

from __future__ import annotations

import click

from ecompute.cluster.terminal import printable, put
from eschedule.cli.parameters import instance_argument
from eschedule.cli.settings import Settings

ANSWER_TIMEOUT_S = 10.0
LIMIT_BYTES = 65536


@click.command()
@instance_argument
@click.option("--log", "is_log", is_flag=True, default=True, help="What the guest wrote so far (the default).")
@click.option(
    "--bytes",
    "limit_bytes",
    type=click.IntRange(1, LIMIT_BYTES),
    default=LIMIT_BYTES,
    show_default=True,
    help="At most so many, from the end.",
)
@click.pass_obj
def console(settings: Settings, instance: str, is_log: bool, limit_bytes: int) -> int:
    """Show the end of what a guest wrote on its serial console.

    What could command a terminal is shown as �, not sent to it.

    \b
    Example:  eschedule console --log web-1
    """
    assert is_log, "there is no other way yet"
    with settings.cloud() as cloud:
        from eschedule.cloud.consoles import console_log
        from eschedule.cloud.instances import Instances

        found = Instances(cloud).find(instance, settings.namespace)
        text = console_log(cloud, found.value, limit_bytes=limit_bytes, timeout_s=ANSWER_TIMEOUT_S)
    text = printable(text.replace("\r", ""), keep="\n\t")
    if text:
        put(text, end="" if text.endswith("\n") else "\n")
    return 0
