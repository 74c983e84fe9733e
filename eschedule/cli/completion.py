"""``eschedule completion``, and the names of instances that a shell completes.

Only a name of an instance asks etcd, and only then is anything heavy loaded. Whatever goes wrong,
nothing is offered and nothing said: a shell in the middle of a line is no place for an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from eschedule.cli.settings import NAMESPACE, Settings

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

TIMEOUT_S = 0.8
"""Of etcd's answer. A person waits for it with a finger on the key."""

LIMIT = 200


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the completion script of SHELL.

    It completes commands, options, formats, and the names of instances, hosts, zones, groups and pools.

    \b
    Example:  eschedule completion bash > /etc/bash_completion.d/eschedule
              eschedule completion zsh  > /usr/local/share/zsh/site-functions/_eschedule
              eschedule completion fish > ~/.config/fish/completions/eschedule.fish
    """
    from click.shell_completion import get_completion_class

    from ecompute.cluster.terminal import put
    from eschedule.cli.main import COMPLETE_VARIABLE, PROGRAM

    kind = get_completion_class(shell)
    assert kind is not None, "every choice is a shell that click knows"
    # Not `source()`, which for bash starts the bash of this machine to look at its version.
    made = kind(context.find_root().command, {}, PROGRAM, COMPLETE_VARIABLE)
    put(kind.source_template % made.source_vars())
    return 0


def complete_instance(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names that begin with ``incomplete``; the uuids, where no name does."""
    return _items(context, incomplete, _known)


def complete_group(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of groups that begin with ``incomplete``."""
    return _items(context, incomplete, _groups)


def complete_floating(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the floating addresses that begin with ``incomplete``."""
    return _items(context, incomplete, _floating)


def complete_pool(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of pools that begin with ``incomplete``."""
    return _items(context, incomplete, _pools)


def complete_network(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of networks that begin with ``incomplete``."""
    return _items(context, incomplete, _networks)


def complete_interface(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the uuids of the interfaces of the instance that stands before it."""
    instance = context.params.get("instance")

    def known(settings: Settings, beginning: str) -> list[str]:
        return [] if instance is None else _interfaces(settings, instance, beginning)

    return _items(context, incomplete, known)


def _items(
    context: click.Context, incomplete: str, known: Callable[[Settings, str], list[str]]
) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    options = context.find_root().params
    settings = Settings(options.get("config"), options.get("namespace") or NAMESPACE)
    try:
        return [CompletionItem(word) for word in known(settings, incomplete)]
    except Exception:  # noqa: BLE001 - see above
        return []


def complete_host(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of hosts that begin with ``incomplete``."""
    return _items(context, incomplete, _hosts)


def complete_zone(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of zones that begin with ``incomplete``."""
    return _items(context, incomplete, _zones)


def complete_limited(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the namespaces with a limit that begin with ``incomplete``."""
    return _items(context, incomplete, _limited)


def _known(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.references import beginning_with

        return beginning_with(cloud.store, incomplete, settings.namespace, limit=LIMIT)


def _groups(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.groups import Groups

        return Groups(cloud).names(settings.namespace, incomplete, limit=LIMIT)


def _floating(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.floating import FloatingAddresses

        return FloatingAddresses(cloud).addresses(settings.namespace, incomplete, limit=LIMIT)


def _pools(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.pools import Pools

        return Pools(cloud).names(incomplete, limit=LIMIT)


def _networks(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.networks import Networks

        return Networks.of(cloud).names(settings.namespace, incomplete, limit=LIMIT)


def _hosts(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.hosts import Hosts

        return _beginning(Hosts(cloud).names().values(), incomplete)


def _zones(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.zones import Zones

        return _beginning((zone.name for zone in Zones(cloud).all()), incomplete)


def _limited(settings: Settings, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.quotas import Quotas

        return _beginning(Quotas(cloud).namespaces(), incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})[:LIMIT]


def _interfaces(settings: Settings, instance: str, incomplete: str) -> list[str]:
    with settings.cloud(store_timeout_s=TIMEOUT_S) as cloud:
        from eschedule.cloud.references import find_within

        found = find_within(cloud.store, instance, settings.namespace).value
        return [interface.uuid for interface in found.with_ports if interface.uuid.startswith(incomplete.lower())]
