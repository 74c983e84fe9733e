"""The ``ecompute`` command: what is done on a host.

Loads click and nothing heavy until a command runs.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from ecompute import __version__
from ecompute.cluster.terminal import guarded, usage_error

PROGRAM = "ecompute"
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Settings:
    """What the options before the command say."""

    def __init__(self, config: Path | None) -> None:
        self.config = config


@click.group(context_settings=CONTEXT)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="ECOMPUTE_CONFIG",
    help="The configuration; otherwise ./compute.yaml, then /etc/ecompute/compute.yaml, if there.",
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Make this machine a host of the cloud.

    \b
    Try it all on one machine:   ecompute dev
    A host of a cluster:         ecompute check && ecompute run
    """
    context.obj = Settings(config)


@cli.command()
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.pass_obj
def run(settings: Settings, verbose: bool) -> None:
    """Run the host daemon in the foreground.

    It waits for etcd, placement and libvirt, and says so. Ctrl-C or SIGTERM ends it after the step
    in hand; guests go on running.

    \b
    Example:  ecompute --config /etc/ecompute/compute.yaml run
    """
    from ecompute.cluster import config, log
    from ecompute.daemon import Daemon

    log.configure("debug" if verbose else "info")
    daemon = Daemon(config.load(config.find(settings.config)))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: daemon.stop())
    sys.exit(daemon.run())


@cli.command(short_help="Run a whole cloud on this machine, with nothing to configure.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/ecompute-dev"),
    show_default=True,
    help="Where all state lies; the same directory brings the same cloud back.",
)
@click.option("--remove", is_flag=True, help="Remove the stopped cloud that lies there, and end.")
def dev(directory: Path, remove: bool) -> None:
    """Run a whole cloud on this machine, in the foreground, with nothing to configure.

    Starts etcd, placement, libvirt where none runs, and the host daemon. Ctrl-C stops what was
    started; guests survive it, and the next `ecompute dev` takes them back.

    \b
    Example:  ecompute dev
              eschedule --config /var/lib/ecompute-dev/compute.yaml launch --name web-1 --wait
    """
    from ecompute.dev.foreground import run_in_foreground

    directory = directory.absolute()
    if remove:
        from ecompute.dev.cloud import EmbeddedCloud

        EmbeddedCloud(directory).remove()
        return
    sys.exit(run_in_foreground(directory))


@cli.command(short_help="Run many hosts in this process, to try the cloud on.")
@click.option("--hosts", type=click.IntRange(1, 10_000), required=True, metavar="N", help="How many.")
@click.option("--prefix", default="fleet", show_default=True, help="What their names begin with.")
@click.option("--vcpus", type=click.IntRange(1, 2**31 - 1), default=64, show_default=True, help="Of each host.")
@click.option("--memory-mb", type=click.IntRange(1, 2**31 - 1), default=262_144, show_default=True, help="Of each.")
@click.option("--disk-gb", type=click.IntRange(1, 2**31 - 1), default=4096, show_default=True, help="Of each host.")
@click.option(
    "--build-s", type=click.FloatRange(0, 3600), default=0.0, show_default=True, help="How long a guest takes to start."
)
@click.option(
    "--failure-rate", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of starts that fail."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/ecompute-fleet"),
    show_default=True,
    help="Where the hosts' state lies; the same directory brings the same hosts back.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what the hosts do.")
