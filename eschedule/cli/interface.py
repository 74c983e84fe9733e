"""``eschedule interface add | list | show | remove``: the network interfaces of an instance that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import INTERRUPTED, say
from eschedule.cli.completion import complete_interface, complete_network
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.parameters import instance_argument, timeout_option
from eschedule.cli.progress import Progress
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from ecompute.cluster.documents import Instance
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.interface_views import InterfaceView
    from eschedule.cloud.interfaces import Interfaces

WAIT_TIMEOUT_S = 120.0
FIELDS = (
    "uuid",
    "state",
    "network",
    "network_uuid",
    "mac",
    "addresses",
    "floating",
    "routed",
    "model",
    "mtu",
    "physical",
    "vlan",
)
COLUMNS = ("uuid", "state", "network", "mac", "addresses", "floating", "routed")


@click.group()
def interface() -> None:
    """See and change the network interfaces of an instance that runs.

    An INTERFACE is its uuid, or the beginning of it, of four characters or more.

    \b
    Example:  eschedule interface list web-1
              eschedule interface add web-1 -n back --wait
              eschedule interface remove web-1 5b7d1c38 --wait
    """


@interface.command()
@instance_argument
@click.option(
    "-n",
    "--network",
    "-N",
    "--networkspec",
    "networks",
    required=True,
    multiple=True,
    metavar="NET[@ADDRESS]",
    shell_complete=complete_network,
    help="On that network. Or network_uuid=NET,address=…,macaddress=…,model=….",
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until the guest has it; exit 1 if it cannot.")
@timeout_option(WAIT_TIMEOUT_S)
@format_option
@click.pass_obj
def add(
    settings: Settings, instance: str, networks: tuple[str, ...], is_waiting: bool, timeout_s: float, output: str
) -> int:
    """Give an instance one more interface, and show it.

    Its host plugs it in while the guest runs. An instance has at most eight.

    \b
    Example:  eschedule interface add web-1 -n back --wait
              eschedule interface add web-1 -n back@10.1.0.5
              eschedule interface add web-1 -N network_uuid=back,address=10.1.0.5,model=e1000
    """
    with settings.cloud() as cloud, Progress() as progress:
        from ecompute.cluster.errors import InvalidInput
        from eschedule.cloud.interface_request import read_interface
        from eschedule.cloud.interfaces import Interfaces

        if len(networks) > 1:
            raise InvalidInput(
                f"{len(networks)} interfaces were asked for, and one is added at a time", hint="add one after the other"
            )
        request = read_interface(networks[0])
        interfaces = Interfaces(cloud)
        asked = interfaces.add(instance, settings.namespace, request)
        uuid = asked.spec.interfaces[-1].uuid
        status = wait(interfaces, asked, timeout_s, progress) if is_waiting else 0
        row = next((row for row in _rows(cloud, asked) if row["uuid"] == uuid), None)
    if row is None:
        say(f"error: interface {uuid} was taken away meanwhile")
        return 1
    show_one(row, output, name="uuid")
    if output == "table" and not is_waiting:
        say(f"next: eschedule interface list {asked.name}")
    return status


@interface.command("list")
@instance_argument
@format_option
@click.pass_obj
def list_(settings: Settings, instance: str, output: str) -> int:
    """List the interfaces of an instance, in its own order.

    One is asked for until its host has reported that the guest has it, and leaving until it has
    reported that the guest is without it.

    \b
    Example:  eschedule interface list web-1
              eschedule interface list web-1 -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.interface_views import views
        from eschedule.cloud.references import find_within

        found = find_within(cloud.store, instance, settings.namespace)
        rows = [describe(view) for view in views(cloud.store, found)]
    if not rows and output == "table":
        say(f"{found.value.name} has no interface")
        return 0
    show_rows(rows, output, fields=FIELDS, columns=COLUMNS, name="uuid")
    return 0


@interface.command()
@instance_argument
@click.argument("interface", shell_complete=complete_interface)
@format_option
@click.pass_obj
def show(settings: Settings, instance: str, interface: str, output: str) -> int:
    """Show one interface of an instance.

    \b
    Example:  eschedule interface show web-1 5b7d1c38
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.interface_views import view
        from eschedule.cloud.references import find_within

        row = describe(view(cloud.store, find_within(cloud.store, instance, settings.namespace), interface))
    show_one(row, output, name="uuid")
    return 0


@interface.command()
@instance_argument
@click.argument("interface", shell_complete=complete_interface)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until the guest is without it.")
@timeout_option(WAIT_TIMEOUT_S)
@format_option
@click.pass_obj
def remove(settings: Settings, instance: str, interface: str, is_waiting: bool, timeout_s: float, output: str) -> int:
    """Take an interface away from an instance, and show what is left.

    An INTERFACE is its uuid, the beginning of it, its MAC or an address of it. Its addresses are free again once its
    host has reported that the guest is without it.

    \b
    Example:  eschedule interface remove web-1 5b7d1c38 --wait
              eschedule interface remove web-1 10.1.0.5
    """
    with settings.cloud() as cloud, Progress() as progress:
        from eschedule.cloud.interfaces import Interfaces

        interfaces = Interfaces(cloud)
        asked = interfaces.remove(instance, settings.namespace, interface)
        status = wait(interfaces, asked, timeout_s, progress) if is_waiting else 0
        rows = _rows(cloud, asked)
    if not rows and output == "table":
        say(f"{asked.name} has no interface any more")
        return status
    show_rows(rows, output, fields=FIELDS, columns=COLUMNS, name="uuid")
    return status


def wait(interfaces: Interfaces, asked: Instance, timeout_s: float, progress: Progress) -> int:
    """Wait until the guest is as ``asked``; say so if its host is away, and return the exit status.

    Raises:
        CloudError: it failed, or takes too long.
        SystemExit: interrupted; that it goes on was said.
    """
    from eschedule.cloud.instances import HostSilent

    try:
        interfaces.wait(asked, timeout_s=timeout_s, on_step=lambda doing: progress.step(f"{asked.name}: {doing}"))
    except HostSilent as error:
        progress.clear()
        say(str(error))
    except KeyboardInterrupt:
        progress.clear()
        say(f"its host goes on by itself; see `eschedule interface list {asked.uuid}`")
        raise SystemExit(INTERRUPTED) from None
    progress.clear()
    return 0


def _rows(cloud: Cloud, asked: Instance) -> list[dict[str, Any]]:
    """Return the interfaces of an instance as they are now; none, if it is gone."""
    from eschedule.cloud.instances import Instances
    from eschedule.cloud.interface_views import views

    return [describe(view) for found in Instances(cloud).several([asked.uuid]) for view in views(cloud.store, found)]


def describe(view: InterfaceView) -> dict[str, Any]:
    """Return one interface as all formats show it: `FIELDS`, in order."""
    interface, port = view.interface, view.port
    return {
        "uuid": interface.uuid,
        "state": str(view.standing),
        "network": view.network,
        "network_uuid": interface.network_uuid,
        "mac": interface.mac,
        "addresses": [address.split("/")[0] for address in interface.addresses],
        "floating": None if port is None else port.floating,
        "routed": [] if port is None else list(port.routed),
        "model": interface.model,
        "mtu": interface.mtu,
        "physical": interface.physical,
        "vlan": interface.vlan,
    }
