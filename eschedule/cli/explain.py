"""``eschedule explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import say
from eschedule.cli.completion import complete_group, complete_network
from eschedule.cli.output import format_option, show_rows
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.scheduler.explain import Explanation, Verdict

FIELDS = ("host", "uuid", "able", "lacks", "kinds")
COLUMNS = ("host", "able", "lacks")
COUNT_FIELDS = ("reason", "hosts")


@click.command()
@click.argument("query")
@click.option("--no-hosts", "is_for_tenants", is_flag=True, help="Count the hosts by reason, and name none.")
@click.option("--group", shell_complete=complete_group, help="As a member of this group: its name or uuid.")
@click.option(
    "-n",
    "--network",
    "networks",
    multiple=True,
    metavar="NET",
    shell_complete=complete_network,
    help="With an interface on that network; may be repeated.",
)
@format_option
@click.pass_obj
def explain(
    settings: Settings, query: str, is_for_tenants: bool, group: str | None, networks: tuple[str, ...], output: str
) -> int:
    """Say of every host whether it could serve QUERY now, and if not, what it lacks.

    QUERY is any query of placement's allocation candidates, as for `launch`. The nearest comes
    first. Nothing is claimed. Exit status 1 when no host could serve it.

    \b
    Example:  eschedule explain 'resources=VCPU:2,MEMORY_MB:1024,DISK_GB:10&required=HW_CPU_X86_AVX2'
    """
    with settings.cloud() as cloud:
        from ecompute.cluster.placement import candidates_query
        from eschedule.cloud.explain import look
        from eschedule.cloud.networks import Networks
        from eschedule.scheduler.beside import Beside
        from eschedule.scheduler.wiring import on_networks

        known = Networks.of(cloud)
        query = on_networks(query, [known.find(ref, settings.namespace).value for ref in networks])
        totals = candidates_query(query).totals
        beside = Beside.read(cloud, namespace=settings.namespace, group_ref=group, totals=totals)
        found = look(cloud, query).explain(
            excluded=beside.excluded, only=beside.only, group_name="" if group is None else f"group {group}"
        )
    if is_for_tenants:
        rows = [{"reason": count.reason, "hosts": count.hosts} for count in found.for_tenant()]
        show_rows(rows, output, fields=COUNT_FIELDS, columns=COUNT_FIELDS, name="reason")
    else:
        show_rows(
            [_row(verdict, is_table=output == "table") for verdict in _sorted(found)],
            output,
            fields=FIELDS,
            columns=COLUMNS,
            name="host",
        )
    if output == "table":
        say(_sum(found, is_for_tenants=is_for_tenants))
    return 0 if found.able else 1


def _row(verdict: Verdict, *, is_table: bool) -> dict[str, Any]:
    texts = [reason.text for reason in verdict.reasons]
    return {
        "host": verdict.name,
        "uuid": verdict.provider,
        "able": verdict.is_able,
        "lacks": "; ".join(texts) if is_table else texts,
        "kinds": [str(reason.kind) for reason in verdict.reasons],
    }


def _sorted(found: Explanation) -> list[Verdict]:
    return sorted(found.verdicts, key=lambda v: (sum(r.distance for r in v.reasons), len(v.reasons), v.name))


def _sum(found: Explanation, *, is_for_tenants: bool) -> str:
    if found.able:
        return f"{len(found.able)} of {len(found.verdicts)} hosts could serve it now"
    return f"nearest miss: {found.nearest_miss_for_tenant if is_for_tenants else found.nearest_miss}"
