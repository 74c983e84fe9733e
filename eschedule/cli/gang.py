"""``eschedule launch --count | --members``: many instances, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ecompute.cluster.terminal import INTERRUPTED, say
from eschedule.cli.instance import COLUMNS, FIELDS, describe
from eschedule.cli.output import show_rows
from eschedule.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.instances import Instances, View
    from eschedule.scheduler.launched import Launched
    from eschedule.scheduler.request import LaunchRequest


def numbered(request: LaunchRequest, count: int) -> list[LaunchRequest]:
    """Return ``count`` of the same: ``web-1``, ``web-2`` and so on, where it has a name.

    Raises:
        InvalidInput: the count is none that can be launched.
    """
    from dataclasses import replace

    from ecompute.cluster.errors import InvalidInput
    from ecompute.cluster.gangs import MEMBERS_LIMIT

    if not 0 < count <= MEMBERS_LIMIT:
        raise InvalidInput(f"{count} instances cannot be launched at once", hint=f"--count 1 to {MEMBERS_LIMIT}")
    names = [None if request.name is None else f"{request.name}-{n}" for n in range(1, count + 1)]
    return [replace(request, name=name) for name in names]


def from_file(path: str, default: LaunchRequest) -> list[LaunchRequest]:
    """Return the members that the YAML file at ``path`` tells; ``-`` is standard input.

    Raises:
        InvalidInput: it cannot be read, or has mistakes; each is told with its line.
    """
    from ecompute.cluster.errors import InvalidInput
    from eschedule.cli.files import read_file
    from eschedule.scheduler.members import SIZE_LIMIT_BYTES, read_members

    data = read_file(path, SIZE_LIMIT_BYTES + 1)
    if len(data) > SIZE_LIMIT_BYTES:
        raise InvalidInput(f"{path} is too long", hint=f"at most {SIZE_LIMIT_BYTES} bytes")
    return read_members(path, data, default)


def launch_all(
    cloud: Cloud,
    progress: Progress,
    requests: Sequence[LaunchRequest],
    *,
    is_waiting: bool,
    timeout_s: float,
    output: str,
) -> int:
    """Launch all of ``requests`` or none, show them, and return the exit status."""
    from eschedule.cloud.instances import Instances
    from eschedule.scheduler.gang import GangLauncher

    def refused(reason: str) -> None:
        progress.clear()
        say(f"claim lost: {reason}")

    try:
        launched = GangLauncher(cloud, on_step=progress.step, on_refused=refused).launch_all(requests)
    except KeyboardInterrupt:
        progress.clear()
        say("interrupted; `eschedule list` shows whether they were launched all the same: all of them, or none")
        return INTERRUPTED
    progress.clear()
    silent = sorted({one.host for one in launched if not one.is_host_alive})
    if silent:
        say(f"{', '.join(silent)} does not answer: what is to be there is built when it is back")
    instances = Instances(cloud)
    if not is_waiting:
        _show(instances, launched, output)
        if output == "table":
            say(f"next: eschedule wait {launched[0].name}")
        return 0
    views = _wait(instances, launched, timeout_s, progress)
    progress.clear()
    _show(instances, launched, output)
    return _report(launched, views)


def _show(instances: Instances, launched: Sequence[Launched], output: str) -> None:
    hosts = {one.uuid: one.host for one in launched}
    views = instances.views([one.uuid for one in launched])
    rows = [describe(view, hosts[view.instance.value.uuid]) for view in views]
    show_rows(rows, output, fields=FIELDS, columns=COLUMNS)


def _wait(
    instances: Instances, launched: Sequence[Launched], timeout_s: float, progress: Progress
) -> dict[str, View | None]:
    """Wait until every one runs, has failed, or is going; return {uuid: its view, None: it is gone}.

    Raises:
        DeadlineExceeded: they go on by themselves.
        SystemExit: interrupted; how to wait again was said.
    """
    import time

    from ecompute.cluster.documents import State
    from ecompute.cluster.errors import DeadlineExceeded

    ends_s = time.monotonic() + timeout_s
    done: dict[str, View | None] = {}
    try:
        for instance in instances.several([one.uuid for one in launched]):
            done[instance.value.uuid] = instances.wait(
                instance,
                until=frozenset({State.CREATED, State.ERROR, State.DELETING}),
                timeout_s=max(0.0, ends_s - time.monotonic()),
                on_view=lambda state, doing, name=instance.value.name: progress.step(  # type: ignore[misc]
                    f"{len(done)} of {len(launched)} are there; {name} is {state}: {doing}"
                ),
            )
    except DeadlineExceeded as error:
        raise DeadlineExceeded(
            f"{len(launched) - len(done)} of {len(launched)} do not run after {timeout_s:g} s",
            hint="they go on by themselves; see `eschedule list`",
        ) from error
    except KeyboardInterrupt:
        progress.clear()
        say("they go on by themselves; `eschedule list` shows how far they are")
        raise SystemExit(INTERRUPTED) from None
    return done


def _report(launched: Sequence[Launched], views: dict[str, View | None]) -> int:
    from eschedule.cli.lifecycle import report

    return max(report(views.get(one.uuid), one.name) for one in launched)
