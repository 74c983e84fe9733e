"""``eschedule launch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ecompute.cluster.terminal import INTERRUPTED, say
from eschedule.cli.completion import complete_group, complete_host, complete_network
from eschedule.cli.lifecycle import WAIT_TIMEOUT_S, report, wait_until_it_runs
from eschedule.cli.output import format_option, show_one, show_rows
from eschedule.cli.parameters import timeout_option
from eschedule.cli.progress import Progress
from eschedule.cli.settings import Settings

if TYPE_CHECKING:
    from eschedule.scheduler.launched import Choice


CONFIG_DRIVES = ("openstack", "nocloud", "none")
"""As `ecompute.cluster.documents.ConfigDrive`, which is not loaded for help and completion; a test compares them."""


@click.command()
@click.argument("query", required=False)
@click.argument("image", required=False)
@click.option("--name", help="Its name: letters, digits and hyphens. Otherwise one is made up.")
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual CPUs; not beside a QUERY.")
@click.option("--memory", type=int, default=256, show_default=True, metavar="MB", help="Memory; not beside a QUERY.")
@click.option("--disk", type=int, default=1, show_default=True, metavar="GB", help="Disk; not beside a QUERY.")
@click.option("--image", "image_option", metavar="URL", help="The image; otherwise the configuration's.")
@click.option(
    "--ssh-key",
    "ssh_keys",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="A file with public keys; may be repeated.",
)
@click.option(
    "--user-data",
    "user_data",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="What cloud-init is to do, at most 64 KiB; - is standard input.",
)
@click.option(
    "--configdrive",
    "config_drive",
    type=click.Choice(CONFIG_DRIVES),
    default=CONFIG_DRIVES[0],
    show_default=True,
    help="How it is told who it is: a drive as OpenStack's or cloud-init's NoCloud, or DHCP and metadata alone.",
)
@click.option(
    "-n",
    "--network",
    "-N",
    "--networkspec",
    "networks",
    multiple=True,
    metavar="NET[@ADDRESS]",
    shell_complete=complete_network,
    help="An interface on that network, in this order; may be repeated. Or network_uuid=NET,address=…,macaddress=…,"
    "model=…. Otherwise one on the default network; none: no interface.",
)
@click.option("--group", metavar="GROUP", shell_complete=complete_group, help="A group to be a member of.")
@click.option("--host", metavar="HOST", shell_complete=complete_host, help="On this host, or not at all.")
@click.option(
    "--pack/--spread",
    "is_packed",
    default=None,
    help="The fullest host with room, or the emptiest (the configuration's).",
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What affinities of others count; may be repeated.")
@click.option(
    "--affinity",
    "affinities",
    multiple=True,
    metavar="TAG=WEIGHT",
    help="Near others with that tag (1 to 100), or apart (-1 to -100); may be repeated.",
)
@click.option("--expires", metavar="WHEN", help="Destroy it then: 30m, 2h, 7d, or a time (RFC 3339).")
@click.option("--uuid", metavar="UUID", help="Its uuid; a repeated launch with it is the same instance.")
@click.option("--idempotency-key", metavar="KEY", help="The same, where the uuid is made up: one key, one instance.")
@click.option("--dry-run", is_flag=True, help="Show the hosts it would be tried on, and why; claim nothing.")
@click.option("--count", type=int, metavar="N", help="So many of the same, all or none: NAME-1, NAME-2, ….")
@click.option(
    "--members",
    "members_file",
    type=click.Path(allow_dash=True),
    metavar="FILE",
    help="A YAML list of instances that differ, all or none; the options above hold for those that say nothing else.",
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until it runs; exit 1 if it fails.")
@timeout_option(WAIT_TIMEOUT_S)
@format_option
@click.pass_context
def launch(
    context: click.Context,
    query: str | None,
    image: str | None,
    name: str | None,
    cpus: int,
    memory: int,
    disk: int,
    image_option: str | None,
    ssh_keys: tuple[str, ...],
    user_data: str | None,
    config_drive: str,
    networks: tuple[str, ...],
    group: str | None,
    host: str | None,
    is_packed: bool | None,
    tags: tuple[str, ...],
    affinities: tuple[str, ...],
    expires: str | None,
    uuid: str | None,
    idempotency_key: str | None,
    dry_run: bool,
    count: int | None,
    members_file: str | None,
    is_waiting: bool,
    timeout_s: float,
    output: str,
) -> int:
    """Launch an instance on a host with room for it, and show it.

    QUERY is any query of placement's allocation candidates, for what --cpus, --memory and --disk
    cannot say: `resources=VCPU:2,MEMORY_MB:1024,DISK_GB:10&required=HW_CPU_X86_AVX2`. IMAGE is a
    URL, as for --image.

    With --count or --members many are launched, all or none. A member in FILE has some of: name, query,
    cpus, memory, disk, image, host, pack, group, tags, affinities, expires, ssh_keys, user_data,
    configdrive, networks.

    \b
    Example:  eschedule launch --name web-1 --ssh-key ~/.ssh/id_ed25519.pub --wait
              eschedule launch --name db-1 --cpus 2 --memory 1024 --disk 10 --user-data setup.yaml
              eschedule launch --name web-2 --tag web --affinity web=-50 --affinity db=100 --dry-run
              eschedule launch --name try-1 --expires 2h --idempotency-key build-4711
              eschedule launch --name web --count 4 --wait
              eschedule launch --name db-2 -n web -N network_uuid=db,address=10.1.0.5,model=e1000
    """
    settings: Settings = context.obj
    query = _query(context, query, cpus, memory, disk)
    image = _image(image, image_option)
    with settings.cloud() as cloud, Progress() as progress:
        from ecompute.cluster.errors import InvalidInput
        from eschedule.cli.files import read_ssh_keys, read_user_data
        from eschedule.cli.instance import describe
        from eschedule.cloud.instances import Instances
        from eschedule.cloud.interface_request import read_interfaces
        from eschedule.scheduler.launch import Launcher
        from eschedule.scheduler.request import LaunchRequest

        request = LaunchRequest(
            query=query,
            image=cloud.settings.images.default if image is None else image,
            name=name,
            namespace=settings.namespace,
            user_data=None if user_data is None else read_user_data(user_data),
            ssh_keys=tuple(key for path in ssh_keys for key in read_ssh_keys(path)),
            host=host,
            group=group,
            is_packed=cloud.settings.rank == "pack" if is_packed is None else is_packed,
            tags=tags,
            affinities=tuple(_affinity(text) for text in affinities),
            expires=expires,
            uuid=uuid,
            idempotency_key=idempotency_key,
            config_drive=config_drive,
            interfaces=read_interfaces(networks),
        )
        if dry_run and (count is not None or members_file is not None):
            raise InvalidInput("--dry-run is of one instance", hint="leave --count and --members out")
        if dry_run:
            return _show_choices(Launcher(cloud, on_step=progress.step).choices(request), output, progress)

        if members_file is not None and (count is not None or name is not None):
            raise InvalidInput("--members does not go with --count or --name", hint="name the members in the file")
        if count is not None or members_file is not None:
            from eschedule.cli.gang import from_file, launch_all, numbered

            requests = numbered(request, count or 0) if members_file is None else from_file(members_file, request)
            return launch_all(cloud, progress, requests, is_waiting=is_waiting, timeout_s=timeout_s, output=output)

        def refused(reason: str) -> None:
            progress.clear()
            say(f"claim lost: {reason}")

        try:
            launched = Launcher(cloud, on_step=progress.step, on_refused=refused).launch(request)
        except KeyboardInterrupt:
            progress.clear()
            say("interrupted; `eschedule list` shows whether it was launched all the same")
            return INTERRUPTED
        progress.clear()
        if launched.is_repeated:
            say(f"{launched.name} was launched before, with the same {'key' if uuid is None else 'uuid'}")
        if not launched.is_host_alive:
            say(f"{launched.host} does not answer: it will build {launched.name} when it is back")
        instances = Instances(cloud)
        instance = instances.find(launched.uuid, settings.namespace)
        if not is_waiting:
            (whole,) = instances.whole([instances.view(instance)])
            show_one(describe(whole, launched.host), output)
            if output == "table":
                say(f"next: eschedule wait {launched.uuid if name is None else name}")
            return 0
        view = wait_until_it_runs(instances, instance, timeout_s, progress)
        progress.clear()
        (whole,) = instances.whole([view or instances.view(instance)])
        show_one(describe(whole, launched.host), output)
    return report(view, launched.name)


CHOICE_FIELDS = ("place", "host", "provider", "points", "free_share", "is_alive", "reasons")
CHOICE_COLUMNS = ("place", "host", "points", "reasons")


def _show_choices(choices: list[Choice], output: str, progress: Progress) -> int:
    progress.clear()
    rows = [
        {
            "place": place,
            "host": choice.host,
            "provider": choice.ranked.provider,
            "points": round(choice.ranked.points, 3),
            "free_share": round(choice.ranked.free_share, 3),
            "is_alive": choice.ranked.is_alive,
            "reasons": [*map(str, choice.ranked.reasons), *([] if choice.ranked.is_alive else ["it does not answer"])],
        }
        for place, choice in enumerate(choices, start=1)
    ]
    show_rows(rows, output, fields=CHOICE_FIELDS, columns=CHOICE_COLUMNS, name="host")
    return 0


def _affinity(text: str) -> tuple[str, int]:
    from ecompute.cluster.errors import InvalidInput

    tag, _, weight = text.rpartition("=")
    if not tag or not weight.removeprefix("-").isascii() or not weight.removeprefix("-").isdigit() or len(weight) > 4:
        raise InvalidInput(
            f"{text[:80]!r} is no affinity", hint="write TAG=WEIGHT, a whole number of -100 to 100, as in db=50"
        )
    return tag, int(weight)


def _query(context: click.Context, query: str | None, cpus: int, memory: int, disk: int) -> str:
    """Return the placement query for what was asked.

    Raises:
        InvalidInput: it was asked in both ways, or what stands for the query is none.
    """
    from ecompute.cluster.errors import InvalidInput

    if query is None:
        return f"resources=VCPU:{cpus},MEMORY_MB:{memory},DISK_GB:{disk}"
    if "=" not in query:
        raise InvalidInput(
            f"{query[:60]!r} is no placement query",
            hint="use --name for a name, --image for an image, or resources=VCPU:1,…",
        )
    if any(
        context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE
        for option in ("cpus", "memory", "disk")
    ):
        raise InvalidInput("a query and --cpus, --memory or --disk were given", hint="say it in one of the two ways")
    return query


def _image(image: str | None, image_option: str | None) -> str | None:
    from ecompute.cluster.errors import InvalidInput

    if image is not None and image_option is not None:
        raise InvalidInput("two images were given", hint="give one, as an argument or with --image")
    return image if image is not None else image_option
