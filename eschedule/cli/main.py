"""The ``eschedule`` command and its old grammar.

    eschedule 'resources=VCPU:1,DISK_GB:1,MEMORY_MB:256' [IMAGE]     launch, print the target, end
    eschedule UUID                                                   the guest's address
    eschedule destroy UUID                                           silent

are what scripts of the first etcd-compute say, and mean here what they meant there; what they print
and how they exit is `eschedule.cli.classic`. All other verbs are commands, one module a noun.

Loads click and nothing heavy: a command's module is loaded when the command runs, or when its help
is asked for; ``--help`` of the whole needs the one line that stands here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

COMMANDS: dict[str, tuple[str, str]] = {
    "launch": ("eschedule.cli.launch:launch", "Launch an instance."),
    "list": ("eschedule.cli.instance:list_", "List instances."),
    "show": ("eschedule.cli.instance:show", "Show one instance."),
    "wait": ("eschedule.cli.instance:wait", "Wait until an instance runs, or has failed."),
    "destroy": ("eschedule.cli.instance:destroy", "Destroy instances."),
    "console": ("eschedule.cli.console:console", "Show what a guest wrote on its serial console."),
    "events": ("eschedule.cli.event:events", "Show what happened to an instance."),
    "doctor": ("eschedule.cli.doctor:doctor", "Say where an instance stands, and what it waits for."),
    "hosts": ("eschedule.cli.host:hosts", "List the hosts and their room."),
    "completion": ("eschedule.cli.completion:completion", "Print the completion script of a shell."),
}
"""Name → where it is, and its line in the help."""

HIDDEN = {
    "classic-launch": "eschedule.cli.classic:launch",
    "classic-address": "eschedule.cli.classic:address",
}


class Settings:
    """What the options before the command say."""

    def __init__(self, config: Path | None, namespace: str) -> None:
        self.config = config
        self.namespace = namespace


class Commands(click.Group):
    """A group whose commands are loaded when they are needed, and which knows the old grammar."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in HIDDEN:
            return _load(HIDDEN[cmd_name])
        return _load(COMMANDS[cmd_name][0]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            if "=" in args[0]:
                return "", _load(HIDDEN["classic-launch"]), args
            if _is_uuid(args[0]):
                return "", _load(HIDDEN["classic-address"]), args
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=Commands, context_settings=CONTEXT, subcommand_metavar="COMMAND | QUERY [IMAGE] | UUID")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="ECOMPUTE_CONFIG",
    help="The configuration; otherwise ./compute.yaml, then /etc/ecompute/compute.yaml, if there.",
)
@click.option(
    "--namespace", envvar="ECOMPUTE_NAMESPACE", default="system", show_default=True, help="Whose instances are meant."
)
@click.version_option(package_name="etcd-compute", prog_name="eschedule")
@click.pass_context
def cli(context: click.Context, config: Path | None, namespace: str) -> None:
    """Ask the cloud for virtual machines.

    \b
    Launch one and wait for it:  eschedule launch --name web-1 --ssh-key ~/.ssh/id_ed25519.pub --wait
    See it:                      eschedule list; eschedule show web-1; eschedule console web-1
    Why is it not there yet?     eschedule doctor web-1
    Remove it:                   eschedule destroy web-1

    A placement query alone launches too, and a uuid alone prints the address, as they always did:

    \b
    eschedule 'resources=VCPU:1,DISK_GB:1,MEMORY_MB:256' https://images.example/small.qcow2
    """
    context.obj = Settings(config, namespace)


def main() -> None:
    """The console script: an error is one line on standard error, and the exit status 1 or 2."""
    from ecompute.cluster.errors import CloudError, InvalidConfig

    try:
        status = cli(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InvalidConfig as error:
        for problem in error.problems:
            click.echo(f"{error.path}: {problem}", err=True)
        sys.exit(error.exit_status)
    except CloudError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _load(where: str) -> click.Command:
    module, name = where.split(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    return command


def _is_uuid(text: str) -> bool:
    from uuid import UUID

    try:
        UUID(text)
    except ValueError:
        return False
    return len(text) == 36
