"""``eschedule hosts``, and ``eschedule host …``: what operators say of hosts, and see of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ecompute.cluster.terminal import INTERRUPTED, say
from eschedule.cli.completion import complete_host, complete_zone
from eschedule.cli.enrol import enrol, revoke
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.parameters import timeout_option
from eschedule.cli.progress import Progress
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ecompute.cluster.documents import Node
    from eschedule.cloud.hosts import Hosts, HostView

CLASSES = (("vcpus", "VCPU"), ("memory_mb", "MEMORY_MB"), ("disk_gb", "DISK_GB"))
ROOM = tuple(field for column, _ in CLASSES for field in (column, f"{column}_used"))
MACHINE = ("accelerator", "underlay", "hypervisor", "version")
FIELDS = ("name", "uuid", "state", *ROOM, *MACHINE, "hold")
COLUMNS = ("name", "state", *(column for column, _ in CLASSES), "accelerator", "underlay", "uuid")

HOST_FIELDS = ("name", "uuid", "state", "why", "lost_since", "zone", "location", "traits", *ROOM, *MACHINE)
HOST_COLUMNS = ("name", "state", "zone", "location", *(column for column, _ in CLASSES), "why")
ZONE_FIELDS = ("name", "hosts", "aggregate", "created_at")
ZONE_COLUMNS = ("name", "hosts", "aggregate")

EMPTY_TIMEOUT_S = 3600.0
LOOK_S = 2.0


def describe(host: HostView) -> dict[str, Any]:
    """Return one host as all formats of ``hosts`` show it: `FIELDS`, in order."""
    return {
        "name": host.node.name,
        "uuid": host.node.provider,
        "state": host.state,
        **_room(host),
        **_machine(host),
        "hold": host.node.hold,
    }


def describe_host(host: HostView) -> dict[str, Any]:
    """Return one host as operators see it: `HOST_FIELDS`, in order."""
    return {
        "name": host.node.name,
        "uuid": host.node.provider,
        "state": host.standing,
        "why": host.why,
        "lost_since": host.admin.lost_since,
        "zone": host.admin.zone,
        "location": host.admin.location or None,
        "traits": list(host.admin.traits),
        **_room(host),
        **_machine(host),
    }


def _room(host: HostView) -> dict[str, Any]:
    """What may be claimed in all when the host is open, and what is."""
    row: dict[str, Any] = {}
    for column, resource_class in CLASSES:
        room = host.room.get(resource_class)
        row[column] = None if room is None else room.capacity
        row[f"{column}_used"] = None if room is None else room.used
    return row


def _machine(host: HostView) -> dict[str, Any]:
    return {field: getattr(host.node, field) for field in MACHINE}


@click.command()
@format_option
@click.pass_obj
def hosts(settings: Settings, output: str) -> int:
    """List the hosts: their state, and how much of each resource is used, of how much.

    A host is up, down (its daemon does not answer), stopped (in order), draining, in maintenance,
    lost, or on hold (the data in etcd is not what it knew; see its log). What operators do with it is
    `eschedule host`.

    \b
    Example:  eschedule hosts
              eschedule hosts -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts

        rows = [describe(host) for host in Hosts(cloud).all()]
    _show(rows, output, FIELDS, COLUMNS)
    if output == "table":
        for row in rows:
            if row["hold"]:
                say(f"{row['name']} is on hold: {row['hold']}")
    return 0


@click.group()
def host() -> None:
    """See and keep the hosts: drain, maintain and activate them, say where they are, enrol them.

    A HOST is its name, its uuid, or the beginning of either.

    \b
    Example:  eschedule host list
              eschedule host drain node-7 --reason 'a fan is failing'
              eschedule host activate node-7
              eschedule host set node-7 --zone north --location 'rack 3' --trait CUSTOM_SSD
    """


host.add_command(enrol)
host.add_command(revoke)


@host.command("list")
@format_option
@click.pass_obj
def list_(settings: Settings, output: str) -> int:
    """List the hosts as operators see them: what they are to do, where they are, and why they do not.

    active takes new instances; draining, maintenance (as operators said), lost (not heard of for a
    minute and more), stopped (in order, and says so), hold, closed (it says why, for example that it
    starts) and down do not. All are read with one question to placement.

    \b
    Example:  eschedule host list
              eschedule host list -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts

        rows = [describe_host(view) for view in Hosts(cloud).all()]
    _show(rows, output, HOST_FIELDS, HOST_COLUMNS)
    return 0


@host.command()
@click.argument("ref", metavar="HOST", shell_complete=complete_host)
@format_option
@click.pass_obj
def show(settings: Settings, ref: str, output: str) -> int:
    """Show one host: what is said of it, what it has, and which instances are on it.

    \b
    Example:  eschedule host show node-7
              eschedule host show node-7 -o yaml
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.hosts import Hosts

        found = Hosts(cloud)
        node = found.find(ref)
        view = found.view(node)
        row = describe_host(view) | {"placement_traits": sorted(view.traits), "instances": found.instances(node)}
    show_one(row, output)
    return 0


