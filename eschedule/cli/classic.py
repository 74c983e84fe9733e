"""The grammar of the first etcd-compute: its outputs and exit codes, kept to the letter.

eschedule QUERY [IMAGE]   prints the query, then `NOTIFIED TARGET, <provider>, OF INSTANCE <uuid>`;
                          0 once the target is notified
eschedule UUID            prints the guest's address; without one `Instance <uuid> acquired no IP`, 1
eschedule destroy UUID    see `eschedule.cli.lifecycle`

What it had no words for (etcd or placement down) is an error like any other.
"""

from __future__ import annotations

import click

from ecompute.cluster.terminal import printable, put
from eschedule.cli.settings import Settings

ADDRESS_TIMEOUT_S = 100.0


@click.command(hidden=True)
@click.argument("query")
@click.argument("image", required=False)
@click.pass_obj
def launch(settings: Settings, query: str, image: str | None) -> int:
    """Launch an instance of the shape that a placement query asks for.

    \b
    Example:  eschedule 'resources=VCPU:1,DISK_GB:1,MEMORY_MB:256'
    """
    from ecompute.cluster.errors import InvalidInput, NoRoom
    from eschedule.scheduler.launch import Launcher
    from eschedule.scheduler.request import LaunchRequest

    put(printable(query))
    with settings.cloud() as cloud:
        launcher = Launcher(cloud, on_refused=lambda reason: put(f"CLAIM FAIL: {printable(reason)}"))
        request = LaunchRequest(
            query=query,
            image=cloud.settings.images.default if image is None else image,
            namespace=settings.namespace,
            is_packed=cloud.settings.rank == "pack",
        )
        try:
            launched = launcher.launch(request)
        except NoRoom:
            put("NO ALLOCATIONS LEFT")
            put("FAIL: no allocation available")
            return 1
        except InvalidInput as error:
            put(f"FAIL: {error}")
            return 1
    put(f"NOTIFIED TARGET, {launched.provider}, OF INSTANCE {launched.uuid}")
    return 0


@click.command(hidden=True)
@click.argument("uuid")
@click.pass_obj
def address(settings: Settings, uuid: str) -> int:
    """Print the address of the guest UUID, waiting for it while it is built.

    \b
    Example:  eschedule 0d5e7c1a-6f5b-4c0e-9d58-5b8f2d3f9c11
    """
    from ecompute.cluster.documents import State
    from ecompute.cluster.errors import DeadlineExceeded, NotFound
    from eschedule.cli.progress import Progress

    addresses: tuple[str, ...] = ()
    with settings.cloud() as cloud, Progress() as progress:
        from eschedule.cloud.instances import Instances

        instances = Instances(cloud)
        try:
            view = instances.wait(
                instances.find(uuid, settings.namespace),
                until=frozenset({State.CREATED, State.ERROR, State.DELETING}),
                timeout_s=ADDRESS_TIMEOUT_S,
                on_view=lambda state, doing: progress.step(f"it is {state}: {doing}"),
            )
            addresses = view.seen.addresses if view is not None and view.seen is not None else ()
        except (NotFound, DeadlineExceeded):
            pass
    if not addresses:
        put(f"Instance {uuid} acquired no IP")
        return 1
    put(printable(addresses[0].split("/")[0]))
    return 0
