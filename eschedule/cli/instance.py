"""``eschedule list | show | wait | destroy``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from eschedule.cli.main import Settings
from eschedule.cli.output import Progress, format_option, show_one, show_rows

if TYPE_CHECKING:
    from eschedule.cloud.instances import Instances, View

DESTROY_TIMEOUT_S = 120.0
LIST_COLUMNS = ("name", "uuid", "state", "power", "addresses", "host")


def describe(view: View, host: str) -> dict[str, Any]:
    """Return one instance as all formats show it."""
    instance = view.instance.value
    resources = instance.spec.resources
    return {
        "name": instance.name,
        "uuid": instance.uuid,
        "namespace": instance.namespace,
        "state": str(view.state),
        "power": str(view.power),
        "addresses": [address.split("/")[0] for address in view.addresses],
        "host": host,
        "provider": instance.provider,
        "cpus": resources.vcpus,
        "memory_mb": resources.memory_mb,
        "disk_gb": resources.disk_gb,
        "image": instance.spec.image,
        "error": view.error,
        "created_at": instance.created_at,
    }


@click.command("list")
@click.option("--all-namespaces", "-A", is_flag=True, help="Of every namespace.")
@format_option
@click.pass_obj
def list_(settings: Settings, all_namespaces: bool, output: str) -> int:
    """List the instances of the namespace.

    \b
    Example:  eschedule list -o json
    """
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.hosts import Hosts
    from eschedule.cloud.instances import Instances

    cloud = Cloud.from_file(settings.config)
    try:
        names = Hosts(cloud).names()
        rows = [
            describe(view, names.get(view.instance.value.provider, view.instance.value.provider))
            for view in Instances(cloud).all(None if all_namespaces else settings.namespace)
        ]
    finally:
        cloud.close()
    if not rows and output == "table":
        click.echo(f"no instances in namespace {settings.namespace}; `eschedule launch` makes one", err=True)
        return 0
    show_rows(rows, output, columns=(*LIST_COLUMNS, "namespace") if all_namespaces else LIST_COLUMNS)
    return 0


@click.command()
@click.argument("instance")
@format_option
@click.pass_obj
def show(settings: Settings, instance: str, output: str) -> int:
    """Show one instance: by name, uuid, or the beginning of a uuid.

    \b
    Example:  eschedule show web-1 -o yaml
    """
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.hosts import Hosts
    from eschedule.cloud.instances import Instances

    cloud = Cloud.from_file(settings.config)
    try:
        instances = Instances(cloud)
        view = instances.view(instances.find(instance, settings.namespace))
        provider = view.instance.value.provider
        show_one(describe(view, Hosts(cloud).names().get(provider, provider)), output)
    finally:
        cloud.close()
    return 0


@click.command()
@click.argument("instance")
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, help="Seconds to wait.")
@click.pass_obj
def wait(settings: Settings, instance: str, timeout_s: float) -> int:
    """Wait until an instance runs; exit 1 if it has failed or is gone.

    \b
    Example:  eschedule wait web-1 --timeout 60
    """
    from ecompute.cluster.documents import State
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.instances import Instances

    progress = Progress()
    cloud = Cloud.from_file(settings.config)
    try:
        instances = Instances(cloud)
        found = instances.find(instance, settings.namespace)
        view = instances.wait(
            found,
            until=frozenset({State.CREATED, State.ERROR, State.DELETING}),
            timeout_s=timeout_s,
            on_view=lambda state, doing: progress.step(f"{found.value.name} is {state}: {doing}"),
        )
    except KeyboardInterrupt:
        progress.done()
        click.echo(f"it goes on by itself; `eschedule wait {instance}` waits again", err=True)
        return 130
    finally:
        progress.done()
        cloud.close()
    if view is None:
        click.echo(f"error: {instance} is gone", err=True)
        return 1
    if view.state is not State.CREATED:
        click.echo(f"error: {instance} is {view.state}: {view.error or 'being destroyed'}", err=True)
        return 1
    return 0


@click.command()
@click.argument("instance", nargs=-1, required=True)
@click.option("--no-wait", is_flag=True, help="End once the host is told.")
@click.option(
    "--timeout", "timeout_s", type=float, default=DESTROY_TIMEOUT_S, show_default=True, help="Seconds to wait."
)
@click.pass_obj
def destroy(settings: Settings, instance: tuple[str, ...], no_wait: bool, timeout_s: float) -> int:
    """Destroy instances, and wait until nothing of them is left.

    Prints nothing on standard output. A host that does not answer removes its guest when it is
    back; this command does not wait for that.

    \b
    Example:  eschedule destroy web-1 web-2
    """
    from ecompute.cluster.errors import CloudError, NotFound
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.instances import Instances, full_uuid

    progress = Progress()
    cloud = Cloud.from_file(settings.config)
    status = 0
    try:
        instances = Instances(cloud)
        asked = []
        for ref in instance:
            try:
                found = instances.find(ref, settings.namespace)
                instances.destroy(found)
                asked.append(found)
            except NotFound as error:
                if full_uuid(ref) is not None:
                    click.echo(f"FAILED to find allocations for {ref}")
                else:
                    click.echo(f"error: {error}", err=True)
                status = 1
            except CloudError as error:
                click.echo(f"error: {error}", err=True)
                status = error.exit_status
        for found in () if no_wait else asked:
            status = max(status, _wait_until_gone(instances, found.value.uuid, found.value.name, timeout_s, progress))
    except KeyboardInterrupt:
        progress.done()
        click.echo("their hosts go on by themselves; `eschedule list` shows what is left", err=True)
        return 130
    finally:
        progress.done()
        cloud.close()
    return status


def _wait_until_gone(instances: Instances, uuid: str, name: str, timeout_s: float, progress: Progress) -> int:
    from ecompute.cluster.errors import DeadlineExceeded, NotFound

    try:
        found = instances.find(uuid, "")
    except NotFound:
        return 0
    if not instances.is_host_alive(found.value.provider):
        progress.done()
        click.echo(f"{name}: its host does not answer and will remove it when it is back", err=True)
        return 0
    try:
        instances.wait(
            found,
            until=frozenset(),
            timeout_s=timeout_s,
            on_view=lambda state, doing: progress.step(f"{name} is {state}: {doing}"),
        )
    except DeadlineExceeded as error:
        progress.done()
        click.echo(f"error: {error}", err=True)
        return 1
    return 0
