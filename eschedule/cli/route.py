"""``eschedule network route | unroute``: addresses of a network that are handed on without translation."""

from __future__ import annotations

import click

from eschedule.cli.completion import complete_instance, complete_network
from eschedule.cli.output import format_option, show_one
from eschedule.cli.settings import Settings


@click.command()
@click.argument("network", shell_complete=complete_network)
@click.argument("instance", shell_complete=complete_instance)
@click.option("--address", metavar="ADDRESS", help="This one; otherwise any that is free.")
@click.option("--interface", metavar="UUID", help="To this one of its interfaces, where it has several there.")
@format_option
@click.pass_obj
def route(
    settings: Settings, network: str, instance: str, address: str | None, interface: str | None, output: str
) -> int:
    """Hand an address of a network to an instance beside its own, and show it.

    It is not translated, and not told to the guest: what answers for it there is the guest's matter,
    a container or a service that is to move.

    \b
    Example:  eschedule network route front web-1
              eschedule network route front web-1 --address 10.10.0.200
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.routes import Routes

        made = Routes(cloud).add(network, instance, settings.namespace, ip=address, interface=interface)
    row = {
        "address": made.ip,
        "network": made.network.name,
        "network_uuid": made.network.uuid,
        "instance": made.instance.name,
        "instance_uuid": made.instance.uuid,
        "interface_uuid": made.interface_uuid,
    }
    show_one(row, output, name="address")
    return 0


@click.command()
@click.argument("network", shell_complete=complete_network)
@click.argument("address")
@click.pass_obj
def unroute(settings: Settings, network: str, address: str) -> int:
    """Take a routed address of a network from the instance that has it. Prints nothing.

    \b
    Example:  eschedule network unroute front 10.10.0.200
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.routes import Routes

        Routes(cloud).remove(network, address, settings.namespace)
    return 0
