"""``eschedule group create | list | show | delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import put, say
from eschedule.cli.completion import complete_group
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from ecompute.cluster.documents import Group, Member

POLICIES = ("anti-affinity", "affinity", "soft-anti-affinity", "soft-affinity")
SCOPES = ("host", "zone")
FIELDS = ("name", "uuid", "namespace", "policy", "scope", "place", "created_at")
COLUMNS = ("name", "policy", "scope", "uuid")
MEMBER_FIELDS = ("name", "uuid", "host", "zone")


@click.group()
def group() -> None:
    """Keep instances together, or apart: the members of a group, launched with --group.

    \b
    Example:  eschedule group create web --policy anti-affinity
              eschedule launch --name web-1 --group web
              eschedule group show web
    """


@group.command()
@click.argument("name")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    required=True,
    help="No two members at one place, all at one, or either where it can be.",
)
@click.option("--scope", type=click.Choice(SCOPES), default="host", show_default=True, help="What a place is.")
@format_option
@click.pass_obj
def create(settings: Settings, name: str, policy: str, scope: str, output: str) -> int:
    """Make a group.

    Apart (anti-affinity) and together (affinity) are kept by placement: what cannot be so is not
    launched. The soft ones are wishes.

    \b
    Example:  eschedule group create web --policy anti-affinity
              eschedule group create db --policy anti-affinity --scope zone
    """
    with settings.cloud() as cloud:
        from ecompute.cluster.documents import Policy, Scope
        from eschedule.cloud.groups import Groups

        made = Groups(cloud).create(settings.namespace, name, Policy(policy), Scope(scope))
    show_one(describe(made), output)
    if output == "table":
        say(f"next: eschedule launch --group {made.name}")
    return 0


@group.command("list")
@format_option
@click.pass_obj
def list_(settings: Settings, output: str) -> int:
    """List the groups of the namespace.

    \b
    Example:  eschedule group list -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.groups import Groups

        rows = [describe(found) for found in Groups(cloud).all(settings.namespace)]
    if not rows and output == "table":
        say(f"namespace {settings.namespace} has no group; `eschedule group create NAME --policy …` makes one")
        return 0
    show_rows(rows, output, fields=FIELDS, columns=COLUMNS)
    return 0


@group.command()
@click.argument("group", shell_complete=complete_group)
@format_option
@click.pass_obj
def show(settings: Settings, group: str, output: str) -> int:
    """Show a group and its members.

    \b
    Example:  eschedule group show web
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.groups import Groups
        from eschedule.cloud.hosts import Hosts
        from eschedule.cloud.instances import Instances

        groups = Groups(cloud)
        found = groups.find(group, settings.namespace).value
        members = groups.members(found)
        places = {member.provider for member in members} | {found.place or ""}
        hosts = Hosts(cloud).names_of(places)
        instances = Instances(cloud).several([member.instance_uuid for member in members])
        names = {item.value.uuid: item.value.name for item in instances}
    rows = [_describe_member(member, names, hosts) for member in members]
    if output != "table":
        show_one(describe(found) | {"members": rows}, output)
        return 0
    row = describe(found)
    show_one(row | {"place": hosts.get(found.place or "", found.place), "members": len(rows)}, output)
    if rows:
        put("")
        show_rows(rows, output, fields=MEMBER_FIELDS, columns=MEMBER_FIELDS)
    return 0


@group.command()
@click.argument("group", shell_complete=complete_group)
@click.pass_obj
def delete(settings: Settings, group: str) -> int:
    """Remove a group that has no members. Prints nothing.

    \b
    Example:  eschedule group delete web
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.groups import Groups

        Groups(cloud).delete(group, settings.namespace)
    return 0


def describe(group: Group) -> dict[str, Any]:
    """Return one group as all formats show it: `FIELDS`, in order."""
    return {
        "name": group.name,
        "uuid": group.uuid,
        "namespace": group.namespace,
        "policy": str(group.policy),
        "scope": str(group.scope),
        "place": group.place,
        "created_at": group.created_at,
    }


def _describe_member(member: Member, names: dict[str, str], hosts: dict[str, str]) -> dict[str, Any]:
    """Return one member: `MEMBER_FIELDS`, in order."""
    return {
        "name": names.get(member.instance_uuid),
        "uuid": member.instance_uuid,
        "host": hosts.get(member.provider, member.provider),
        "zone": member.zone,
    }
