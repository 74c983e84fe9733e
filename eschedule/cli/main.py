"""The ``eschedule`` command and its old grammar.

    eschedule 'resources=VCPU:1,DISK_GB:1,MEMORY_MB:256' [IMAGE]     launch, print the target, end
    eschedule UUID                                                   the guest's address
    eschedule destroy UUID                                           silent

are what scripts of the first etcd-compute say, and mean here what they meant there; what they print
and how they exit is `eschedule.cli.classic`. All other verbs are commands, one module a noun.

Loads click and nothing heavy: a command's module is loaded when the command runs, or when its help
is asked for; ``--help`` and completion of the whole need the one line that stands here.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ecompute import __version__
from ecompute.cluster.errors import InvalidInput
from ecompute.cluster.terminal import guarded, leave, put, usage_error
from eschedule.cli.settings import NAMESPACE, Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM = "eschedule"
COMPLETE_VARIABLE = "_ESCHEDULE_COMPLETE"
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

COMMANDS: dict[str, tuple[str, str]] = {
    "launch": ("eschedule.cli.launch:launch", "Launch an instance."),
    "list": ("eschedule.cli.instance:list_", "List instances."),
    "show": ("eschedule.cli.instance:show", "Show one instance."),
    "wait": ("eschedule.cli.lifecycle:wait", "Wait until an instance runs, or has failed."),
    "destroy": ("eschedule.cli.lifecycle:destroy", "Destroy instances."),
    "extend": ("eschedule.cli.lifecycle:extend", "Change when an instance expires."),
    "console": ("eschedule.cli.console:console", "Show what a guest wrote on its serial console."),
    "events": ("eschedule.cli.event:events", "Show what happened to an instance."),
    "doctor": ("eschedule.cli.doctor:doctor", "Say where an instance stands, and what it waits for."),
    "explain": ("eschedule.cli.explain:explain", "Say of every host why it could not serve a query."),
    "capacity": ("eschedule.cli.capacity:capacity", "Say how many more instances would fit."),
    "audit": ("eschedule.cli.audit:audit", "Compare placement, etcd and the hosts, and repair."),
    "host": ("eschedule.cli.host:host", "See and keep the hosts: drain, activate, set, enrol."),
    "hosts": ("eschedule.cli.host:hosts", "List the hosts and their room."),
    "network": ("eschedule.cli.network:network", "Make networks, and see what is on them."),
    "interface": ("eschedule.cli.interface:interface", "See and change an instance's interfaces."),
    "floating": ("eschedule.cli.floating:floating", "Give instances addresses of the outside."),
    "group": ("eschedule.cli.group:group", "Keep instances together, or apart."),
    "quota": ("eschedule.cli.quota:quota", "Limit what a namespace may use."),
    "completion": ("eschedule.cli.completion:completion", "Print the completion script of a shell."),
}
"""Name → where it is, and its line in the help."""

CLASSIC_LAUNCH = "eschedule.cli.classic:launch"
CLASSIC_ADDRESS = "eschedule.cli.classic:address"


class Commands(click.Group):
    """A group whose commands are loaded when they are needed, and which knows the old grammar."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(COMMANDS[cmd_name][0]) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if ctx.resilient_parsing or args[0] in COMMANDS or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        where = classic(args[0])
        if where is None:
            raise _no_such_command(args[0])
        return "", _load(where), args

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=Commands, context_settings=CONTEXT, subcommand_metavar="COMMAND | QUERY [IMAGE] | UUID")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="ECOMPUTE_CONFIG",
    help="The configuration; otherwise ./compute.yaml, then /etc/ecompute/compute.yaml, if there.",
)
@click.option(
    "--namespace", envvar="ECOMPUTE_NAMESPACE", default=NAMESPACE, show_default=True, help="Whose instances are meant."
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(context: click.Context, config: Path | None, namespace: str) -> None:
    """Ask the cloud for virtual machines.

    \b
    Launch one and wait for it:  eschedule launch --name web-1 --ssh-key ~/.ssh/id_ed25519.pub --wait
    See it:                      eschedule list; eschedule show web-1; eschedule console web-1
    Why is it not there yet?     eschedule doctor web-1
    Remove it:                   eschedule destroy web-1

    An INSTANCE is a name, a uuid, or the beginning of a uuid. Where no --config is given, the
    environment's ECOMPUTE_CONFIG is taken, and ECOMPUTE_NAMESPACE for --namespace.

    A placement query alone launches too, and a uuid alone prints the address, as they always did:

    \b
    eschedule 'resources=VCPU:1,DISK_GB:1,MEMORY_MB:256' https://images.example/small.qcow2
    """
    context.obj = Settings(config, namespace)


def classic(word: str) -> str | None:
    """Return the command that ``word`` means in the old grammar, or ``None``: it is a verb of today."""
    if word in COMMANDS:
        return None
    if "=" in word and not word.startswith("-"):
        return CLASSIC_LAUNCH
    return CLASSIC_ADDRESS if _is_uuid(word) else None


def main() -> None:
    """The console script: an error is one line on standard error, and the exit status 1 or 2."""
    leave(guarded(_run))


def _run() -> int:
    try:
        status = cli.main(
            sys.argv[1:] or ["--help"], prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, standalone_mode=False
        )
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.exceptions.NoArgsIsHelpError as error:
        put(error.ctx.get_help() if error.ctx is not None else "")
        return 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        raise usage_error(error.format_message(), PROGRAM if context is None else context.command_path) from error
    return status if isinstance(status, int) else 0


def _no_such_command(word: str) -> InvalidInput:
    from difflib import get_close_matches

    near = get_close_matches(word, COMMANDS, n=1)
    return InvalidInput(
        f"there is no command {word[:80]!r}",
        hint=f"did you mean `{PROGRAM} {near[0]}`?" if near else f"see `{PROGRAM} --help`",
    )


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
