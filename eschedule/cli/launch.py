"""``eschedule launch``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from eschedule.cli.main import Settings
from eschedule.cli.output import Progress, format_option, show_one

WAIT_TIMEOUT_S = 600.0


@click.command()
@click.argument("query", required=False)
@click.argument("image", required=False)
@click.option("--name", help="Its name; letters, digits and hyphens. Otherwise one is made up.")
@click.option("--cpus", type=int, default=1, show_default=True, help="Virtual CPUs; not beside a QUERY.")
@click.option("--memory", type=int, default=256, show_default=True, help="Memory in MB; not beside a QUERY.")
@click.option("--disk", type=int, default=1, show_default=True, help="Disk in GB; not beside a QUERY.")
@click.option("--image", "image_option", metavar="URL", help="The image; otherwise the configuration's.")
@click.option("--ssh-key", "ssh_keys", multiple=True, metavar="FILE", help="A file with public keys; may be repeated.")
@click.option(
    "--user-data", "user_data", metavar="FILE", help="What cloud-init is to do, at most 64 KiB; - is standard input."
)
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until it runs; exit 1 if it fails.")
@click.option("--timeout", "timeout_s", type=float, default=WAIT_TIMEOUT_S, show_default=True, help="Seconds to wait.")
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
    is_waiting: bool,
    timeout_s: float,
    output: str,
) -> int:
    """Launch an instance on a host with room for it.

    QUERY is any query of placement's allocation candidates, for what --cpus, --memory and --disk
    cannot say: `resources=VCPU:2,MEMORY_MB:1024,DISK_GB:10&required=HW_CPU_X86_AVX2`.

    \b
    Example:  eschedule launch --name web-1 --cpus 2 --memory 1024 --disk 10 \\
                  --ssh-key ~/.ssh/id_ed25519.pub --wait
    """
    from ecompute.cluster.documents import State
    from ecompute.cluster.errors import InvalidInput, NoRoom
    from eschedule.cli.instance import describe
    from eschedule.cloud.connection import Cloud
    from eschedule.cloud.instances import Instances
    from eschedule.scheduler.launch import Launcher
    from eschedule.scheduler.request import LaunchRequest

    settings: Settings = context.obj
    if query is not None and "=" not in query:
        raise InvalidInput(
            f"{query[:60]!r} is no placement query",
            hint="use --name for a name, --image for an image, or resources=VCPU:1,…",
        )
    if query is not None and any(
        context.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE
        for option in ("cpus", "memory", "disk")
    ):
        raise InvalidInput("a query and --cpus, --memory or --disk were given", hint="say it in one of the two ways")
    if image is not None and image_option is not None:
        raise InvalidInput("two images were given", hint="give one, as an argument or with --image")
    keys = tuple(line for path in ssh_keys for line in _read_keys(path))
    text = None if user_data is None else _read_text(user_data)
    progress = Progress()
    cloud = Cloud.from_file(settings.config)
    try:
        launcher = Launcher(
            cloud, on_step=progress.step, on_refused=lambda reason: click.echo(f"claim lost: {reason}", err=True)
        )
        try:
            launched = launcher.launch(
                LaunchRequest(
                    query=query or f"resources=VCPU:{cpus},MEMORY_MB:{memory},DISK_GB:{disk}",
                    image=image or image_option or cloud.settings.images.default,
                    name=name,
                    namespace=settings.namespace,
                    user_data=text,
                    ssh_keys=keys,
                )
            )
        except NoRoom:
            progress.done()
            raise
        instances = Instances(cloud)
        instance = instances.find(launched.uuid, settings.namespace)
        view = instances.view(instance)
        if is_waiting:
            try:
                reached = instances.wait(
                    instance,
                    until=frozenset({State.CREATED, State.ERROR, State.DELETING}),
                    timeout_s=timeout_s,
                    on_view=lambda state, doing: progress.step(f"{launched.name} is {state}: {doing}"),
                )
            except KeyboardInterrupt:
                progress.done()
                click.echo(f"it goes on by itself; `eschedule wait {launched.uuid}` waits again", err=True)
                return 130
            if reached is not None:
                view = reached
        progress.done()
        show_one(describe(view, launched.host), output)
        if is_waiting and view.state is not State.CREATED:
            click.echo(f"error: {launched.name} is {view.state}: {view.error or 'destroyed meanwhile'}", err=True)
            return 1
        if not is_waiting and output == "table":
            click.echo(f"next: eschedule wait {launched.name}", err=True)
        return 0
    finally:
        cloud.close()


def _read_text(path: str) -> str:
    from ecompute.cluster.errors import InvalidInput
    from eschedule.scheduler.request import USER_DATA_LIMIT_BYTES, check_user_data

    data = _read(path, USER_DATA_LIMIT_BYTES + 1)
    if len(data) > USER_DATA_LIMIT_BYTES:
        raise InvalidInput(
            f"user data in {path} is too long",
            hint=f"at most {USER_DATA_LIMIT_BYTES} bytes; let a short script fetch the rest",
        )
    if b"\x00" in data:
        return check_user_data(data.decode("latin-1"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text", hint="encode anything else, for example with base64") from error


def _read_keys(path: str) -> list[str]:
    from ecompute.cluster.errors import InvalidInput

    try:
        text = _read(str(Path(path).expanduser()), 1 << 20).decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} holds no ssh public keys", hint="give the file that ends in .pub") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise InvalidInput(f"{path} holds no ssh public keys", hint="give the file that ends in .pub")
    if "PRIVATE KEY" in text:
        raise InvalidInput(f"{path} is a private key", hint="give the public one, the file that ends in .pub")
    return lines


def _read(path: str, limit_bytes: int) -> bytes:
    from ecompute.cluster.errors import InvalidInput

    try:
        if path == "-":
            return sys.stdin.buffer.read(limit_bytes)
        with Path(path).open("rb") as file:
            return file.read(limit_bytes)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", hint="give a readable file") from error
