"""``eschedule wait | destroy | extend``: where an instance has come to, and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ecompute.cluster.terminal import INTERRUPTED, put, say
from eschedule.cli.output import format_option, show_one
from eschedule.cli.parameters import instance_argument, instances_argument, timeout_option
from eschedule.cli.progress import Progress
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from ecompute.cluster.documents import Instance
    from ecompute.cluster.store import Versioned
    from eschedule.cloud.instances import Instances, View

WAIT_TIMEOUT_S = 600.0
DESTROY_TIMEOUT_S = 120.0


def wait_until_it_runs(
    instances: Instances, instance: Versioned[Instance], timeout_s: float, progress: Progress
) -> View | None:
    """Wait until ``instance`` runs, has failed, or is being destroyed; ``None``: it is gone.

    Raises:
        DeadlineExceeded: it goes on by itself.
        SystemExit: interrupted; how to wait again was said.
    """
    from ecompute.cluster.documents import State

    name = instance.value.name
    try:
        return instances.wait(
            instance,
            until=frozenset({State.CREATED, State.ERROR, State.DELETING}),
            timeout_s=timeout_s,
            on_view=lambda state, doing: progress.step(f"{name} is {state}: {doing}"),
        )
    except KeyboardInterrupt:
        progress.clear()
        say(f"{name} goes on by itself; `eschedule wait {instance.value.uuid}` waits again")
        raise SystemExit(INTERRUPTED) from None


def report(view: View | None, name: str) -> int:
    """Say why an instance that was waited for does not run, if so; return the exit status."""
    from ecompute.cluster.documents import State

    if view is None:
        say(f"error: {name} is gone: it was destroyed meanwhile")
        return 1
    uuid = view.instance.value.uuid
    if view.state is State.CREATED:
        return 0
    if view.state is State.ERROR:
        say(f"error: {name} failed: {view.error or 'its host gives no reason'}; see `eschedule events {uuid}`")
    else:
        say(f"error: {name} is being destroyed")
    return 1


@click.command()
@instance_argument
@timeout_option(WAIT_TIMEOUT_S)
@click.pass_obj
def wait(settings: Settings, instance: str, timeout_s: float) -> int:
    """Wait until an instance runs; exit 1 if it has failed, is gone, or the time is up.

    \b
    Example:  eschedule wait web-1 --timeout 60
    """
    with settings.cloud() as cloud, Progress() as progress:
        from eschedule.cloud.instances import Instances

        instances = Instances(cloud)
        found = instances.find(instance, settings.namespace)
        view = wait_until_it_runs(instances, found, timeout_s, progress)
    return report(view, found.value.name)


@click.command()
@instances_argument
@click.option("--no-wait", is_flag=True, help="End once their hosts are told.")
@timeout_option(DESTROY_TIMEOUT_S)
@click.pass_obj
def destroy(settings: Settings, instance: tuple[str, ...], no_wait: bool, timeout_s: float) -> int:
    """Destroy instances, and wait until nothing of them is left.

    Prints nothing on standard output. A host that does not answer removes its guest when it is
    back; this command does not wait for that.

    \b
    Example:  eschedule destroy web-1 web-2
    """
    status = 0
    with settings.cloud() as cloud, Progress() as progress:
        from eschedule.cloud.instances import Instances

        instances = Instances(cloud)
        asked = []
        try:
            for ref in instance:
                found = _ask(instances, ref, settings.namespace)
                if found is None:
                    status = 1
                else:
                    asked.append(found.value)
            for value in () if no_wait else asked:
                status = max(status, _wait_until_gone(instances, value, timeout_s, progress))
        except KeyboardInterrupt:
            progress.clear()
            say(f"{_names(asked)} will be removed all the same; `eschedule list` shows what is left")
            raise SystemExit(INTERRUPTED) from None
    return status


@click.command()
@instance_argument
@click.option("--expires", metavar="WHEN", help="Destroy it then: 30m, 2h, 7d from now, or a time (RFC 3339).")
@click.option("--never", "is_never", is_flag=True, help="Keep it until somebody destroys it.")
@format_option
@click.pass_obj
def extend(settings: Settings, instance: str, expires: str | None, is_never: bool, output: str) -> int:
    """Change when an instance expires, sooner or later or never, and show it.

    
    Example:  eschedule extend web-1 --expires 2h
              eschedule extend web-1 --never
    """
    from ecompute.cluster.errors import InvalidInput

    if is_never == (expires is not None):
        raise InvalidInput("when it expires is not said in one way", hint="give --expires 2h, or --never")
    with settings.cloud() as cloud:
        from eschedule.cli.instance import describe
        from eschedule.cloud.hosts import Hosts
        from eschedule.cloud.instances import Instances

        instances = Instances(cloud)
        extended = instances.extend(instances.find(instance, settings.namespace), expires)
        (view,) = instances.whole([instances.view(extended)])
        row = describe(view, Hosts(cloud).name(view.instance.value.provider))
    show_one(row, output)
    return 0


def _ask(instances: Instances, ref: str, namespace: str) -> Versioned[Instance] | None:
    """Have ``ref`` destroyed; say so and return ``None`` if there is no one such instance."""
    from ecompute.cluster.errors import Ambiguous, NotFound
    from eschedule.cloud.references import full_uuid

    try:
        found = instances.find(ref, namespace)
    except (NotFound, Ambiguous) as error:
        if full_uuid(ref) is not None:
            put(f"FAILED to find allocations for {ref}")  # the old grammar's words, where it had them
        else:
            say(f"error: {error}")
        return None
    instances.destroy(found)
    return found


def _wait_until_gone(instances: Instances, instance: Instance, timeout_s: float, progress: Progress) -> int:
    from ecompute.cluster.errors import DeadlineExceeded, NotFound
    from eschedule.cloud.instances import HostSilent

    try:
        found = instances.find(instance.uuid, instance.namespace)
        if not instances.is_host_alive(instance.provider):
            raise HostSilent(f"the host of {instance.name} does not answer")
        instances.wait(
            found,
            until=frozenset(),
            timeout_s=timeout_s,
            is_host_needed=True,
            on_view=lambda state, doing: progress.step(f"{instance.name} is {state}: {doing}"),
        )
    except NotFound:
        pass
    except HostSilent:
        progress.clear()
        say(f"{instance.name}: its host does not answer, and will remove it when it is back")
    except DeadlineExceeded as error:
        progress.clear()
        say(f"error: {error}")
        return 1
    return 0


def _names(asked: list[Instance]) -> str:
    return ", ".join(instance.name for instance in asked) or "what was asked for"
