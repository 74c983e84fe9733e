"""``eschedule host enrol`` and ``eschedule host revoke``."""

from __future__ import annotations

from pathlib import Path

import click

from ecompute.cluster.terminal import put, say
from eschedule.cli.output import format_option, show_one
from eschedule.cli.settings import Settings

DAYS = 3650


@click.command()
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the host's files go.  [default: a directory of its name]",
)
@click.option("--provider", type=click.UUID, help="Its resource provider, where it is not known by its name.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, file_okay=False),
    help="Give it a certificate, signed by ca.pem and ca.key in this directory; made if it is empty.",
)
@click.option("--password", is_flag=True, help="Give its user a password, in a file.")
@click.option("--upkeep", is_flag=True, help="Give it credentials to lead the upkeep as well.")
@click.option(
    "--days", type=click.IntRange(1, 36500), default=DAYS, show_default=True, help="How long a certificate holds."
)
@format_option
@click.pass_obj
def enrol(
    settings: Settings,
    name: str,
    out: Path | None,
    provider: object,
    ca: Path | None,
    password: bool,
    upkeep: bool,
    days: int,
    output: str,
) -> int:
    """Make a host's own user, role and credentials in etcd.

    The role lets it read what is meant for it and write its own reports, and nothing else. Prints
    what its compute.yaml has to say; the files to copy there lie in --out. Enrolling it again
    changes nothing but a role that is not as it should be, and certificates that soon end.

    \b
    Example:  eschedule host enrol host-1 --ca ca
              eschedule host enrol host-1 --ca ca --upkeep --out host-1
              eschedule host enrol host-2 --password
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.enrolment import Enrolment

        enrolled = Enrolment(cloud).enrol(
            name,
            out=out or Path(name),
            provider=None if provider is None else str(provider),
            ca=ca,
            has_password=password,
            has_upkeep=upkeep,
            days=days,
        )
        is_asked = cloud.store.users.is_enabled()
    if output == "table":
        import yaml

        put(yaml.safe_dump(enrolled.settings, sort_keys=False), end="")
        files = ", ".join(enrolled.files)
        say(f"copy {files} from {enrolled.directory} beside {name}'s compute.yaml, and the lines above into it")
        if not is_asked:
            say("etcd asks nobody who they are yet: `etcdctl auth enable`, as INSTALL.md says")
        return 0
    show_one(
        {
            "name": enrolled.name,
            "provider": enrolled.provider,
            "user": enrolled.user,
            "role": enrolled.role,
            "upkeep_user": enrolled.upkeep_user,
            "directory": str(enrolled.directory),
            "files": enrolled.files,
            "settings": enrolled.settings,
        },
        output,
    )
    return 0


@click.command()
@click.argument("name")
@format_option
@click.pass_obj
def revoke(settings: Settings, name: str, output: str) -> int:
    """Take a host's user and role in etcd back.

    Its certificates and passwords are of no more use: they end with the user. What the host has, its
    guests, their claims and its provider, stays as it is.

    \b
    Example:  eschedule host revoke host-1
    """
    with settings.cloud() as cloud:
        from eschedule.cloud.enrolment import Enrolment

        revoked = Enrolment(cloud).revoke(name)
    show_one({"name": revoked.name, "provider": revoked.provider, "users": revoked.users}, output)
    if output == "table":
        say("its certificates and passwords ended with its users; watches that it has open end with their connections")
    return 0
