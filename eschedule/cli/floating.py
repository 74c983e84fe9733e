"""``eschedule floating create | list | show | attach | detach | delete``, and ``eschedule floating pool …``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import say
from eschedule.cli.completion import complete_floating, complete_instance, complete_pool
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.parameters import interface_options
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.cloud.floating import FloatingView
    from eschedule.cloud.pools import PoolView

FIELDS = (
    "address",
    "pool",
    "namespace",
    "instance",
    "instance_uuid",
    "interface_uuid",
    "network_uuid",
    "is_routed",
    "created_at",
)
COLUMNS = ("address", "pool", "instance", "interface_uuid", "is_routed")
POOL_FIELDS = ("name", "cidr", "addresses", "used", "created_at")
POOL_COLUMNS = ("name", "cidr", "addresses", "used")


@click.group()
def floating() -> None:
    """Give instances addresses of the outside: one to one, on the instance's own host.

    An address comes from a pool, which operators make. It is had by a namespace until it is deleted,
    whether it is attached or not.

    \b
    Example:  eschedule floating create --attach web-1
              eschedule floating attach 203.0.113.7 web-2
              eschedule floating list
    """


@floating.command()
@click.option("--pool", metavar="POOL", shell_complete=complete_pool, help="Out of this one; otherwise any.")
@click.option("--address", metavar="ADDRESS", help="This one; otherwise any that is free.")
@click.option(
    "--attach", "instance", metavar="INSTANCE", shell_complete=complete_instance, help="Attach it to this one at once."
)
@interface_options
@click.option("--routed", "is_routed", is_flag=True, help="Hand it to the instance as it is, without translation.")
@format_option
@click.pass_obj
def create(
    settings: Settings,
    pool: str | None,
    address: str | None,
    instance: str | None,
    interface: str | None,
    network: str | None,
    is_routed: bool,
    output: str,
) -> int:
    """Take an address out of a pool for the namespace, and show it.

    \b
    Example:  eschedule floating create
              eschedule floating create --pool public --address 203.0.113.7
              eschedule floating create --attach web-1
    """
    from ecompute.cluster.errors import InvalidInput

    if instance is None and (interface is not None or network is not None or is_routed):
        raise InvalidInput("it is not said what the address is attached to", hint="give --attach INSTANCE")
    with settings.cloud() as cloud:
        from eschedule.cloud.floating import FloatingAddresses, Target

        target = None if instance is None else Target(instance, interface, network, is_routed)
        addresses = FloatingAddresses(cloud)
        made = addresses.create(settings.namespace, pool=pool, ip=address, target=target)
        (view,) = addresses.views([made])
        caveat = addresses.caveat(made)
    show_one(describe(view), output, name="address")
    if output == "table" and instance is None:
        say(f"next: eschedule floating attach {made.ip} INSTANCE")
    if caveat is not None:
        say(f"note: {caveat}")
    return 0


@floating.command("list")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@click.option("--pool", metavar="POOL", shell_complete=complete_pool, help="Of this one alone.")
@format_option
@click.pass_obj
def list_(settings: Settings, all_namespaces: bool, pool: str | None, output: str) -> int:
    """List the floating addresses of the namespace.

    \b
    Example:  eschedule floating list
              eschedule floating list -A --pool public -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.floating import FloatingAddresses

        views = FloatingAddresses(cloud).all(None if all_namespaces else settings.namespace)
    rows = [describe(view) for view in views if pool in (None, view.floating.pool)]
    if not rows and output == "table":
        say("there are no floating addresses; `eschedule floating create` takes one")
        return 0
    columns = ("namespace", *COLUMNS) if all_namespaces else COLUMNS
    show_rows(rows, output, fields=FIELDS, columns=columns, name="address")
    return 0


@floating.command()
@click.argument("address", shell_complete=complete_floating)
@format_option
@click.pass_obj
def show(settings: Settings, address: str, output: str) -> int:
    """Show a floating address: what it is attached to, and how.

    \b
    Example:  eschedule floating show 203.0.113.7
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.floating import FloatingAddresses

        addresses = FloatingAddresses(cloud)
        (view,) = addresses.views([addresses.find(address, settings.namespace).value])
    show_one(describe(view), output, name="address")
    return 0


@floating.command()
@click.argument("address", shell_complete=complete_floating)
@click.argument("instance", shell_complete=complete_instance)
@interface_options
@click.option("--routed", "is_routed", is_flag=True, help="Hand it to the instance as it is, without translation.")
@format_option
@click.pass_obj
def attach(
    settings: Settings,
    address: str,
    instance: str,
    interface: str | None,
    network: str | None,
    is_routed: bool,
    output: str,
) -> int:
    """Attach a floating address to an instance, and show it.

    Its network needs a gateway. The address stands for the first IPv4 address of the interface, or,
    with --routed, is the instance's own, which it has to set up itself.

    \b
    Example:  eschedule floating attach 203.0.113.7 web-1
              eschedule floating attach 203.0.113.7 web-1 --network front
              eschedule floating attach 203.0.113.8 router-1 --routed
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.floating import FloatingAddresses, Target

        addresses = FloatingAddresses(cloud)
        done = addresses.attach(address, settings.namespace, Target(instance, interface, network, is_routed))
        (view,) = addresses.views([done])
        caveat = addresses.caveat(done)
    show_one(describe(view), output, name="address")
    if caveat is not None:
        say(f"note: {caveat}")
    return 0


