"""``md-server``: started by `ecompute` where guests are; by hand only to look at it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

STATE_DIR = Path("/var/lib/ecompute")


@click.command(epilog="For example: md-server --state-dir /var/lib/ecompute")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE_DIR,
    show_default=True,
    help="The state directory of ecompute on this host.",
)
@click.option("--background", is_flag=True, help="Go into the background once it works.")
@click.version_option(package_name="etcd-compute", message="%(version)s")
def main(state_dir: Path, *, background: bool) -> None:
    """Answer guests at 169.254.169.254, on sockets that ecompute hands over.

    ecompute starts it when the host has a network that needs it, starts it again if it dies, and ends it with the
    last such network. It goes on while ecompute is down.
    """
    ready = _in_background() if background else lambda: None
    from md_server.confine import confine
    from md_server.server import AlreadyRuns, Server

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
    try:
        confine()
        Server(state_dir).run(ready)
    except AlreadyRuns as error:
        click.echo(f"{error}; there is nothing to do", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"{state_dir} cannot be used: {error.strerror}; run it as the user of ecompute", err=True)
        sys.exit(1)


def _in_background() -> Callable[[], None]:
    """Go on in a child, in a session of its own; the parent ends when that says that it works, or dies.

    Before anything is imported that has threads.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        os._exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()

    def ready() -> None:
        os.write(writer, b"+")
        os.close(writer)

    return ready
