"""``eschedule quota show | set | list``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import say
from eschedule.cli.completion import complete_limited
from eschedule.cli.output import format_option, show_rows
from eschedule.cli.progress import Progress
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.cloud.quotas import QuotaView

NONE = "none"
RESOURCES = (("vcpus", "VCPU"), ("memory_mb", "MEMORY_MB"), ("disk_gb", "DISK_GB"), ("instances", "INSTANCES"))
FIELDS = ("resource", "used", "limit")
LIST_FIELDS = ("namespace", *(f for name, _ in RESOURCES for f in (name, f"{name}_used")), "phase")
LIST_COLUMNS = ("namespace", *(name for name, _ in RESOURCES), "phase")


class Limit(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or ``none``."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == NONE or isinstance(value, int):
            return value
        if re.fullmatch(r"[0-9]{1,10}", value) is None or int(value) >= 2**31:
            self.fail(f"{value[:40]!r} is no limit: give a whole number from 0 to 2147483647, or {NONE}", param, ctx)
        return int(value)


@click.group()
def quota() -> None:
    """Limit what a namespace may use, and see what it uses.

    \b
    Example:  eschedule quota set team-a --vcpus 20 --instances 10
              eschedule quota show team-a
              eschedule quota list
    """


@quota.command()
@click.argument("namespace", required=False, shell_complete=complete_limited)
@format_option
@click.pass_obj
def show(settings: Settings, namespace: str | None, output: str) -> int:
    """Show the limits of a namespace (otherwise that of --namespace), and what is used of them.

    Without any limit nothing is counted.

    \b
    Example:  eschedule quota show team-a
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.quotas import Quotas

        view = Quotas(cloud).view(_checked(namespace or settings.namespace))
    _show(view, output)
    return 0


@quota.command("set")
@click.argument("namespace", required=False, shell_complete=complete_limited)
@click.option("--vcpus", type=Limit(), metavar="N|none", help="Virtual CPUs.")
@click.option("--memory-mb", type=Limit(), metavar="N|none", help="Memory.")
@click.option("--disk-gb", type=Limit(), metavar="N|none", help="Disk.")
@click.option("--instances", type=Limit(), metavar="N|none", help="How many there may be.")
@format_option
@click.pass_obj
def set_(
    settings: Settings,
    namespace: str | None,
    vcpus: int | str | None,
    memory_mb: int | str | None,
    disk_gb: int | str | None,
    instances: int | str | None,
    output: str,
) -> int:
    """Set limits of a namespace (otherwise that of --namespace); those not given stay as they are.

    What runs is counted, and nothing of it is stopped: under a limit below what is used, nothing new is
    launched. Where nothing is limited any more, nothing is counted.

    \b
    Example:  eschedule quota set team-a --vcpus 20 --memory-mb 65536
              eschedule quota set team-a --vcpus none
    """
    asked = dict(zip((name for _, name in RESOURCES), (vcpus, memory_mb, disk_gb, instances), strict=True))
    with settings.cloud() as cloud, Progress() as progress:
        from ecompute.cluster.errors import InvalidInput
        from eschedule.cloud.quotas import Quotas

        change = {name: limit for name, limit in asked.items() if limit is not None}
        if not change:
            raise InvalidInput("no limit is given", hint="give --vcpus, --memory-mb, --disk-gb or --instances")
        view = Quotas(cloud).set(
            _checked(namespace or settings.namespace),
            {name: None if limit == NONE else int(limit) for name, limit in change.items()},
            on_step=progress.step,
        )
    _show(view, output)
    return 0


@quota.command("list")
@format_option
@click.pass_obj
def list_(settings: Settings, output: str) -> int:
    """List the namespaces that have a limit.

    \b
    Example:  eschedule quota list -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.quotas import Quotas

        views = Quotas(cloud).all()
    rows = [_row(view, is_for_people=output == "table") for view in views]
    if not rows and output == "table":
        say("no namespace has a limit; `eschedule quota set NAMESPACE --vcpus N` sets one")
        return 0
    show_rows(rows, output, fields=LIST_FIELDS, columns=LIST_COLUMNS, name="namespace")
    return 0


def _checked(namespace: str) -> str:
    from eschedule.scheduler.request import check_namespace

    return check_namespace(namespace)


def _show(view: QuotaView, output: str) -> None:
    rows = [{"resource": key, "used": view.used.get(name), "limit": view.limit(name)} for key, name in RESOURCES]
    if view.quota is None and output == "table":
        say(f"namespace {view.namespace} has no limit; `eschedule quota set {view.namespace} --vcpus N` sets one")
        return
    show_rows(rows, output, fields=FIELDS, columns=FIELDS, name="resource")
    if view.phase is not None and view.phase != "held":
        say("its instances are still being counted: nothing is refused yet")


def _row(view: QuotaView, *, is_for_people: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"namespace": view.namespace, "phase": None if view.phase is None else str(view.phase)}
    for key, name in RESOURCES:
        limit, used = view.limit(name), view.used.get(name)
        row[key] = limit
        row[f"{key}_used"] = used
        if is_for_people:
            row[key] = f"{'?' if used is None else used}/{'-' if limit is None else limit}"
    return row