@floating.command()
@click.argument("address", shell_complete=complete_floating)
@format_option
@click.pass_obj
def detach(settings: Settings, address: str, output: str) -> int:
    """Detach a floating address from its instance; the namespace keeps it.

    \b
    Example:  eschedule floating detach 203.0.113.7
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.floating import FloatingAddresses

        addresses = FloatingAddresses(cloud)
        (view,) = addresses.views([addresses.detach(address, settings.namespace)])
    show_one(describe(view), output, name="address")
    return 0


@floating.command()
@click.argument("address", shell_complete=complete_floating)
@click.pass_obj
def delete(settings: Settings, address: str) -> int:
    """Give a floating address that is not attached back to its pool. Prints nothing.

    \b
    Example:  eschedule floating delete 203.0.113.7
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.floating import FloatingAddresses

        FloatingAddresses(cloud).delete(address, settings.namespace)
    return 0


@floating.group()
def pool() -> None:
    """Keep the pools that floating addresses come from. For operators.

    A pool is a range of the egress network, all of which is given out: no machine has an address in it.

    \b
    Example:  eschedule floating pool create public --cidr 203.0.113.0/28
              eschedule floating pool list
    """


@pool.command("create")
@click.argument("name")
@click.option("--cidr", required=True, metavar="RANGE", help="Its addresses: /16 to /32, as in 203.0.113.0/28.")
@format_option
@click.pass_obj
def create_pool(settings: Settings, name: str, cidr: str, output: str) -> int:
    """Make a pool.

    \b
    Example:  eschedule floating pool create public --cidr 203.0.113.0/28
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.pools import Pools, PoolView

        made = Pools(cloud).create(name, cidr)
        row = describe_pool(PoolView(made, 0))
    show_one(row, output)
    if output == "table":
        say("next: eschedule floating create")
    return 0


@pool.command("list")
@format_option
@click.pass_obj
def list_pools(settings: Settings, output: str) -> int:
    """List the pools, and how many of their addresses are in use.

    \b
    Example:  eschedule floating pool list -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.pools import Pools

        rows = [describe_pool(view) for view in Pools(cloud).all()]
    if not rows and output == "table":
        say("there is no pool; `eschedule floating pool create NAME --cidr …` makes one")
        return 0
    show_rows(rows, output, fields=POOL_FIELDS, columns=POOL_COLUMNS)
    return 0


@pool.command("show")
@click.argument("name", shell_complete=complete_pool)
@format_option
@click.pass_obj
def show_pool(settings: Settings, name: str, output: str) -> int:
    """Show a pool.

    \b
    Example:  eschedule floating pool show public
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.pools import Pools

        row = describe_pool(Pools(cloud).view(name))
    show_one(row, output)
    return 0


@pool.command("delete")
@click.argument("name", shell_complete=complete_pool)
@click.pass_obj
def delete_pool(settings: Settings, name: str) -> int:
    """Remove a pool of which no address is in use. Prints nothing.

    \b
    Example:  eschedule floating pool delete public
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.pools import Pools

        Pools(cloud).delete(name)
    return 0


def describe(view: FloatingView) -> dict[str, Any]:
    """Return one floating address as all formats show it: `FIELDS`, in order."""
    floating = view.floating
    return {
        "address": floating.ip,
        "pool": floating.pool,
        "namespace": floating.namespace,
        "instance": view.instance_name,
        "instance_uuid": floating.instance_uuid,
        "interface_uuid": floating.interface_uuid,
        "network_uuid": floating.network_uuid,
        "is_routed": floating.is_routed,
        "created_at": floating.created_at,
    }


def describe_pool(view: PoolView) -> dict[str, Any]:
    """Return one pool as all formats show it: `POOL_FIELDS`, in order."""
    return {
        "name": view.pool.name,
        "cidr": view.pool.cidr,
        "addresses": view.size,
        "used": view.used,
        "created_at": view.pool.created_at,
    }
