"""Parameters that several commands have.

Loads click alone; what it needs of the cloud is loaded when a name is completed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from eschedule.cli.completion import complete_instance

F = TypeVar("F", bound=Callable[..., Any])


def instance_argument(command: F) -> F:
    """Add ``INSTANCE``: a name, a uuid, or the beginning of a uuid."""
    return click.argument("instance", shell_complete=complete_instance)(command)


def instances_argument(command: F) -> F:
    """Add one or more ``INSTANCE``."""
    return click.argument("instance", nargs=-1, required=True, shell_complete=complete_instance)(command)


def interface_options(command: F) -> F:
    """Add ``--interface`` and ``--network``: which of an instance's interfaces is meant."""
    command = click.option("--network", metavar="NETWORK", help="Its interface on this one, where it has several.")(
        command
    )
    return click.option("--interface", metavar="UUID", help="This one of its interfaces.")(command)


def timeout_option(default_s: float) -> Callable[[F], F]:
    """Add ``--timeout``, which may be ``inf``."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=float,
        callback=_check_seconds,
        metavar="SECONDS",
        default=default_s,
        show_default=f"{default_s:g}",
        help="How long to wait at most.",
    )


def _check_seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value) or value < 0:
        raise click.BadParameter(f"{value:g} is not a time to wait", context, parameter)
    return value
