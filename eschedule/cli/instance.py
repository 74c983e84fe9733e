"""``eschedule list | show``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import say
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.parameters import instance_argument
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.cloud.instances import View

FIELDS = (
    "name",
    "uuid",
    "namespace",
    "state",
    "power",
    "addresses",
    "floating",
    "routed",
    "host",
    "provider",
    "cpus",
    "memory_mb",
    "disk_gb",
    "image",
    "tags",
    "group",
    "gang",
    "expires_at",
    "error",
    "created_at",
)
COLUMNS = ("name", "uuid", "state", "power", "addresses", "host")


def describe(view: View, host: str) -> dict[str, Any]:
    """Return one instance as all formats show it: `FIELDS`, in order.

    Args:
        view: with its ports, or else nothing is handed to it.
        host: the name of its host.
    """
    instance = view.instance.value
    resources = instance.spec.resources
    return {
        "name": instance.name,
        "uuid": instance.uuid,
        "namespace": instance.namespace,
        "state": str(view.state),
        "power": str(view.power),
        "addresses": [address.split("/")[0] for address in view.addresses],
        "floating": list(view.floating),
        "routed": list(view.routed),
        "host": host,
        "provider": instance.provider,
        "cpus": resources.vcpus,
        "memory_mb": resources.memory_mb,
        "disk_gb": resources.disk_gb,
        "image": instance.spec.image,
        "tags": list(instance.tags),
        "group": instance.group,
        "gang": instance.gang,
        "expires_at": instance.expires_at,
        "error": view.error,
        "created_at": instance.created_at,
    }


@click.command("list")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@format_option
@click.pass_obj
def list_(settings: Settings, all_namespaces: bool, output: str) -> int:
    """List the instances of the namespace, by name.

    \b
    Example:  eschedule list
              eschedule list -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts
        from eschedule.cloud.instances import Instances

        names = Hosts(cloud).names()
        rows = [
            describe(view, names.get(view.instance.value.provider, view.instance.value.provider))
            for view in Instances(cloud).all(None if all_namespaces else settings.namespace)
        ]
    if not rows and output == "table":
        where = "" if all_namespaces else f" in namespace {settings.namespace}"
        say(f"there are no instances{where}; `eschedule launch` makes one")
        return 0
    show_rows(rows, output, fields=FIELDS, columns=(*COLUMNS, "namespace") if all_namespaces else COLUMNS)
    return 0


@click.command()
@instance_argument
@format_option
@click.pass_obj
def show(settings: Settings, instance: str, output: str) -> int:
    """Show one instance: what it is, where it is, and how it does.

    \b
    Example:  eschedule show web-1
              eschedule show web-1 -o yaml
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts
        from eschedule.cloud.instances import Instances

        instances = Instances(cloud)
        (view,) = instances.whole([instances.view(instances.find(instance, settings.namespace))])
        row = describe(view, Hosts(cloud).name(view.instance.value.provider))
    show_one(row, output)
    return 0
