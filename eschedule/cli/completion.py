"""``eschedule completion``."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the completion script of SHELL.

    \b
    Example:  eschedule completion bash > /etc/bash_completion.d/eschedule
    """
    from click.shell_completion import get_completion_class

    root = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, "eschedule", "_ESCHEDULE_COMPLETE").source())
    return 0
