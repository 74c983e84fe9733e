"""The grammar of the first etcd-compute: its outputs and exit codes, kept to the letter.

eschedule QUERY [IMAGE]   prints the query, then `NOTIFIED TARGET, <provider>, OF INSTANCE <uuid>`;
                          0 once the target is notified
eschedule UUID            prints the guest's address; without one `Instance <uuid> acquired no IP`, 1
eschedule destroy UUID    see `eschedule.cli.instance`
"""

from __future__ import annotations

import click

from eschedule.cli.main import Settings

ADDRESS_TIMEOUT_S = 100.0


@click.command(hidden=True)
@click.argument("query")
@click.argument("image", required=False)
@click.pass_obj
def launch(settings: Settings, query: str, image: str | None) -> int:
    """Launch an instance of the shape that a placement query asks for."""
    from ecompute.cluster.errors import CloudError, InvalidInput, NoRoom
    from eschedule.cloud.connection import Cloud
    from eschedule.scheduler.launch import Launcher
    from eschedule.scheduler.request import LaunchRequest

    click.echo(query)
    cloud = Cloud.from_file(settings.config)
    try:
        launcher = Launcher(cloud, on_refused=lambda reason: click.echo(f"CLAIM FAIL: {reason}"))
        request = LaunchRequest(query=query, image=image or cloud.settings.images.default, namespace=settings.namespace)
        launched = launcher.launch(request)
    except NoRoom as error:
        click.echo("NO ALLOCATIONS LEFT")
        click.echo(f"FAIL: {error.args[0]}")
        return 1
    except InvalidInput as error:
        click.echo(f"FAIL: {error}")
        return 1
    except CloudError as error:
        click.echo(f"FAIL: {error}")
        return 1
    finally:
        cloud.close()
    click.echo(f"NOTIFIED TARGET, {launched.provider}, OF INSTANCE {launched.uuid}")
    return 0


@click.command(hidden=True)
@click.argument("uuid")
@click.pass_obj
def address(settings: Settings, uuid: str) -> int:
    """Print the address of the guest ``uuid``, waiting for it while it is built."""
    from ecompute.cluster.documents import State
    from ecompute.cluster.errors import DeadlineExceeded, NotFound
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.instances import Instances

    cloud = Cloud.from_file(settings.config)
    try:
        instances = Instances(cloud)
        instance = instances.find(uuid, settings.namespace)
        view = instances.wait(
            instance,
            until=frozenset({State.CREATED, State.ERROR, State.DELETING}),
            timeout_s=ADDRESS_TIMEOUT_S,
        )
        addresses = view.seen.addresses if view is not None and view.seen is not None else ()
    except (NotFound, DeadlineExceeded):
        addresses = ()
    finally:
        cloud.close()
    if not addresses:
        click.echo(f"Instance {uuid} acquired no IP")
        return 1
    click.echo(addresses[0].split("/")[0])
    return 0