@host.command()
@click.argument("ref", metavar="HOST", shell_complete=complete_host)
@format_option
@click.pass_obj
def events(settings: Settings, ref: str, output: str) -> int:
    """Show what the audits found and did on a host, oldest first: its own, and the lead's.

    
    Example:  eschedule host events node-7
              eschedule host events node-7 -o json
    """
    with settings.cloud() as cloud:
        from eschedule.cli import event
        from eschedule.cloud.hosts import Hosts

        found = Hosts(cloud)
        names = found.names()
        rows = [event.describe(one, names) for one in found.events(found.find(ref))]
    show_rows(rows, output, fields=event.FIELDS, columns=event.COLUMNS, name="type")
    return 0


@host.command()
@click.argument("ref", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@click.option("--reason", default="", metavar="TEXT", help="Why, for people.")
@click.option("--wait", is_flag=True, help="Wait until no instance is left there, and say what still is.")
@timeout_option(EMPTY_TIMEOUT_S)
@format_option
@click.pass_obj
def drain(settings: Settings, ref: tuple[str, ...], reason: str, wait: bool, timeout_s: float, output: str) -> int:
    """Let hosts take no new instances. Those that they have run on until somebody destroys them.

    No launch lands there any more, not even one that was under way. It may be said again.

    \b
    Example:  eschedule host drain node-7 --reason 'a fan is failing'
              eschedule host drain node-7 --wait
    """
    return _close(settings, ref, "draining", reason, output, timeout_s if wait else None)


@host.command()
@click.argument("ref", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@click.option("--reason", default="", metavar="TEXT", help="Why, for people.")
@format_option
@click.pass_obj
def maintain(settings: Settings, ref: tuple[str, ...], reason: str, output: str) -> int:
    """Say that hosts are being worked on. They take no new instances, as if drained.

    \b
    Example:  eschedule host maintain node-7 --reason 'new memory'
    """
    return _close(settings, ref, "maintenance", reason, output, None)


@host.command()
@click.argument("ref", metavar="HOST...", nargs=-1, required=True, shell_complete=complete_host)
@format_option
@click.pass_obj
def activate(settings: Settings, ref: tuple[str, ...], output: str) -> int:
    """Let hosts take new instances again.

    A host opens itself, once everything that it was told to remove is gone; one that is lost or
    down, once it is back.

    \b
    Example:  eschedule host activate node-7
    """
    return _each(settings, ref, lambda found, node: found.activate(node), output)


@host.command("set")
@click.argument("ref", metavar="HOST", shell_complete=complete_host)
@click.option(
    "--zone",
    metavar="ZONE",
    shell_complete=complete_zone,
    help="The hosts with which it may fail together; '' for none. Made if new.",
)
@click.option("--location", metavar="TEXT", help="Where it stands, for people; '' for nothing.")
@click.option("--trait", "traits", multiple=True, metavar="CUSTOM_X", help="Give it a trait, to be asked for.")
@click.option("--no-trait", "no_traits", multiple=True, metavar="CUSTOM_Y", help="Take a trait from it.")
@format_option
@click.pass_obj
def set_(
    settings: Settings,
    ref: str,
    zone: str | None,
    location: str | None,
    traits: tuple[str, ...],
    no_traits: tuple[str, ...],
    output: str,
) -> int:
    """Say where a host is, and what it has that it cannot know.

    \b
    Example:  eschedule host set node-7 --zone north --location 'rack 3'
              eschedule host set node-7 --trait CUSTOM_SSD --no-trait CUSTOM_HDD
              eschedule host set node-7 --zone ''
    """
    if zone is None and location is None and not traits and not no_traits:
        raise click.UsageError("nothing is to be set; give --zone, --location, --trait or --no-trait")

    def change(found: Hosts, node: Node) -> object:
        return found.set(node, zone=zone, location=location, traits=frozenset(traits), no_traits=frozenset(no_traits))

    return _each(settings, (ref,), change, output)


@host.command()
@click.option("--remove", metavar="ZONE", shell_complete=complete_zone, help="Remove a zone in which no host is.")
@format_option
@click.pass_obj
def zones(settings: Settings, remove: str | None, output: str) -> int:
    """List the zones, and how many hosts are in each.

    The aggregate may be asked for in a query: member_of=AGGREGATE.

    \b
    Example:  eschedule host zones
              eschedule host zones --remove north
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.zones import Zones

        found = Zones(cloud)
        if remove is not None:
            found.remove(remove)
        sizes = found.sizes()
        rows = [
            {
                "name": zone.name,
                "hosts": sizes[zone.name],
                "aggregate": zone.aggregate,
                "created_at": zone.created_at,
            }
            for zone in found.all()
        ]
    if not rows and output == "table":
        say("there are no zones; `eschedule host set HOST --zone ZONE` makes one")
        return 0
    show_rows(rows, output, fields=ZONE_FIELDS, columns=ZONE_COLUMNS)
    return 0


def _close(
    settings: Settings, refs: tuple[str, ...], state: str, reason: str, output: str, timeout_s: float | None
) -> int:
    """Keep new instances off hosts.

    Args:
        timeout_s: how long to wait until no instance is left there; None: not at all.
    """

    def change(found: Hosts, node: Node) -> None:
        from ecompute.cluster.documents import AdminState

        found.drain(node, AdminState(state), reason)
        left = found.instances(node)
        if left and timeout_s is None:
            say(f"{node.name} takes nothing new; on it {_are_left(left)}")

    return _each(settings, refs, change, output, timeout_s)


def _each(
    settings: Settings,
    refs: tuple[str, ...],
    change: Callable[[Hosts, Node], object],
    output: str,
    timeout_s: float | None = None,
) -> int:
    """Change hosts, and show them as they are then. All are found before any is changed.

    Where placement does not answer, all are changed as far as that goes, and the first error is raised.
    """
    with settings.cloud() as cloud:
        from ecompute.cluster.errors import PlacementUnavailable
        from eschedule.cloud.half_done import half_done
        from eschedule.cloud.hosts import Hosts

        found = Hosts(cloud)
        nodes = list({node.provider: node for node in map(found.find, refs)}.values())
        failures = []
        for node in nodes:
            try:
                change(found, node)
            except PlacementUnavailable as error:
                failures.append(error)
        if failures:
            for failure in failures[1:]:
                say(str(failure.args[0]))
            raise failures[0]
        if timeout_s is not None:
            _wait_until_empty(found, nodes, timeout_s)
        with half_done(f"it is said of {', '.join(node.name for node in nodes)}", "it cannot be shown"):
            rows = [describe_host(found.view(node)) for node in nodes]
    _show(rows, output, HOST_FIELDS, HOST_COLUMNS)
    return 0


def _wait_until_empty(found: Hosts, nodes: list[Node], timeout_s: float) -> None:
    import time

    from ecompute.cluster.errors import DeadlineExceeded

    deadline = time.monotonic() + timeout_s
    with Progress() as progress:
        try:
            for node in nodes:
                while left := found.instances(node):
                    progress.step(f"on {node.name} {_are_left(left)}")
                    if time.monotonic() > deadline:
                        raise DeadlineExceeded(
                            f"on {node.name} {_are_left(left)} after {timeout_s:g} s",
                            hint=f"destroy them, and wait again: `eschedule host drain {node.name} --wait`",
                        )
                    time.sleep(min(LOOK_S, max(0.0, deadline - time.monotonic()) + 0.01))
        except KeyboardInterrupt:
            progress.clear()
            say(f"they stay drained; `eschedule host drain {' '.join(node.name for node in nodes)} --wait` waits again")
            raise SystemExit(INTERRUPTED) from None


def _are_left(names: list[str]) -> str:
    from ecompute.cluster.errors import some_of

    return f"{len(names)} instance{'s are' if len(names) > 1 else ' is'} left: {some_of(names)}"


def _show(rows: list[dict[str, Any]], output: str, fields: tuple[str, ...], columns: tuple[str, ...]) -> None:
    if output == "table":
        if not rows:
            say("no host has registered; `ecompute run` on a machine makes it one")
            return
        rows = [row | _for_people(row) for row in rows]
    show_rows(rows, output, fields=fields, columns=columns)


def _for_people(row: dict[str, Any]) -> dict[str, str]:
    return {
        column: f"{row[f'{column}_used']}/{row[column]}" if row[column] is not None else "" for column, _ in CLASSES
    }