@click.pass_obj
def fleet(
    settings: Settings,
    hosts: int,
    prefix: str,
    vcpus: int,
    memory_mb: int,
    disk_gb: int,
    build_s: float,
    failure_rate: float,
    directory: Path,
    verbose: bool,
) -> None:
    """Run many hosts in this process, in the foreground, to try the cloud on.

    They are the daemon's own code, with the etcd and placement of the configuration. Hypervisor,
    network devices, image fetch and disks are fakes: guests take no room and run nothing. Ctrl-C or
    SIGTERM reserves and ends all hosts.

    \b
    Example:  ecompute --config compute.yaml fleet --hosts 100 --build-s 2 --failure-rate 0.01
              ECOMPUTE_CONFIG=compute.yaml eschedule launch --name web-1 --wait
    """
    from ecompute.cluster import config, log
    from ecompute.fleet.fleet import FleetSettings
    from ecompute.fleet.foreground import run_in_foreground
    from ecompute.fleet.machine import Conduct

    log.configure("info" if verbose else "warning")
    wanted = FleetSettings(
        config=config.load(config.find(settings.config)),
        directory=directory.absolute(),
        hosts=hosts,
        prefix=prefix,
        vcpus=vcpus,
        memory_mb=memory_mb,
        disk_gb=disk_gb,
        conduct=Conduct(seconds={"start": build_s}, failure_rates={"start": failure_rate}),
    )
    sys.exit(run_in_foreground(wanted))


@cli.command()
@click.pass_obj
def inventory(settings: Settings) -> None:
    """Show what this host would offer to placement.

    \b
    Example:  ecompute inventory
    """
    from ecompute import inventory as inventories
    from ecompute.cluster import config

    settings_ = config.load(config.find(settings.config))
    found = inventories.inventory(inventories.measure(settings_.state_dir), settings_.inventory)
    click.echo(f"{'CLASS':<10} {'TOTAL':>10} {'RESERVED':>10} {'RATIO':>6} {'CAPACITY':>10}")
    for name, item in sorted(found.items()):
        click.echo(f"{name:<10} {item.total:>10} {item.reserved:>10} {item.allocation_ratio:>6g} {item.capacity:>10}")


@cli.command()
@click.pass_obj
def check(settings: Settings) -> None:
    """Look whether this machine can be a host, and say what it lacks.

    Changes nothing. Where etcd answers, it is asked whether this host's user may do a host's work.
    Exit status 1 when something is missing.

    \b
    Example:  ecompute check
    """
    from ecompute import access
    from ecompute.check import checks
    from ecompute.cluster import config

    is_fine = True
    settings_ = config.load(config.find(settings.config))
    for result in (*checks(settings_), *access.checks(settings_)):
        mark = "ok  " if result.problem is None else "FAIL"
        said = result.problem or result.note
        click.echo(f"{mark}  {result.name}" + (f": {said}" if said else ""))
        is_fine = is_fine and result.problem is None
    sys.exit(0 if is_fine else 1)


@cli.command(short_help="End a hold: take the data in etcd for this host's own.")
@click.confirmation_option(prompt="Have you made sure that etcd's data and this host's guests belong together?")
@click.pass_obj
def adopt(settings: Settings) -> None:
    """End a hold: take the data that etcd has now for this host's own.

    A host that finds etcd emptied, or put back to an older state, builds and removes nothing until
    an operator has decided. Stop the daemon before, start it after.

    \b
    Example:  ecompute adopt
    """
    from ecompute.cluster import config
    from ecompute.cluster.errors import NotFound
    from ecompute.cluster.store import Store
    from ecompute.daemon import StateLock
    from ecompute.hold import Hold
    from ecompute.instances.memory import Memory

    settings_ = config.load(config.find(settings.config))
    memory = settings_.state_dir / "memory"
    if not memory.is_dir():
        raise NotFound(f"no daemon has ever run on {settings_.state_dir}", hint="name its configuration with --config")
    with StateLock(settings_.state_dir / "lock"), Store(settings_.etcd) as store:
        adopted = Hold(store, Memory(memory), host="ecompute adopt").adopt()
    click.echo(f"adopted incarnation {adopted.incarnation} at revision {adopted.revision}; start the daemon again")


def main() -> None:
    """The console script: errors are one line on standard error."""
    sys.exit(guarded(_run))


def _run() -> int:
    try:
        status = cli.main(sys.argv[1:] or ["--help"], prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        raise usage_error(error.format_message(), PROGRAM if context is None else context.command_path) from error
    return status if isinstance(status, int) else 0
